"""The format itself: the example reader, which shares no code with the package, multiplies what was written as the dense matrix does."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI

from hpcHess.hierarchical.compress import compress
from hpcHess.storage.factor_file import write
from tests.reference.dense_operator import DenseOperator, exponential_kernel
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


def read_with_example(folder):
    command = [sys.executable, READER, folder / "F.h5", folder / "V.npy", folder / "U.npy"]
    subprocess.run(command, check=True, timeout=60, env=outside_mpi(), stdin=subprocess.DEVNULL)


@pytest.mark.parametrize("case", CASES)
def test_reader_multiplies_as_dense(comm, shared_tmp, case):
    hss = ReferenceHSS(**CASES[case])
    write_reference(hss, shared_tmp / "F.h5", comm)
    if comm.rank != 0:
        return
    random = np.random.default_rng(1).standard_normal((hss.n_params, 3))
    for V in (random, random[:, 0]):
        np.save(shared_tmp / "V.npy", V)
        read_with_example(shared_tmp)
        U = np.load(shared_tmp / "U.npy")
        assert U.shape == V.shape
        assert np.abs(U - hss.dense @ V).max() <= 1e-13 * np.abs(hss.dense).sum(axis=1).max() * np.abs(V).max()


def test_reader_multiplies_a_compressed_fmm_matrix(comm, shared_tmp):
    """Written by the package, with near lists by votes and a preconditioner beside."""
    K = exponential_kernel(150)
    H = compress(DenseOperator(K, comm), rtol=1e-3, leaf_size=12, distance="angle", format="fmm", budget=0.3, n_neighbors=8)
    assert len(H.near.pairs) > 2 << H.tree.depth and len(H.levels[-1].far.pairs) > 0
    H.save(shared_tmp / "F.h5")
    V = np.random.default_rng(1).standard_normal((150, 2))
    expected = H @ V
    if comm.rank == 0:
        np.save(shared_tmp / "V.npy", V)
        read_with_example(shared_tmp)
        assert np.abs(np.load(shared_tmp / "U.npy") - expected).max() <= 1e-12 * np.abs(K).sum(axis=1).max() * np.abs(V).max()


def test_example_of_the_specification(comm, shared_tmp):
    """The datasets and the matrix as docs/FORMAT.md prints them."""
    text = (READER.parent / "FORMAT.md").read_text().partition("## Example")[2].partition("\n## ")[0]
    found = dict(re.findall(r"(\w+/\w+) +\[([^]]*)\]", text))
    arrays = {name: np.array(numbers.split(), float) for name, numbers in found.items()}
    arrays = {name: array if name.endswith(("values", "interpolation")) else array.astype(int) for name, array in arrays.items()}
    assert len(arrays) == 9
    matrix = np.array([row.split() for row in re.findall(r"\[ ((?:[\d.]+ +){4})\]", text)], float)
    pieces = {name: [(0, array)] for name, array in arrays.items()} if comm.rank == 0 else {}
    attributes = {"n_params": 5, "n_alive": 4, "depth": 1}
    write(shared_tmp / "F.h5", comm, attributes, pieces, {name: (array.size, array.dtype) for name, array in arrays.items()})
    assert sum(arrays[name].size for name in ("near/values", "far/values", "nodes/interpolation")) == 9
    if comm.rank == 0:
        np.save(shared_tmp / "V.npy", np.eye(5))
        read_with_example(shared_tmp)
        dense = np.zeros((5, 5))
        dense[np.ix_([4, 0, 2, 1], [4, 0, 2, 1])] = matrix
        assert np.array_equal(np.load(shared_tmp / "U.npy"), dense)


def test_reader_is_short_and_stands_alone():
    text = READER.read_text()
    assert len(text.splitlines()) <= 60
    assert {line.split()[1] for line in text.splitlines() if line.startswith(("import ", "from "))} == {"sys", "h5py", "numpy"}


WRITE_OR_READ = """
import sys
import numpy as np
from mpi4py import MPI
from hpcHess.storage.factor_file import FactorFile
from tests.reference.hss import ReferenceHSS, write_reference

comm, hss = MPI.COMM_WORLD, ReferenceHSS(n_params=200, depth=3, max_rank=6, seed=4)
if sys.argv[2] == "write":
    write_reference(hss, sys.argv[1], comm)
else:
    with FactorFile(sys.argv[1], comm) as file:
        assert file.names == list(hss.datasets)
        for name, array in hss.datasets.items():
            cut = np.linspace(0, array.size, comm.size + 1).astype(int)
            share = file.read(name, *cut[comm.rank : comm.rank + 2])
            assert np.array_equal(np.concatenate(comm.allgather(share)), array)
            assert np.array_equal(file.read_all(name), array) and share.dtype == array.dtype
    print("read", comm.rank, flush=True)
"""


@pytest.mark.skipif(MPI.COMM_WORLD.size > 1, reason="starts its own mpiexec")
def test_written_on_four_ranks_read_on_one_and_three(shared_tmp):
    """One case, every dataset: what 4 ranks wrote in irregular pieces comes back whole and in slices on 1 and 3 ranks."""
    script = shared_tmp / "run.py"
    script.write_text(WRITE_OR_READ)
    written = launch(4, script, shared_tmp / "F.h5", "write")
    assert written.returncode == 0, written.stderr
    for ranks in (1, 3):
        done = launch(ranks, script, shared_tmp / "F.h5", "read")
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("read") == ranks
