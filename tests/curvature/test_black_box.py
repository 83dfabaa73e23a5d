"""Operators of products alone, and what is taken for an operator."""

import warnings

import numpy as np
import pytest
import scipy.sparse
from scipy.sparse.linalg import LinearOperator, aslinearoperator

import hpcHess as hh
from hpcHess.curvature.black_box import BlackBox, as_operator, linear_operator
from hpcHess.curvature.dense import DenseMatrix
from hpcHess.parallel.operator import REPEATED
from hpcHess.parallel.ownership import row_starts
from hpcHess.runtime.errors import InputError

N = 43


def symmetric(seed=0):
    A = np.random.default_rng(seed).standard_normal((N, N))
    return A + A.T


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_products(comm, dtype):
    H, V, seen = symmetric(), np.random.default_rng(1).standard_normal((N, 4)), []

    def product(V):
        seen.append((V.dtype, V.flags.c_contiguous, V.shape[0], V.ndim))
        return H @ V

    op, accuracy = BlackBox(product, N, comm=comm, dtype=dtype), 1e-14 if dtype == np.float64 else 1e-6
    assert op.dtype == dtype and op.shape == (N, N) and np.array_equal(op.alive, np.arange(N))
    U, size = H @ V, np.linalg.norm(H @ V)
    lo, hi = row_starts(N, comm.size)[comm.rank :][:2]
    for found, wanted in (
        (op @ V, U),
        (op.matmat(V[:, 1]), U[:, 1]),
        (comm.allreduce(op.partial_matmat(np.asfortranarray(V))), U),
        (op.matmat_rows(V[lo:hi]), U[lo:hi]),
    ):
        assert found.dtype == dtype
        np.testing.assert_allclose(found, wanted, rtol=0, atol=accuracy * size)
    assert set(seen) == {(np.dtype(dtype), True, N, 2)}
    assert not hasattr(op, "entries") and not hasattr(op, "entries_batch") and not hasattr(op, "diagonal")


def test_rows_that_are_zero(comm):
    H = symmetric()
    H[[0, 17]] = H[:, [0, 17]] = 0
    assert np.array_equal(BlackBox(lambda V: H @ V, N, comm=comm).alive, np.setdiff1d(np.arange(N), [0, 17]))
    assert len(BlackBox(np.zeros_like, N, comm=comm).alive) == 0


def test_an_operator_that_is_not_symmetric(comm):
    H, skew = symmetric(), np.triu(symmetric(1), 1)
    skew -= skew.T
    skew *= np.linalg.norm(H) / np.linalg.norm(skew)
    for dtype, size in ((np.float64, 1e-7), (np.float32, 1e-2)):
        with pytest.raises(InputError, match="not symmetric") as caught:
            BlackBox(lambda V: H @ V + size * (skew @ V), N, comm=comm, dtype=dtype)  # noqa: B023
        words = str(caught.value).split("is about ")[1].split()
        asymmetry = float(words[0]) / float(str(caught.value).split("≈ ")[1].split()[0])
        assert 0.5 * size <= asymmetry / 2 <= 2 * size  # ‖H − Hᵀ‖_F = 2 · size · ‖skew‖_F
        BlackBox(lambda V: H @ V + 1e-2 * size * (skew @ V), N, comm=comm, dtype=dtype)  # noqa: B023


def test_single_precision_is_not_taken_for_asymmetry(comm):
    H = symmetric().astype(np.float32)
    BlackBox(lambda V: H @ V, N, comm=comm, dtype=np.float32)
    with pytest.raises(InputError, match="single precision.*float32"):
        BlackBox(lambda V: H @ V.astype(np.float32), N, comm=comm)


@pytest.mark.parametrize("product", [lambda V: V[:, :1], lambda V: 1j * V, lambda V: None, lambda V: V[1:]])
def test_callables_that_give_something_else(comm, product):
    with pytest.raises(InputError, match="matmat gave"):
        BlackBox(product, N, comm=comm)


def test_arguments(comm):
    for wrong in (lambda: BlackBox(3, N, comm=comm), lambda: BlackBox(np.copy, 0, comm=comm), lambda: BlackBox(np.copy, 2.5, comm=comm)):
        with pytest.raises(InputError):
            wrong()
    with pytest.raises(InputError, match="dtype"):
        BlackBox(np.copy, N, comm=comm, dtype=np.int32)
    with pytest.raises(InputError, match="not finite"):
        BlackBox(lambda V: V * np.nan, N, comm=comm)


def boom(V):
    raise ValueError("boom")


@pytest.mark.parametrize("wrong, message", [(boom, "ValueError: boom"), (lambda V: V[1:], "matmat gave"), (lambda V: V * np.inf, "not finite")])
def test_what_fails_later_and_on_one_rank_fails_everywhere(comm, wrong, message):
    H, calls = symmetric(), []

    def product(V):
        calls.append(len(calls))
        return wrong(V) if len(calls) > 2 and comm.rank == comm.size - 1 else H @ V

    op = BlackBox(product, N, comm=comm)
    for multiply in (op.matmat, op.partial_matmat):
        with pytest.raises(InputError, match=message):
            multiply(np.ones((N, 2)))


@pytest.mark.parametrize("dtype, size, advice", [(np.float64, 1e-6, "single"), (np.float64, 0.1, r"model.eval\(\)"), (np.float32, 1e-2, r"model.eval\(\)")])
def test_an_operator_that_is_not_deterministic(comm, dtype, size, advice):
    """Noise, symmetric or not, on one rank alone; as much as orders of summation may cause is allowed."""
    H, rng = symmetric(), np.random.default_rng(3 + comm.rank)

    def product(V, size):
        noise = symmetric(rng.integers(1 << 30)) * (comm.rank == comm.size - 1)
        return H @ V + size * (noise @ V)

    with pytest.raises(InputError, match=r"not deterministic: two products .* differ by .*" + advice) as caught:
        BlackBox(lambda V: product(V, size), N, comm=comm, dtype=dtype)
    off, norm = (float(str(caught.value).split(before)[1].split()[0].rstrip(",(")) for before in ("differ by ", "norm is "))
    rows = row_starts(N, comm.size)
    share = (rows[-1] - rows[-2]) / N  # of the rows, which the noisy rank gives
    assert 0.3 < off / norm / (np.sqrt(2 * share) * size) < 3
    BlackBox(lambda V: product(V, 0.01 * REPEATED[np.dtype(dtype)]), N, comm=comm, dtype=dtype)


def test_dropout_drawn_anew_for_every_block_is_not_deterministic(comm):
    """The same seed at every call does not make a linear operator of it."""
    H = symmetric()
    masked = lambda V: V * (np.random.default_rng(0).random(V.shape) < 0.9)  # noqa: E731
    with pytest.raises(InputError, match="not deterministic"):
        BlackBox(lambda V: masked(H @ masked(V)), N, comm=comm)


def test_scipy_operators(comm):
    H, V = symmetric(), np.random.default_rng(1).standard_normal((N, 3))
    sparse = H * (np.abs(H) > 1)
    by_vector = LinearOperator((N, N), matvec=lambda v: H @ v, dtype=np.float64)
    untyped = aslinearoperator(H)
    untyped.dtype = None
    for A, exact, dtype in (
        (aslinearoperator(H), H, np.float64),
        (by_vector, H, np.float64),
        (untyped, H, np.float64),
        (aslinearoperator(H.astype(np.float32)), H, np.float32),
        (scipy.sparse.csr_matrix(sparse), sparse, np.float64),
        (scipy.sparse.coo_array(sparse), sparse, np.float64),
    ):
        op = linear_operator(A, comm)
        assert isinstance(op, BlackBox) and op.dtype == dtype and op.comm is comm
        np.testing.assert_allclose(op @ V, exact @ V, atol=(1e-13 if dtype == np.float64 else 1e-5) * np.linalg.norm(exact))
    skew = np.triu(H) - np.tril(H)
    for wrong, message in (
        (H, "not ndarray"),
        (3, "not int"),
        (aslinearoperator(np.ones((3, 4))), r"square, not of shape \[3, 4\]"),
        (aslinearoperator(1j * H), "real, not complex128"),
        (aslinearoperator(skew), "not symmetric"),
    ):
        with pytest.raises(InputError, match=message):
            linear_operator(wrong, comm)


def test_what_compress_takes(comm):
    """Coerced to operators over all ranks; sampling = products by itself where there are no entries, unless another one is asked for."""
    A = symmetric()
    H = A @ A / N + np.diag(np.arange(N))
    for given in (H, aslinearoperator(H), scipy.sparse.csr_matrix(H)):
        found = hh.compress(given, rtol=1e-6, leaf_size=12)
        assert found.report["sampling"] == ("sketch" if given is H else "products")
        assert np.linalg.norm(found @ np.eye(N) - H) <= 1e-6 * np.linalg.norm(H)
    op = BlackBox(lambda V: H @ V, N, comm=comm)
    assert as_operator(op) is op and isinstance(as_operator(H), DenseMatrix)
    with pytest.raises(InputError, match='sampling = "sketch" needs them'):
        hh.compress(op, sampling="sketch")
    with pytest.raises(InputError, match='format = "fmm" takes near blocks from entries'):
        hh.compress(op, format="fmm")
    for wrong in (lambda V: V, "K.npy", None, [[1.0]]):
        with pytest.raises(InputError, match="compress takes an operator"):
            hh.compress(wrong)


def test_a_petsc_mat_is_compressed_as_it_is(comm):
    pytest.importorskip("petsc4py")
    H = symmetric()
    H = H @ H
    found = hh.compress(hh.petsc_mat(DenseMatrix(H, comm=comm)), rtol=1e-5, leaf_size=12)
    assert found.report["sampling"] == "products" and np.linalg.norm(found @ np.eye(N) - H) <= 1e-5 * np.linalg.norm(H)


def test_nan_on_one_rank_is_everyones(comm):
    H = symmetric()

    def product(V):
        return H @ V if comm.rank else H @ V * np.nan

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError, match="not finite"):
            BlackBox(product, N, comm=comm)


def test_products_that_overflow_single_precision(comm):
    op = BlackBox(lambda V: 1e30 * V.astype(np.float64), N, comm=comm, dtype=np.float32)
    with pytest.raises(InputError, match="not finite in float32"):
        op @ np.full(N, 1e10, np.float32)
