"""Blocks given by their parts: written out against NumPy, eliminated like the same blocks written out."""

import numpy as np
import pytest

import hpcHess.backend as hb
from hpcHess.backend.assembly import Assembly
from tests.backend.oracles import BACKENDS, random_blocks

SIZES, CORNERS = np.array([[5, 7], [40, 30], [3, 0], [0, 4]]), np.array([[4, 7], [33, 30], [3, 0], [0, 2]])
SHIFT = 8.0


def assembly(kind, dtype):
    """Two diagonal blocks and their coupling (in a corner of it, where rows are delayed), or one; and the dense blocks."""
    rng = np.random.default_rng(3)
    D = random_blocks(rng, SIZES.ravel(), SIZES.ravel(), np.float64 if kind == "coupled" else dtype)
    for i in range(len(D)):
        D[i][...] = D[i] + D[i].T.copy()
    if kind == "single":
        return Assembly(D, shift=SHIFT), [D[i].astype(float) + SHIFT * np.eye(len(D[i])) for i in range(len(D))]
    B = random_blocks(rng, CORNERS[:, 0], CORNERS[:, 1], dtype)
    dense = []
    for i, (n, m) in enumerate(SIZES):
        corner = np.zeros((n, m))
        corner[: CORNERS[i, 0], : CORNERS[i, 1]] = B[i]
        dense.append(np.block([[D[2 * i], corner], [corner.T, D[2 * i + 1]]]) + SHIFT * np.eye(n + m))
    return Assembly(D, B, SHIFT), dense


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("kind", ["coupled", "single"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_parts_make_the_block(name, kind, dtype):
    backend = hb.get(name)
    A, dense = assembly(kind, dtype)
    whole = A.whole(backend)
    assert len(A) == len(dense) and list(A.rows) == [len(each) for each in dense]
    for i, each in enumerate(dense):
        np.testing.assert_allclose(whole[i], each, rtol=1e-15)
        np.testing.assert_allclose(A.block(np, i), each, rtol=1e-15)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("kind", ["coupled", "single"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_parts_are_eliminated_like_the_whole(name, kind, dtype):
    """Definite and (small shifts leave some indefinite) refused blocks alike."""
    backend, rng = hb.get(name), np.random.default_rng(4)
    A, dense = assembly(kind, dtype)
    skeletons = A.rows // 2
    order, T = np.concatenate([rng.permutation(c) for c in A.rows]), random_blocks(rng, skeletons, A.rows - skeletons, dtype)
    T.data *= 0.3
    found, expected = backend.eliminate_assembled(A, order, T), hb.get("numpy").eliminate(A.whole(hb.get("numpy")), order, T)
    np.testing.assert_array_equal(found.kept, expected.kept)
    np.testing.assert_array_equal(found.negative, expected.negative)
    np.testing.assert_allclose(found.log_abs, expected.log_abs, rtol=0, atol=1e-11)
    np.testing.assert_allclose(found.schur.data, expected.schur.data, rtol=0, atol=1e-9 * np.abs(expected.schur.data).max())
    assert found.negative.any() and not found.negative.all()
