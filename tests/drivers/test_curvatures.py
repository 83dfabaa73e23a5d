"""Jobs of the curvatures' parts through the drivers, files that refer to their job; every mistake in them is one line, status 2, no file."""

import json
import shutil

import numpy as np
import pytest

import hpcHess as hh
from tests.drivers.drive import COMM, dense, drive, listing, ok, on_root, relative, residuals, small_arrays, write_job
from tests.drivers.test_bad_input import refused

N, L2, CHOSEN = 353, 0.05, np.random.default_rng(2).permutation(353)[:120]
WEIGHTS = np.random.default_rng(3).random(60)
PARTS = {  # keys of the job: what becomes of H
    "l2": (["curvature.l2=0.05"], lambda H: H + L2 * np.eye(N)),
    "parameters": (["curvature.parameters=I.npy"], lambda H: H[np.ix_(CHOSEN, CHOSEN)]),
    "layers": (["curvature.layers=[2, 3]"], lambda H: H[204:, 204:]),
    "parameters, l2": (["curvature.parameters=I.npy", "curvature.l2=0.05"], lambda H: H[np.ix_(CHOSEN, CHOSEN)] + L2 * np.eye(len(CHOSEN))),
    "layers, l2": (["curvature.layers=[1]", "curvature.l2=0.05"], lambda H: H[:204, :204] + L2 * np.eye(204)),
}
CASES = [("l2", name) for name in ("fmm", "low-rank", "kronecker-sum", "none", "data-woodbury", "dense", "auto")]
CASES += [("parameters", name) for name in ("hss", "none")] + [("layers", "hss"), ("parameters, l2", "none"), ("layers, l2", "hss")]


def settings(*keys):
    """--set key --set key …"""
    return [word for key in keys for word in ("--set", key)]


@pytest.fixture(scope="module")
def job(folder):
    """A small job whose folder also holds I.npy and w.npy; `H` dense, without its parts; B.npy [N, 2] …"""
    path = on_root(lambda: write_job(folder / "parts"))
    arrays, x, _ = small_arrays()
    on_root(lambda: (np.save(path.parent / "I.npy", CHOSEN), np.save(path.parent / "w.npy", WEIGHTS)) and None)
    return path, on_root(lambda: dense(arrays, x))


@pytest.mark.parametrize("part, format", CASES)
def test_the_whole_way(job, part, format, shared_tmp):
    pytest.importorskip("petsc4py")
    (path, H), (keys, change) = job, PARTS[part]
    A, F = change(H), shared_tmp / "F.h5"
    ok(drive("compress", path, "--output", F, "--damping", "0.01", *settings(f"compress.format={format}", "compress.distance=neuron", *keys)))
    found, text = json.loads(ok(drive("info", F, "--json", "--verify")).out), ok(drive("info", F)).out
    assert (found.get("l2") == L2) == ("l2" in part) == ("0.05·I besides" in text) and f"N = {len(A)}" in text
    assert "curvature   gauss-newton" in text and ("layer" not in part or "layers 2, 3" in text or "layer 1" in text)
    assert ("parameters_hash" in found["provenance"]) == ("parameters" in part) == ("parameters I.npy" in text)
    B = np.random.default_rng(5).standard_normal((len(A), 2))
    on_root(lambda: np.save(shared_tmp / "B.npy", B))
    ok(drive("multiply", F, "--input", shared_tmp / "B.npy", "--output", shared_tmp / "U.npy"))
    assert relative(on_root(lambda: np.load(shared_tmp / "U.npy")), A @ B) < 3e-3
    ok(drive("multiply", F, "--input", shared_tmp / "B.npy", "--output", shared_tmp / "U.npy", "--exact"))
    assert relative(on_root(lambda: np.load(shared_tmp / "U.npy")), A @ B) < 1e-12
    for damping in (0.01, 0) if "l2" in part else (0.01,):
        run = ok(drive("solve", F, "--rhs", shared_tmp / "B.npy", "--output", shared_tmp / "X.npy", "--damping", damping, "--refine", "exact", "--rtol", 1e-9))
        X = on_root(lambda: np.load(shared_tmp / "X.npy"))
        assert residuals(A + damping * np.eye(len(A)), X, B).max() < 2e-9 and ("and l2 = 0.05" in run.out) == ("l2" in part)
    ok(drive("solve", F, "--rhs", shared_tmp / "B.npy", "--output", shared_tmp / "X.npy", "--damping", 0.01))
    assert residuals(A + 0.01 * np.eye(len(A)), on_root(lambda: np.load(shared_tmp / "X.npy")), B).max() < 0.2


def test_weights_of_samples(job, shared_tmp):
    """Weights 2/n for every sample are twice the mean; quadrature goes with them; info tells."""
    (path, H), F = job, shared_tmp / "F.h5"
    on_root(lambda: np.save(path.parent / "twice.npy", np.full(60, 2 / 60)))
    ok(drive("compress", path, "--output", F, *settings("data.weights=twice.npy", "compress.format=none")))
    assert relative(hh.load(F, COMM) @ np.eye(N), 2 * H) < 1e-6 and "samples weighted by twice.npy" in ok(drive("info", F)).out
    ok(drive("compress", path, "--output", F, *settings("data.weights=w.npy", "data.quadrature=50", "compress.format=none", "compress.rtol=0.3")))
    ok(drive("compress", path, "--output", F, *settings("data.weights=w.npy", "data.samples=20", "compress.format=none")))


REFERRED = {
    "the exact Hessian": ["curvature.kind=hessian"],
    "a block of it with weight decay": ["curvature.kind=hessian", "curvature.parameters=I.npy", "curvature.l2=0.05"],
    "a block of a Gram matrix": ["curvature.parameters=I.npy"],
    "of weighted samples": ["curvature.kind=hessian", "data.weights=w.npy"],
    "of a fitted network": ["curvature.kind=hessian", "network.fit.hidden=[4]", "network.fit.epochs=2"],
}


@pytest.mark.parametrize("what", REFERRED)
def test_format_none_refers_to_the_job(job, what, shared_tmp):
    """The file is small, gives the products of the operator, and is refused when what it refers to has changed."""
    here, F = shared_tmp / "job", shared_tmp / "F.h5"
    on_root(lambda: shutil.copytree(job[0].parent, here) and None)
    fitted = any("fit" in key for key in REFERRED[what])
    if fitted:
        pytest.importorskip("sklearn")
        on_root(lambda: (here / "job.toml").write_text((here / "job.toml").read_text().replace('weights = "net.npz"', "")) and None)
    ok(drive("compress", here / "job.toml", "--output", F, *settings("compress.format=none", "compress.dtype=float64", *REFERRED[what])))
    found = json.loads(ok(drive("info", F, "--json")).out)
    assert found["storage_entries"] == 0 and found["error_estimate"]["value"] == 0 and "refers to   what its job reads" in ok(drive("info", F)).out
    B = np.random.default_rng(5).standard_normal((found["n_params"], 2))
    on_root(lambda: np.save(shared_tmp / "B.npy", B))
    for name, more in (("U", ()), ("E", ("--exact",))):
        ok(drive("multiply", F, "--input", shared_tmp / "B.npy", "--output", shared_tmp / f"{name}.npy", *more))
    U, E = on_root(lambda: [np.load(shared_tmp / f"{name}.npy") for name in "UE"])
    assert relative(U, E) < 1e-13 and np.abs(U).max() > 0
    again = hh.load(F, COMM)
    again.save(shared_tmp / "copy.h5")  # a copy refers to the same
    np.testing.assert_array_equal(hh.load(shared_tmp / "copy.h5", COMM) @ B, again @ B)
    changed = "inputs.npy" if fitted else "I.npy" if "curvature.parameters=I.npy" in REFERRED[what] else "net.npz"
    said = {"inputs.npy": "data changed", "I.npy": "parameters changed", "net.npz": "network changed"}[changed]

    def spoil():
        if changed == "I.npy":
            np.save(here / changed, CHOSEN[::-1])
        elif changed == "inputs.npy":
            np.save(here / changed, np.load(here / changed) + 1)
        else:
            arrays = dict(np.load(here / changed))
            np.savez(here / changed, **(arrays | {"0.bias": arrays["0.bias"] + 1}))

    on_root(spoil)
    refused(drive("multiply", F, "--input", shared_tmp / "B.npy", "--output", shared_tmp / "V.npy"), [said])
    on_root(lambda: (here / changed).unlink())
    refused(drive("multiply", F, "--input", shared_tmp / "B.npy", "--output", shared_tmp / "V.npy"), [changed, "no such file"])
    assert "V.npy" not in listing(shared_tmp)


def test_an_operator_of_no_job_cannot_be_referred_to(comm, shared_tmp):
    H = np.diag(np.arange(1.0, 30))
    matrix = hh.compress(hh.BlackBox(lambda V: H @ V, 29, comm=comm), format="none")
    with pytest.raises(hh.InputError, match="in no file and of no job: compress it to another format"):
        matrix.save(shared_tmp / "F.h5")
    assert listing(shared_tmp) == []


def spoilt(name, array):
    return lambda here: np.save(here / name, array)


WRONG = {  # what is wrong: (how to spoil the job's folder, keys, words of the message)
    "parameters missing": (None, ["curvature.parameters=none.npy"], ["none.npy", "no such file"]),
    "parameters out of range": (spoilt("I.npy", np.array([0, 353])), ["curvature.parameters=I.npy"], ["I.npy", "353 at [1]", "0 … 352"]),
    "parameters negative": (spoilt("I.npy", np.array([-1])), ["curvature.parameters=I.npy"], ["I.npy", "-1 at [0]"]),
    "parameters twice": (spoilt("I.npy", np.array([5, 7, 5])), ["curvature.parameters=I.npy"], ["I.npy", "parameter 5", "twice"]),
    "no parameters": (spoilt("I.npy", np.array([], int)), ["curvature.parameters=I.npy"], ["I.npy", "empty"]),
    "parameters real": (spoilt("I.npy", np.array([1.0])), ["curvature.parameters=I.npy"], ["I.npy", "integers", "float64"]),
    "parameters and layers": (None, ["curvature.parameters=I.npy", "curvature.layers=[1]"], ["not both"]),
    "parameters and quadrature": (None, ["curvature.parameters=I.npy", "data.quadrature=50", "compress.rtol=0.5"], ["quadrature", "curvature.layers"]),
    "parameters of samples": (None, ["curvature.parameters=I.npy", "compress.format=data-woodbury"], ["data-woodbury", "curvature.layers"]),
    "no such layer": (None, ["curvature.layers=[4]"], ["curvature.layers", "1 … 3", "not 4"]),
    "layers twice": (None, ["curvature.layers=[1, 1]"], ["curvature.layers"]),
    "l2 negative": (None, ["curvature.l2=-1e-3"], ["curvature.l2"]),
    "l2 infinite": (None, ["curvature.l2=inf"], ["curvature.l2"]),
    "weights missing": (None, ["data.weights=none.npy"], ["none.npy", "no such file"]),
    "weights too few": (spoilt("w.npy", WEIGHTS[1:]), ["data.weights=w.npy"], ["w.npy", "60 real numbers", "[59]"]),
    "weights too few of the samples": (spoilt("w.npy", WEIGHTS[:9]), ["data.weights=w.npy", "data.samples=10"], ["w.npy", "9 samples, 10"]),
    "weights too many": (spoilt("w.npy", np.ones(61)), ["data.weights=w.npy"], ["w.npy", "60 real numbers", "[61]"]),
    "weights a matrix": (spoilt("w.npy", np.ones((60, 1))), ["data.weights=w.npy"], ["w.npy", "[60, 1]"]),
    "weights of text": (spoilt("w.npy", np.full(60, "1")), ["data.weights=w.npy"], ["w.npy", "real numbers"]),
    "a weight negative": (spoilt("w.npy", np.where(np.arange(60) == 7, -1, WEIGHTS)), ["data.weights=w.npy"], ["w.npy", "negative", "-1.0 of sample 7"]),
    "a weight NaN": (spoilt("w.npy", np.where(np.arange(60) == 7, np.nan, WEIGHTS)), ["data.weights=w.npy"], ["w.npy", "finite", "nan of sample 7"]),
    "weights zero": (spoilt("w.npy", np.zeros(60)), ["data.weights=w.npy"], ["w.npy", "zero"]),
    "quadrature of the Hessian": (None, ["curvature.kind=hessian", "data.quadrature=50", "compress.rtol=0.5"], ["quadrature", 'kind = "hessian"']),
    "sampled entries of the Hessian": (None, ["curvature.kind=hessian", "curvature.entries=sampled"], ["curvature.entries", "Gram"]),
    "the Hessian in the data space": (None, ["curvature.kind=hessian", "compress.format=data-woodbury"], ["data-woodbury", "not definite"]),
    "draws of another kind": (None, ["curvature.draws=4"], ["curvature.draws", "mc-fisher"]),
    "no such kind": (None, ["curvature.kind=hesian"], ["did you mean hessian?"]),
}


@pytest.mark.parametrize("fault", WRONG)
def test_bad_jobs(job, fault, shared_tmp):
    spoil, keys, words = WRONG[fault]
    here = shared_tmp / "job"
    on_root(lambda: shutil.copytree(job[0].parent, here) and None)
    if spoil is not None:
        on_root(lambda: spoil(here))
    before = listing(shared_tmp)
    refused(drive("compress", here / "job.toml", "--output", shared_tmp / "F.h5", *settings(*keys)), words)
    assert listing(shared_tmp) == before


def test_outputs_do_not_replace_what_the_job_reads(job):
    for name in ("I.npy", "w.npy"):
        keys = settings("curvature.parameters=I.npy", "data.weights=w.npy")
        refused(drive("compress", job[0], "--output", job[0].parent / name, *keys), ["would replace"])
