"""One Woodbury level, A = blockdiag(A_i) + U B Uᵀ, against dense NumPy: solve, determinant, inertia."""

import numpy as np
import pytest

import hpcHess.backend as hb
from tests.backend.oracles import BACKENDS, random_blocks, starts_of

SIZES, SKELETONS = [12, 30, 7, 25], [4, 10, 7, 0]


def problem(rng, kind, sizes=SIZES, skeletons=SKELETONS, dtype=np.float64):
    """(A_i, order, T, B): symmetric blocks, permutations, interpolations and the coupling of the skeletons."""
    sizes, skeletons = np.array(sizes), np.array(skeletons)
    order = np.concatenate([rng.permutation(c) for c in sizes])
    T = random_blocks(rng, skeletons, sizes - skeletons, dtype)
    T.data *= 0.5
    A = hb.Blocks.shaped(np.zeros, sizes, sizes)
    for i, c in enumerate(sizes):
        G = rng.standard_normal((c, c))
        A[i][:] = G @ G.T / c + 0.1 * np.eye(c) if kind == "definite" else (G + G.T) / 2
    total = skeletons.sum()
    B = rng.standard_normal((total, total))
    B = 0.05 * (B + B.T)
    starts = starts_of(skeletons)
    for i in range(len(sizes)):
        B[starts[i] : starts[i + 1], starts[i] : starts[i + 1]] = 0
    return A, order, T, B


def dense(A, order, T, B):
    """blockdiag(A_i) + U B Uᵀ in the original order of rows, and U."""
    starts, s_starts = starts_of(A.rows), starts_of(T.rows)
    U = np.zeros((starts[-1], s_starts[-1]))
    D = np.zeros((starts[-1], starts[-1]))
    for i in range(len(A)):
        rows = starts[i] + order[starts[i] : starts[i + 1]]
        D[starts[i] : starts[i + 1], starts[i] : starts[i + 1]] = A[i]
        U[rows, s_starts[i] : s_starts[i + 1]] = np.vstack([np.eye(T.rows[i]), T[i].T.astype(float)])
    return D + U @ B @ U.T


def parent(elimination, B):
    """The dense matrix of the kept rows: D̂ on the diagonal, B between skeletons, nothing for delayed rows."""
    starts, s_starts, s = elimination.kept_starts, starts_of(elimination.T.rows), elimination.T.rows
    P = np.zeros((starts[-1], starts[-1]))
    skeleton = np.concatenate([np.arange(starts[i], starts[i] + s[i]) for i in range(len(s))])
    P[np.ix_(skeleton, skeleton)] = B[: s_starts[-1], : s_starts[-1]]
    for i in range(len(s)):
        P[starts[i] : starts[i + 1], starts[i] : starts[i + 1]] += elimination.backend.to_host(elimination.schur[i])
    return P


def check(backend, A, order, T, B, tolerance=1e-11):
    rng = np.random.default_rng(9)
    M = dense(A, order, T, B)
    elimination = backend.eliminate(A, order, T)
    P = parent(elimination, B)
    log_abs, sign = np.linalg.slogdet(M)[::-1]
    root_log, root_sign = np.linalg.slogdet(P)[::-1]
    np.testing.assert_allclose(elimination.log_abs.sum() + root_log, log_abs, rtol=0, atol=tolerance * 1e2)
    negative = int((np.linalg.eigvalsh(P) < 0).sum()) if len(P) else 0
    assert elimination.negative.sum() + negative == (np.linalg.eigvalsh(M) < 0).sum()
    assert (-1) ** int(elimination.negative.sum()) * root_sign == sign
    b = rng.standard_normal((len(M), 3))
    restored = hb.Elimination.from_arrays(backend, elimination.arrays())
    for factors in (elimination, restored):
        kept, state = factors.forward(b)
        x = factors.backward(np.linalg.solve(P, kept) if len(P) else kept, state)
        np.testing.assert_allclose(M @ x, b, rtol=0, atol=tolerance * max(1, abs(x).max()))
    return elimination


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("kind", ["definite", "indefinite"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_solve_determinant_inertia(name, kind, dtype):
    elimination = check(hb.get(name), *problem(np.random.default_rng(1), kind, dtype=dtype))
    if kind == "definite":
        assert not elimination.delayed.any() and not elimination.negative.any()
    else:
        assert elimination.negative.any()


@pytest.mark.parametrize("name", BACKENDS)
def test_singular_redundant_part_goes_up(name):
    """X_RR of exact rank deficiency 3 in one block: three directions are delayed, the solve stays accurate."""
    rng = np.random.default_rng(2)
    A, order, T, B = problem(rng, "definite")
    rows, s = order[12:42], 10
    G = rng.standard_normal((20, 17))
    U = np.vstack([np.eye(s), T[1].T])
    L = np.block([[np.eye(s), np.zeros((s, 20))], [T[1].T, np.eye(20)]])
    X = np.block([[np.eye(s), rng.standard_normal((s, 20))], [np.zeros((20, s)), G @ G.T]])
    X[s:, :s] = X[:s, s:].T
    A[1][np.ix_(rows, rows)] = L @ X @ L.T
    assert np.allclose(L @ np.eye(30)[:, :s], U)
    elimination = check(hb.get(name), A, order, T, B, tolerance=1e-9)
    assert list(elimination.delayed) == [0, 3, 0, 0] and list(elimination.kept) == [4, 13, 7, 0]


@pytest.mark.parametrize("name", BACKENDS)
def test_small_pivot_with_large_coupling_is_delayed(name):
    """D = [[0, 1], [1, 1e-9]]: eliminating the small pivot would lose nine digits."""
    A = hb.Blocks.shaped(np.array([0, 1, 1, 1e-9]), [2], [2])
    T = hb.Blocks.shaped(np.zeros(1), [1], [1])
    for sign in (1, -1):
        A.data[3] = sign * 1e-9
        assert check(hb.get(name), A, np.array([0, 1]), T, np.zeros((1, 1)), 1e-14).delayed[0] == 1


@pytest.mark.parametrize("name", BACKENDS)
def test_small_damping_keeps_its_digits(name):
    """Gram blocks of low rank plus λ = 1e-10, never delayed: the determinant and the solve stay good (DESIGN: 8e-6 at 1e-10)."""
    rng = np.random.default_rng(3)
    A, order, T, B = problem(rng, "definite")
    M = dense(hb.Blocks.shaped(np.zeros, SIZES, SIZES), order, T, np.eye(21))
    starts = starts_of(SIZES)
    for i, c in enumerate(SIZES):
        A[i][:] = M[starts[i] : starts[i + 1], starts[i] : starts[i + 1]] + 1e-10 * np.eye(c)
    M = dense(A, order, T, 0 * B)
    backend = hb.get(name)
    elimination = backend.eliminate(A, order, T)
    P = parent(elimination, 0 * B)
    assert not elimination.delayed.any() and not elimination.negative.any()
    eigenvalues = np.linalg.eigvalsh(M)
    expected = np.log(eigenvalues[eigenvalues > 1e-3]).sum() + (len(M) - 21) * np.log(1e-10)
    np.testing.assert_allclose(elimination.log_abs.sum() + np.linalg.slogdet(P)[1], expected, atol=1e-3)
    b = rng.standard_normal((len(M), 2))
    kept, state = elimination.forward(b)
    x = elimination.backward(np.linalg.solve(P, kept), state)
    assert np.linalg.norm(M @ x - b) <= 1e-5 * np.linalg.norm(b)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("kind", ["definite", "indefinite"])
def test_root_is_a_dense_solve(name, kind):
    """s = 0: everything is eliminated; empty blocks and an empty batch pass through."""
    backend, rng = hb.get(name), np.random.default_rng(4)
    A, order, T, _ = problem(rng, kind, [0, 9, 0, 40], [0, 0, 0, 0])
    elimination = backend.eliminate(A, order, T, delay=False)
    assert not elimination.kept.any() and len(elimination.schur.data) == 0
    b = rng.standard_normal((60, 2))
    kept, state = elimination.forward(b, starts=[0, 3, 60, 15])
    x = elimination.backward(kept, state)
    np.testing.assert_allclose(A[1] @ x[:9], b[3:12], atol=1e-12)
    np.testing.assert_allclose(A[3] @ x[9:], b[15:55], atol=1e-11)
    for i in (1, 3):
        np.testing.assert_allclose(elimination.log_abs[i], np.linalg.slogdet(A[i])[1], atol=1e-11)
        assert elimination.negative[i] == (np.linalg.eigvalsh(A[i]) < 0).sum()
    none = np.zeros(0, np.int64)
    empty = backend.eliminate(hb.Blocks.shaped(np.zeros, none, none), none, hb.Blocks.shaped(np.zeros, none, none))
    kept, state = empty.forward(np.zeros((0, 2)))
    assert empty.backward(kept, state).shape == (0, 2)


@pytest.mark.parametrize("name", BACKENDS)
def test_singular_root_raises(name):
    A = hb.Blocks.shaped(np.zeros, [3], [3])
    with pytest.raises(np.linalg.LinAlgError, match="singular"):
        hb.get(name).eliminate(A, np.arange(3), hb.Blocks.shaped(np.zeros, [0], [3]), delay=False)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("k", [1, 9])
def test_rows_lie_anywhere(name, k):
    """Gathered from and scattered to rows of a larger array: what moving them before and after gives, other rows untouched."""
    rng = np.random.default_rng(31)
    A, order, T, _ = problem(rng, "definite")
    backend = hb.get(name)
    elimination = backend.eliminate(A, order, T)
    n = int(elimination.starts[-1])
    place = rng.permutation(n + 5)[:n]
    B = rng.standard_normal((n + 5, k))
    kept, state = elimination.forward(np.ascontiguousarray(B[place]))
    there = elimination.forward(B, rows=place[elimination.rows()])
    assert np.array_equal(there[0], kept) and np.array_equal(there[1], state)
    into = B.copy()
    expected = B.copy()
    expected[place] = elimination.backward(kept, state)
    elimination.backward(kept, state, rows=place[elimination.rows()], into=into)
    assert np.array_equal(into, expected)
