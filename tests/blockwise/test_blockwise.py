"""Dense and block-diagonal matrices against NumPy: products, solves, log-determinants, files, on any number of ranks."""

import warnings
from functools import cache

import numpy as np
import pytest
from mpi4py import MPI

import hpcHess.blockwise.format as module
from hpcHess import backend as backends
from hpcHess.blockwise import predict
from hpcHess.blockwise.factors import BlockFactors
from hpcHess.blockwise.format import BLOCK_DIAGONAL, DENSE, compress
from hpcHess.blockwise.layout import Layout
from hpcHess.blockwise.symmetric import SymmetricBlocks
from hpcHess.compressed.facts import Facts
from hpcHess.compressed.stochastic import LogDet
from hpcHess.curvature.black_box import BlackBox
from hpcHess.curvature.dense import DenseMatrix
from hpcHess.curvature.gauss_newton import GaussNewton
from hpcHess.formats.file import load
from hpcHess.networks.network import Network
from hpcHess.parallel import memory
from hpcHess.runtime.errors import HpcHessWarning, InputError
from tests.reference.dense_operator import dense
from tests.reference.gauss_newton import gauss_newton

COMM = MPI.COMM_WORLD
LOSSES = ["cross-entropy", "squared-error"]


@cache
def problem(loss, biases=True):
    """(operator, H) of a 7-5-4-3 network with one dead input."""
    rng = np.random.default_rng(3)
    shapes = [(5, 7), (4, 5), (3, 4)]
    network = Network([rng.standard_normal(s) for s in shapes], [rng.standard_normal(s[0]) for s in shapes] if biases else None, "tanh", loss)
    inputs = rng.standard_normal((11, 7))
    inputs[:, 2] = 0
    return GaussNewton(network, inputs, comm=COMM), gauss_newton(network, inputs)


def labels_of(network, blocks):
    """Number of every parameter's layer or neuron."""
    found, at = [], 0
    for W, b in zip(network.weights, network.biases, strict=True):
        neurons = np.arange(len(W)) if blocks == "neuron" else np.zeros(len(W), int)
        found += [*(at + np.repeat(neurons, W.shape[1])), *([] if b is None else at + neurons)]
        at += len(W)
    return np.array(found)


def made(loss, blocks, biases=True, **options):
    """(H̃, the matrix it must be, H); `blocks` "dense", "layer" or "neuron"."""
    operator, H = problem(loss, biases)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if blocks == "dense":
            return compress(operator, 1e-6, "dense", **options), H, H
        labels = labels_of(operator.network, blocks)
        return compress(operator, 1e-6, "block-diagonal", blocks=blocks, **options), np.where(labels[:, None] == labels, H, 0), H


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("blocks", ["dense", "layer", "neuron"])
def test_everything_exact(blocks, loss, biases):
    """Entries, products in both precisions, diagonal, trace, norm, storage, solves, log-determinant, inertia."""
    M, A, H = made(loss, blocks, biases)
    n, scale = len(A), np.abs(A).max()
    np.testing.assert_allclose(dense(M), A, rtol=0, atol=1e-13 * scale)
    V = np.random.default_rng(0).standard_normal((n, 3))
    assert (M @ V.astype(np.float32)).dtype == np.float64
    np.testing.assert_allclose(M @ V[:, 0], A @ V[:, 0], rtol=0, atol=1e-12 * scale)
    np.testing.assert_allclose(M.diagonal(), np.diag(A), rtol=1e-12, atol=1e-15)
    assert M.trace() == pytest.approx(np.trace(A), rel=1e-12) and M.norm_frobenius() == pytest.approx(np.linalg.norm(A), rel=1e-12)
    counts = [n - 5] if blocks == "dense" else np.bincount(labels_of(problem(loss, biases)[0].network, blocks)[np.diag(H) > 0])
    entries = sum(int(c) * (int(c) + 1) // 2 for c in counts)
    assert M.report["storage_entries"] == entries and M.report["storage_percent"] == pytest.approx(100 * entries / n**2)
    assert M.n_alive == n - 5, "a zero input of five neurons"
    damping = 0.1 * np.linalg.norm(A, 2)
    damped = A + damping * np.eye(n)
    np.testing.assert_allclose(M.solve(V, damping), np.linalg.solve(damped, V), rtol=0, atol=1e-11 / damping)
    found = M.logdet(damping)
    assert isinstance(found, LogDet) and found == pytest.approx(np.linalg.slogdet(damped), rel=1e-12) and found.low == found.high == found[1]
    assert M.inertia(damping) == (n, 0) and M.factorize(damping).backward_error < 1e-13
    assert M.report["lambda_max"] == pytest.approx(np.linalg.norm(A, 2), rel=1e-4)


@pytest.mark.parametrize("blocks", ["dense", "layer", "neuron"])
def test_error(blocks, monkeypatch):
    """Exact for dense and, by the norms, for others; where there are many samples the certificate's interval holds the truth. A miss is told."""
    M, A, H = made("cross-entropy", blocks)
    error, true = M.report["error_estimate"], np.linalg.norm(A - H) / np.linalg.norm(H)
    if blocks == "dense":
        assert error == {"value": 0.0, "low": 0.0, "high": 0.0, "probes": 0, "confidence": 1.0, "exact": True} and M.report["rtol_met"]
        assert not M.report["warnings"] and M.report["error_spectral"] == 0
    else:
        assert error["exact"] and error["value"] == pytest.approx(true, rel=1e-10) and not M.report["rtol_met"]
        assert M.report["norm_frobenius"] == pytest.approx(np.linalg.norm(H), rel=1e-12)
        monkeypatch.setattr(module, "_EXACT_SAMPLES", 10)
        certified = made("cross-entropy", blocks)[0].report["error_estimate"]
        assert certified["low"] <= true <= certified["high"] and certified["probes"] == 32
        assert 0.5 * np.linalg.norm(A - H, 2) <= M.report["error_spectral"] <= 1.01 * np.linalg.norm(A - H, 2)
        assert M.report["blocks"] == blocks and any("no tolerance" in line for line in M.report["warnings"])


@pytest.mark.parametrize("products", [False, True])
def test_rounding_is_measured(products):
    """Entries stored in float32: the error is exactly that of rounding them, from entries and from products alike."""
    operator, H = problem("squared-error")
    if products:
        operator = BlackBox(lambda V: H @ V, len(H), COMM)
    M = compress(operator, 1e-3, "dense", dtype="float32")
    K = dense(M)
    assert M.dtype == np.float32 and np.array_equal(K, K.T)
    true = np.linalg.norm(K - H) / np.linalg.norm(H)
    assert M.report["error_estimate"]["value"] == pytest.approx(true, rel=1e-3) and 1e-9 < true < 1e-7 and M.report["rtol_met"]
    with pytest.warns(HpcHessWarning, match="single precision") if COMM.rank == 0 else warnings.catch_warnings():
        warnings.simplefilter("always")
        missed = compress(operator, 1e-9, "dense", dtype="float32")
    assert not missed.report["rtol_met"]


@pytest.mark.parametrize("blocks", ["dense", "layer", "neuron"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_file(shared_tmp, blocks, dtype):
    """What a file holds is the same matrix on all ranks and on one, and the other way round."""
    M, A, _ = made("cross-entropy", blocks, dtype=dtype)
    K, damping = dense(M), 0.1 * M.report["lambda_max"]
    M.save(shared_tmp / "F.h5")
    for comm in (COMM, MPI.COMM_SELF):
        G = load(shared_tmp / "F.h5", comm)
        assert G.format == M.format and G.report["error_estimate"] == M.report["error_estimate"] and G.dtype == M.dtype
        np.testing.assert_allclose(dense(G), K, rtol=0, atol=1e-14 * np.abs(K).max())
        np.testing.assert_allclose(G.logdet(damping), M.logdet(damping), rtol=1e-12)
    if COMM.rank == 0:
        G.save(shared_tmp / "G.h5")
    COMM.Barrier()
    np.testing.assert_allclose(dense(load(shared_tmp / "G.h5", COMM)), K, rtol=0, atol=1e-14 * np.abs(K).max())


@pytest.mark.parametrize("products", [False, True])
def test_indefinite(products):
    """Eigenvalues of both signs: spectral factors, the inertia, and |A + λI|⁻¹ as preconditioner."""
    n, rng = 60, np.random.default_rng(1)
    K = rng.standard_normal((n, n))
    K = K + K.T
    K[[4, 9]], K[:, [4, 9]] = 0, 0
    operator = BlackBox(lambda V: K @ V, n, COMM) if products else DenseMatrix(K, comm=COMM)
    M = compress(operator, 1e-9, "dense")
    np.testing.assert_allclose(dense(M), K, rtol=0, atol=1e-13)
    damping = 0.3
    w, V = np.linalg.eigh(K + damping * np.eye(n))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        factors = M.factorize(damping)
    assert M.inertia(damping) == (int((w > 0).sum()), int((w < 0).sum())) and (w < 0).sum() > 10
    assert factors.slogdet() == pytest.approx(((-1.0) ** (w < 0).sum(), np.log(np.abs(w)).sum()), rel=1e-12)
    B = rng.standard_normal((n, 2))
    found = np.concatenate(COMM.allgather(factors.preconditioner().solve_rows(B[M.mine])))
    np.testing.assert_allclose(found, (V / np.abs(w)) @ (V.T @ B), rtol=0, atol=1e-10)
    np.testing.assert_allclose(np.concatenate(COMM.allgather(factors.solve_rows(B[M.mine]))), (V / w) @ (V.T @ B), rtol=0, atol=1e-10)


def test_singular():
    """λ = 0: dead parameters need b = 0 there; a block without an inverse is refused."""
    rng = np.random.default_rng(1)
    K = np.zeros((20, 20))
    K[:15, :15] = np.eye(15) + 0.1 * np.ones((15, 15))
    M = compress(DenseMatrix(K, comm=COMM), 1e-9, "dense")
    b = rng.standard_normal(20)
    with pytest.raises(InputError, match="dead parameters"):
        M.solve(b, 0.0)
    b[15:] = 0
    np.testing.assert_allclose(K @ M.solve(b, 0.0), b, atol=1e-13)
    assert M.logdet(0.0) == (0.0, -np.inf)
    with pytest.raises(InputError, match="singular to working precision"):
        made("cross-entropy", "layer")[0].factorize(0.0)


@pytest.mark.parametrize("sizes", [[3], [2, 4, 1]])
def test_a_block_of_zeros_is_singular(sizes):
    """0 / 0 is no pass: at λ = 0 a block that is zero is refused, though others are regular; with a damping it is λI."""
    blocks = SymmetricBlocks(COMM, backends.get("numpy"), sizes, np.float64)
    for i in range(len(blocks.lo)):
        if blocks.width[i] == 1:
            blocks.piece(i)[...] = 1.0
    blocks.finish()
    with pytest.raises(InputError, match="singular to working precision at damping 0"):
        BlockFactors(blocks, 0.0)
    factors = BlockFactors(blocks, 0.5)
    assert factors.log_abs == pytest.approx(sum(np.log(1.5 if n == 1 else 0.5) * n for n in sizes)) and factors.negative == 0


@pytest.mark.parametrize("loss", LOSSES)
def test_the_predicted_error_is_an_upper_end(loss, monkeypatch):
    """Exact for few samples; for many the upper end of an interval of few probes, so that what is chosen by it meets rtol."""
    operator, H = problem(loss)
    labels = labels_of(operator.network, "layer")
    true = np.linalg.norm(np.where(labels[:, None] != labels, H, 0)) / np.linalg.norm(H)
    predicted = lambda seed: BLOCK_DIAGONAL.predict(Facts(operator, 0.9, 8, 1, "multiply", 1 << 40, seed=seed)).error  # noqa: E731
    assert predicted(0) == pytest.approx(true, rel=1e-10)
    single = DENSE.predict(Facts(operator, 1e-9, 4, 1, "multiply", 1 << 40)).error
    assert 1e-8 < single < 1e-7, "entries in float32 are not exact"
    monkeypatch.setattr(predict, "EXACT_SAMPLES", 0)
    found = np.array([predicted(seed) for seed in range(12)])
    assert (found >= true).sum() >= 11 and np.all(found <= 1) and np.median(found) < 3 * true


def test_nothing_alive():
    """H = 0."""
    M = compress(DenseMatrix(np.zeros((6, 6)), comm=COMM), 1e-2, "dense")
    assert not dense(M).any() and M.report["storage_entries"] == 0 and M.report["error_estimate"]["value"] == 0
    np.testing.assert_allclose(M.solve(np.ones(6), 0.5), 2 * np.ones(6))


def test_bad_input(monkeypatch):
    operator = DenseMatrix(np.eye(40), comm=COMM)
    with pytest.raises(InputError, match="needs a network with layers"):
        compress(operator, 0.1, "block-diagonal")
    with pytest.raises(InputError, match="layer or neuron"):
        compress(problem("cross-entropy")[0], 0.1, "block-diagonal", blocks="row")
    monkeypatch.setattr(memory, "free_bytes", lambda: 1000)
    with pytest.raises(InputError, match="would take .* GiB of memory"):
        compress(operator, 0.1, "dense")
    monkeypatch.setattr(memory, "free_bytes", lambda: 40 * 40 * 8)
    M = compress(operator, 0.1, "dense", dtype="float32")
    monkeypatch.setattr(memory, "free_bytes", lambda: 40 * 40 * 4)
    with pytest.raises(InputError, match="factors of H̃ . λI"):
        M.factorize(1.0)


class Ranks:
    """Stands for a communicator of any size."""

    def __init__(self, size, rank=0):
        self.size, self.rank = size, rank


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64])
@pytest.mark.parametrize("sizes", [[], [7], [1000], [3] * 50, [500, 1, 2, 3, 400, 90, 90], [1, 1, 1, 300]])
def test_layout(sizes, size):
    """Shares of numbers are equal up to a block that is no more than a share, or a row; homes hold whole blocks."""
    layout = Layout(Ranks(size), sizes)
    assert (np.diff(layout.rows) >= 0).all() and layout.rows[0] == 0 and layout.rows[-1] == sum(sizes) == layout.homes[-1]
    assert (np.diff(layout.homes) >= 0).all() and set(layout.homes) <= set(layout.starts)
    share, numbers = sum(n * n for n in sizes) / size, np.diff(layout.numbers(layout.rows))
    assert numbers.sum() == sum(n * n for n in sizes)
    widest = max([n * n for n in sizes if n * n <= share] + [n for n in sizes], default=0)
    assert (np.abs(numbers - share) <= 2 * widest + 1).all()
    assert all(sizes[b] ** 2 > share for b in layout.split)
    assert np.array_equal(np.concatenate([np.arange(a, b) for a, b in zip(layout.lo, layout.hi)] or [[]]), np.arange(sum(sizes)))
