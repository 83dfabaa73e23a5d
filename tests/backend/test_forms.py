"""One level by orthogonal rotations and by the plain Woodbury formula, A = blockdiag(A_i) + U B Uᵀ, against dense NumPy."""

import numpy as np
import pytest

import hpcHess.backend as hb
from hpcHess.backend.correction import Correction
from hpcHess.backend.orthogonal import OrthogonalElimination, bases
from tests.backend.device_arrays import DeviceBackend
from tests.backend.oracles import BACKENDS, random_blocks, starts_of
from tests.backend.test_elimination import dense, problem

FORMS = {"ulv": OrthogonalElimination, "woodbury": Correction}


def steps(backend, form, A, order, T, **keywords):
    return backend.eliminate_orthogonally(A, order, T, **keywords) if form == "ulv" else backend.correct(A, order, T)


def parent(found, T, B):
    """The dense matrix of the kept rows: D̂ on the diagonal, B or Ũ B Ũᵀ between skeletons."""
    host, starts, s_starts = found.backend.to_host, found.kept_starts, starts_of(T.rows)
    P = np.zeros((starts[-1], starts[-1]))
    for i in range(len(T)):
        for j in range(len(T)):
            block = B[s_starts[i] : s_starts[i + 1], s_starts[j] : s_starts[j + 1]]
            if isinstance(found, OrthogonalElimination):
                block = host(found.basis[i]) @ block @ host(found.basis[j]).T
            P[starts[i] : starts[i] + T.rows[i], starts[j] : starts[j] + T.rows[j]] = block
        P[starts[i] : starts[i + 1], starts[i] : starts[i + 1]] += host(found.schur[i])
    return P


def check(backend, form, A, order, T, B, tolerance):
    """Determinant, inertia and solves of the steps, and of what is restored from their arrays."""
    M, asarray = dense(A, order, T, B), backend.asarray
    on = lambda blocks: hb.Blocks(asarray(blocks.data), blocks.rows, blocks.cols, blocks.offsets)  # noqa: E731
    found = steps(backend, form, on(A), order, on(T))
    P, b = parent(found, T, B), np.random.default_rng(9).standard_normal((len(M), 3))
    np.testing.assert_allclose(found.log_abs.sum() + np.linalg.slogdet(P)[1], np.linalg.slogdet(M)[1], rtol=0, atol=100 * tolerance)
    assert found.negative.sum() + (np.linalg.eigvalsh(P) < 0).sum() == (np.linalg.eigvalsh(M) < 0).sum()
    arrays = found.arrays() | {"skeleton_sizes": T.rows, "redundant_sizes": T.cols, "delayed": found.delayed}
    for each in (found, FORMS[form].from_arrays(backend, arrays)):
        kept, state = each.forward(asarray(b))
        x = backend.to_host(each.backward(asarray(np.linalg.solve(P, backend.to_host(kept))), state))
        np.testing.assert_allclose(M @ x, b, rtol=0, atol=tolerance * max(1, abs(x).max()))
    return found


@pytest.mark.parametrize("backend", [*map(hb.get, BACKENDS), DeviceBackend()], ids=lambda backend: backend.name)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["definite", "indefinite"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_solve_determinant_inertia(backend, form, kind, dtype):
    found = check(backend, form, *problem(np.random.default_rng(1), kind, dtype=dtype), 1e-10)
    assert not found.delayed.any() and found.negative.any() == (kind == "indefinite")


@pytest.mark.parametrize("name", BACKENDS)
def test_rotations_are_orthogonal_and_triangular(name):
    """[F E W⁻¹] = Q: with A = I nothing but Q is left, and QᵀU = [Ũ; 0]."""
    rng, backend = np.random.default_rng(2), hb.get(name)
    T = random_blocks(rng, [4, 0, 5], [6, 3, 0], np.float64)
    order = np.concatenate([rng.permutation(10), np.arange(3), rng.permutation(5)])
    A = hb.Blocks.shaped(np.zeros, [10, 3, 5], [10, 3, 5])
    for i in range(3):
        A[i][...] = np.eye(A.rows[i])
    found = backend.eliminate_orthogonally(A, order, T)
    for i, U in enumerate(bases(np, order, T)):
        Q, s = np.hstack([found.F[i], found.E[i]]), U.shape[1]
        assert np.allclose(Q.T @ Q, np.eye(len(U)), atol=1e-14) and np.allclose(found.schur[i], np.eye(s), atol=1e-14)
        assert np.allclose(Q.T @ U, np.vstack([found.basis[i], np.zeros((len(U) - s, s))]), atol=1e-14)


@pytest.mark.parametrize("name", BACKENDS)
def test_bases_of_parents(name):
    """U = blockdiag(Ũ_l, Ũ_r) Pᵀ, the children's delayed rows between and behind them untouched by it."""
    rng, backend = np.random.default_rng(3), hb.get(name)
    children = random_blocks(rng, [3, 2], [3, 2], np.float64)
    T = random_blocks(rng, [4], [4], np.float64)  # 3 + 1 delayed + 2 + 2 delayed = 8 rows
    T[0][:, 1:] = 0
    order = np.array([0, 2, 4, 5, 1, 3, 6, 7])
    (U,) = bases(backend.xp, order, T, (children, np.array([0, 4])))
    P = np.zeros((4, 8))
    P[:, order] = np.hstack([np.eye(4), T[0]])
    expected = P.T.copy()
    expected[:3], expected[4:6] = children[0] @ expected[:3], children[1] @ expected[4:6]
    np.testing.assert_allclose(U, expected, atol=1e-15)
    assert not U[[3, 6, 7]].any()


@pytest.mark.parametrize("name", BACKENDS)
def test_small_pivots_with_large_coupling_are_delayed(name):
    """U = e₁: Q is a reflection of the first axis, what it leaves is as in the elimination's test."""
    A = hb.Blocks.shaped(np.array([0, 1, 1, 1e-9]), [2], [2])
    T = hb.Blocks.shaped(np.zeros(1), [1], [1])
    assert check(hb.get(name), "ulv", A, np.array([0, 1]), T, np.zeros((1, 1)), 1e-13).delayed[0] == 1


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", BACKENDS)
def test_roots_and_empty_batches(name, form):
    backend, rng = hb.get(name), np.random.default_rng(4)
    A, order, T, _ = problem(rng, "indefinite", [0, 9], [0, 0])
    found = steps(backend, form, A, order, T, **({"delay": False} if form == "ulv" else {}))
    b = rng.standard_normal((9, 2))
    np.testing.assert_allclose(A[1] @ found.backward(*found.forward(b)), b, atol=1e-12)
    with pytest.raises(np.linalg.LinAlgError):
        singular = hb.Blocks.shaped(np.zeros, [3], [3])
        steps(backend, form, singular, np.arange(3), hb.Blocks.shaped(np.zeros, [0], [3]), **({"delay": False} if form == "ulv" else {}))
    none = np.zeros(0, np.int64)
    empty = steps(backend, form, hb.Blocks.shaped(np.zeros, none, none), none, hb.Blocks.shaped(np.zeros, none, none))
    assert empty.backward(*empty.forward(np.zeros((0, 2)))).shape == (0, 2) and empty.smallest() == np.inf
