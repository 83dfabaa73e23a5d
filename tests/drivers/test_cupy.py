"""The drivers with `--backend cupy`, on a stand-in for CuPy that runs its kernels on the host, and on a device where there is one.

Every format goes from the job to the solution.
"""

import json

import numpy as np
import pytest

from tests.backend.fake_cupy import DEVICES, install
from tests.drivers.drive import drive, ok, on_root, relative, write_job

KINDS = [
    ("hss", ["curvature.kind=gauss-newton", "compress.dtype=float32"]),
    ("hss", ["curvature.kind=hessian", "compress.dtype=float64", "compress.solver=ulv"]),
    ("fmm", ["curvature.kind=opg"]),
    ("low-rank", []),
    ("kronecker-sum", []),
    ("block-diagonal", ["compress.blocks=neuron"]),
    ("dense", []),
    ("data-woodbury", []),
]


@pytest.mark.parametrize("kind", DEVICES)
@pytest.mark.parametrize("name, more", KINDS, ids=lambda it: it if isinstance(it, str) else "-".join(word.partition("=")[2] for word in it))
def test_from_the_job_to_the_solution(comm, shared_tmp, monkeypatch, name, more, kind):
    job = on_root(lambda: write_job(shared_tmp, rtol=1e-2, widths=(6, 5, 3), n=16))
    options = [word for each in (f"compress.format={name}", "compress.leaf_size=12", *more) for word in ("--set", each)]
    found = {}
    for backend in ("numpy", "cupy"):
        with monkeypatch.context() as patch:
            cupy = install(patch, kind) if backend == "cupy" else None
            F, out = shared_tmp / f"{backend}.h5", shared_tmp / f"{backend}.npy"
            run = drive("compress", job, "--output", F, "--backend", backend, *options)
            assert run.status in (0, 3), run.err
            facts = json.loads(ok(drive("info", F, "--json", "--verify")).out)
            on_root(lambda N=facts["n_params"]: np.save(shared_tmp / "V.npy", np.random.default_rng(0).standard_normal((N, 3))))
            found[backend] = [run.status]
            for driver in (("multiply", F, "--input", shared_tmp / "V.npy"), ("multiply", F, "--input", shared_tmp / "V.npy", "--exact")):
                ok(drive(*driver, "--output", out, "--backend", backend))
                found[backend].append(np.load(out))
            if name != "fmm":
                ok(drive("solve", F, "--rhs", shared_tmp / "V.npy", "--output", out, "--damping", 2.0, "--backend", backend))
                found[backend].append(np.load(out))
    assert kind == "device" or cupy.device == 0 and (cupy.launches or name not in ("hss", "fmm"))
    near = 2e-3 if name in ("hss", "fmm") else 1e-4  # other pivots of equal size are other matrices within rtol
    assert found["cupy"][0] == found["numpy"][0] and relative(found["cupy"][2], found["numpy"][2]) < 1e-10
    for mine, theirs in zip(found["cupy"][1:], found["numpy"][1:], strict=True):
        assert relative(mine, theirs) < near
