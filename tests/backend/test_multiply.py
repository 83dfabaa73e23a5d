"""Batched products and copies against NumPy loops in float64."""

import numpy as np
import pytest

import hpcHess.backend as hb
from hpcHess.runtime.errors import InputError
from tests.backend.oracles import BACKENDS, random_blocks, starts_of

ROWS = [5, 0, 3, 17, 64, 1, 300, 40]
COLS = [4, 7, 0, 40, 33, 1, 20, 700]
TYPES = [(stored, of_vectors) for stored in (np.float32, np.float64) for of_vectors in (np.float32, np.float64)]


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("k", [0, 1, 2, 3, 5, 8, 40, 64, 300])
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("types", TYPES)
def test_disjoint_rows(name, k, transpose, types):
    backend, rng = hb.get(name), np.random.default_rng(1)
    A = random_blocks(rng, ROWS, COLS, types[0])
    inner, outer = (ROWS, COLS) if transpose else (COLS, ROWS)
    x_starts, y_starts = starts_of(inner), starts_of(outer)
    X = rng.standard_normal((x_starts[-1], k)).astype(types[1])
    Y = rng.standard_normal((y_starts[-1], k)).astype(types[1])
    expected = Y.astype(float)
    for i in range(len(A)):
        op = A[i].astype(float).T if transpose else A[i].astype(float)
        expected[y_starts[i] : y_starts[i + 1]] -= 0.5 * op @ X[x_starts[i] : x_starts[i + 1]].astype(float)
    X, Y = backend.asarray(X), backend.asarray(Y)
    backend.multiply(hb.Blocks(backend.asarray(A.data), A.rows, A.cols, A.offsets), X, x_starts, Y, y_starts, transpose, alpha=-0.5)
    assert Y.dtype == types[1]
    np.testing.assert_allclose(backend.to_host(Y), expected, rtol=0, atol=2e3 * np.finfo(types[1]).eps)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("transpose", [False, True])
def test_blocks_that_share_rows_are_summed(name, transpose):
    backend, rng = hb.get(name), np.random.default_rng(2)
    rows, cols = [600, 20, 30, 600, 9], [11, 12, 13, 11, 600]
    A = random_blocks(rng, rows, cols, np.float64)
    X, Y = rng.standard_normal((700, 3)), np.zeros((700, 3))
    x_starts, y_starts = np.array([0, 3, 40, 9, 1]), np.array([0, 0, 560, 50, 30])
    expected = Y.copy()
    for i in range(len(A)):
        op = A[i].T if transpose else A[i]
        expected[y_starts[i] : y_starts[i] + op.shape[0]] += op @ X[x_starts[i] : x_starts[i] + op.shape[1]]
    backend.multiply(A, X, x_starts, Y, y_starts, transpose)
    np.testing.assert_allclose(Y, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", BACKENDS)
def test_no_blocks(name):
    backend, none, Y = hb.get(name), np.zeros(0, np.int64), np.ones((4, 2))
    backend.multiply(hb.Blocks.shaped(np.zeros(0), none, none), np.ones((4, 2)), none, Y, none)
    assert (Y == 1).all()


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("transpose", [False, True])
def test_place(name, transpose):
    backend, rng = hb.get(name), np.random.default_rng(3)
    source = random_blocks(rng, [3, 0, 4], [2, 5, 4], np.float32)
    target = hb.Blocks.shaped(np.zeros, [10, 8], [9, 8])
    backend.place(target, source, [0, 1, 0], [1, 0, 5], [4, 2, 0], transpose)
    expected = [np.zeros((10, 9)), np.zeros((8, 8))]
    first = source[0].T if transpose else source[0]
    expected[0][1 : 1 + first.shape[0], 4 : 4 + first.shape[1]] = first
    expected[0][5:9, :4] = source[2].T if transpose else source[2]
    for i in range(2):
        np.testing.assert_array_equal(target[i], expected[i])


def test_names(monkeypatch):
    monkeypatch.delenv("HPCHESS_BACKEND", raising=False)
    assert hb.get("auto").name == ("native" if "native" in hb.available() else "numpy")
    monkeypatch.setenv("HPCHESS_BACKEND", "numpy")
    assert hb.get().name == "numpy"
    monkeypatch.setenv("HPCHESS_BACKEND", "fortran")
    with pytest.raises(InputError, match="fortran"):
        hb.get()
    if "cupy" not in hb.available():
        with pytest.raises(InputError, match="not available"):
            hb.get("cupy")


def symmetric_case(pairs, sizes, k, types, seed=4):
    """Random symmetric blocks between nodes of `sizes` rows with gaps between them, X, Y, and Y − 0.5 (Σ B and Bᵀ) X in float64."""
    rng, sizes = np.random.default_rng(seed), np.asarray(sizes)
    pairs, starts = np.array(pairs, np.int64).reshape(-1, 2), starts_of(sizes + 2)
    B = random_blocks(rng, sizes[pairs[:, 0]], sizes[pairs[:, 1]], types[0])
    X, Y = (rng.standard_normal((starts[-1], k)).astype(types[1]) for _ in range(2))
    whole = np.zeros((starts[-1], starts[-1]))
    for i, (a, b) in enumerate(pairs):
        rows, cols = slice(starts[a], starts[a] + sizes[a]), slice(starts[b], starts[b] + sizes[b])
        whole[rows, cols] += B[i]
        if a != b:
            whole[cols, rows] += B[i].T
    return B, X, starts[pairs[:, 0]], starts[pairs[:, 1]], Y, Y - 0.5 * whole @ X.astype(float)


NEIGHBOURS = [(a, b) for a in range(12) for b in range(a, min(a + 4, 12))]
SYMMETRIC = {
    "siblings": ([(0, 1), (2, 3), (4, 5)], [3, 17, 0, 5, 40, 129]),
    "a large one": ([(0, 1)], [500, 333]),
    "leaves": ([(0, 0), (1, 1), (2, 2)], [33, 1, 64]),
    "neighbours": (NEIGHBOURS, [30, 7, 16, 25, 0, 1, 40, 25, 25, 31, 32, 33]),
    "large neighbours": (NEIGHBOURS, [150, 90, 130, 25, 200, 1, 140, 125, 225, 100, 32, 60]),
    "out of order": ([(4, 0), (3, 3), (0, 1), (4, 2), (1, 0)], [300, 290, 280, 10, 310]),
    "nothing": ([], [4, 4]),
}


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("k", [0, 1, 3, 6, 64])
@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize("case", SYMMETRIC)
def test_symmetric(name, k, types, case):
    B, X, row_at, col_at, Y, expected = symmetric_case(*SYMMETRIC[case], k, types)
    hb.get(name).multiply_symmetric(B, X, row_at, col_at, Y, alpha=-0.5)
    np.testing.assert_allclose(Y, expected, rtol=0, atol=2e3 * np.finfo(types[1]).eps)


def bases_case(k, types):
    """T of five nodes, where their skeleton and redundant rows lie, P as a dense matrix, and the generator."""
    rng, s, r = np.random.default_rng(5), np.array([3, 0, 20, 1, 70]), np.array([4, 6, 33, 0, 150])
    T, columns = random_blocks(rng, s, r, types[0]), starts_of(s + r)
    orders = [first + rng.permutation(count) for first, count in zip(columns, s + r)]
    skeleton, redundant = (np.concatenate(parts) for parts in zip(*((o[:n], o[n:]) for o, n in zip(orders, s))))
    P = np.zeros((s.sum(), columns[-1]))
    P[np.arange(len(skeleton)), skeleton] = 1
    for i, (row, rest) in enumerate(zip(starts_of(s)[:-1], starts_of(r))):
        P[row : row + s[i], redundant[rest : rest + r[i]]] = T[i]
    return T, skeleton, redundant, P, rng


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("k", [0, 1, 4, 7, 64])
@pytest.mark.parametrize("types", TYPES)
def test_bases_on_rows(name, k, types):
    backend, (T, skeleton, redundant, P, rng) = hb.get(name), bases_case(k, types)
    X, W, into = (rng.standard_normal((n, k)).astype(types[1]) for n in (P.shape[1], P.shape[0], P.shape[1]))
    expected = [P @ X, P.T @ W, into + P.T @ W]
    found = [backend.compress_rows(T, skeleton, redundant, X), backend.expand_rows(T, skeleton, redundant, W)]
    assert backend.expand_rows(T, skeleton, redundant, W, into) is into
    for mine, theirs in zip([*found, into], expected, strict=True):
        assert mine.dtype == types[1]
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e3 * np.finfo(types[1]).eps)


@pytest.mark.parametrize("name", BACKENDS)
def test_symmetric_pairs_with_a_node_without_rows(name):
    """A node of rank 0 begins where its sibling does: their block is empty and on no diagonal."""
    B = hb.Blocks.shaped(np.ones(4), [0, 2, 2], [3, 0, 2])
    X, Y = np.ones((5, 1)), np.zeros((5, 1))
    hb.get(name).multiply_symmetric(B, X, np.array([0, 3, 3]), np.array([0, 3, 3]), Y)
    assert Y.ravel().tolist() == [0, 0, 0, 2, 2]


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(40, 1), (40, 3), (5000, 64), (7, 0)])
def test_rows_are_taken(name, dtype, shape):
    rng = np.random.default_rng(6)
    rows, index = rng.standard_normal(shape).astype(dtype), rng.integers(0, shape[0], 2 * shape[0])
    found = hb.get(name).take_rows(np.asfortranarray(rows), index)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, rows[index])


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("k", [1, 3, 40])
@pytest.mark.parametrize("stored", [np.float32, np.float64])
def test_blocks_at_scattered_rows(name, k, stored):
    """Y[rows] = D X[rows], block by block, against dense products; other rows untouched."""
    rng = np.random.default_rng(17)
    sizes = np.array([5, 0, 70, 131])
    D, n = random_blocks(rng, sizes, sizes, stored), int(sizes.sum())
    rows = rng.permutation(n + 4)[:n]
    X, Y = rng.standard_normal((n + 4, k)), rng.standard_normal((n + 4, k))
    expected, start = Y.copy(), 0
    for i, size in enumerate(sizes):
        own = rows[start : start + size]
        expected[own] = D[i].astype(float) @ X[own]
        start += size
    hb.get(name).multiply_at(D, rows, X, Y)
    assert np.allclose(Y, expected, rtol=0, atol=1e-12)
