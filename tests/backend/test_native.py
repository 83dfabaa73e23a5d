"""The compiled kernels beside their NumPy twins; results that do not depend on the number of threads."""

import os
import subprocess
import sys

import numpy as np
import pytest
from mpi4py import MPI

import hpcHess.backend as hb
from tests.backend.oracles import random_blocks, starts_of

pytestmark = pytest.mark.skipif("native" not in hb.available(), reason="hpcHess._native is not built")

THREADS = """
import sys
import numpy as np
import hpcHess.backend as hb
native, rng = hb.get("native"), np.random.default_rng(7)
R = (rng.standard_normal((900, 120)) * 0.9 ** np.arange(120)).astype(np.float32)
starts = np.arange(0, 901, 90)
found = native.interpolate(R, starts, 1e-2)
sys.stdout.buffer.write(found.order.tobytes() + found.T.data.tobytes() + found.residual.tobytes())
A = hb.Blocks.shaped(lambda n: rng.standard_normal(n).astype(np.float32), [700] * 3, [300] * 3)
from tests.backend.test_multiply import SYMMETRIC, symmetric_case
for k in (1, 3, 20, 64):
    for case in ("a large one", "large neighbours", "out of order"):
        B, X, row_at, col_at, Y, _ = symmetric_case(*SYMMETRIC[case], k, (np.float32, np.float32))
        native.multiply_symmetric(B, X, row_at, col_at, Y)
        sys.stdout.buffer.write(Y.tobytes())
    for transpose in (False, True):
        Y = np.zeros((1000, k))
        native.multiply(A, rng.standard_normal((1000, k)), [0, 100, 200], Y, [0, 200, 30], transpose)
        sys.stdout.buffer.write(Y.tobytes())
sizes = [80] * 5 + [620, 700]  # the last ones have all threads for themselves
D = hb.Blocks.shaped(np.zeros, sizes, sizes)
for i, size in enumerate(sizes):
    G = rng.standard_normal((size, size))
    D[i][:] = G @ G.T / size + np.eye(size)
T = hb.Blocks.shaped(lambda n: 0.05 * rng.standard_normal(n), [30] * 5 + [300, 280], [50] * 5 + [320, 420])
factors = native.eliminate(D, np.concatenate([rng.permutation(size) for size in sizes]), T)
sys.stdout.buffer.write(factors.W.data.tobytes() + factors.K.data.tobytes() + factors.schur.data.tobytes() + factors.log_abs.tobytes())
for k in (2, 64):
    x = factors.backward(*factors.forward(rng.standard_normal((sum(sizes), k))))
    sys.stdout.buffer.write(x.tobytes())
"""


@pytest.mark.skipif(MPI.COMM_WORLD.size > 1, reason="starts its own processes")
def test_threads_change_nothing():
    outputs = []
    for threads in ("1", "2", "3"):
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMPI_", "PMIX_"))}
        environment |= {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": "2"}
        outputs.append(subprocess.run([sys.executable, "-c", THREADS], env=environment, capture_output=True, timeout=60, check=True).stdout)
    assert len(outputs[0]) > 100_000 and outputs[0] == outputs[1] == outputs[2]


def test_twins_choose_the_same_skeletons():
    rng, sizes = np.random.default_rng(8), [60, 0, 128, 33, 200]
    starts = starts_of(sizes)
    R = rng.standard_normal((starts[-1], 96)) @ (rng.standard_normal((96, 96)) * 0.85 ** np.arange(96))
    for tolerance in (1e-1, 1e-6):
        ours, twin = (hb.get(name).interpolate(R, starts, tolerance) for name in ("native", "numpy"))
        np.testing.assert_array_equal(ours.ranks, twin.ranks)
        np.testing.assert_array_equal(ours.order, twin.order)
        np.testing.assert_allclose(ours.residual, twin.residual, rtol=1e-6)
        np.testing.assert_allclose(ours.T.data, twin.T.data, atol=1e-8)
    assert twin.ranks.max() > 64  # several panels


@pytest.mark.parametrize("delay", [True, False])
def test_twins_eliminate_alike(delay):
    """Definite and indefinite blocks in one batch: the second kind takes the eigenvalue path."""
    rng = np.random.default_rng(9)
    A = random_blocks(rng, [40, 25, 10], [40, 25, 10], np.float64)
    A[0][:] = A[0] @ A[0].T + np.eye(40)
    A[1][:] = A[1] + A[1].T
    A[2][:] = A[2] @ A[2].T + np.eye(10)
    T = random_blocks(rng, [15, 5, 10], [25, 20, 0], np.float32)
    order = np.concatenate([rng.permutation(c) for c in A.rows])
    ours, twin = (hb.get(name).eliminate(A, order, T, delay) for name in ("native", "numpy"))
    np.testing.assert_array_equal(ours.delayed, twin.delayed)
    np.testing.assert_array_equal(ours.negative, twin.negative)
    np.testing.assert_allclose(ours.log_abs, twin.log_abs, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(ours.schur.data, twin.schur.data, rtol=1e-9, atol=1e-8)


def test_arguments_that_would_leave_the_arrays_are_refused():
    native, A = hb.get("native"), hb.Blocks.shaped(np.zeros, [4], [3])
    X, Y = np.zeros((3, 2)), np.zeros((4, 2))
    for x_starts, y_starts in (([1], [0]), ([0], [1]), ([-1], [0])):
        with pytest.raises(ValueError, match="outside"):
            native.multiply(A, X, x_starts, Y, y_starts)
    with pytest.raises(ValueError, match="columns"):
        native.multiply(A, X, [0], np.zeros((4, 3)), [0])
    for row_at, col_at in (([1], [0]), ([0], [2]), ([-1], [4])):
        with pytest.raises(ValueError, match="outside"):
            native.multiply_symmetric(A, np.zeros((4, 2)), row_at, col_at, Y)
    with pytest.raises(ValueError, match="square"):
        native.multiply_symmetric(A, np.zeros((8, 2)), [0], [0], np.zeros((8, 2)))
    with pytest.raises(ValueError, match="does not exist"):
        native.take_rows(X, [3])
    J, R = np.arange(4), np.arange(4, 7)
    with pytest.raises(ValueError, match="outside the columns"):
        native.compress_rows(A, J, R + 1, np.zeros((7, 2)))
    with pytest.raises(ValueError, match="not as many"):
        native.expand_rows(A, J, R, np.zeros((3, 2)), np.zeros((7, 2)))
    with pytest.raises(TypeError):  # a product into a temporary copy would be lost
        native.multiply(A, X, [0], np.zeros((2, 4)).T, [0])
    with pytest.raises(ValueError, match="outside"):
        native.interpolate(np.zeros((5, 4)), [0, 6], 1.0)
    with pytest.raises(ValueError, match="permutation"):
        native.eliminate(hb.Blocks.shaped(np.zeros, [2], [2]), [0, 2], hb.Blocks.shaped(np.zeros, [1], [1]))


def test_memory_of_results_is_kept_and_never_shared():
    native = hb.get("native")
    a, b = (native.zeros((1 << 15, 4), np.float64) for _ in range(2))
    a += 1
    assert not b.any()
    whole, at = a[3:], a.ctypes.data
    del a
    c = native.zeros((1 << 15, 4), np.float64)
    assert (whole == 1).all() and c.ctypes.data != at
    del whole
    places = {at, c.ctypes.data}
    del c
    assert native.empty((1 << 15, 4), np.float64).ctypes.data in places
