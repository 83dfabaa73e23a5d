"""Batched products and copies against NumPy loops in float64."""

import numpy as np
import pytest

import hpcHess.backend as hb
from hpcHess.runtime.errors import InputError
from tests.backend.oracles import BACKENDS, random_blocks, starts_of

ROWS = [5, 0, 3, 17, 64, 1, 300, 40]
COLS = [4, 7, 0, 40, 33, 1, 20, 700]


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("k", [0, 1, 2, 3, 8, 40])
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("types", [(np.float32, np.float32), (np.float64, np.float64), (np.float32, np.float64), (np.float64, np.float32)])
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
