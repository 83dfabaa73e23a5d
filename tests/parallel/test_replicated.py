"""Ranks whose BLAS differs: what rank 0 computes is what all ranks have, and what is built on it is right where the others' factors are not its own."""

import itertools
import warnings

import numpy as np
import pytest
import scipy.linalg

from hpcHess.compressed.certificate import largest_eigenvalue
from hpcHess.curvature.gauss_newton import GaussNewton
from hpcHess.formats.compress import compress
from hpcHess.kronecker.compress import pairs_of
from hpcHess.kronecker.layers import layers_of
from hpcHess.kronecker.selection import choose, grown
from hpcHess.kronecker.spectra import spectra_of
from hpcHess.lowrank import interpolative
from hpcHess.networks.network import Network
from hpcHess.parallel import replicated as module
from hpcHess.parallel.replicated import replicated
from hpcHess.runtime.errors import HpcHessWarning, InputError
from tests.reference.gauss_newton import gauss_newton

METHODS = ("randomized", "nystrom", "krylov")
WIDTHS = (10, 8, 6, 4)


def problem(comm, loss="cross-entropy", widths=WIDTHS):
    """(operator, dense H) of a small network, float64."""
    rng = np.random.default_rng(3)
    weights = [rng.standard_normal((b, a)) / np.sqrt(a) for a, b in zip(widths[:-1], widths[1:])]
    network, x = Network(weights, [np.zeros(len(W)) for W in weights], "tanh", loss), rng.standard_normal((60, widths[0]))
    return GaussNewton(network, x, comm=comm), comm.bcast(gauss_newton(network, x) if comm.rank == 0 else None)


@pytest.fixture
def other_blas(comm, monkeypatch):
    """On ranks > 0 factorizations are as right as rank 0's but others: signs that change from call to call, last digits that differ."""
    if not comm.rank:
        return
    rng = np.random.default_rng(comm.rank)

    def signs(Q):
        return rng.choice([-1.0, 1.0], Q.shape[-1]).astype(Q.dtype)

    def differently(values):
        return values * (1 + rng.choice([-1, 1], values.shape) * 2 * np.finfo(values.dtype).eps)

    def eigh(A, *args, plain=np.linalg.eigh, **keywords):
        w, V = plain(A, *args, **keywords)
        return differently(w), V * signs(V)

    def eigvalsh(A, *args, plain=np.linalg.eigvalsh, **keywords):
        return differently(plain(A, *args, **keywords))

    def qr(A, mode="reduced", plain=np.linalg.qr):
        if mode == "r":
            R = plain(A, mode)
            return R * signs(R.T)[:, None]
        Q, R = plain(A, mode)
        turned = signs(Q)
        return Q * turned, R * turned[:, None]

    def pivoted(A, plain=scipy.linalg.qr, **keywords):
        Q, R, order = plain(A, **keywords)
        turned = signs(Q)
        return Q * turned, R * turned[:, None], order

    def cholesky(A, plain=np.linalg.cholesky):
        return differently(plain(A))

    for wrapped in (eigh, eigvalsh, qr, cholesky):
        monkeypatch.setattr(np.linalg, wrapped.__name__, wrapped)
    monkeypatch.setattr(interpolative, "qr", pivoted)


@pytest.mark.parametrize("piece", [1 << 30, 24])
def test_everyone_has_what_rank_0_computes(comm, monkeypatch, piece):
    monkeypatch.setattr(module, "_MESSAGE", piece)
    several = lambda at: (np.arange(35.0).reshape(5, 7).T + at, np.zeros((0, 3), np.int64), np.float32(at + 2), np.arange(4) > 1)  # noqa: E731
    found = replicated(comm, several, comm.rank)
    for each, expected in itertools.zip_longest(found, several(0)):
        assert each.dtype == expected.dtype and each.shape == expected.shape
        np.testing.assert_array_equal(each, expected)
    alone = replicated(comm, np.full, 3, comm.rank + 1)
    assert isinstance(alone, np.ndarray) and alone.tolist() == [1, 1, 1]


def test_its_error_is_everyones(comm):
    def refuse(rank):
        if rank == 0:
            raise InputError("rank 0 will not")
        return np.zeros(1)

    with pytest.raises(InputError, match="rank 0 will not"):
        replicated(comm, refuse, comm.rank)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rtol", [3e-2, 1e-6])
def test_low_rank(comm, other_blas, method, rtol):
    if method == "krylov":
        pytest.importorskip("slepc4py")
    operator, exact = problem(comm)
    H = compress(operator, rtol, "low-rank", method=method, dtype="float64")
    A = H @ np.eye(len(exact))
    assert np.linalg.norm(A - exact) <= rtol * np.linalg.norm(exact) and H.report["rtol_met"]
    damping = 1e-2 * np.linalg.norm(exact, 2)
    B = np.random.default_rng(0).standard_normal((len(exact), 2))
    assert np.linalg.norm(A @ H.solve(B, damping) + damping * H.solve(B, damping) - B) <= 1e-11 * np.linalg.norm(B)
    assert H.logdet(damping)[1] == pytest.approx(np.linalg.slogdet(A + damping * np.eye(len(A)))[1], rel=1e-10)


def test_norms(comm, other_blas):
    operator, exact = problem(comm)
    true = np.linalg.norm(exact, 2)
    for seed in range(3):
        assert 0.999 * true <= largest_eigenvalue(compress(operator, 1e-3, "dense", dtype="float64"), seed) <= (1 + 1e-10) * true


def test_kronecker_spectra_by_random_projections(comm, other_blas):
    operator, exact = problem(comm)
    pairs = pairs_of(operator, layers_of(operator), 1e-6)
    known, made = (spectra_of(pairs, comm, operator.mine, route=route) for route in ("explicit", "randomized"))
    for rtol in (0.3, 1e-2, 1e-5):
        counts, error = grown(made, rtol)
        assert error <= rtol and abs(counts.sum() - choose(known, rtol)[0].sum()) <= 2
    for each, reference in zip(made, known, strict=True):
        few = int((each.values > 1e-3 * each.values[0]).sum())
        left, right = each.vectors(0, few)
        np.testing.assert_allclose(left @ left.T, np.eye(few), atol=1e-8)
        np.testing.assert_allclose(right @ right.T, np.eye(few), atol=1e-8)
        np.testing.assert_allclose(each.values[:few], reference.values[:few], rtol=1e-6)


@pytest.mark.parametrize("loss", ["cross-entropy", "squared-error"])
@pytest.mark.parametrize("widths", [WIDTHS, (6, 5, 4, 9)])
def test_kronecker_sum_and_its_solves(comm, other_blas, monkeypatch, loss, widths):
    monkeypatch.setattr("hpcHess.kronecker.spectra.route_of", lambda pair: "randomized")
    operator, exact = problem(comm, loss, widths)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HpcHessWarning)
        for terms, allowed in (("auto", 1e-3), ("kfac", np.inf)):
            H = compress(operator, 1e-3, "kronecker-sum", dtype="float64", terms=terms)
            A, damping = H @ np.eye(len(exact)), 1e-2 * np.linalg.norm(exact, 2)
            assert np.linalg.norm(A - exact) <= allowed * np.linalg.norm(exact)
            b = np.ones(len(exact))
            X = H.solve(b, damping)
            assert np.linalg.norm(A @ X + damping * X - b) <= 1e-7 * np.linalg.norm(b)


def test_the_sum_with_a_tree(comm, other_blas):
    operator, exact = problem(comm)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HpcHessWarning)
        H = compress(operator, 1e-4, "hss", structured="low-rank", structured_size=4, leaf_size=12, dtype="float64")
    A, damping = H @ np.eye(len(exact)), 1e-2 * np.linalg.norm(exact, 2)
    assert H.format == "sum" and np.linalg.norm(A - exact) <= 1e-4 * np.linalg.norm(exact)
    b = np.ones(len(exact))
    X = H.solve(b, damping)
    assert np.linalg.norm(A @ X + damping * X - b) <= 1e-9 * np.linalg.norm(b)
    assert len(set(comm.allgather(H.inertia(damping)))) == 1
    part, values = H.parts[0], np.linalg.svd(exact, compute_uv=False)
    assert part.rank == 4 and np.linalg.norm(part @ np.eye(len(exact)) - exact) <= 1.1 * np.linalg.norm(values[4:])
