"""The Gauss–Newton operator against the dense matrix from complex steps, on any number of ranks."""

import itertools
import tracemalloc

import numpy as np
import pytest
from mpi4py import MPI

from hpcHess.backend import entries, get
from hpcHess.curvature import blocking, kernel, products, samples
from hpcHess.curvature import gauss_newton as module
from hpcHess.curvature.fisher import EmpiricalFisher
from hpcHess.curvature.gauss_newton import GaussNewton
from hpcHess.curvature.sweep import Contracted
from hpcHess.networks.network import Network
from hpcHess.parallel.ownership import row_starts
from hpcHess.runtime.errors import InputError
from tests.reference.gauss_newton import gauss_newton

CASES = {  # widths, activation, loss, biases
    "one layer, classes": ([5, 4], "relu", "cross-entropy", True),
    "one layer, values": ([5, 4], "relu", "squared-error", True),
    "one layer, values, no bias": ([3, 2], "tanh", "squared-error", False),
    "relu classes": ([6, 5, 4], "relu", "cross-entropy", True),
    "tanh classes, some biases": ([5, 4, 4, 3], "tanh", "cross-entropy", (True, False, True)),
    "sigmoid classes": ([4, 5, 3, 2], "sigmoid", "cross-entropy", False),
    "autoencoder": ([7, 3, 7], "relu", "squared-error", True),
    "values, few outputs": ([4, 6, 2], "tanh", "squared-error", True),
    "deep autoencoder": ([6, 4, 2, 4, 6], "sigmoid", "squared-error", True),
    "deep, no biases": ([5, 4, 3, 2], "relu", "squared-error", False),
    "one output": ([4, 3, 1], "sigmoid", "squared-error", True),
}
N_SAMPLES = 9


def make(name, n=N_SAMPLES):
    """(network, inputs): input 1 is 0 in all samples, hidden neuron 0 of the first layer is dead with relu."""
    widths, activation, loss, biases = CASES[name]
    rng = np.random.default_rng(len(name))
    layers = list(zip(widths[1:], widths[:-1], strict=True))
    biases = biases if isinstance(biases, tuple) else [biases] * len(layers)
    weights = [rng.standard_normal(shape) for shape in layers]
    vectors = [rng.standard_normal(shape[0]) if has else None for shape, has in zip(layers, biases, strict=True)]
    inputs = rng.standard_normal((n, widths[0]))
    inputs[:, 1] = 0
    inputs[rng.random(inputs.shape) < 0.3] = 0
    if activation == "relu" and len(layers) > 1:
        weights[0][0] = -np.abs(weights[0][0])
        inputs = np.abs(inputs)
        if vectors[0] is not None:
            vectors[0][0] = -1
    return Network(weights, vectors, activation, loss), inputs


@pytest.fixture(params=CASES, scope="module")
def case(request, comm):
    """(dense H, operator in float64, operator in float32)."""
    network, inputs = make(request.param)
    made = [GaussNewton(network, inputs, comm=comm, dtype=dtype) for dtype in (np.float64, np.float32)]
    yield gauss_newton(network, inputs), *made
    for operator in made:
        operator.close()


def near(found, expected, tolerance, scale=None):
    assert found.shape == expected.shape
    assert np.max(np.abs(found - expected), initial=0) <= tolerance * np.abs(expected if scale is None else scale).max()


def test_products(case, comm):
    H, *operators = case
    V = np.random.default_rng(1).standard_normal((len(H), 5))
    for operator, tolerance in zip(operators, (1e-13, 1e-5), strict=True):
        assert operator.shape == H.shape and operator.matmat(V).dtype == operator.dtype
        near(operator.matmat(V), H @ V, tolerance)
        near(operator.matmat(np.asfortranarray(V)), H @ V, tolerance)
        near(operator.matmat(V[:, 0]), H @ V[:, 0], tolerance)
        near(comm.allreduce(operator.partial_matmat(V)), H @ V, tolerance)
        assert operator.matmat(V[:, :0]).shape == (len(H), 0)
        lo, hi = row_starts(len(H), comm.size)[comm.rank : comm.rank + 2]
        near(operator.matmat_rows(V[lo:hi]), (H @ V)[lo:hi], tolerance, H @ V)


def test_entries(case):
    H, *operators = case
    rng = np.random.default_rng(2)
    every = np.arange(len(H))
    for operator, tolerance in zip(operators, (1e-13, 1e-6), strict=True):
        assert operator.entries(every, every).dtype == operator.dtype
        near(operator.entries(every, every), H, tolerance)
        for _ in range(10):
            I, J = (rng.integers(0, len(H), rng.integers(1, 12)) for _ in range(2))  # any order, repetitions
            near(operator.entries(I, J), H[np.ix_(I, J)], tolerance, H)
            near(operator.entries(I, I), H[np.ix_(I, I)], tolerance, H)
        groups = operator.input_groups(1, 0)[0]
        for first, last in ((0, 1), (2, 3), (groups[-1] - 1, groups[-1])):  # all weights of some inputs, but one
            I = every[(groups >= first) & (groups <= last)][1:]
            near(operator.entries(I[::-1], I[1:]), H[np.ix_(I[::-1], I[1:])], tolerance, H)
        assert operator.entries(every[:0], every).shape == (0, len(H))
        assert operator.entries(every, every[:0]).shape == (len(H), 0)


def test_entries_batch(case):
    H, operator, _ = case
    rng = np.random.default_rng(3)
    rows, columns = rng.integers(0, 8, 6), rng.integers(0, 8, 6)
    starts_I, starts_J = (np.concatenate([[0], np.cumsum(each)]) for each in (rows, columns))
    I, J = rng.integers(0, len(H), starts_I[-1]), rng.integers(0, len(H), starts_J[-1])
    found = operator.entries_batch(I, starts_I, J, starts_J)
    assert len(found) == 6 and np.array_equal(found.rows, rows) and np.array_equal(found.cols, columns)
    for b in range(6):
        expected = H[np.ix_(I[starts_I[b] : starts_I[b + 1]], J[starts_J[b] : starts_J[b + 1]])]
        near(found[b], expected, 1e-13, H)
    assert len(operator.entries_batch(I[:0], np.zeros(1, int), J[:0], np.zeros(1, int))) == 0


def test_diagonal_and_alive(case):
    H, *operators = case
    for operator, tolerance in zip(operators, (1e-13, 1e-6), strict=True):
        near(operator.diagonal(), np.diag(H), tolerance)
        assert operator.alive.dtype == np.int64
        dead = np.setdiff1d(np.arange(len(H)), operator.alive)
        assert np.all(H[dead] == 0) and np.all(H[operator.alive].any(axis=1))
        assert len(dead) > 0  # input 1 is never on


@pytest.mark.parametrize("logits, alive", [([0, 0.5, -2000], [0, 1]), ([2000, 0, 0], []), ([0, 2000, 1], [])])
def test_outputs_of_no_probability_or_all_are_dead(comm, logits, alive):
    """p_e = 0 or 1 to the last digit in every sample: the rows of e in Q = diag(p) − ppᵀ are zero."""
    operator = GaussNewton(Network([np.array(logits, float)[:, None]], loss="cross-entropy"), np.ones((4, 1)), comm=comm)
    H = operator.entries(np.arange(3), np.arange(3))
    assert operator.alive.tolist() == np.flatnonzero(H.any(axis=1)).tolist() == alive


def test_probe_embeds_H(case, comm):
    H, *operators = case
    k = 6000
    Z = operators[0].probe(k, seed=5)
    # Var (ZZᵀ)_ij = (H_ii H_jj + H_ij²) / k for Gaussian ξ
    deviation = np.sqrt((np.outer(np.diag(H), np.diag(H)) + H**2) / k)
    assert np.all(np.abs(Z @ Z.T - H) <= 5 * deviation + 1e-15)
    near(operators[1].probe(8, seed=5) * np.sqrt(8 / k), Z[:, :8], 1e-5)  # columns do not depend on how many there are
    assert not np.array_equal(operators[0].probe(8, seed=6), operators[0].probe(8, seed=5))


def test_input_groups(comm):
    network, inputs = make("tanh classes, some biases")
    groups, rows = GaussNewton(network, inputs, comm=comm).input_groups(4000, 0)
    expected = [np.tile(np.arange(5), 4), np.full(4, 5), 6 + np.tile(np.arange(4), 4), 11 + np.tile(np.arange(4), 3), np.full(3, 15)]
    assert np.array_equal(groups, np.concatenate(expected))
    X = np.vstack([inputs.T, np.ones(N_SAMPLES)])
    near(rows[:6] @ rows[:6].T, X @ X.T, 0.1)


@pytest.mark.parametrize("name", ["relu classes", "autoencoder", "deep autoencoder"])
@pytest.mark.parametrize("n", [1, 2, N_SAMPLES])
def test_any_number_of_ranks_gives_the_same(comm, name, n):
    network, inputs = make(name, n)
    alone, all_ranks = (GaussNewton(network, inputs, comm=each) for each in (MPI.COMM_SELF, comm))
    part = comm.Split(comm.rank % 2, comm.rank)
    some = GaussNewton(network, inputs, comm=part)
    V, I = np.random.default_rng(0).standard_normal((network.n_params, 3)), np.arange(0, network.n_params, 3)
    for operator in (all_ranks, some):
        assert np.array_equal(operator.alive, alone.alive)
        near(operator.probe(6, 3), alone.probe(6, 3), 1e-14)
        near(operator.matmat(V), alone.matmat(V), 1e-14)
        near(operator.diagonal(), alone.diagonal(), 1e-14)
        near(operator.entries(I, I), alone.entries(I, I), 1e-14)
        operator.close()
    part.Free()


def test_fewer_parameters_than_ranks(comm):
    operator = GaussNewton(Network([np.ones((1, 1))], loss="squared-error"), np.array([[3.0], [1.0]]), comm=comm)
    lo, hi = operator.parameter_starts[comm.rank : comm.rank + 2]
    near(operator.matmat_rows(np.ones((1, 2))[lo:hi]), np.full((1, 2), 10.0)[lo:hi], 1e-15, np.array(10.0))
    assert operator.entries([0], [0]) == 10


@pytest.mark.parametrize("name", ["tanh classes, some biases", "deep autoencoder", "one layer, classes"])
def test_blocks_do_not_change_the_result(comm, monkeypatch, name):
    network, inputs = make(name, 150)
    V = np.random.default_rng(0).standard_normal((network.n_params, 11))
    whole = GaussNewton(network, inputs, comm=comm)
    expected = whole.matmat(V), whole.probe(11, 2), whole.diagonal(), whole.entries(whole.alive, whole.alive)
    monkeypatch.setattr(blocking, "TEMPORARY_BYTES", 8000)
    monkeypatch.setattr(blocking, "SAMPLES", 40)
    monkeypatch.setattr(entries, "PIECE", 64)
    monkeypatch.setattr(kernel, "STORED_BYTES", 0)
    monkeypatch.setattr(samples, "_BLOCK", 64)
    monkeypatch.setattr(module, "_SAMPLES", 7)
    monkeypatch.setattr("hpcHess.parallel.operator._MESSAGE", 13)
    pieces = GaussNewton(network, inputs, comm=comm)
    found = pieces.matmat(V), pieces.probe(11, 2), pieces.diagonal(), pieces.entries(pieces.alive, pieces.alive)
    for each, other in zip(found, expected, strict=True):
        near(each, other, 1e-14)


def test_sure_samples_keep_their_digits():
    """1 − p of a nearly certain class, and derivatives in the tails, are not lost by cancellation."""
    network = Network([np.array([[38.0], [0.0]])], loss="cross-entropy")
    operator = GaussNewton(network, np.ones((1, 1)), comm=MPI.COMM_SELF)
    q = np.exp(-38.0)
    expected = q / (1 + q) ** 2 * np.array([[1, -1], [-1, 1]])
    near(operator.entries([0, 1], [0, 1]), expected, 1e-13)
    near(operator.diagonal(), np.diag(expected), 1e-13)
    network = Network([np.array([[25.0]]), np.array([[1.0]])], activation="tanh", loss="squared-error")
    operator = GaussNewton(network, np.ones((1, 1)), comm=MPI.COMM_SELF)
    assert np.isclose(operator.entries([0], [0])[0, 0], 2 / np.cosh(25.0) ** 4, rtol=1e-13, atol=0)
    assert np.array_equal(operator.alive, [0, 1])


def test_kept_buffers_leave_no_trace():
    """The buffers of a product serve the next one of the same shape, whatever came between."""
    rng = np.random.default_rng(0)
    network = Network([rng.standard_normal((7, 5)), rng.standard_normal((4, 7))], loss="cross-entropy")
    operator = GaussNewton(network, rng.standard_normal((20, 5)), comm=MPI.COMM_SELF)
    V, W = rng.standard_normal((2, network.n_params, 3))
    first = operator.matmat(V)
    kept = first.copy()
    operator.partial_probe(3, 0)
    second = operator.matmat(W)
    assert np.array_equal(first, kept) and np.array_equal(operator.matmat(V), first)
    near(second, operator.entries(np.arange(network.n_params), np.arange(network.n_params)) @ W, 1e-12)


def test_temporaries_stay_within_their_bound(monkeypatch):
    """Where samples, parameters, or outputs dominate."""
    monkeypatch.setattr(blocking, "TEMPORARY_BYTES", 1 << 21)
    monkeypatch.setattr(products, "KEPT_BYTES", 0)
    cases = itertools.product((([30, 20, 10], 3000), ([100, 40, 100], 500), ([20, 200], 400)), ("squared-error", "cross-entropy", "opg"))
    for (widths, n), kind in cases:
        rng = np.random.default_rng(0)
        loss = "cross-entropy" if kind == "opg" else kind
        network = Network([rng.standard_normal(shape) for shape in zip(widths[1:], widths[:-1], strict=True)], loss=loss)
        targets = rng.standard_normal((n, widths[-1])) if loss == "squared-error" else rng.integers(0, widths[-1], n)
        made = EmpiricalFisher if kind == "opg" else GaussNewton
        operator = made(network, rng.standard_normal((n, widths[0])), targets, comm=MPI.COMM_SELF)
        V = rng.standard_normal((network.n_params, 30))
        operator.partial_matmat(V)  # what is made once
        for call in (lambda: operator.partial_matmat(V), lambda: operator.partial_probe(30, 0)):  # noqa: B023
            tracemalloc.start()
            result = call()
            used = tracemalloc.get_traced_memory()[1] - result.nbytes
            tracemalloc.stop()
            assert blocking.TEMPORARY_BYTES / 10 < used <= 1.15 * blocking.TEMPORARY_BYTES, (widths, kind, used)


def test_temporaries_of_the_diagonal_do_not_grow_with_the_inputs(monkeypatch):
    """Pieces of the samples by the width: 600 samples of 4000 inputs are 19 MB in float64."""
    monkeypatch.setattr(module, "_NUMBERS", 1 << 17)
    network = Network([np.random.default_rng(0).standard_normal((3, 4000)) / 60])
    operator = GaussNewton(network, np.random.default_rng(1).standard_normal((600, 4000)), comm=MPI.COMM_SELF)
    for part, dtype, operation in ((operator._squares, np.float64, MPI.SUM), (operator._sees, np.float32, MPI.MAX)):
        tracemalloc.start()
        result = operator.by_parameter(part, dtype, operation)
        used = tracemalloc.get_traced_memory()[1] - 3 * result.nbytes
        tracemalloc.stop()
        assert used <= 1.5 * 8 * module._NUMBERS, used


@pytest.mark.parametrize("chosen", [None, [1], [2], [0, 1]])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_contracted_sweep_is_the_plain_one(monkeypatch, chosen, weighted):
    """Squared error with its last layer contracted, in blocks too, and outer products by either side of a layer, against the plain sweep."""
    rng = np.random.default_rng(3)
    weights = [rng.standard_normal(shape) for shape in ((5, 7), (3, 5), (30, 3))]
    network = Network(weights, [rng.standard_normal(5), None, rng.standard_normal(30)], "tanh", "squared-error")
    network = network if chosen is None else network.restricted(chosen)
    x, y, w = rng.standard_normal((90, 7)), rng.standard_normal((90, 30)), rng.random(90) if weighted else None
    V = rng.standard_normal((network.n_params, 13))
    operator = GaussNewton(network, x, weights=w, comm=MPI.COMM_SELF)
    assert Contracted.pays(operator._products.data.layers, 90)
    found = operator.matmat(V)
    outer = EmpiricalFisher(network, x, y, weights=w, comm=MPI.COMM_SELF)
    by_sides = outer.matmat(V)
    monkeypatch.setattr(blocking, "TEMPORARY_BYTES", 20000)
    monkeypatch.setattr(blocking, "SAMPLES", 40)
    near(operator.matmat(V), found, 1e-14)
    near(outer.matmat(V), by_sides, 1e-14)
    monkeypatch.setattr(Contracted, "pays", lambda layers, n: False)
    near(operator.matmat(V), found, 1e-14)
    outer._products._deltas = None
    near(outer.matmat(V), by_sides, 1e-14)


def test_backends_agree(comm):
    network, inputs = make("autoencoder")
    found = [GaussNewton(network, inputs, comm=comm, backend=name).probe(4, 1) for name in ("numpy", get("auto"))]
    near(*found, 1e-14)


def test_bad_input_is_one_error_on_every_rank(comm):
    network, inputs = make("relu classes")
    cases = {
        "takes 6": dict(inputs=inputs[:, 1:]),
        "shape": dict(inputs=inputs[0]),
        "empty": dict(inputs=inputs[:0]),
        "out of range": dict(inputs=inputs, targets=np.full(N_SAMPLES, 4)),
        "dtype": dict(inputs=inputs, dtype="float16"),
        "not finite": dict(inputs=inputs * np.nan),
    }
    for message, wrong in cases.items():
        with pytest.raises(InputError, match=message):
            GaussNewton(network, comm=comm, **wrong)
    with pytest.raises(ValueError, match="does not fit"):
        GaussNewton(network, inputs, comm=comm).matmat(np.zeros(3))


def test_inputs_as_floats_of_32_bits_and_lists(comm):
    network, inputs = make("relu classes")
    exact = GaussNewton(network, inputs.astype(np.float32), np.zeros(N_SAMPLES, int), comm=comm)
    assert exact.dtype == np.float64
    H = gauss_newton(network, inputs.astype(np.float32))
    near(exact.entries(exact.alive, exact.alive), H[np.ix_(exact.alive, exact.alive)], 1e-13)


def test_a_network_that_overflows_is_refused(comm):
    network, inputs = make("relu classes")
    with pytest.raises(InputError, match="overflows"), np.errstate(all="ignore"):
        GaussNewton(network, inputs * 1e300, comm=comm, dtype="float32")


@pytest.mark.parametrize("chosen", [None, [1], [0]])
def test_making_it_stays_within_its_bound(monkeypatch, chosen):
    """Factors that are not stored are not formed either; what is stored is formed in pieces."""
    monkeypatch.setattr(samples, "_BLOCK", 1 << 17)
    monkeypatch.setattr(kernel, "_NUMBERS", 1 << 17)
    rng = np.random.default_rng(0)
    for widths, loss in (((20, 150, 300), "squared-error"), ((20, 40, 60), "cross-entropy")):
        network = Network([rng.standard_normal(shape) for shape in zip(widths[1:], widths[:-1], strict=True)], loss=loss)
        network = network if chosen is None else network.restricted(chosen)
        x = rng.standard_normal((400, 20))
        tracemalloc.start()
        made = GaussNewton(network, x, comm=MPI.COMM_SELF)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        held = [made.samples.X, made.samples.slopes, made.samples.p, *made.samples.C, made._entries.kernel.stored]
        assert used <= sum(each.nbytes for each in held if each is not None) + 12 * 8 * (1 << 17), (widths, used)
        stored = [each is not None for each in made.samples.C]
        assert stored == [loss == "cross-entropy" and chosen != [1], False]
