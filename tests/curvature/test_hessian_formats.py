"""The exact Hessian, indefinite, through all formats: error, solves, inertia, and refusals that say why."""

import warnings
from functools import cache

import numpy as np
import pytest
from mpi4py import MPI

pytest.importorskip("torch", reason="the oracle is PyTorch's automatic differentiation")

import hpcHess as hh  # noqa: E402
from hpcHess.curvature.regularized import Regularized  # noqa: E402
from hpcHess.curvature.submatrix import PrincipalSubmatrix  # noqa: E402
from hpcHess.formats.compress import compress  # noqa: E402
from hpcHess.networks.network import Network  # noqa: E402
from hpcHess.runtime.errors import HpcHessWarning, InputError  # noqa: E402
from tests.reference import autograd  # noqa: E402

COMM, WIDTHS, RTOL = MPI.COMM_WORLD, (7, 6, 5, 3), 1e-6


@cache
def problem():
    """(operator, dense H) of a small classifier with biases, float64; the first input is dead."""
    rng = np.random.default_rng(5)
    weights = [rng.standard_normal((b, a)) / np.sqrt(a) for a, b in zip(WIDTHS[:-1], WIDTHS[1:], strict=True)]
    network = Network(weights, [rng.standard_normal(len(W)) / 4 for W in weights], "tanh", "cross-entropy")
    x, y = rng.standard_normal((25, WIDTHS[0])) * (np.arange(WIDTHS[0]) > 0), rng.integers(0, 3, 25)
    return hh.Hessian(network, x, y, comm=COMM), COMM.bcast(autograd.hessian(network, x, y) if COMM.rank == 0 else None)


def compressed(format, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HpcHessWarning)
        return compress(problem()[0], RTOL, format, dtype="float64", **options)


WAYS = {
    "dense": ("dense", {}),
    "low-rank": ("low-rank", {"method": "randomized"}),
    "low-rank, krylov": ("low-rank", {"method": "krylov"}),
    "hss, sketch": ("hss", {"leaf_size": 12, "distance": "angle"}),
    "hss, rows": ("hss", {"leaf_size": 12, "distance": "kernel", "sampling": "rows"}),
    "hss, products": ("hss", {"leaf_size": 12, "distance": "input", "sampling": "products"}),
    "hss, woodbury": ("hss", {"leaf_size": 12, "distance": "neuron", "solver": "woodbury"}),
    "hss, ulv": ("hss", {"leaf_size": 12, "distance": "parameter", "solver": "ulv"}),
    "hss, auto": ("hss", {"leaf_size": 12, "distance": "auto"}),
    "hss, low-rank part": ("hss", {"leaf_size": 12, "structured": "low-rank", "structured_size": 3}),
    "fmm": ("fmm", {"leaf_size": 8, "budget": 0.4, "n_neighbors": 8, "distance": "neuron"}),
    "auto": ("auto", {}),
    "none": ("none", {}),
}


@pytest.mark.parametrize("way", WAYS)
def test_error_inertia_and_solves(way):
    """Damped below the most negative eigenvalue: H̃ + λI is indefinite, solved directly or by MINRES, its negative eigenvalues counted."""
    if "krylov" in way or way == "fmm" or way == "none":
        pytest.importorskip("petsc4py" if way != "low-rank, krylov" else "slepc4py")
    exact, (name, options) = problem()[1], WAYS[way]
    H = compressed(name, **options)
    found = H.report["error_estimate"]
    A = H @ np.eye(len(exact))
    error = np.linalg.norm(A - exact) / np.linalg.norm(exact)
    assert error <= RTOL and H.report["rtol_met"] and found["low"] - 1e-12 <= error <= found["high"] + 1e-12
    spectrum = np.linalg.eigvalsh(exact)
    assert spectrum[0] - 1e-6 <= H.report["lambda_min"] <= 0.9 * spectrum[0]
    damping = -0.5 * spectrum[0]
    assert damping > 0.02 * spectrum[-1] and np.abs(spectrum + damping).min() > 1e-4 * spectrum[-1]
    damped, b = A + damping * np.eye(len(A)), np.random.default_rng(0).standard_normal((len(A), 2))
    told = warnings.catch_warnings(record=True)
    with told as lines:
        warnings.simplefilter("always")
        x = H.solve(b, damping)
    assert np.linalg.norm(damped @ x - b) <= 1e-8 * np.linalg.norm(b)
    negative = int((spectrum + damping < 0).sum())
    if H.direct:
        assert H.inertia(damping) == (len(A) - negative, negative) and H.logdet(damping)[0] == (-1) ** negative
        assert COMM.rank or any(f"{negative} negative eigenvalues" in str(each.message) for each in lines)


@pytest.mark.parametrize("blocks", ["layer", "neuron"])
def test_block_diagonal(blocks):
    """Its blocks are those of H, its error is certified; eigenvalues of either sign."""
    H, exact = compressed("block-diagonal", blocks=blocks), problem()[1]
    A, network = H @ np.eye(len(exact)), problem()[0].network
    groups = np.concatenate([
        (layer if blocks == "layer" else 10 * layer + np.concatenate([np.repeat(np.arange(len(W)), W.shape[1]), np.arange(len(W))])) * np.ones(W.size + len(W))
        for layer, W in enumerate(network.weights)
    ])  # fmt: skip
    np.testing.assert_allclose(A, exact * (groups[:, None] == groups), atol=1e-13)
    found, error = H.report["error_estimate"], np.linalg.norm(A - exact) / np.linalg.norm(exact)
    assert found["low"] - 1e-12 <= error <= found["high"] + 1e-12
    damping = -0.5 * np.linalg.eigvalsh(A)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HpcHessWarning)
        negative = int((np.linalg.eigvalsh(A) + damping < 0).sum())
        assert negative and H.inertia(damping) == (len(A) - negative, negative)
        x = H.solve(np.ones(len(A)), damping)
    assert np.linalg.norm(A @ x + damping * x - 1) <= 1e-10 * np.sqrt(len(A))


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"format": "kronecker-sum"}, "exact Hessian"),
        ({"format": "data-woodbury"}, "exact Hessian"),
        ({"format": "hss", "structured": "kronecker-sum"}, "exact Hessian"),
        ({"format": "low-rank", "method": "nystrom"}, "indefinite"),
    ],
)
def test_what_needs_a_gram_matrix_is_refused(options, reason):
    with pytest.raises(InputError, match=reason):
        compress(problem()[0], 1e-2, **options)


def test_with_weight_decay_and_of_some_parameters():
    """l2 moves λ_min; a block of some parameters is indefinite as well, and compressed by entries or products."""
    (operator, exact), I = problem(), np.arange(60, 7, -1)
    block = PrincipalSubmatrix(Regularized(operator, 0.01), I)
    H = compress(block, RTOL, "hss", dtype="float64", leaf_size=10)
    expected = exact[np.ix_(I, I)] + 0.01 * np.eye(len(I))
    assert np.linalg.norm(H @ np.eye(len(I)) - expected) <= RTOL * np.linalg.norm(expected)
    H = compress(Regularized(operator, 0.01), RTOL, "low-rank", dtype="float64")
    assert H.report["lambda_min"] == pytest.approx(np.linalg.eigvalsh(exact)[0] + 0.01, rel=0.1)


def test_quadratures_are_refused():
    with pytest.raises(InputError, match="exact Hessian"):
        hh.quadrature(problem()[0], count=3)
