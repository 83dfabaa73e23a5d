"""A limit on memory: blocks of products are made to fit it, what cannot fit is refused with numbers, ranks that are cut for it are told."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from hpcHess.backend.normal import gaussian
from hpcHess.hierarchical.compress import compress
from hpcHess.parallel import memory
from hpcHess.parallel.ownership import row_starts
from hpcHess.runtime.errors import InputError
from hpcHess.skeleton.sketch import Sketch
from tests.skeleton.matrices import N, WithDiagonal, matrix_named, relative


def test_what_does_not_fit_is_refused_with_numbers(comm):
    with memory.at_most(comm, comm.size << 30):
        assert memory.limit() == 1 << 30 and memory.block_bytes(1 << 28) == 1 << 26 and memory.block_bytes(100) == 100
        assert memory.fair_share(comm) <= 1 << 30
        memory.check_room(comm, 1 << 20, "a vector")
        with pytest.raises(InputError, match="a matrix would take 2 GiB of a rank that has .* of the 1 GiB .* --memory"):
            memory.check_room(comm, 2 << 30, "a matrix")
        with memory.at_most(comm, 0):
            assert memory.limit() == 0
    assert memory.limit() == 0 and memory.block_bytes(1 << 28) == 1 << 28
    with memory.at_most(comm, 1000 * comm.size), pytest.raises(InputError, match="40 products of 330 parameters and the leaves' own blocks would take"):
        compress(WithDiagonal(matrix_named("kernel"), comm), leaf_size=24)


def test_products_come_in_blocks_that_fit(comm):
    """The same numbers, a few columns at a time."""
    operator, widths = WithDiagonal(matrix_named("kernel"), comm), []
    product, limit = operator.partial_matmat, 16 * 8 * N * 3
    operator.partial_matmat = lambda V: (widths.append(V.shape[1]), product(V))[1]
    found = []
    for given in (0, limit * comm.size):
        sketch = Sketch(operator, np.arange(N), row_starts(N, comm.size), 0)
        with memory.at_most(comm, given):
            sketch.extend(10)
        found.append(np.concatenate(sketch.pieces, axis=1))
    assert widths == [10, 3, 3, 3, 1]
    assert np.abs(found[0] - found[1]).max() <= 1e-13 * np.abs(found[0]).max()


def test_pieces_are_one_sketch(comm):
    """Many columns lie in several pieces, Ω is drawn for each of them."""
    operator, rows = WithDiagonal(matrix_named("kernel"), comm), row_starts(N, comm.size)
    sketch = Sketch(operator, np.arange(N)[::-1].copy(), rows, 5)
    sketch.extend(200)
    sketch.extend(7)
    own = sketch.rows
    assert [Y.shape[1] for Y in sketch.pieces] == [67, 67, 66, 7] and sketch.n_columns == sketch.n_products == 207
    for (omega, Y), first in zip(sketch.omegas(), (0, 67, 134, 200), strict=True):
        everything = gaussian(5, "sketch", np.arange(N), range(first, first + Y.shape[1]), np.float64)
        assert np.array_equal(omega, everything[own])
        assert np.abs(Y - (matrix_named("kernel") @ everything)[own]).max() <= 1e-12 * N


def test_ranks_that_memory_cuts_are_told(comm, monkeypatch):
    A = matrix_named("kernel")
    monkeypatch.setattr(Sketch, "affordable", lambda self: 0)
    H = compress(WithDiagonal(A, comm), rtol=1e-9, leaf_size=24, dtype="float64")
    assert not H.report["rtol_met"] and any("what the memory allows (40 columns of the sketch)" in line for line in H.report["warnings"])
    assert H.report["error_estimate"]["low"] * 0.8 <= relative(H, A) <= H.report["error_estimate"]["high"] * 1.25



ALONE = """
import json, re
import numpy as np
from mpi4py import MPI
from hpcHess.curvature.gauss_newton import GaussNewton
from hpcHess.hierarchical.compress import compress
from hpcHess.networks.network import Network
from hpcHess.parallel import memory
before, rng, peaks = memory.resident_bytes(), np.random.default_rng(0), []
weights = [rng.standard_normal(shape, np.float32) / 20 for shape in ((60, 784), (10, 60))]
network = Network(weights, [np.zeros(60, np.float32), None], "relu", "cross-entropy")
H = GaussNewton(network, rng.random((200, 784), np.float32), comm=MPI.COMM_SELF, dtype=np.float32)
for given in (250_000_000, 0):
    held = memory.resident_bytes()
    with memory.at_most(H.comm, given):
        report = compress(H, rtol=0.5, leaf_size=256, max_rank=32, distance="neuron").report
    peak = 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])  # ru_maxrss would count the parent's, before exec
    peaks.append({"beyond": peak - held, "peak": peak - before})
needed = 4 * H.n_params * report["sketch_columns"] + report["storage_bytes"] + 4 * 200 * 784
print(json.dumps({"limited": peaks[0]["beyond"], "free": peaks[1]["peak"], "needed": needed}))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="resident bytes are Linux's")
def test_peak_is_bounded(comm):
    """Resident bytes of a process of its own, one thread, at their peak: 1.5 (stored matrix + sketch + data) + 300 MB at most, a given limit is kept."""
    if comm.size > 1:
        pytest.skip("a process of one rank starts MPI itself")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", ALONE], env=environment, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["needed"] > 50e6 and found["limited"] <= 250e6
    assert found["needed"] < found["free"] <= 1.5 * found["needed"] + 300e6
