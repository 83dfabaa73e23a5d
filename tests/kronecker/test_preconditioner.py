"""The preconditioner that eliminates the last layers, against the dense matrix it claims to be the inverse of."""

import warnings

import numpy as np
import pytest

from hpcHess.curvature.fisher import EmpiricalFisher, Fisher
from hpcHess.curvature.gauss_newton import GaussNewton
from hpcHess.krylov.solve import solve
from hpcHess.kronecker import precondition_schur
from hpcHess.kronecker.compress import compress_kronecker
from hpcHess.kronecker.preconditioner import Elimination, _last_layers, eliminable
from hpcHess.networks.network import Network
from hpcHess.runtime.errors import HpcHessWarning
from tests.curvature import networks
from tests.reference.gauss_newton import gauss_newton


def network(widths, loss, activation="sigmoid", bias=True, seed=0):
    rng = np.random.default_rng(seed)
    arrays = {}
    for layer, (inner, out) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        arrays[f"{2 * layer}.weight"] = rng.standard_normal((out, inner)) / np.sqrt(inner)
        if bias:
            arrays[f"{2 * layer}.bias"] = 0.3 * rng.standard_normal(out)
    return Network.from_arrays(arrays, activation, loss)


#        widths, loss, bias, most parameters of a dense block, first layer eliminated, whether there is a Kronecker term
CASES = {
    "autoencoder": ((7, 4, 7), "squared-error", True, 0, 1, True),
    "wide hidden": ((4, 6, 3), "squared-error", False, 0, 1, True),
    "deep autoencoder": ((6, 5, 3, 6), "squared-error", True, 0, 2, False),
    "small last layer": ((6, 5, 3), "squared-error", True, 20, 1, False),
    "classes": ((6, 5, 3), "cross-entropy", True, 20, 1, False),
    "deep classes": ((6, 5, 4, 3), "cross-entropy", True, 40, 1, False),
    "one layer": ((5, 4), "squared-error", True, 0, 0, False),
    "all layers": ((4, 3, 2), "cross-entropy", False, 100, 0, False),
}


def make(name, comm, n=20, weights=None, dtype=np.float64):
    widths, loss, bias, dense, first, term = CASES[name]
    net = network(widths, loss, bias=bias)
    x = np.random.default_rng(1).standard_normal((n, widths[0])) + 0.5
    operator = GaussNewton(net, x, weights=weights, comm=comm)
    shared = Elimination(operator, dtype, dense)
    assert shared.first == first and (shared.complement is not None) == term
    return net, x, operator, shared


def inverse(M, comm):
    """M⁻¹, whole, from its product with the identity."""
    starts = M._rows
    rows = np.eye(int(starts[-1]))[starts[comm.rank] : starts[comm.rank + 1]]
    return np.vstack(comm.allgather(M.solve_rows(rows)))


def claimed(M, H, shared, term):
    """The dense M of the module's formula, from the dense H."""
    r = shared.sweeps.n_rest
    A = H + M.damping * np.eye(len(H))
    D = M.damping * np.eye(r)
    if term:
        a, U, t, V = M.terms
        out = len(U)
        place = np.arange(r)
        if shared.operator.samples.has_bias[0]:  # row-major [W b] → parameter order
            inner = len(V) - 1
            place = np.concatenate([np.arange(out * inner).reshape(out, inner), out * inner + np.arange(out)[:, None]], axis=1).ravel()
        D[np.ix_(place, place)] += np.kron((U * a) @ U.T, (V * t) @ V.T)
    P, L = A[r:, r:], A[:r, r:] @ np.linalg.inv(A[r:, r:])
    return np.block([[D + L @ P @ L.T, A[:r, r:]], [A[r:, :r], P]])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_inverse_of_what_it_claims(name, weighted, comm):
    weights = np.random.default_rng(5).random(20) if weighted else None
    net, x, operator, shared = make(name, comm, weights=weights)
    H = operator.matmat(np.eye(operator.n_params))
    if not weighted:
        assert np.linalg.norm(H - gauss_newton(net, x)) <= 1e-12 * np.linalg.norm(H)
    M = shared.preconditioner(1e-3 * np.linalg.norm(H, 2))
    assert M.definite and M.damping == 1e-3 * np.linalg.norm(H, 2) and M.preconditioner() is M
    S = inverse(M, comm)
    expected = np.linalg.inv(claimed(M, H, shared, CASES[name][-1]))
    assert np.linalg.norm(S - expected) <= 1e-10 * np.linalg.norm(expected)
    assert np.linalg.norm(S - S.T) <= 1e-12 * np.linalg.norm(S)
    assert np.linalg.eigvalsh((S + S.T) / 2)[0] > 0


@pytest.mark.parametrize("name", networks.CASES)
def test_every_loss_gradients_and_some_layers(name, comm):
    """The same of networks some of whose layers are constant, the last one among them; what cannot be eliminated is left alone."""
    net, x, y = networks.make(name)
    last, found, blocks = net.n_layers - 1, 0, 0
    for layers in [range(last + 1), [last], *([[0], [0, last]] if last > 1 else [])]:
        part = net.restricted(layers)
        for operator in (GaussNewton(part, x, weights=networks.WEIGHTS, comm=comm), EmpiricalFisher(part, x, y, comm=comm)):
            H = operator.matmat(np.eye(part.n_params))
            for dense in (0, 16, 10**6):
                if _last_layers(operator, dense) is None:
                    assert not dense or part.weights[part.chosen[-1]].size > 12
                    continue
                shared, found = Elimination(operator, np.float64, dense), found + 1
                assert (shared.V.ndim == 3) == (not shared.dense and operator.samples.q is not None)
                blocks += shared.V.ndim == 3
                M = shared.preconditioner(1e-2 * np.linalg.norm(H, 2))
                expected = np.linalg.inv(claimed(M, H, shared, shared.complement is not None))
                assert np.linalg.norm(inverse(M, comm) - expected) <= 1e-10 * np.linalg.norm(expected)
            operator.close()
    assert found >= 4 and bool(blocks) == (net.loss == "binary-cross-entropy" or net.output != "identity")


@pytest.mark.parametrize(("name", "kind"), [("deep classes", EmpiricalFisher), ("small last layer", EmpiricalFisher), ("autoencoder", Fisher)])
def test_other_curvatures(name, kind, comm):
    widths, loss, bias, dense, _, term = CASES[name]
    net, rng = network(widths, loss, bias=bias), np.random.default_rng(1)
    x = rng.standard_normal((20, widths[0]))
    targets = rng.integers(0, widths[-1], 20) if loss == "cross-entropy" else rng.standard_normal((20, widths[-1]))
    operator = kind(net, x, targets, comm=comm)
    shared = Elimination(operator, np.float64, dense)
    H = operator.matmat(np.eye(operator.n_params))
    M = shared.preconditioner(1e-3 * np.linalg.norm(H, 2))
    expected = np.linalg.inv(claimed(M, H, shared, term))
    assert np.linalg.norm(inverse(M, comm) - expected) <= 1e-10 * np.linalg.norm(expected)


@pytest.mark.parametrize("name", ["one layer", "all layers"])
def test_exact_where_all_is_eliminated(name, comm):
    _, _, operator, shared = make(name, comm)
    H = operator.matmat(np.eye(operator.n_params))
    A = H + 1e-2 * np.eye(len(H))
    S = inverse(shared.preconditioner(1e-2), comm)
    assert np.linalg.norm(S @ A - np.eye(len(A))) <= 1e-9


@pytest.mark.parametrize("name", ["autoencoder", "wide hidden"])
def test_exact_where_the_complement_is_one_product(name, comm):
    """One sample: H_11 and all T_k have the same inputs' factor."""
    _, _, operator, shared = make(name, comm, n=1)
    H = operator.matmat(np.eye(operator.n_params))
    A = H + 1e-3 * np.eye(len(H))
    S = inverse(shared.preconditioner(1e-3), comm)
    assert np.linalg.norm(S @ A - np.eye(len(A))) <= 1e-9 * np.linalg.cond(A)


@pytest.mark.parametrize("name", ["autoencoder", "wide hidden"])
def test_leading_product_of_the_complement(name, comm, monkeypatch):
    monkeypatch.setattr(precondition_schur, "_STEPS", 500)
    monkeypatch.setattr(precondition_schur, "_CHANGE", 0.0)
    _, _, operator, shared = make(name, comm)
    H = operator.matmat(np.eye(operator.n_params))
    r, damping = shared.sweeps.n_rest, 1e-2
    A = H + damping * np.eye(len(H))
    schur = A[:r, :r] - A[:r, r:] @ np.linalg.solve(A[r:, r:], A[r:, :r]) - damping * np.eye(r)
    Q, P = shared.complement.leading(damping)
    d, c = len(Q), len(P)
    if operator.samples.has_bias[0]:
        place = np.concatenate([np.arange(d * (c - 1)).reshape(d, c - 1), d * (c - 1) + np.arange(d)[:, None]], axis=1).ravel()
        schur = schur[np.ix_(place, place)]
    R = schur.reshape(d, c, d, c).transpose(0, 2, 1, 3).reshape(d * d, c * c)
    U, s, Vt = np.linalg.svd(R)
    best = s[0] * np.outer(U[:, 0], Vt[0])
    assert np.linalg.norm(np.outer(Q.ravel(), P.ravel()) - best) <= 1e-6 * s[0]
    assert s[1] > 1e-3 * s[0]  # not the only one


@pytest.mark.parametrize(("name", "factor"), [("autoencoder", 10), ("deep autoencoder", 5), ("classes", 2), ("deep classes", 3)])
def test_condition_number_and_iterations_fall(name, factor, comm):
    _, _, operator, shared = make(name, comm, n=60)
    N = operator.n_params
    H = operator.matmat(np.eye(N))
    damping = 1e-4 * np.linalg.norm(H, 2)
    A = H + damping * np.eye(N)
    M = shared.preconditioner(damping)
    values = np.linalg.eigvals(inverse(M, comm) @ A).real
    assert values.min() > 0 and values.max() / values.min() <= np.linalg.cond(A) / factor
    r = shared.sweeps.n_rest
    assert (abs(values - 1) <= 1e-6).sum() >= N - r  # what was eliminated
    starts = operator.parameter_starts
    B = np.random.default_rng(2).standard_normal((N, 3))[starts[comm.rank] : starts[comm.rank + 1]]
    plain = solve(operator, B, damping, rtol=1e-8)
    found = solve(operator, B, damping, preconditioner=M, rtol=1e-8)
    assert found.converged and found.method == "cg"
    assert found.iterations < 0.75 * plain.iterations


@pytest.mark.parametrize("name", ["autoencoder", "deep classes"])
def test_single_precision(name, comm):
    _, _, operator, shared = make(name, comm, dtype=np.float32)
    exact = Elimination(operator, np.float64, CASES[name][3]).preconditioner(0.05)
    M = shared.preconditioner(0.05)
    S, expected = inverse(M, comm), inverse(exact, comm)
    assert S.dtype == np.float32
    assert np.linalg.norm(S - expected) <= 1e-4 * np.linalg.norm(expected)


def test_samples_in_pieces(comm, monkeypatch):
    from hpcHess.kronecker import precondition_sweeps

    results = []
    for numbers in (1 << 25, 100):
        monkeypatch.setattr(precondition_sweeps, "_NUMBERS", numbers)
        results.append(inverse(make("deep classes", comm)[-1].preconditioner(0.1), comm))
    assert np.linalg.norm(results[0] - results[1]) <= 1e-12 * np.linalg.norm(results[0])


def test_of_a_kronecker_sum(comm):
    """It preconditions H̃ + λI and H + λI of a sum that knows its operator; a new λ uses what was made for the first."""
    _, _, operator, _ = make("autoencoder", comm)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HpcHessWarning)
        K = compress_kronecker(operator, rtol=1e-3, dtype="float64")
    damping = 1e-2 * K.report["lambda_max"]
    first, second = K.preconditioning_factors(damping), K.preconditioning_factors(2 * damping)
    assert first.solver == "last-layers" and first.matrix is K and second.damping == 2 * damping
    assert first._shared is second._shared
    B = np.random.default_rng(0).standard_normal((K.n_params, 2))
    X = K.solve(B, damping)
    A = K.matmat(np.eye(K.n_params)) + damping * np.eye(K.n_params)
    assert np.linalg.norm(A @ X - B) <= 1e-9 * np.linalg.norm(B)
    K.operator = None
    assert K.preconditioning_factors(damping) is None


def test_what_cannot_be_eliminated(comm):
    large = network((3, 800, 3), "cross-entropy")
    assert not eliminable(GaussNewton(large, np.ones((2, 3)), comm=comm))
    assert not eliminable(object())
