"""Truncated pivoted QR against SciPy's GEQP3 and a dense error oracle."""

import numpy as np
import pytest
import scipy.linalg

import hpcHess.backend as hb
from tests.backend.oracles import BACKENDS, starts_of


def decaying(rng, m, k, decay, dtype):
    """[m, k] with singular values decay^j."""
    n = min(m, k)
    U, V = (np.linalg.qr(rng.standard_normal((size, n)))[0] for size in (m, k))
    return ((U * decay ** np.arange(n)) @ V.T).astype(dtype)


def tails(piece):
    """‖S − QQᵀS‖_F after 0, 1, … min(m, k) pivots of SciPy's GEQP3, and the pivots."""
    R, pivots = scipy.linalg.qr(piece.T.astype(float), mode="r", pivoting=True)
    squares = np.sum(np.triu(R[: min(piece.shape)]) ** 2, axis=1)
    return np.sqrt(np.concatenate([np.cumsum(squares[::-1])[::-1], [0]])), pivots


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_smallest_rank_and_error(name, dtype):
    backend, rng = hb.get(name), np.random.default_rng(1)
    sizes, k = [30, 0, 100, 64, 200, 1, 33], 80
    R = np.concatenate([decaying(rng, m, k, 0.8, dtype) for m in sizes])
    starts, tolerance = starts_of(sizes), np.array([1e-2, 1, 1e-1, 1e-3, 3e-3, 1e-2, 1e9])
    found = backend.interpolate(backend.asarray(R), starts, tolerance)
    assert found.T.dtype == dtype
    for i, m in enumerate(sizes):
        piece = R[starts[i] : starts[i + 1]].astype(float)
        tail, _ = tails(piece)
        r = np.arange(len(tail))
        with np.errstate(divide="ignore", invalid="ignore"):
            corrected = np.where(r == m, 0, tail * k**0.5 / (k - r))
        expected = int(np.argmax(corrected <= tolerance[i]))
        assert found.ranks[i] == expected and not found.saturated[i]
        np.testing.assert_allclose(found.residual[i], corrected[expected], rtol=1e-3)
        order = found.order[starts[i] : starts[i + 1]]
        skeleton, redundant = order[:expected], order[expected:]
        assert sorted(order) == list(range(m)) and (np.diff(redundant) > 0).all()
        # the interpolation error is the tail itself: R₁₂ is exactly reproduced
        error = np.linalg.norm(piece[redundant] - backend.to_host(found.T[i]).T.astype(float) @ piece[skeleton])
        np.testing.assert_allclose(error, tail[expected], rtol=1e-2, atol=1e3 * np.finfo(dtype).eps)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(90, 70), (70, 90), (150, 150), (5, 40)])
def test_pivots_are_those_of_geqp3(name, dtype, shape):
    backend, rng = hb.get(name), np.random.default_rng(4)
    piece = (rng.standard_normal(shape) * np.linspace(1, 3, shape[0])[:, None]).astype(dtype)
    found = backend.interpolate(backend.asarray(piece), [0, shape[0]], 0.0)
    _, pivots = scipy.linalg.qr(piece.T, mode="r", pivoting=True)
    r = min(shape)
    assert found.ranks[0] == r
    np.testing.assert_array_equal(found.order[:r], pivots[:r])
    assert found.saturated[0] == (shape[0] > shape[1])
    assert found.residual[0] == (np.inf if shape[0] > shape[1] else 0)


@pytest.mark.parametrize("name", BACKENDS)
def test_graded_float32_needs_fresh_norms(name):
    """Nearly parallel columns: downdated norms are all cancellation, the smallest rank must still be found."""
    backend, rng = hb.get(name), np.random.default_rng(5)
    piece = np.ones((120, 1)) @ rng.standard_normal((1, 100)) + 1e-3 * decaying(rng, 120, 100, 0.7, float)
    piece = piece.astype(np.float32)
    found = backend.interpolate(backend.asarray(piece), [0, 120], 1e-5)
    tail, _ = tails(piece)
    assert abs(found.ranks[0] - int(np.argmax(tail * 10 / (100 - np.arange(101).clip(max=99)) <= 1e-5))) <= 1
    assert found.residual[0] <= 1e-5


@pytest.mark.parametrize("name", BACKENDS)
def test_true_number_of_samples(name):
    """Zero columns change nothing but the mean square; the correction is by the samples that count, none where there is all (inf)."""
    backend, rng, k = hb.get(name), np.random.default_rng(8), 60
    piece = decaying(rng, 40, 45, 0.8, float)
    R = np.concatenate([np.hstack([piece, np.zeros((40, 15))])] * 3)
    n = np.array([45, np.inf, 12.0])
    found = backend.interpolate(backend.asarray(R), starts_of([40] * 3), 1e-3, samples=n)
    tail, _ = tails(piece)
    for i in range(2):
        r = np.arange(41)
        corrected = tail / k**0.5 / (1 - np.minimum(r, 44) / n[i])
        corrected[40] = 0
        assert found.ranks[i] == np.argmax(corrected <= 1e-3)
        np.testing.assert_allclose(found.residual[i], corrected[found.ranks[i]], rtol=1e-6)
    assert found.ranks[1] < found.ranks[0]
    assert found.ranks[2] == 12 and found.residual[2] == np.inf and found.saturated[2]  # no more than it has samples


@pytest.mark.parametrize("name", BACKENDS)
def test_limits(name):
    backend, rng = hb.get(name), np.random.default_rng(6)
    R = rng.standard_normal((50, 40))
    found = backend.interpolate(R, [0, 50], 1e-6, max_rank=12)
    assert found.ranks[0] == 12 and found.saturated[0] and found.residual[0] > 1
    found = backend.interpolate(R, [0, 50], 1e9)
    assert found.ranks[0] == 0 and not found.saturated[0] and found.T.cols[0] == 50
    found = backend.interpolate(np.zeros((6, 4)), [0, 2, 6], 0.0)
    assert (found.ranks == 0).all() and not found.saturated.any()
    found = backend.interpolate(np.zeros((5, 0)), [0, 5], 1.0)
    assert found.ranks[0] == 0 and found.saturated[0]
    found = backend.interpolate(np.zeros((0, 4)), [0], 1.0)
    assert len(found.ranks) == 0 and len(found.order) == 0
    tiny = (1e-30 * rng.standard_normal((20, 30))).astype(np.float32)
    found = backend.interpolate(tiny, [0, 20], 1e-32)
    assert found.ranks[0] > 5 and np.isfinite(found.T.data).all()
    for bad in (np.nan, np.inf):
        R[3, 2] = bad
        with pytest.raises(FloatingPointError):
            backend.interpolate(R, [0, 50], 1e-3)
