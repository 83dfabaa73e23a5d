"""Dense matrices as operators: products, entries, dead rows, and what the check of the whole matrix finds."""

import tracemalloc

import numpy as np
import pytest
from mpi4py import MPI

from hpcHess.curvature import dense, dense_check
from hpcHess.curvature.dense import DenseMatrix
from hpcHess.parallel.agree import on_root
from hpcHess.parallel.ownership import row_starts
from hpcHess.runtime.errors import InputError

N = 61


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    """Several tiles, row blocks and gathers although N is small."""
    monkeypatch.setattr(dense_check, "TILE", 8)
    monkeypatch.setattr(dense, "_ROWS", 6)
    monkeypatch.setattr(dense, "_CONVERTED", 3 * N)
    monkeypatch.setattr(dense, "_GATHER", 50)


def symmetric(n=N, dtype=np.float64, seed=0):
    A = np.random.default_rng(seed).standard_normal((n, n))
    return (A + A.T).astype(dtype)


def lower(K):
    """The symmetric matrix of the lower triangle, float64."""
    L = np.tril(K.astype(np.float64))
    return L + np.tril(L, -1).T


def nearly(dtype, size):
    """Symmetric up to `size` of the largest entry."""
    K = symmetric(dtype=dtype)
    return K + np.triu(np.random.default_rng(1).uniform(-size, size, K.shape).astype(dtype) * np.abs(K).max(), 1)


def ragged(rng, n_blocks=9):
    sizes = [rng.integers(0, 9, n_blocks) for _ in range(2)]
    starts = [np.concatenate([[0], np.cumsum(each)]) for each in sizes]
    return [x for start in starts for x in (rng.integers(0, N, start[-1]), start)]


def relative(A, B):
    return np.linalg.norm(A - B) / np.linalg.norm(B)


@pytest.mark.parametrize("stored", ["f4", "f8", ">f8"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("exact", [True, False])
def test_products_and_entries_are_those_of_the_lower_triangle(comm, stored, dtype, exact):
    K = symmetric(dtype=stored) if exact else nearly(np.dtype(stored), 5e-6 if stored == "f4" else 5e-13)
    op, H, V = DenseMatrix(K, comm=comm, dtype=dtype), lower(K), np.random.default_rng(2).standard_normal((N, 5))
    assert op.dtype == dtype and op.shape == (N, N) and op.n_params == N and np.array_equal(op.alive, np.arange(N))
    accuracy = 1e-14 if dtype == np.float64 else 1e-6
    assert relative(op @ V, H @ V) <= accuracy and relative(op @ V[:, 0], H @ V[:, 0]) <= accuracy
    assert relative(comm.allreduce(op.partial_matmat(V)), H @ V) <= accuracy
    lo, hi = row_starts(N, comm.size)[comm.rank :][:2]
    np.testing.assert_allclose(op.matmat_rows(V[lo:hi]), (H @ V)[lo:hi], rtol=0, atol=accuracy * np.linalg.norm(H @ V))
    every = np.arange(N)
    np.testing.assert_array_equal(op.entries(every, every), H.astype(dtype))
    np.testing.assert_array_equal(op.diagonal(), np.diagonal(H).astype(dtype))
    if not exact and dtype == np.float64:
        assert relative(op @ V, K @ V) > 10 * accuracy  # the upper triangle would have been noticed


@pytest.mark.parametrize("exact", [True, False])
def test_batches_of_entries(comm, exact):
    K = symmetric(dtype=np.float32) if exact else nearly(np.float32, 5e-6)
    op, H, rng = DenseMatrix(K, comm=comm), lower(K), np.random.default_rng(3)
    I, starts_I, J, starts_J = ragged(rng)
    blocks = op.entries_batch(I, starts_I, J, starts_J)
    assert len(blocks) == len(starts_I) - 1 and blocks.dtype == np.float32
    for b in range(len(blocks)):
        np.testing.assert_array_equal(blocks[b], H[np.ix_(I[starts_I[b] : starts_I[b + 1]], J[starts_J[b] : starts_J[b + 1]])])
    part = op.entries_batch(I, starts_I[3:6], J, starts_J[3:6])  # starts that do not begin with 0
    for b in range(2):
        np.testing.assert_array_equal(part[b], blocks[b + 3])
    nothing = np.zeros(0, np.int64)
    assert len(op.entries_batch(nothing, np.zeros(1, np.int64), nothing, np.zeros(1, np.int64))) == 0
    assert op.entries(np.arange(3), nothing).shape == (3, 0)


def test_the_file_is_mapped_and_never_copied(comm, shared_tmp, monkeypatch):
    monkeypatch.setattr(dense_check, "TILE", 64)
    n = 1500
    path = on_root(comm, lambda: np.save(shared_tmp / "K.npy", symmetric(n, np.float32)) or shared_tmp / "K.npy")
    K = symmetric(n, np.float32)
    tracemalloc.start()
    op = DenseMatrix(path, comm=comm)
    U = op @ np.ones(n)
    I = np.arange(0, n, 50)
    found = op.entries(I, I)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.1 * K.nbytes
    assert op.dtype == np.float32
    np.testing.assert_array_equal(found, K[np.ix_(I, I)])
    np.testing.assert_allclose(U, K.astype(np.float64) @ np.ones(n), rtol=0, atol=1e-3)
    op.close()


def test_dead_rows(comm):
    K, dead = symmetric(), [0, 7, 8, 30, N - 1]
    K[dead] = K[:, dead] = 0
    K[20] = K[:, 20] = 0
    K[20, 3] = K[3, 20] = 1e-300
    assert np.array_equal(DenseMatrix(K, comm=comm).alive, np.setdiff1d(np.arange(N), dead))
    zero = DenseMatrix(np.zeros((N, N)), comm=comm)
    assert len(zero.alive) == 0 and not (zero @ np.ones(N)).any()
    one = DenseMatrix(np.array([[3.0]]), comm=comm)
    assert one.alive.tolist() == [0] and one @ np.ones(1) == 3


def test_the_digest_is_that_of_the_numbers(comm, shared_tmp):
    K = symmetric()
    op = DenseMatrix(K, comm=comm)
    path = on_root(comm, lambda: np.save(shared_tmp / "K.npy", K) or shared_tmp / "K.npy")
    assert DenseMatrix(path, comm=comm).digest == op.digest == DenseMatrix(K, comm=MPI.COMM_SELF).digest
    assert len(set(comm.allgather(op.digest))) == 1 and len(op.digest) == 64
    for i, j in ((0, 0), (N - 1, N - 1), (40, 3), (33, 32)):
        changed = K.copy()
        changed[i, j] = changed[j, i] = np.nextafter(K[i, j], 9)
        assert DenseMatrix(changed, comm=comm).digest != op.digest
    assert DenseMatrix(K.astype(np.float32), comm=comm).digest != op.digest
    assert DenseMatrix(np.asfortranarray(K), comm=comm).digest == op.digest


@pytest.mark.parametrize("i, j", [(1, 0), (0, 1), (60, 0), (0, 60), (60, 59), (24, 17), (17, 24), (39, 40)])
def test_an_asymmetric_matrix_is_refused_with_the_place(comm, i, j):
    for dtype, size in ((np.float32, 3e-5), (np.float64, 3e-12)):
        K = symmetric(dtype=dtype)
        K[i, j] += dtype(size) * np.abs(K).max()
        with pytest.raises(InputError, match="not symmetric") as caught:
            DenseMatrix(K, comm=comm)
        assert f"[{max(i, j)}, {min(i, j)}] and [{min(i, j)}, {max(i, j)}]" in str(caught.value) and "\n" not in str(caught.value)


def test_the_largest_difference_is_named(comm):
    K = symmetric()
    for (i, j), by in {(50, 2): 0.1, (30, 31): 3.0, (4, 60): 0.2}.items():
        K[i, j] += by
    with pytest.raises(InputError, match=r"\[31, 30\] and \[30, 31\] .* differ by 3,"):
        DenseMatrix(K, comm=comm)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("i, j", [(0, 0), (60, 0), (3, 55), (18, 19), (60, 60)])
def test_what_is_not_finite_is_refused_with_the_place(comm, value, i, j):
    K = symmetric()
    K[i, j] = value
    with pytest.raises(InputError) as caught:
        DenseMatrix(K, comm=comm)
    assert str(caught.value) == f"the matrix is not finite: {value} at [{i}, {j}], counted from 0"
    K[j, i] = value
    with pytest.raises(InputError, match="not finite"):
        DenseMatrix(K, comm=comm)


def test_large_numbers(comm):
    K = symmetric()
    K[5, 4], K[4, 5] = 1.7e308, -1.7e308
    with pytest.raises(InputError, match="not symmetric"):  # though the difference overflows
        DenseMatrix(K, comm=comm)
    K[4, 5] = K[5, 4]
    assert (DenseMatrix(K, comm=comm) @ np.eye(N)[4])[5] == 1.7e308
    with pytest.raises(InputError, match="use float64"):
        DenseMatrix(K, comm=comm, dtype=np.float32)


def test_arrays_of_other_kinds(comm):
    K = np.rint(symmetric()).astype(int)
    for each in (K, K.astype(np.int8), K.astype(np.float16), np.repeat(np.repeat(K, 2, 0), 2, 1)[::2, ::2]):
        np.testing.assert_allclose(DenseMatrix(each, comm=comm) @ np.ones(N), K.sum(axis=1), atol=1e-3)
    for wrong, why in ((K * 1j, "complex"), (K[:5], "square"), (K[0], "square"), (np.zeros((0, 0)), "square"), (K.astype(str), "real numbers")):
        with pytest.raises(InputError, match=why):
            DenseMatrix(wrong, comm=comm)
    with pytest.raises(InputError, match="contradicts n = 3"):
        DenseMatrix(K, 3, comm=comm)
    with pytest.raises(InputError, match="dtype"):
        DenseMatrix(K, comm=comm, dtype=int)


def test_ranks_with_different_matrices(comm):
    K = symmetric()
    K[9, 9] += comm.rank
    if comm.size == 1:
        DenseMatrix(K, comm=comm)
        return
    with pytest.raises(InputError, match="different matrices"):
        DenseMatrix(K, comm=comm)
    with pytest.raises(InputError, match="square"):
        DenseMatrix(K if comm.rank else K[:5], comm=comm)
