"""The CuPy backend against NumPy's results: on a stand-in for CuPy that runs its kernels on the host, and on a device where there is one."""

import numpy as np
import pytest
from mpi4py import MPI

import hpcHess.backend as hb
from hpcHess.backend.entries import GramFactors, Sides
from hpcHess.backend.pivoted import DIRECT
from tests.backend import emulated
from tests.backend.fake_cupy import DEVICES, install
from tests.backend.oracles import random_blocks, starts_of

pytestmark = pytest.mark.skipif(MPI.COMM_WORLD.size > 1, reason="the same on every rank")

TYPES = [(np.float32, np.float32), (np.float64, np.float64), (np.float32, np.float64), (np.float64, np.float32)]


@pytest.fixture(params=DEVICES)
def cupy(monkeypatch, request):
    return install(monkeypatch, request.param)


def on(backend, blocks):
    return hb.Blocks(backend.asarray(blocks.data), blocks.rows, blocks.cols, blocks.offsets)


def product(name, types, k, transpose, rows, cols, x_starts=None, y_starts=None):
    backend, rng = hb.get(name), np.random.default_rng(1)
    A = random_blocks(rng, rows, cols, types[0])
    inner, outer = (rows, cols) if transpose else (cols, rows)
    x_starts, y_starts = starts_of(inner)[:-1] if x_starts is None else x_starts, starts_of(outer)[:-1] if y_starts is None else y_starts
    X = backend.asarray(rng.standard_normal((int(max(np.add(x_starts, inner))), k)).astype(types[1]))
    Y = backend.asarray(rng.standard_normal((int(max(np.add(y_starts, outer))), k)).astype(types[1]))
    backend.multiply(on(backend, A), X, x_starts, Y, y_starts, transpose, alpha=-0.5)
    return backend.to_host(Y)


@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize("k", [0, 1, 8, 9, 70])
@pytest.mark.parametrize("transpose", [False, True])
def test_products(cupy, types, k, transpose):
    given = types, k, transpose, [5, 0, 3, 17, 70, 1], [4, 7, 0, 40, 33, 130]
    ours, expected = product("cupy", *given), product("numpy", *given)
    assert ours.dtype == types[1]
    np.testing.assert_allclose(ours, expected, rtol=0, atol=500 * np.finfo(types[1]).eps)
    assert not cupy.launches or cupy.launches == [f"multiply_{'narrow' if k <= 8 else 'tile'}_{np.dtype(types[0])}_{np.dtype(types[1])}"] * (k > 0)


@pytest.mark.parametrize("k", [2, 20])
@pytest.mark.parametrize("transpose", [False, True])
def test_blocks_that_share_rows(cupy, k, transpose):
    """Overlapping outputs of several blocks, in chains and on top of each other, longer than one tile."""
    side = [100, 30, 30, 90, 10]
    given = TYPES[1], k, transpose, side, side, [0, 0, 7, 3, 0], [0, 90, 0, 95, 300]
    np.testing.assert_allclose(product("cupy", *given), product("numpy", *given), rtol=0, atol=1e-12)


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("y_starts", [None, [700, 600, 500, 400, 300, 0, 100]])
def test_equal_blocks_go_to_the_library(cupy, transpose, y_starts):
    side = [64] * 5 + [70, 64]
    given = TYPES[1], 12, transpose, side, side, None, y_starts
    np.testing.assert_allclose(product("cupy", *given), product("numpy", *given), rtol=0, atol=1e-11)


def test_mapped_rows(cupy):
    """Rows of X and Y through index arrays, as the moves between levels need them."""
    backend, rng = hb.get("cupy"), np.random.default_rng(2)
    A = random_blocks(rng, [4, 70], [9, 5], np.float32)
    x_rows, y_rows = rng.permutation(20)[:14], rng.permutation(90)[:74]
    for k in (3, 11):
        X, Y = rng.standard_normal((20, k)), rng.standard_normal((90, k))
        expected = Y.copy()
        expected[y_rows[:4]] += A[0].astype(float) @ X[x_rows[:9]]
        expected[y_rows[4:]] += A[1].astype(float) @ X[x_rows[9:]]
        Y = backend.asarray(Y)
        at = (np.array([0, 9]), backend.asarray(x_rows), Y, np.array([0, 4]), backend.asarray(y_rows))
        backend.multiply_mapped(on(backend, A), backend.asarray(X), *at)
        np.testing.assert_allclose(backend.to_host(Y), expected, atol=1e-12)


@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize("k", [0, 1, 4, 5])
def test_symmetric_pairs(cupy, types, k):
    backend, rng, counts = hb.get("cupy"), np.random.default_rng(3), np.array([70, 0, 33, 5])
    pairs = np.array([[0, 0], [0, 2], [0, 3], [1, 2], [2, 2], [2, 3]])
    starts, (a, b) = starts_of(counts)[:-1], pairs.T
    B = random_blocks(rng, counts[a], counts[b], types[0])
    X, Y = (rng.standard_normal((108, k)).astype(types[1]) for _ in range(2))
    expected = Y.astype(float)
    for i, (p, q) in enumerate(pairs):
        rows, cols, block = slice(starts[p], starts[p] + counts[p]), slice(starts[q], starts[q] + counts[q]), B[i].astype(float)
        expected[rows] += 0.5 * block @ X[cols]
        if p != q:
            expected[cols] += 0.5 * block.T @ X[rows]
    Y = backend.asarray(Y)
    backend.multiply_symmetric(on(backend, B), backend.asarray(X), starts[a], starts[b], Y, alpha=0.5)
    np.testing.assert_allclose(backend.to_host(Y), expected, rtol=0, atol=500 * np.finfo(types[1]).eps)


@pytest.mark.parametrize("k", [2, 9])
def test_bases(cupy, k):
    """P and Pᵀ, set and added, as NumPy has them."""
    found = []
    for backend in (hb.get("cupy"), hb.get("numpy")):
        rng = np.random.default_rng(4)
        T = on(backend, random_blocks(rng, [3, 0, 7], [5, 4, 70], np.float32))
        rows, (columns, skeletons, into) = rng.permutation(89), (backend.asarray(rng.standard_normal((n, k))) for n in (89, 10, 89))
        J, R = backend.asarray(rows[:10]), backend.asarray(rows[10:])
        made = backend.compress_rows(T, J, R, columns), backend.expand_rows(T, J, R, skeletons), backend.expand_rows(T, J, R, skeletons, into)
        found.append([backend.to_host(each) for each in (*made, into)])
    for mine, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(3, 5, 7), (1, 1, 1), (10, 3, 300), (4, 0, 3), (2, 3, 0)])
def test_passes_over_the_samples(cupy, dtype, shape):
    """Parts of longer rows too; arrays whose samples do not lie together go another way."""
    rng, (d, k, m) = np.random.default_rng(4), shape
    ours, numpy = hb.get("cupy"), hb.get("numpy")
    U, p = rng.standard_normal((d, k, m + 2)).astype(dtype), rng.random((d, m + 3)).astype(dtype)
    p /= p.sum(axis=0)
    for cut in (lambda a: a[..., 1 : m + 1], lambda a: a[..., ::-1][..., :m]):
        device, expected = ours.asarray(U), U.copy()
        ours.softmax_hessian(cut(device), cut(ours.asarray(p)))
        numpy.softmax_hessian(cut(expected), cut(p))
        np.testing.assert_allclose(ours.to_host(device), expected, rtol=0, atol=20 * np.finfo(dtype).eps)
        other, there = ours.asarray(np.zeros_like(U)), np.zeros_like(U)
        ours.scale_samples(cut(device), cut(ours.asarray(p)), out=cut(other))
        numpy.scale_samples(cut(ours.to_host(device)), cut(p), out=cut(there))
        assert np.array_equal(ours.to_host(other), there)
        ours.scale_samples(cut(device), cut(ours.asarray(p)))
        assert np.array_equal(cut(ours.to_host(device)), cut(there))


@pytest.mark.parametrize("transpose", [False, True])
def test_place(cupy, transpose):
    found = []
    for backend in (hb.get("cupy"), hb.get("numpy")):
        source = on(backend, random_blocks(np.random.default_rng(4), [3, 0, 4], [2, 5, 4], np.float32))
        target = hb.Blocks.shaped(backend.xp.zeros, [10, 8], [9, 8])
        backend.place(target, source, [0, 1, 0], [1, 0, 5], [4, 2, 0], transpose)
        found.append(backend.to_host(target.data))
    np.testing.assert_array_equal(*found)
    assert found[0].any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("max_rank", [None, 6])
def test_interpolation(cupy, dtype, max_rank):
    rng, sizes = np.random.default_rng(5), [12, 0, 40, 1, 30, 5]
    starts = starts_of(sizes)
    R = rng.standard_normal((starts[-1], 25)) @ (rng.standard_normal((25, 25)) * 0.5 ** np.arange(25))
    R[starts[4] : starts[5]], R = 0, R.astype(dtype)
    tolerance, samples = np.array([1e-2, 1, 1e-3, 1e-2, 1e-2, 1e-9]), np.array([25.0, 25, 20, 25, 25, 25])
    found, expected = (b.interpolate(b.asarray(R), starts, tolerance, max_rank, samples) for b in (hb.get("cupy"), hb.get("numpy")))
    for field in ("ranks", "order", "saturated"):
        np.testing.assert_array_equal(getattr(found, field), getattr(expected, field))
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(found.residual, expected.residual, rtol=1e4 * eps)
    np.testing.assert_allclose(hb.get("cupy").to_host(found.T.data), expected.T.data, atol=1e4 * eps)
    assert found.ranks[2] >= 6 and found.T.dtype == dtype
    R[3, 3] = np.nan
    with pytest.raises(FloatingPointError):
        hb.get("cupy").interpolate(hb.get("cupy").asarray(R), starts, tolerance)


def test_interpolation_of_small_and_large_pieces(cupy):
    """Large pieces are factored in blocks, small ones greedily, as by the other backends."""
    rng, sizes, k = np.random.default_rng(8), [DIRECT + 30, 20, 0, DIRECT + 20], DIRECT + 10
    starts = starts_of(sizes)
    R = rng.standard_normal((starts[-1], 60)) * 0.8 ** np.arange(60) @ rng.standard_normal((60, k))
    found, expected = (b.interpolate(b.asarray(R), starts, np.array([1e-2, 1e-3, 1.0, 1e-4])) for b in (hb.get("cupy"), hb.get("numpy")))
    for field in ("ranks", "order", "saturated"):
        np.testing.assert_array_equal(getattr(found, field), getattr(expected, field))
    np.testing.assert_allclose(found.residual, expected.residual, rtol=1e-7)
    np.testing.assert_allclose(hb.get("cupy").to_host(found.T.data), expected.T.data, atol=1e-9)
    assert found.ranks[0] > 16 and found.ranks[1] > 0


@pytest.mark.parametrize("delay", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_elimination(cupy, delay, dtype):
    """Definite and indefinite blocks, a root, nothing to eliminate; then a batch that the kernel does alone."""
    for indefinite in ([1], []):
        rng, sizes, kept = np.random.default_rng(6), np.array([40, 25, 10, 33, 0]), np.array([15, 5, 10, 0, 0])
        A = random_blocks(rng, sizes, sizes, np.float64)
        for i, c in enumerate(sizes):
            A[i][:] = (A[i] + A[i].T) / 2 if i in indefinite else A[i] @ A[i].T + np.eye(c)
        T = random_blocks(rng, kept, sizes - kept, dtype)
        order, b = np.concatenate([rng.permutation(c) for c in sizes]), rng.standard_normal((sizes.sum(), 2))
        results = []
        for backend in (hb.get("cupy"), hb.get("numpy")):
            factors = backend.eliminate(on(backend, A), order, on(backend, T), delay)
            for each in (factors, hb.Elimination.from_arrays(backend, factors.arrays())):
                x_kept, state = each.forward(backend.asarray(b))
                x = each.backward(x_kept, state)
                results.append([backend.to_host(a) for a in (factors.schur.data, each.log_abs, each.negative, each.delayed, x_kept, x)])
        for other in results[:-1]:
            for mine, theirs in zip(other, results[-1], strict=True):
                np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-9)
        assert results[0][2].any() == bool(indefinite)


@pytest.mark.parametrize("kind", ["factors", "shared, an output", "shared, a rest", "shared, no output", "stored"])
@pytest.mark.parametrize("types", [(np.float64, np.float64), (np.float32, np.float32), (np.float64, np.float32)])
def test_entries(cupy, kind, types):
    """Three layers of 3, 4 and 3 neurons, every pair of layers in two blocks of more than a tile; against the reference."""
    rng, n, rank, starts = np.random.default_rng(7), 45, 3, np.array([0, 3, 7, 10])
    made = lambda *shape: rng.standard_normal(shape)  # noqa: E731
    slopes, output = made(7, n), rng.uniform(0.1, 0.9, (3, n))
    given = dict(X=made(12, n), layer_starts=starts, slopes=slopes, C=[made(3, rank, n), made(4, rank, n), made(3, rank, n)], separable=10)
    if kind == "stored":
        given |= dict(stored=made(10, 10, n), place=np.arange(10))
    elif kind == "shared, no output":  # squared error: the last two layers share M
        M = made(7, rank)
        given |= dict(C=[given["C"][0], None, None], separable=3, M=M, gram=M @ M.T)
    elif kind != "factors":
        given |= dict(C=[*given["C"][:2], None], output=output, roots=np.sqrt(output), rest=1 - output if kind == "shared, a rest" else None)
    sides, found = [], []
    for sizes in ((40, 0, 6), (35, 4, 50)):
        at = starts_of(sizes)
        neuron, row = rng.integers(0, 10, at[-1]), rng.integers(0, 12, at[-1])
        order = np.concatenate([at[b] + np.argsort(neuron[at[b] : at[b + 1]], kind="stable") for b in range(3)])
        sides.append(Sides(neuron[order], row[order], order - np.repeat(at[:-1], sizes), at))
    for backend in (hb.get("cupy"), hb.get("numpy")):
        float_array = lambda each: isinstance(each, np.ndarray) and each.dtype == float  # noqa: E731
        put = lambda each: backend.asarray(each.astype(types[1])) if float_array(each) else each  # noqa: E731, B023
        factors = GramFactors(**{key: [put(C) for C in value] if key == "C" else put(value) for key, value in given.items()})
        H = hb.Blocks.shaped(lambda size: backend.xp.zeros(size, types[0]), np.diff(sides[0].starts), np.diff(sides[1].starts))  # noqa: B023
        backend.gram_entries(factors, *sides, 1 / n, H)
        found.append(backend.to_host(H.data))
    assert np.count_nonzero(found[1]) > 0.2 * len(found[1])
    np.testing.assert_allclose(*found, rtol=0, atol=500 * np.finfo(types[1]).eps)


def test_wrong_launches_are_refused(monkeypatch):
    """What would be garbage on a device is an error here: the emulation can fail."""
    install(monkeypatch)
    backend = hb.get("cupy")
    X, Y = (backend.xp.zeros((3, 2)) for _ in range(2))
    A = hb.Blocks.shaped(backend.xp.zeros, [4], [3])
    with pytest.raises(ValueError, match="outside Y"):
        backend.multiply(A, X, [0], Y, [0])
    with pytest.raises(ValueError, match="differ"):
        backend.multiply(A, X, [0], backend.xp.zeros((4, 3)), [0])
    with pytest.raises(TypeError, match="argument 1"):
        backend._launch("symmetric", "add_rows_float32", (1,), backend.xp.zeros(3, np.float32), Y, Y, Y, 1, Y, 1, 1.0)
    with pytest.raises(TypeError, match="parameters"):
        backend._launch("symmetric", "add_rows_float32", (1,), Y)


BROKEN = """
extern "C" __global__ void shift(double* x) {
  __shared__ double kept[64];
  kept[threadIdx.x] = x[threadIdx.x];
  BARRIER
  x[threadIdx.x] = kept[(threadIdx.x + 1) % 64];
}
"""


def test_emulation_shows_missing_and_divergent_barriers():
    if reason := emulated.no_compiler():
        pytest.skip(reason)
    common = "typedef long long i64;\n"
    good, missing, divergent = (
        emulated.Module(common + BROKEN.replace("BARRIER", barrier)) for barrier in ("__syncthreads();", "", "if (threadIdx.x % 2) __syncthreads();")
    )
    expected = np.roll(np.arange(64.0), -1)
    for descending in (False, True):
        x = np.arange(64.0)
        good.launch("shift", (1,), 64, [x], descending)
        np.testing.assert_array_equal(x, expected)
    wrong = []
    for descending in (False, True):
        x = np.arange(64.0)
        missing.launch("shift", (1,), 64, [x], descending)
        wrong.append((x != expected).any())
    assert any(wrong)
    with pytest.raises(RuntimeError, match="different barriers"):
        divergent.launch("shift", (1,), 64, [np.arange(64.0)])
