"""Kronecker sums against the dense rearranged SVD, on any number of ranks."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest

from hpcHess.compressed.facts import Facts
from hpcHess.curvature.fisher import EmpiricalFisher, Fisher
from hpcHess.curvature.gauss_newton import GaussNewton
from hpcHess.kronecker import compress, spectra
from hpcHess.kronecker import terms as terms_module
from hpcHess.kronecker.compress import compress_kronecker
from hpcHess.kronecker.predict import predict_kronecker
from hpcHess.parallel.ownership import row_starts
from hpcHess.runtime.errors import HpcHessWarning, InputError
from tests.curvature import networks
from tests.curvature.test_gauss_newton import CASES, make, near
from tests.reference.dense_operator import DenseOperator, dense
from tests.reference.gauss_newton import gauss_newton, outer_products
from tests.reference.kronecker import best_sum, kfac, matrix_order


def compressed(operator, **keywords):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HpcHessWarning)  # rtol not met by a fixed number of terms
        return compress_kronecker(operator, **({"dtype": "float64"} | keywords))


def relative(found, H):
    return np.linalg.norm(found - H) / np.linalg.norm(H)


@pytest.fixture(params=CASES, scope="module")
def case(request, comm):
    """(network, inputs, dense H, operator)."""
    network, inputs = make(request.param)
    operator = GaussNewton(network, inputs, comm=comm)
    yield network, inputs, gauss_newton(network, inputs), operator
    operator.close()


@pytest.mark.parametrize("terms", [1, 2, "auto"])
def test_terms_are_the_best_and_the_error_is_exact(case, terms):
    network, _, H, operator = case
    K = compressed(operator, terms=terms, rtol=3e-2)
    counts = {tuple(row["layers"]): row["terms"] for row in K.report["pairs"]}
    assert len(counts) == len(network.weights) * (len(network.weights) + 1) // 2
    best, values = best_sum(H, network, counts)
    error = relative(dense(K), H)
    assert abs(error - K.report["error_estimate"]["value"]) <= 1e-10
    assert abs(error - relative(best, H)) <= 1e-10
    for row in K.report["pairs"]:
        s = values[tuple(row["layers"])]
        if terms != "auto":
            assert row["terms"] == min(terms, (s > 1e-12 * s[0]).sum())
    estimate = K.report["error_estimate"]
    assert estimate["low"] == estimate["high"] == estimate["value"] and estimate["probes"] == 0 and estimate["exact"]
    assert K.report["rtol_met"] == (estimate["value"] <= 3e-2)
    assert abs(K.report["norm_frobenius"] / np.linalg.norm(H) - 1) <= 1e-12
    assert terms != "auto" or K.report["rtol_met"]


@pytest.mark.parametrize("terms", ["auto", "kfac", 1])
def test_rounding_is_part_of_the_error(case, terms):
    """Terms stored in float32: the interval holds the true error, and rtol is met only where that is; the value is right to a factor."""
    _, _, H, operator = case
    for rtol in (1e-8, 4e-7, 1e-3):
        K = compressed(operator, terms=terms, rtol=rtol, dtype="float32")
        estimate, error = K.report["error_estimate"], relative(dense(K).astype(np.float64), H)
        exact = relative(_products64(K), H)
        assert estimate["low"] <= exact * (1 + 1e-7) + 1e-12 and exact <= estimate["high"] * (1 + 1e-7) + 1e-12
        assert exact / 3 <= estimate["value"] <= 3 * exact + 1e-9 and estimate["high"] <= estimate["value"] + 3e-7
        assert K.report["rtol_met"] == (estimate["high"] <= rtol) and (error <= rtol + 2e-7 or not K.report["rtol_met"])
        assert estimate["exact"] == (estimate["high"] <= 1.01 * estimate["value"])
        assert terms != "auto" or K.report["rtol_met"] == (rtol > 1e-8) and (rtol > 1e-8) != any("use float64" in line and "not met" in line for line in K.report["warnings"])


def _products64(K):
    """H̃ by products in float64, whatever it is stored in."""
    return K @ np.eye(K.n_params)


def test_the_choice_leaves_room_for_rounding(case):
    """A tolerance that the terms alone meet by a hair is met with their rounding."""
    _, _, H, operator = case
    for rtol in (1e-2, 1e-4):
        alone = compressed(operator, rtol=rtol).report["error_estimate"]["value"]
        if alone < 1e-6:
            continue
        K = compressed(operator, rtol=alone * (1 + 1e-10), dtype="float32")
        assert K.report["rtol_met"] and relative(_products64(K), H) <= alone * (1 + 1e-10)


def test_what_float32_cannot_reach_is_not_predicted(comm):
    network, inputs = make("tanh classes, some biases")
    operator = GaussNewton(network, inputs, comm=comm)
    for rtol, itemsize, reached in ((1e-8, 4, False), (1e-6, 4, True), (1e-8, 8, True)):
        prediction = predict_kronecker(Facts(operator, rtol, itemsize, 1, "multiply", 1 << 40))
        assert (prediction.error <= rtol) == reached
        assert compressed(operator, rtol=rtol, dtype=f"float{8 * itemsize}").report["rtol_met"] == reached


def test_the_choice_is_greedy_and_minimal(case):
    _, _, H, operator = case
    K = compressed(operator, rtol=1e-2)
    rows = [row for row in K.report["pairs"] if row["terms"]]
    assert K.report["storage_entries"] == sum(row["numbers"] for row in rows) == K.storage()["storage_entries"]
    every = compressed(operator, terms=max(row["terms"] for row in rows), rtol=1e-2)  # also meets it
    assert every.report["rtol_met"] and K.report["storage_entries"] <= every.report["storage_entries"]
    dropped = compressed(operator, rtol=min(0.999, K.report["error_estimate"]["value"] * (1 + 1e-9) + 1e-14))
    assert dropped.report["storage_entries"] == K.report["storage_entries"]


def dead_rows_and_columns(network, H):
    """Parameters of neurons and of inputs whose rows of H are all zero."""
    found = []
    for index in matrix_order(network):
        alive = H[index].any(axis=2)
        found.append(index[~(alive.any(axis=1)[:, None] & alive.any(axis=0))])
    return np.concatenate(found)


def test_products_diagonal_trace_entries(case, comm):
    network, _, H, operator = case
    for dtype, tolerance in (("float64", 1e-13), ("float32", 1e-6)):
        K = compressed(operator, rtol=5e-2, dtype=dtype)
        E = dense(K)
        assert K.shape == H.shape and K.dtype == dtype
        near(E, E.T, tolerance)
        V = np.random.default_rng(1).standard_normal((len(H), 5))
        near(K @ V, E @ V, tolerance)
        near(K @ V[:, 0], E @ V[:, 0], tolerance)
        assert (K @ V.astype(dtype)).dtype == np.dtype(dtype) and (K @ V).dtype == np.float64
        lo, hi = row_starts(len(H), comm.size)[comm.rank : comm.rank + 2]
        near(K.matmat_rows(np.ascontiguousarray(V[lo:hi])), (E @ V)[lo:hi], tolerance, E @ V)
        assert K.matmat_rows(V[lo:hi, :0]).shape == (hi - lo, 0)
        near(K.diagonal(), np.diag(E), tolerance)
        near(np.array(K.trace()), np.trace(E), tolerance)
        near(np.array(K.norm_frobenius()), np.linalg.norm(E), tolerance)
        dead = dead_rows_and_columns(network, H)
        assert K.n_alive == len(H) - len(dead) and not E[dead].any() and not E[:, dead].any()
        rng = np.random.default_rng(comm.rank)  # other entries on every rank: not collective
        I, J = rng.integers(0, len(H), 9), rng.integers(0, len(H), 12)
        near(K.entries(I, J), E[np.ix_(I, J)], tolerance, E)
        found = K.entries_batch(I, np.array([0, 4, 4, 9]), J, np.array([0, 5, 6, 12]))
        near(found[0], E[np.ix_(I[:4], J[:5])], tolerance, E)
        near(found[2], E[np.ix_(I[4:], J[6:])], tolerance, E)


def test_kfac(case):
    network, inputs, H, operator = case
    K = compressed(operator, terms="kfac")
    expected = kfac(network, inputs)
    near(dense(K), expected, 1e-13)
    error = relative(expected, H)
    assert abs(K.report["error_estimate"]["value"] - error) <= (1e-10 if error > 1e-6 else 1e-7)
    comparison = K.report["comparison"]
    one = compressed(operator, terms=1).report
    layers, pairs, best = (comparison[name]["error"] for name in ("one term a layer", "one term a pair", "kfac"))
    assert abs(pairs - one["error_estimate"]["value"]) <= 1e-12 and pairs <= layers + 1e-12 and layers <= best + 1e-7
    assert comparison["one term a pair"]["storage_percent"] == one["storage_percent"]
    assert comparison["kfac"]["storage_percent"] == K.report["storage_percent"] == comparison["this"]["storage_percent"]


@pytest.mark.parametrize("name", ["tanh classes, some biases", "values, few outputs"])
def test_weighted_samples(name, comm):
    network, inputs = make(name)
    weights = np.random.default_rng(5).random(len(inputs))
    weights[2] = 0
    operator = GaussNewton(network, inputs, weights=weights, comm=comm)
    H = sum(weight * gauss_newton(network, x[None]) for weight, x in zip(weights, inputs, strict=True))
    K = compressed(operator, rtol=1e-2)
    assert abs(relative(dense(K), H) - K.report["error_estimate"]["value"]) <= 1e-10 and K.report["rtol_met"]
    near(dense(compressed(operator, terms="kfac")), kfac(network, inputs, weights), 1e-13)


@pytest.mark.parametrize("name", ["tanh classes, some biases", "values, few outputs", "one layer, values", "deep autoencoder"])
def test_fisher_matrices(name, comm):
    network, inputs = make(name)
    rng = np.random.default_rng(4)
    classes = network.loss == "cross-entropy"
    targets = rng.integers(0, network.n_outputs, len(inputs)) if classes else rng.standard_normal((len(inputs), network.n_outputs))
    half = 1.0 if classes else 0.5
    H = {Fisher: half * gauss_newton(network, inputs), EmpiricalFisher: outer_products(network, inputs, targets)}
    for kind, exact in H.items():
        operator = kind(network, inputs, targets, comm=comm)
        K = compressed(operator, rtol=1e-2)
        best, _ = best_sum(exact, network, {tuple(row["layers"]): row["terms"] for row in K.report["pairs"]})
        near(dense(K), best, 1e-11)
        assert abs(relative(dense(K), exact) - K.report["error_estimate"]["value"]) <= 1e-10 and K.report["rtol_met"]
        if kind is Fisher:
            near(dense(compressed(operator, terms="kfac")), half * kfac(network, inputs), 1e-13)
        operator.close()


@pytest.mark.parametrize("name", networks.CASES)
def test_every_loss_gradients_and_some_layers(name, comm, monkeypatch):
    """The best sums, whole and in pieces; a diagonal last factor is stored as its diagonal, and is K-FAC's mean."""
    network, x, y = networks.make(name)
    last = network.n_layers - 1
    for layers in [range(last + 1), *([[0, last], [last - 1]] if last > 1 else [])]:
        part = network.restricted(layers)
        chosen = SimpleNamespace(weights=[network.weights[at] for at in layers], biases=[network.biases[at] for at in layers])
        number = {layer: at for at, layer in enumerate(part.chosen)}
        for operator in (GaussNewton(part, x, weights=networks.WEIGHTS, comm=comm), EmpiricalFisher(part, x, y, comm=comm)):
            H = operator.matmat(np.eye(part.n_params))
            K = compressed(operator, rtol=0.1, terms=2)
            rows = {tuple(number[layer] for layer in row["layers"]): row["terms"] for row in K.report["pairs"]}
            near(dense(K), best_sum(H, chosen, rows)[0], 1e-11)
            assert abs(relative(dense(K), H) - K.report["error_estimate"]["value"]) <= 1e-10
            near(K.entries(np.arange(len(H)), np.arange(len(H))), dense(K), 1e-13)
            with monkeypatch.context() as small:
                small.setattr(terms_module, "_NUMBERS", 1)
                near(K @ np.eye(len(H)), dense(K), 1e-13)
            diagonal = [each for each in K.terms if each.kind == "diagonal"]
            assert bool(diagonal) == (operator.samples.q is not None and last in part.chosen)
            for each in diagonal:
                d, c = part.n_outputs, each.right.shape[1]
                assert each.numbers() == len(each) * (d + c * (c + 1) // 2) and each.left.shape == (len(each), d)
                mean = networks.WEIGHTS @ operator.samples.q.T / networks.WEIGHTS.sum()
                A = next(each for each in compressed(operator, terms="kfac").terms if each.kind == "diagonal")
                near(A.left[0] / np.linalg.norm(A.left[0]), mean / np.linalg.norm(mean), 1e-12)
            operator.close()


@pytest.mark.parametrize("name", ["classes, gelu, some biases", "autoencoder, binary", "autoencoder"])
def test_ranks_without_samples(name, comm, monkeypatch):
    monkeypatch.setattr(spectra, "EXPLICIT_NUMBERS", 0)
    network, x, _ = networks.make(name)
    operator = GaussNewton(network, x[:2], comm=comm)
    H = operator.matmat(np.eye(network.n_params))
    for route in ("gram", "randomized"):
        monkeypatch.setattr(spectra, "GRAM_SAMPLES", 4 if route == "gram" else 1)
        K = compressed(operator, rtol=1e-3)
        assert {row["route"] for row in K.report["pairs"]} == {route} and relative(dense(K), H) <= K.report["error_estimate"]["high"] <= 1e-3
    operator.close()


def test_inputs_that_do_not_fit(comm):
    H = np.eye(6)
    with pytest.raises(InputError, match="needs a network's layers"):
        compress_kronecker(DenseOperator(H, comm))
    network, inputs = make("relu classes")
    operator = GaussNewton(network, inputs, comm=comm)
    for wrong in ("all", 0, 1.5, -2, None):
        with pytest.raises(InputError, match="terms must be"):
            compress_kronecker(operator, terms=wrong)
    with pytest.raises(InputError, match="rtol"):
        compress_kronecker(operator, rtol=0)


def test_what_is_not_met_is_told(comm):
    network, inputs = make("relu classes")
    operator = GaussNewton(network, inputs, comm=comm)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        K = compress_kronecker(operator, terms=1, rtol=1e-3)
    assert not K.report["rtol_met"] and any("not met" in line for line in K.report["warnings"])
    assert (len(caught) > 0) == (comm.rank == 0)


def test_a_zero_matrix(comm):
    network, inputs = make("relu classes")
    operator = GaussNewton(network, np.zeros_like(inputs), weights=None, comm=comm)
    K = compressed(operator, rtol=1e-2)
    H = gauss_newton(network, np.zeros_like(inputs))
    assert relative(dense(K), H) <= 1e-2 if H.any() else not dense(K).any()


@pytest.mark.parametrize("name", ["tanh classes, some biases", "deep autoencoder", "relu classes"])
def test_many_samples(name, comm, monkeypatch):
    """What more samples than the Gram route takes are compressed by: random projections, float32 products with float64 sums."""
    for module in (spectra, compress):
        monkeypatch.setattr(module, "GRAM_SAMPLES", 10)
    monkeypatch.setattr(spectra, "EXPLICIT_NUMBERS", 0)
    monkeypatch.setattr(spectra, "BLOCK", 12)
    network, inputs = make(name, 30)
    H = gauss_newton(network, inputs)
    for dtype, rtol, tolerance in ((np.float32, 1e-1, 1e-5), (np.float32, 1e-2, 1e-4), (np.float64, 1e-4, 1e-9)):
        operator = GaussNewton(network, inputs, comm=comm, dtype=dtype)
        K = compressed(operator, rtol=rtol)
        assert {row["route"] for row in K.report["pairs"]} == {"randomized"}
        estimate = K.report["error_estimate"]
        assert abs(relative(dense(K), H) - estimate["value"]) <= tolerance
        assert K.report["rtol_met"] and estimate["low"] < estimate["value"] < estimate["high"] < estimate["value"] + 1e-3
        if dtype == np.float64:  # all terms: what is left is known to √ε ‖R‖ only, and that is said
            for every in (compressed(operator, rtol=rtol, terms=1000), compressed(operator, rtol=1e-8)):
                estimate = every.report["error_estimate"]
                assert relative(dense(every), H) <= estimate["high"] and 1e-8 < estimate["high"] < 1e-6
            assert not every.report["rtol_met"] and any("rtol 1e-08 not met" in line for line in every.report["warnings"])
        operator.close()


def test_the_floor_of_the_gram_route_is_told(comm, monkeypatch):
    monkeypatch.setattr(spectra, "EXPLICIT_NUMBERS", 0)
    network, inputs = make("deep autoencoder", 9)
    operator = GaussNewton(network, inputs, comm=comm)
    K = compressed(operator, rtol=1e-12)
    assert {row["route"] for row in K.report["pairs"]} == {"gram"}
    assert not K.report["rtol_met"] and any("are rounding" in line for line in K.report["warnings"])
    error, found = relative(dense(K), gauss_newton(network, inputs)), K.report["error_estimate"]
    assert abs(error - found["value"]) <= 1e-7 and error <= found["high"] <= 1e-6


@pytest.mark.parametrize("name", ["autoencoder", "tanh classes, some biases", "deep, no biases"])
def test_products_in_small_pieces(name, comm, monkeypatch):
    """One term at a time, without the sums of every row, gives the same."""
    network, inputs = make(name)
    K = compressed(GaussNewton(network, inputs, comm=comm), rtol=1e-3)
    V = np.random.default_rng(0).standard_normal((K.n_params, 4))
    whole = K @ V
    monkeypatch.setattr(terms_module, "_NUMBERS", 1)
    near(K @ V, whole, 1e-13)
