"""A job whose network is a PyTorch module through the drivers: compressed from products alone, solved with both matrices, recreated and refused when it changed."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from tests.drivers.drive import drive, ok, on_root, relative  # noqa: E402
from tests.pytorch.modules import cnn, dense  # noqa: E402

FACTORY = """
import numpy as np
import torch
from tests.pytorch.modules import cnn

def network():
    torch.manual_seed(3)
    model = cnn().eval()
    with torch.no_grad():
        model[8].weight *= SCALE
    return model

def everything():
    return network(), *data(), torch.nn.CrossEntropyLoss()

def data():
    rng = np.random.default_rng(0)
    return rng.standard_normal((12, 1, 8, 8)), rng.integers(0, 3, 12)

SCALE = 1.0

def fails():
    raise OSError("there are no weights")

def leaves():
    raise SystemExit(0)
"""
JOB = """
[network]
torch = "driver_factory:network"
[data]
inputs = "x.npy"
targets = "y.npy"
[compress]
rtol = 1e-6
leaf_size = 16
"""


@pytest.fixture(scope="module")
def torch_case(folder):
    """(folder, job, H dense, right-hand sides) of a small CNN whose data lie in files of four dimensions."""
    here = folder / "torch"

    def write():
        here.mkdir()
        (here / "driver_factory.py").write_text(FACTORY)
        (here / "job.toml").write_text(JOB)
        rng = np.random.default_rng(0)
        np.save(here / "x.npy", rng.standard_normal((12, 1, 8, 8)))
        np.save(here / "y.npy", rng.integers(0, 3, 12))

    on_root(write)
    torch.manual_seed(3)
    H = dense(cnn().eval(), np.load(here / "x.npy"), np.load(here / "y.npy"), "cross-entropy", "gauss-newton")
    B = np.random.default_rng(1).standard_normal((len(H), 2))
    on_root(lambda: np.save(here / "B.npy", B))
    return here, here / "job.toml", H, B


@pytest.mark.parametrize("format", ["hss", "low-rank", "none"])
def test_the_whole_way(torch_case, format):
    folder, job, H, B = torch_case
    F, X, damping = folder / f"{format}.h5", folder / "X.npy", 0.05 * np.linalg.eigvalsh(H)[-1]
    run = ok(drive("compress", job, "--output", F, "--set", f"compress.format={format}"))
    assert "Sequential of driver_factory:network, n = 12 samples, d = 3 outputs" in run.err + run.out
    found = json.loads(ok(drive("info", F, "--json")).out)
    assert found["rtol_met"] and found["format"] == format and found["provenance"]["network_hash"]
    pytest.importorskip("petsc4py")
    run = ok(drive("solve", F, "--rhs", folder / "B.npy", "--output", X, "--damping", damping))
    assert run.residual("compressed") < 1e-8 and run.residual("exact") < 1e-3
    run = ok(drive("solve", F, "--rhs", folder / "B.npy", "--output", X, "--damping", damping, "--refine", "exact", "--rtol", 1e-9))
    assert run.residual("exact") <= 1e-9
    assert relative(on_root(lambda: np.load(X)), np.linalg.solve(H + damping * np.eye(len(H)), B)) < 1e-7


def test_other_kinds_and_parts(torch_case):
    """Some parameters, l2, another kind, data and loss from the factory: what goes with a module goes through."""
    folder, job, H, B = torch_case
    on_root(lambda: np.save(folder / "some.npy", np.arange(40, 70)))
    F = folder / "some.h5"
    ok(drive("compress", job, "--output", F, "--set", "curvature.parameters=some.npy", "--set", "curvature.l2=0.1", "--set", "compress.format=dense"))
    ok(drive("solve", F, "--rhs", on_root(lambda: np.save(folder / "b.npy", B[40:70]) or str(folder / "b.npy")), "--output", folder / "x.npy.out.npy", "--damping", 0))
    found = on_root(lambda: np.load(folder / "x.npy.out.npy"))
    assert relative(found, np.linalg.solve(H[40:70, 40:70] + 0.1 * np.eye(30), B[40:70])) < 1e-4
    on_root(lambda: (folder / "own.toml").write_text('[network]\ntorch = "driver_factory:everything"\n[compress]\nformat = "low-rank"\n') and None)
    for kind in ("hessian", "mc-fisher"):
        ok(drive("compress", folder / "own.toml", "--output", F, "--set", f"curvature.kind={kind}"))


def test_changed_since(torch_case):
    """Other numbers in the module: not the matrix that was compressed."""
    folder, job, _, _ = torch_case
    F = folder / "low-rank.h5"
    ok(drive("compress", job, "--output", F, "--set", "compress.format=low-rank"))
    import driver_factory

    driver_factory.SCALE = 2.0
    try:
        run = drive("solve", F, "--rhs", folder / "B.npy", "--output", folder / "X.npy", "--damping", 1, "--refine", "exact")
    finally:
        driver_factory.SCALE = 1.0
    assert run.status == 2 and "the network changed since the compression" in run.err


def test_refused(torch_case, folder):
    _, job, _, _ = torch_case
    for keys, line in (
        (["network.torch=driver_factory:fails"], "driver_factory:fails() failed: OSError: there are no weights"),
        (["network.torch=driver_factory:leaves"], "driver_factory:leaves() failed: SystemExit: 0"),
        (["network.torch=driver_factory:absent"], "cannot import driver_factory:absent"),
        (["network.torch=driver_factory:everything"], "the factory returns data, and [data] names some"),
        (["compress.format=fmm"], 'use format = "hss"'),
        (["compress.format=kronecker-sum"], "a PyTorch module is known by products alone"),
        (["compress.sampling=sketch"], 'use sampling = "products"'),
        (["data.quadrature=5"], "a PyTorch module is known by products alone"),
        (["data.samples=99"], "has 12 samples, 99 are asked for"),
    ):
        run = drive("compress", job, "--output", folder / "no.h5", *(word for key in keys for word in ("--set", key)))
        assert run.status == 2 and len(run.errors) == 1 and line in run.errors[0], run.err
        assert not (folder / "no.h5").exists()


def test_the_case_of_the_documents():
    """jobs/cnn.toml: its factory's network has the parameters that docs/TORCH.md says."""
    from benchmarks.cases import JOBS
    from benchmarks.cnn import modules
    from hpcHess.runtime.jobfile import load

    job = load(JOBS / "cnn.toml")
    assert job["network"]["torch"] == "cnn:network"
    counts = [sum(each.numel() for each in model.parameters()) for _, model, _, _ in modules(2)]
    assert counts == [121_597, 93_322]
