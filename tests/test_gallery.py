"""The gallery's matrices satisfy their definitions, which are written down here once more."""

import numpy as np
import pytest
from scipy.linalg import toeplitz
from scipy.spatial.distance import cdist

from hpcHess import gallery
from hpcHess.runtime.errors import InputError
from hpcHess.storage.dense import open_dense
from tests.drivers.drive import drive, listing, ok

WAVE = (2 * np.pi / 10) ** 2


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    monkeypatch.setattr(gallery, "_ROWS", 7)


def laplacian(n):
    """5-point Laplacian on the first n points of a square grid, from the points' coordinates."""
    width = int(np.ceil(np.sqrt(n)))
    points = np.array([divmod(i, width) for i in range(n)])
    return 4 * np.eye(n) - (cdist(points, points, "cityblock") == 1)


def off_diagonal(A):
    return A - np.diag(np.diagonal(A))


@pytest.mark.parametrize("name", gallery.MATRICES)
def test_every_matrix_is_symmetric_and_reproducible(name):
    K = gallery.make(name, 41, 3)
    assert K.shape == (41, 41) and K.dtype == np.float64 and np.array_equal(K, K.T) and np.isfinite(K).all()
    np.testing.assert_array_equal(gallery.make(name, 41, 3), K)
    if name not in ("K02", "K03", "toeplitz", "indefinite"):
        assert not np.array_equal(gallery.make(name, 41, 4), K)
    single = gallery.make(name, 41, 3, np.float32)
    assert single.dtype == np.float32
    np.testing.assert_array_equal(single, K.astype(np.float32))
    if name not in ("zero-blocks", "rank-deficient", "indefinite"):
        assert np.linalg.eigvalsh(K)[0] > 0


@pytest.mark.parametrize("n", [30, 49, 1])
@pytest.mark.parametrize("name, shift", [("K02", 1e-3), ("K03", -WAVE)])
def test_inverse_squared(n, name, shift):
    K, A = gallery.make(name, n), laplacian(n) + shift * np.eye(n)
    np.testing.assert_allclose(A @ A @ K, np.eye(n), atol=1e-10)
    if name == "K02" and n == 49:
        theta = np.pi / 16
        assert np.isclose(np.linalg.cond(K), ((8 * np.cos(theta) ** 2 + shift) / (8 * np.sin(theta) ** 2 + shift)) ** 2, rtol=1e-9)


@pytest.mark.parametrize("n", [50, 81])
def test_the_indefinite_one_has_the_inertia_of_its_inverse(n):
    K, spectrum = gallery.make("indefinite", n), np.linalg.eigvalsh(laplacian(n)) - WAVE
    np.testing.assert_allclose((laplacian(n) - WAVE * np.eye(n)) @ K, np.eye(n), atol=1e-10)
    found = np.linalg.eigvalsh(K)
    assert 0 < np.sum(spectrum < 0) == np.sum(found < 0) < n / 2
    np.testing.assert_allclose(np.sort(1 / spectrum), found, rtol=1e-9)


def test_inverse_diffusion_1d():
    n, contrast = 33, 1e6
    K = gallery.make("K11", n, 1)
    A = np.linalg.inv(K)
    a = np.concatenate([[A[0, 0] + A[0, 1]], -np.diagonal(A, 1), [A[-1, -1] + A[-1, -2]]])
    assert np.all((a >= 0.99) & (a <= 1.01 * contrast)) and a.max() / a.min() > 1e3
    s = np.cumsum(1 / a)
    i = np.arange(n)
    low, high = np.minimum(i[:, None], i), np.maximum(i[:, None], i)
    np.testing.assert_allclose(K, s[low] * (1 - s[high] / s[-1]), rtol=1e-6)
    assert np.linalg.svd(K[:15, 15:], compute_uv=False)[1] <= 1e-13 * np.linalg.norm(K)
    assert np.linalg.cond(K) <= contrast * n**2 / 2
    j = i + 1
    np.testing.assert_allclose(gallery.make("K11", n, contrast=1), np.minimum(j[:, None], j) * (1 - np.maximum(j[:, None], j) / (n + 1)), rtol=1e-12)


def test_inverse_diffusion_2d():
    n, contrast = 40, 1e4
    K = gallery.make("K12", n, 1)
    A, L = np.linalg.inv(K), laplacian(n)
    a = -A[off_diagonal(L) != 0]
    assert np.all((a >= 0.999) & (a <= 1.001 * contrast)) and a.max() / a.min() > 1e2
    assert np.abs(A[L == 0]).max() <= 1e-8 * contrast
    outside = A.sum(axis=1)  # what leaks through the boundary
    inner = L.sum(axis=1) == 0
    assert np.abs(outside[inner]).max() <= 1e-8 * contrast and np.all(outside[~inner] >= 0.999)
    assert np.linalg.cond(K) <= contrast * n / 2
    np.testing.assert_allclose(gallery.make("K12", n, contrast=1), np.linalg.inv(L), rtol=1e-11)


def test_inverse_graph_laplacian():
    n, shift = 60, 1e-2
    K, x = gallery.make("graph", n, 2), np.random.default_rng(2).random((n, 2))
    W = (cdist(x, x) ** 2 <= 10 / (np.pi * n)) & ~np.eye(n, dtype=bool)
    assert 3 < W.sum() / n < 12
    L = np.diag(W.sum(axis=1)) - W
    np.testing.assert_allclose((L + shift * np.eye(n)) @ K, np.eye(n), atol=1e-11)
    np.testing.assert_allclose(K.sum(axis=1), 1 / shift, rtol=1e-11)
    assert np.linalg.cond(K) <= 1 + 2 * W.sum(axis=1).max() / shift


@pytest.mark.parametrize("name, bandwidth", [("K04", 1.0), ("K05", 0.5), ("K06", 2.0)])
def test_gaussian(name, bandwidth):
    x = np.random.default_rng(5).standard_normal((30, 6))
    np.testing.assert_allclose(gallery.make(name, 30, 5), np.exp(-(cdist(x, x) ** 2) / (2 * bandwidth**2)), rtol=1e-13)
    np.testing.assert_allclose(gallery.make(name, 30, 5, ridge=0.5) - gallery.make(name, 30, 5), 0.5 * np.eye(30), atol=1e-15)


def test_inverse_multiquadric():
    x = np.random.default_rng(5).standard_normal((30, 3))
    np.testing.assert_allclose(gallery.make("K09", 30, 5, dimension=3, width=0.5), (cdist(x, x) ** 2 + 0.25) ** -0.5, rtol=1e-13)


def test_toeplitz():
    K = gallery.make("toeplitz", 40)
    np.testing.assert_allclose(K, toeplitz(0.99 ** np.arange(40.0)), rtol=1e-14)
    assert np.abs(np.triu(np.linalg.inv(K), 2)).max() <= 1e-8 and np.linalg.cond(K) < 199**2


def test_identity_plus_low_rank():
    spectrum = np.linalg.eigvalsh(gallery.make("low-rank", 50, rank=6, scale=30))
    np.testing.assert_allclose(spectrum, [*np.ones(44), *np.full(6, 31.0)], rtol=1e-13)


def test_rank_deficient():
    spectrum = np.linalg.eigvalsh(gallery.make("rank-deficient", 50, rank=5, digits=2))
    np.testing.assert_allclose(spectrum[-5:], np.logspace(-2, 0, 5), rtol=1e-12)
    assert np.abs(spectrum[:-5]).max() <= 1e-15 * 50


def test_zero_blocks():
    K = gallery.make("zero-blocks", 42, blocks=5)
    sizes = [9, 9, 8, 8, 8]
    starts = np.cumsum([0, *sizes])
    block = np.repeat(np.arange(5), sizes)
    assert not K[block[:, None] != block].any() and not K[block % 2 == 1].any()
    for number in (0, 2, 4):
        piece = K[starts[number] : starts[number + 1], starts[number] : starts[number + 1]]
        assert np.linalg.eigvalsh(piece)[0] >= 0.1 and np.linalg.cond(piece) <= 10 * len(piece) + 1 and piece.min() > 0


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("K99", 5), "K02"),
        (("K04", 0), "at least 1"),
        (("K04", 5, -1), "seed"),
        (("K04", 1 << 22), "GB are free"),
        (("low-rank", 5), "rank must lie between 1 and n"),
    ],
)
def test_wrong_arguments(arguments, words):
    with pytest.raises(InputError, match=words):
        gallery.make(*arguments)


@pytest.mark.parametrize(
    "parameters",
    [{"bandwith": 1}, {"bandwidth": 0}, {"bandwidth": np.nan}, {"dimension": 2.5}, {"dimension": 0}, {"ridge": -1}],
)
def test_wrong_parameters(parameters):
    with pytest.raises(InputError, match=next(iter(parameters))):
        gallery.make("K04", 5, **parameters)


def test_singular_matrices_are_refused():
    with pytest.raises(InputError, match="singular"):
        gallery.make("indefinite", 1, shift=-4)
    for name, parameters in (("graph", {"shift": 0}), ("toeplitz", {"rho": 1.0}), ("K12", {"contrast": 0.5}), ("K02", {"power": 3})):
        with pytest.raises(InputError, match=next(iter(parameters))):
            gallery.make(name, 9, **parameters)


def test_driver(comm, shared_tmp):
    for output, dtype in (("K.npy", "float64"), ("K.f32", "float32"), ("K.h5:/K", "float64")):
        run = ok(drive("gallery", "K04", "--n", 20, "--seed", 3, "--set", "bandwidth=2", "--dtype", dtype, "--output", f"{shared_tmp}/{output}"))
        assert "N = 20" in run.out
        K = open_dense(f"{shared_tmp}/{output}", 20, comm)
        assert K.dtype == dtype
        np.testing.assert_array_equal(K, gallery.gaussian(20, 3, 2.0).astype(dtype))
    assert "gaussian(bandwidth = 0.5" in ok(drive("gallery", "--list")).out


def test_driver_refuses(shared_tmp):
    out = f"{shared_tmp}/K.npy"
    for arguments, words in (
        (("K99", "--n", 5, "--output", out), "unknown matrix 'K99'"),
        (("K04", "--output", out), "--n is missing"),
        (("--n", 5, "--output", out), "NAME is missing"),
        (("K04", "--n", 5), "--output is missing"),
        (("K04", "--n", 5, "--output", out, "--set", "bandwidth"), "key=number"),
        (("K04", "--n", 5, "--output", out, "--set", "width=1"), "no parameter 'width'"),
        (("K04", "--n", 5, "--output", f"{shared_tmp}/K.bin", "--dtype", "float64"), "name it .npy"),
        (("K04", "--n", 5, "--output", f"{shared_tmp}/none/K.npy"), "not a directory"),
    ):
        run = ok(drive("gallery", *arguments), 2)
        assert len(run.errors) == 1 and words in run.errors[0]
    assert listing(shared_tmp) == []
