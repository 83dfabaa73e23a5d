"""An operator of products alone."""

import numpy as np
import pytest

from hpcHess.curvature.black_box import BlackBox
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
    with pytest.raises(InputError, match="not symmetric"):
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
        return wrong(V) if len(calls) > 1 and comm.rank == comm.size - 1 else H @ V

    op = BlackBox(product, N, comm=comm)
    for multiply in (op.matmat, op.partial_matmat):
        with pytest.raises(InputError, match=message):
            multiply(np.ones((N, 2)))


def test_products_that_overflow_single_precision(comm):
    op = BlackBox(lambda V: 1e30 * V.astype(np.float64), N, comm=comm, dtype=np.float32)
    with pytest.raises(InputError, match="not finite in float32"):
        op @ np.full(N, 1e10, np.float32)
