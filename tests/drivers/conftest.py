"""A small job with its dense matrix, compressed once for a file of tests."""

import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.drivers.drive import dense, drive, ok, on_root, small_arrays, write_job


@pytest.fixture(scope="module")
def folder(comm):
    """A folder, the same on all ranks, gone after the file's tests. Its name holds a blank and an umlaut."""
    made = on_root(lambda: tempfile.mkdtemp(prefix="hpcHess ü "))
    yield Path(made)
    comm.Barrier()
    if comm.rank == 0:
        shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="module")
def case(folder):
    """job and F.h5 (rtol 1e-3, float32); H dense [N, N]; vectors in files: V.npy [N, 4], v.npy [N], both float64, and all in V.h5."""
    job = on_root(lambda: write_job(folder / "case"))
    arrays, x, _ = small_arrays()
    H = on_root(lambda: dense(arrays, x))
    V = np.random.default_rng(5).standard_normal((len(H), 4))
    on_root(lambda: (np.save(job.parent / "V.npy", V), np.save(job.parent / "v.npy", V[:, 0])) and None)
    F = job.parent / "F.h5"
    run = ok(drive("compress", job, "--output", F))
    return SimpleNamespace(job=job, folder=job.parent, F=F, H=H, V=V, N=len(H), run=run, lmax=np.linalg.eigvalsh(H)[-1])
