"""Every kind of Gram type, losses and choices of layers that the other tests do not have, through every format: against automatic differentiation."""

import json
import warnings
from functools import cache

import numpy as np
import pytest
from mpi4py import MPI

import hpcHess as hh
from hpcHess.curvature.fisher import EmpiricalFisher, Fisher, MonteCarloFisher
from hpcHess.curvature.gauss_newton import GaussNewton
from hpcHess.curvature.quadrature import quadrature
from hpcHess.formats.compress import compress
from hpcHess.formats.planner import facts_of, predictions_of
from hpcHess.formats.registry import FORMATS
from hpcHess.info import describe, summarize
from hpcHess.networks.network import Network
from hpcHess.runtime.errors import HpcHessWarning
from hpcHess.storage.factor_file import FactorFile

pytest.importorskip("torch", reason="PyTorch, the oracle, is not installed")
from tests.reference import autograd  # noqa: E402

COMM = MPI.COMM_WORLD
ASKED = [name for name, each in FORMATS.items() if each.compress is not None]
SAMPLES, RTOL = 15, 1e-5
#   widths, activations, loss, output, layers, kind, whether samples are weighted
PROBLEMS = {
    "autoencoder, binary": ((7, 3, 7), "relu", "binary-cross-entropy", "identity", None, GaussNewton, True),
    "logistic regression": ((9, 1), "relu", "binary-cross-entropy", "identity", None, GaussNewton, False),
    "a middle layer": ((4, 6, 5, 3), "gelu", "cross-entropy", "identity", [1], GaussNewton, True),
    "the last layer is constant": ((5, 6, 4), "silu", "squared-error", "identity", [0], Fisher, False),
    "first and last layer, output sigmoid": ((5, 4, 3, 4), ["tanh", "identity"], "squared-error", "sigmoid", [0, 2], GaussNewton, False),
    "gradients, output tanh": ((5, 4, 4, 3), ["softplus", "gelu-tanh"], "squared-error", "tanh", [1, 2], EmpiricalFisher, True),
    "labels drawn": ((6, 5, 4), "leaky-relu(0.2)", "binary-cross-entropy", "identity", None, MonteCarloFisher, True),
}


def data(name):
    """(kind, network, inputs, targets, weights); every other layer has a bias, input 1 is dead."""
    widths, activation, loss, output, layers, kind, weighted = PROBLEMS[name]
    rng = np.random.default_rng(len(name))
    arrays = [1.2 * rng.standard_normal((b, a)) / np.sqrt(a) for a, b in zip(widths[:-1], widths[1:], strict=True)]
    biases = [rng.standard_normal(len(W)) / 2 if layer % 2 == 0 else None for layer, W in enumerate(arrays)]
    network = Network(arrays, biases, activation, loss, output)
    network = network if layers is None else network.restricted(layers)
    x, y = rng.standard_normal((SAMPLES, widths[0])), rng.random((SAMPLES, widths[-1]))
    x[:, 1] = 0
    y = rng.integers(0, widths[-1], SAMPLES) if loss == "cross-entropy" else y
    weights = rng.random(SAMPLES) / SAMPLES * (np.arange(SAMPLES) != 3) if weighted else None
    return kind, network, x, y, weights


@cache
def problem(name):
    """(operator in float64, dense H)."""
    kind, network, x, y, weights = data(name)
    operator = kind(network, x, y, weights, COMM)
    if kind is MonteCarloFisher:
        return operator, operator.matmat(np.eye(network.n_params))  # of which tests/curvature/test_kinds.py is
    if COMM.rank == 0:
        exact = autograd.outer_products(network, x, y, weights) if kind is EmpiricalFisher else autograd.gauss_newton(network, x, weights)
        exact *= 0.5 if kind is Fisher and network.loss == "squared-error" else 1.0
    return operator, COMM.bcast(exact if COMM.rank == 0 else None)


def quiet(function, *arguments, **keywords):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HpcHessWarning)
        return function(*arguments, **keywords)


@pytest.mark.parametrize("format", ASKED)
@pytest.mark.parametrize("name", PROBLEMS)
def test_through_every_format(name, format, shared_tmp):
    """The error is what is said of it; products, diagonal, norm, storage, solves, determinants; the file without its job, and what info tells."""
    operator, exact = problem(name)
    tree = {"leaf_size": 8} | ({"distance": "neuron"} if format == "hss" else {"budget": 0.4, "n_neighbors": 4})
    H = quiet(compress, operator, RTOL, format, dtype="float64", **tree)
    A, scale, N = H @ np.eye(len(exact)), np.abs(exact).max(), len(exact)
    error, found = np.linalg.norm(A - exact) / np.linalg.norm(exact), H.report["error_estimate"]
    assert error <= found["high"] + 1e-12 and (format == "block-diagonal" or found["high"] <= RTOL) and H.report["rtol_met"] == (found["high"] <= RTOL)
    assert np.abs(A - A.T).max() <= 1e-13 * scale and np.abs(H.diagonal() - np.diag(A)).max() <= 1e-13 * scale
    assert H.norm_frobenius() == pytest.approx(np.linalg.norm(A), rel=1e-6) and H.report["storage_entries"] > 0
    damping, B = 0.05 * np.linalg.eigvalsh(A)[-1], np.random.default_rng(1).standard_normal((N, 2))
    damped = A + damping * np.eye(N)
    assert np.linalg.norm(damped @ quiet(H.solve, B, damping) - B) <= 1e-8 * np.linalg.norm(B)
    if H.direct:
        assert H.logdet(damping) == pytest.approx(np.linalg.slogdet(damped), rel=1e-9)
    H.save(shared_tmp / "F.h5")
    again = hh.load(shared_tmp / "F.h5", COMM)
    assert again.format == H.format and np.abs(again @ np.eye(N) - A).max() <= 1e-13 * scale and np.abs(again.diagonal() - np.diag(A)).max() <= 1e-13 * scale
    assert np.linalg.norm(damped @ quiet(again.solve, B, damping) - B) <= 1e-8 * np.linalg.norm(B)
    with FactorFile(shared_tmp / "F.h5", COMM, verify=True) as file:
        summary = summarize(file, True)
    json.dumps(summary, allow_nan=False)
    assert f"{H.format.upper()} matrix, N = {N}" in describe(summary)


@pytest.mark.parametrize("name", PROBLEMS)
def test_predicted_structured_and_from_fewer_samples(name):
    """Sizes that need no spectrum are predicted exactly; other ways to low rank, blocks and K-FAC; a structured part; the quadrature's error is exact."""
    operator, exact = problem(name)
    norm, eye = np.linalg.norm(exact), np.eye(len(exact))
    predicted = predictions_of(facts_of(operator, RTOL, "float64"))
    for format in ("none", "data-woodbury", "dense", "block-diagonal"):
        assert quiet(compress, operator, RTOL, format, dtype="float64").report["storage_entries"] == predicted[format].entries
    for format, options in (
        ("low-rank", {"method": "nystrom"}),
        ("block-diagonal", {"blocks": "neuron"}),
        ("kronecker-sum", {"terms": "kfac"}),
        ("hss", {"structured": "kronecker-sum", "distance": "input"}),
        ("hss", {"distance": "auto"}),
        ("auto", {"objective": "storage"}),
    ):
        H = quiet(compress, operator, 1e-3, format, leaf_size=9, dtype="float64", **options)
        assert np.linalg.norm(H @ eye - exact) <= (H.report["error_estimate"]["high"] + 1e-12) * norm
    chosen = quadrature(operator, count=5)
    reduced = operator.reduced(chosen)
    assert np.linalg.norm(reduced.matmat(eye) - exact) == pytest.approx(chosen.error * norm, abs=1e-7 * norm)
    reduced.close()


@pytest.mark.parametrize("format", ["none", "data-woodbury", "kronecker-sum", "dense", "low-rank"])
@pytest.mark.parametrize("name", ["autoencoder, binary", "a middle layer", "gradients, output tanh"])
def test_single_precision(name, format):
    """Operators and matrices in float32, solves in float64 all the same."""
    kind, network, x, y, weights = data(name)
    operator, exact = kind(network, x, y, weights, COMM, np.float32), problem(name)[1]
    H, eye = quiet(compress, operator, 1e-2, format), np.eye(len(exact), dtype=np.float32)
    assert H.dtype == np.float32 and (H @ eye).dtype == np.float32
    assert np.linalg.norm(H @ eye - exact) <= (H.report["error_estimate"]["high"] + 1e-5) * np.linalg.norm(exact)
    A, b, damping = H @ np.eye(len(exact)), np.ones(len(exact)), 0.05 * np.linalg.norm(exact, 2)
    assert np.linalg.norm(A @ quiet(H.solve, b, damping) + damping * quiet(H.solve, b, damping) - b) <= 1e-8 * np.linalg.norm(b)
    operator.close()
