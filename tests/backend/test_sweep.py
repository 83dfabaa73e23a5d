"""What sweeps through a network need besides plain matrix products, against NumPy in float64."""

import numpy as np
import pytest

import hpcHess.backend as hb
from hpcHess.networks.losses import CrossEntropy
from tests.backend.device_arrays import DeviceBackend
from tests.backend.oracles import BACKENDS

SHAPES = [(1, 1, 1), (3, 5, 7), (40, 1, 9), (1, 33, 2), (70, 65, 129), (4, 0, 3), (0, 2, 3), (3, 2, 0)]


def _backends():
    return [*(hb.get(name) for name in BACKENDS), DeviceBackend()]


def _given(rng, shape, dtype, order):
    """A random matrix whose rows (`C`), columns (`F`) or parts of longer rows (`part`) are contiguous."""
    m, n = shape
    if order == "part":
        return rng.standard_normal((m, n + 3)).astype(dtype)[:, 1 : n + 1]
    return np.asarray(rng.standard_normal(shape).astype(dtype), order=order)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("orders", [("C", "C"), ("F", "C"), ("C", "F"), ("F", "F"), ("part", "part")])
def test_add_product(dtype, orders):
    rng = np.random.default_rng(0)
    for m, k, n in SHAPES:
        A, B, C = _given(rng, (m, k), dtype, orders[0]), _given(rng, (k, n), dtype, orders[1]), _given(rng, (m, n), dtype, "part")
        expected, before = C + A.astype(float) @ B.astype(float), C.copy()
        for backend in _backends():
            result = backend.asarray(before.copy())
            assert backend.add_product(backend.asarray(A), backend.asarray(B), result) is None
            np.testing.assert_allclose(backend.to_host(result), expected, rtol=0, atol=100 * np.finfo(dtype).eps)
        hb.get("native").add_product(A, B, C)  # into a part of longer rows
        np.testing.assert_allclose(C, expected, rtol=0, atol=100 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_swap_axes(dtype):
    rng = np.random.default_rng(1)
    for n, a, b in SHAPES:
        wide = rng.standard_normal((n, a, b + 2)).astype(dtype)
        expected = (2 * wide[:, :, 1 : b + 1]).transpose(0, 2, 1)
        for backend in _backends():
            target = backend.asarray(np.zeros((n, b, a + 1), dtype))
            backend.swap_axes(backend.asarray(wide)[:, :, 1 : b + 1], target[:, :, :a], 2.0)
            found = backend.to_host(target)
            assert np.array_equal(found[:, :, :a], expected) and not found[:, :, a].any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scale_samples(dtype):
    rng = np.random.default_rng(2)
    for d, k, m in SHAPES:
        U, s = rng.standard_normal((d, k, m)).astype(dtype), rng.standard_normal((d, m + 4)).astype(dtype)
        for backend in _backends():
            given, by = backend.asarray(U.copy()), backend.asarray(s)[:, 2 : m + 2]
            other = backend.asarray(np.zeros_like(U))
            backend.scale_samples(given, by, out=other)
            assert np.array_equal(backend.to_host(other), U * s[:, None, 2 : m + 2]) and np.array_equal(backend.to_host(given), U)
            backend.scale_samples(given, by)
            assert np.array_equal(backend.to_host(given), backend.to_host(other))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softmax_hessian(dtype):
    """As the loss says it, and for samples of which the classifier is sure, where Q U is small."""
    rng, eps = np.random.default_rng(3), np.finfo(dtype).eps
    for d, k, m in SHAPES:
        if not d * k * m:
            continue
        z = 8 * rng.standard_normal((d, m))
        p = (np.exp(z) / np.exp(z).sum(axis=0)).astype(dtype)
        U = rng.standard_normal((d, k, m)).astype(dtype)
        expected = U.transpose(1, 0, 2).astype(float)
        CrossEntropy.apply_hessian(expected, p.astype(float))
        for backend in _backends():
            found = backend.asarray(U.copy())
            backend.softmax_hessian(found, backend.asarray(p))
            scale = np.abs(expected).max(axis=1, keepdims=True)
            assert np.all(np.abs(backend.to_host(found).transpose(1, 0, 2) - expected) <= 40 * eps * (scale + eps * np.abs(U).max()))


@pytest.mark.skipif("native" not in BACKENDS, reason="the compiled module is not built")
def test_arguments_that_do_not_match_are_refused():
    native, zeros = hb.get("native"), np.zeros
    with pytest.raises(ValueError, match="shapes"):
        native.add_product(zeros((2, 3)), zeros((4, 5)), zeros((2, 5)))
    with pytest.raises(ValueError, match="contiguous"):
        native.add_product(zeros((4, 6))[::2, ::2], zeros((3, 5)), zeros((2, 5)))
    with pytest.raises(ValueError, match="contiguous"):
        native.add_product(zeros((2, 3)), zeros((3, 5)), zeros((5, 2)).T)
    with pytest.raises(ValueError, match="shapes"):
        native.swap_axes(zeros((2, 3, 4)), zeros((2, 3, 4)))
    with pytest.raises(ValueError, match="shapes"):
        native.softmax_hessian(zeros((2, 3, 4)), zeros((3, 4)))
    with pytest.raises(ValueError, match="shapes"):
        native.scale_samples(zeros((2, 3, 4)), zeros((2, 5)))
