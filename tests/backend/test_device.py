"""The generic code path on arrays that refuse every implicit conversion gives what NumPy gives."""

import numpy as np
import pytest

import hpcHess.backend as hb
from tests.backend.device_arrays import DeviceBackend
from tests.backend.oracles import random_blocks, starts_of


def on_device(device, blocks):
    return hb.Blocks(device.asarray(blocks.data), blocks.rows, blocks.cols, blocks.offsets)


def test_stand_in_refuses_what_cupy_refuses():
    device = DeviceBackend()
    a = device.asarray(np.ones(3))
    for mistake in (lambda: np.asarray(a), lambda: a + np.ones(3), lambda: np.ones(3) * a, lambda: np.sum(a), lambda: a[np.array([0, 1])]):
        with pytest.raises(TypeError):
            mistake()
    assert float(device.xp.sum(a)) == 3 and device.to_host(2 * a).tolist() == [2, 2, 2]


def test_products_and_copies():
    device, numpy, rng = DeviceBackend(), hb.get("numpy"), np.random.default_rng(1)
    A = random_blocks(rng, [3, 0, 8], [5, 2, 8], np.float32)
    X = rng.standard_normal((13 + 2, 4))
    results = []
    for backend in (device, numpy):
        Y, target = backend.xp.zeros((11, 4)), hb.Blocks.shaped(backend.xp.zeros, [20], [20])
        blocks = on_device(backend, A)
        backend.multiply(blocks, backend.asarray(X), [0, 5, 7], Y, [0, 3, 3], alpha=2.0)
        backend.place(target, blocks, [0, 0, 0], [0, 9, 9], [3, 1, 9], transpose=True)
        backend.multiply_symmetric(blocks, backend.asarray(X), [0, 3, 3], [3, 0, 3], Y)
        J, R = backend.asarray(np.array([5, 2, 9, 0, 1, 3, 4, 6, 7, 8, 10])), backend.asarray(np.arange(11, 26))
        whole = backend.expand_rows(blocks, J, R, Y)
        again = backend.compress_rows(blocks, J, R, backend.expand_rows(blocks, J, R, Y, whole))
        results.append(tuple(backend.to_host(a) for a in (Y, target.data, again)))
    for mine, theirs in zip(*results, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_interpolation():
    device, rng = DeviceBackend(), np.random.default_rng(2)
    starts = starts_of([12, 0, 30])
    R = rng.standard_normal((42, 25)) * 0.5 ** np.arange(25)
    found, expected = device.interpolate(device.asarray(R), starts, 1e-3), hb.get("numpy").interpolate(R, starts, 1e-3)
    for field in ("ranks", "order", "residual", "saturated"):
        np.testing.assert_array_equal(getattr(found, field), getattr(expected, field))
    np.testing.assert_array_equal(device.to_host(found.T.data), expected.T.data)
    assert 0 < expected.ranks[2] < 25


@pytest.mark.parametrize("definite", [True, False])
def test_elimination(definite):
    device, rng = DeviceBackend(), np.random.default_rng(3)
    A = random_blocks(rng, [9, 6], [9, 6], np.float64)
    for i in range(2):
        A[i][:] = A[i] @ A[i].T if definite else A[i] + A[i].T
    T = random_blocks(rng, [3, 0], [6, 6], np.float32)
    order, B = np.concatenate([rng.permutation(9), rng.permutation(6)]), rng.standard_normal((15, 2))
    results = []
    for backend in (device, hb.get("numpy")):
        made = backend.eliminate(on_device(backend, A), order, on_device(backend, T))
        for elimination in (made, hb.Elimination.from_arrays(backend, made.arrays())):
            kept, state = elimination.forward(backend.asarray(B))
            x = elimination.backward(kept, state)
            results.append([backend.to_host(a) for a in (made.schur.data, made.log_abs, made.negative, kept, x)])
    for other in results[1:]:
        for mine, theirs in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(mine, theirs)
