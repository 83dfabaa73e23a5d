"""The format itself: the example reader, which shares no code with the package, multiplies what was written as the dense matrix does."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI

from tests.reference.hss import ReferenceHSS, write_reference
from tests.storage.launch import launch, outside_mpi

READER = Path(__file__).parents[2] / "docs" / "read_factor_file.py"

CASES = {
    "hss": {},
    "one leaf": {"depth": 0, "n_dead": 0},
    "two leaves": {"depth": 1, "n_params": 7},
    "deep, empty leaves": {"depth": 4, "n_params": 14, "n_dead": 3},
    "rank zero": {"max_rank": 0},
    "near blocks": {"depth": 3, "extra_near": [(0, 1), (2, 7)]},
    "float32": {"dtype": np.float32, "n_params": 60, "max_rank": 5},
}


@pytest.mark.parametrize("case", CASES)
def test_reader_multiplies_as_dense(comm, shared_tmp, case):
    hss = ReferenceHSS(**CASES[case])
    write_reference(hss, shared_tmp / "F.h5", comm)
    if comm.rank != 0:
        return
    random = np.random.default_rng(1).standard_normal((hss.n_params, 3))
    for V in (random, random[:, 0]):
        np.save(shared_tmp / "V.npy", V)
        command = [sys.executable, READER, shared_tmp / "F.h5", shared_tmp / "V.npy", shared_tmp / "U.npy"]
        subprocess.run(command, check=True, timeout=60, env=outside_mpi(), stdin=subprocess.DEVNULL)
        U = np.load(shared_tmp / "U.npy")
        assert U.shape == V.shape
        assert np.abs(U - hss.dense @ V).max() <= 1e-13 * np.abs(hss.dense).sum(axis=1).max() * np.abs(V).max()


def test_reader_is_short_and_stands_alone():
    text = READER.read_text()
    assert len(text.splitlines()) <= 60
    assert {line.split()[1] for line in text.splitlines() if line.startswith(("import ", "from "))} == {"sys", "h5py", "numpy"}


@pytest.mark.skipif(MPI.COMM_WORLD.size > 1, reason="starts its own mpiexec")
def test_written_on_four_ranks_read_on_one_and_three(shared_tmp):
    """One case, every dataset: what 4 ranks wrote in irregular pieces comes back whole and in slices on 1 and 3 ranks."""
    script = shared_tmp / "run.py"
    script.write_text(
        "import sys\nimport numpy as np\nfrom mpi4py import MPI\nfrom tests.reference.hss import ReferenceHSS, write_reference\n"
        "from hpcHess.storage.factor_file import FactorFile\n"
        "comm, hss = MPI.COMM_WORLD, ReferenceHSS(n_params=200, depth=3, max_rank=6, seed=4)\n"
        "if sys.argv[2] == 'write':\n    write_reference(hss, sys.argv[1], comm)\n"
        "else:\n"
        "    with FactorFile(sys.argv[1], comm) as file:\n"
        "        assert file.names == list(hss.datasets)\n"
        "        for name, array in hss.datasets.items():\n"
        "            cut = np.linspace(0, array.size, comm.size + 1).astype(int)\n"
        "            share = file.read(name, *cut[comm.rank : comm.rank + 2])\n"
        "            assert np.array_equal(np.concatenate(comm.allgather(share)), array)\n"
        "            assert np.array_equal(file.read_all(name), array) and share.dtype == array.dtype\n"
        "    print('read', comm.rank, flush=True)\n"
    )
    written = launch(4, script, shared_tmp / "F.h5", "write")
    assert written.returncode == 0, written.stderr
    for ranks in (1, 3):
        done = launch(ranks, script, shared_tmp / "F.h5", "read")
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("read") == ranks
