"""Every format through the drivers: compress, info, multiply, solve with and without refinement; and what is refused, in one line and without a file."""

import json
import re

import numpy as np
import pytest

from hpcHess.curvature.fisher import EmpiricalFisher, Fisher, MonteCarloFisher
from hpcHess.curvature.gauss_newton import GaussNewton
from hpcHess.formats.registry import FORMATS
from hpcHess.networks.network import Network
from tests.drivers.drive import COMM, drive, listing, ok, on_root, relative, small_arrays, write_job
from tests.drivers.test_matrix_job import job as matrix_job

NAMES = [name for name, each in FORMATS.items() if each.compress is not None and name not in ("hss", "fmm")] + ["auto"]
MISSES = "block-diagonal"


def compressed(case, name, *more):
    """(run, F) of the small job in that format."""
    F = case.folder / f"{name}.h5"
    return drive("compress", case.job, "--output", F, "--set", f"compress.format={name}", *more), F


@pytest.mark.parametrize("name", NAMES)
def test_the_whole_way(case, name):
    run, F = compressed(case, name)
    ok(run, 3 if name == MISSES else 0)
    found = json.loads(ok(drive("info", F, "--json", "--verify")).out)
    assert found["rtol_met"] == (name != MISSES) and found["complete"] and (found["format"] == name or name == "auto")
    text = ok(drive("info", F)).out
    assert f"{found['format'].upper()} matrix, N = {case.N}" in text and (name != "auto" or "auto: least time for rtol" in text)
    U = case.folder / "U.npy"
    ok(drive("multiply", F, "--input", case.folder / "V.npy", "--output", U))
    error = relative(on_root(lambda: np.load(U)), case.H @ case.V)
    assert error < (0.9 if name == MISSES else 1e-2)


@pytest.mark.parametrize("name", NAMES)
def test_solves(case, name):
    pytest.importorskip("petsc4py")
    _, F = compressed(case, name)
    X, damping = case.folder / "X.npy", 0.01 * case.lmax
    run = ok(drive("solve", F, "--rhs", case.folder / "V.npy", "--output", X, "--damping", damping))
    assert run.residual("compressed") < 1e-6
    run = ok(drive("solve", F, "--rhs", case.folder / "V.npy", "--output", X, "--damping", damping, "--refine", "exact", "--rtol", 1e-9))
    wanted = np.linalg.solve(case.H + damping * np.eye(case.N), case.V)
    assert run.residual("exact") <= 1e-9 and relative(on_root(lambda: np.load(X)), wanted) < 1e-6


def test_keys_of_the_formats(case):
    """K-FAC, a count of terms, the other ways to low rank, blocks of neurons, a structured part."""
    for name, keys, shown in (
        ("kronecker-sum", ["terms=kfac"], "terms       kfac"),
        ("kronecker-sum", ["terms=2"], "terms       2"),
        ("low-rank", ["method=nystrom"], "method      nystrom"),
        ("block-diagonal", ["blocks=neuron"], "one neuron each"),
        ("hss", ["structured=kronecker-sum"], "part        kronecker-sum"),
        ("hss", ["structured=low-rank", "structured_size=4"], "part        low-rank"),
    ):
        run, F = compressed(case, name, *(word for key in keys for word in ("--set", f"compress.{key}")))
        assert run.status in (0, 3), run.err
        assert shown in ok(drive("info", F)).out


def test_the_choice_is_explained_before_it_is_made(case):
    run, F = compressed(case, "auto", "--rhs-count", "12", "--memory", "4G", "--set", "compress.objective=storage")
    assert re.search(r"auto: least storage for rtol 0.001, 12 right-hand sides to solve for, 4 GB of memory", ok(run).err)
    found = json.loads(ok(drive("info", F, "--json")).out)
    assert found["plan"]["memory"] == 4 * 10**9 and set(found["plan"]["predictions"]) >= {"hss", "low-rank", "kronecker-sum", "dense", "none"}


KINDS = {  # loss, keys, the operator of a network and its data
    "binary": ("binary-cross-entropy", ["curvature.kind=gauss-newton", "curvature.layers=[2]"], lambda net, x, y: GaussNewton(net.restricted([1]), x, comm=COMM)),
    "fisher": ("squared-error", ["curvature.kind=fisher", "network.output=sigmoid"], lambda net, x, y: Fisher(net, x, comm=COMM)),
    "mc-fisher": ("binary-cross-entropy", ["curvature.kind=mc-fisher", "curvature.draws=2"], lambda net, x, y: MonteCarloFisher(net, x, comm=COMM, draws=2)),
    "opg": ("squared-error", ["curvature.kind=opg", "network.output=tanh"], lambda net, x, y: EmpiricalFisher(net, x, y, comm=COMM)),
}


@pytest.mark.parametrize("format", ["kronecker-sum", "data-woodbury", "low-rank", "hss"])
@pytest.mark.parametrize("kind", KINDS)
def test_kinds(folder, kind, format):
    """Every kind of Gram type, with other losses than the case's, from the job to products and solves with the exact matrix."""
    pytest.importorskip("petsc4py")
    loss, keys, make = KINDS[kind]
    arrays, x, y = small_arrays((6, 5, 4), 20, loss)
    y = np.abs(y) / 4 if loss == "binary-cross-entropy" else y
    output = next((key.partition("=")[2] for key in keys if "output" in key), "identity")
    H = make(Network.from_arrays(arrays, "tanh", loss, output), x, y).matmat(np.eye(24 if "layers" in keys[-1] else 59))
    job, F = folder / kind / "job.toml", folder / kind / f"{format}.h5"
    on_root(lambda: job.exists() or write_job(folder / kind, loss=loss, widths=(6, 5, 4), n=20) and np.save(folder / kind / "targets.npy", y))
    V, name = np.random.default_rng(5).standard_normal((len(H), 2)), folder / kind / f"{format}.npy"
    on_root(lambda: np.save(name, V))
    given = [word for key in [*keys, f"compress.format={format}", "compress.leaf_size=12"] for word in ("--set", key)]
    ok(drive("compress", job, "--output", F, *given))
    found, damping = json.loads(ok(drive("info", F, "--json", "--verify")).out), 0.01 * np.linalg.eigvalsh(H)[-1]
    assert found["rtol_met"] and found["n_params"] == len(H)
    for more, bound in ((), 3e-3), (("--exact",), 1e-12):
        ok(drive("multiply", F, "--input", name, "--output", folder / "U.npy", *more))
        assert relative(on_root(lambda: np.load(folder / "U.npy")), H @ V) < bound
    run = ok(drive("solve", F, "--rhs", name, "--output", folder / "X.npy", "--damping", damping, "--refine", "exact", "--rtol", 1e-9))
    assert run.residual("exact") <= 1e-9
    assert relative(on_root(lambda: np.load(folder / "X.npy")), np.linalg.solve(H + damping * np.eye(len(H)), V)) < 1e-6


REFUSED = [
    (["--set", "compress.format=hodlr"], "format must be .*not 'hodlr'"),
    (["--set", "compress.format=sum"], "format must be .*not 'sum'"),
    (["--set", "compress.format=data-woodbury", "--memory", "10K"], "data-woodbury needs about .* but 0.01 MB may be used: raise --memory"),
    (["--set", "compress.format=dense", "--memory", "10K"], "dense needs about"),
    (["--set", "compress.format=auto", "--memory", "1K"], "no format can serve with 0.001 MB of memory"),
    (["--set", "data.quadrature=3", "--set", "compress.rtol=1e-3"], "leaves nothing of rtol"),
    (["--set", "compress.terms=kfac"], "terms = 'kfac' is for compress.format = .kronecker-sum., not .hss."),
    (["--set", "compress.structured_size=4"], "structured_size needs"),
    (["--set", "compress.terms=0"], "compress.terms must be"),
    (["--set", "compress.method=lanczos"], "compress.method must be"),
    (["--set", "compress.format=dense", "--set", "compress.structured=low-rank"], "compress.structured"),
    (["--set", "data.quadrature=0.5", "--set", "compress.rtol=1e-3"], "leaves nothing of compress.rtol"),
]


@pytest.mark.parametrize(("more", "message"), REFUSED)
def test_refused_in_one_line(case, more, message):
    before = listing(case.folder)
    run = drive("compress", case.job, "--output", case.folder / "none.h5", *more)
    assert run.status == 2 and len(run.errors) == 1 and re.search(message, run.errors[0]), run.err
    assert listing(case.folder) == before


def test_a_matrix_from_a_file_has_no_layers_and_may_be_indefinite(folder):
    at = folder / "indefinite"
    K = np.diag(np.linspace(-1, 2, 60)) + 0.01
    on_root(lambda: at.mkdir() or np.save(at / "K.npy", K))
    made, F = matrix_job(at), at / "F.h5"
    for more, message in (
        (["compress.format=kronecker-sum"], "kronecker-sum.* needs a network's layers"),
        (["compress.format=block-diagonal"], "needs a network with layers"),
        (["compress.format=data-woodbury"], "needs a network and its samples"),
        (["compress.format=low-rank", "--set", "compress.method=nystrom", "--set", "compress.rtol=0.5"], "is indefinite"),
    ):
        run = drive("compress", made, "--output", F, "--set", *more)
        assert run.status == 2 and len(run.errors) == 1 and re.search(message, run.errors[0]), run.err
        assert not F.exists()
    for name in ("low-rank", "dense", "auto"):
        ok(drive("compress", made, "--output", F, "--set", f"compress.format={name}", "--set", "compress.rtol=0.1"))


def test_damping_without_factors_to_store_is_told(case):
    run, F = compressed(case, "low-rank", "--damping", "0.01*lmax")
    assert ok(run).warnings == ["hpcHess: warning: no factors are stored: what solves with the format low-rank is made anew for every λ"]
    assert json.loads(ok(drive("info", F, "--json")).out)["woodbury_damping"] is None
