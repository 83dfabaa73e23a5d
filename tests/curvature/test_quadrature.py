"""Chosen samples and their weights: the error against dense matrices, NNLS against scipy's, choices against a plain greedy one."""

import numpy as np
import pytest
import scipy.optimize
from mpi4py import MPI

from hpcHess.curvature import quadrature as module
from hpcHess.curvature.from_job import operator_from_job, operator_of_matrix
from hpcHess.curvature.gauss_newton import GaussNewton
from hpcHess.curvature.quadrature import nnls, quadrature
from hpcHess.formats.file import load
from hpcHess.networks.network import Network
from hpcHess.runtime.errors import InputError
from hpcHess.runtime.jobfile import load as load_job
from tests.drivers.drive import dense, drive, ok, on_root, relative, small_arrays, write_job
from tests.reference.gauss_newton import gauss_newton

CASES = {  # widths, activation, loss, which layers have a bias
    "classes": ([6, 5, 3], "tanh", "cross-entropy", (True, False)),
    "autoencoder": ([5, 3, 5], "sigmoid", "squared-error", (True, True)),
    "deep, values": ([4, 4, 3, 2], "relu", "squared-error", (False, True, True)),
}
N_SAMPLES = 40


def make(name, n=N_SAMPLES):
    """(network, inputs)."""
    widths, activation, loss, biases = CASES[name]
    rng = np.random.default_rng(len(name))
    shapes = list(zip(widths[1:], widths[:-1], strict=True))
    weights = [rng.standard_normal(shape) for shape in shapes]
    vectors = [rng.standard_normal(s[0]) if has else None for s, has in zip(shapes, biases, strict=True)]
    return Network(weights, vectors, activation, loss), rng.standard_normal((n, widths[0]))


@pytest.fixture(params=CASES, scope="module")
def case(request, comm):
    """(operator, dense H_i as rows [n, N²])."""
    network, inputs = make(request.param)
    return GaussNewton(network, inputs, comm=comm), np.array([gauss_newton(network, x[None]).ravel() for x in inputs])


def true_error(H, found):
    """‖H − H̃‖_F / ‖H‖_F from the dense matrices."""
    mean = H.mean(axis=0)
    return np.linalg.norm(mean - found.weights @ H[found.samples]) / np.linalg.norm(mean)


def plain_greedy(H, count):
    """Errors with 1 … count samples, one after the other by normalized residual correlation, weights by scipy's NNLS."""
    mean, norms, chosen, errors, residual = H.mean(axis=0), np.linalg.norm(H, axis=1), [], [], H.mean(axis=0)
    for _ in range(count):
        score = H @ residual / np.where(norms > 0, norms, np.inf)
        score[chosen] = -np.inf
        chosen.append(int(score.argmax()))
        w = scipy.optimize.nnls(H[chosen].T, mean)[0]
        residual = mean - w @ H[chosen]
        errors.append(np.linalg.norm(residual) / np.linalg.norm(mean))
    return np.array(errors)


@pytest.mark.parametrize("count", [1, 5, 14])
def test_the_error_is_the_dense_matrices(case, count):
    operator, H = case
    found = quadrature(operator, count=count)
    assert found.samples.dtype == np.int64 and len(found.samples) == len(np.unique(found.samples)) == count and found.n == N_SAMPLES
    assert np.all(np.diff(found.samples) > 0) and np.all(found.weights > 0)
    assert abs(found.error - true_error(H, found)) <= 1e-10
    assert abs(found.norm / np.linalg.norm(H.mean(axis=0)) - 1) <= 1e-12
    best = scipy.optimize.nnls(H[found.samples].T, H.mean(axis=0))[0]
    np.testing.assert_allclose(found.weights, best, rtol=1e-7)


def test_choices_are_as_good_as_plain_greedy_ones(case):
    operator, H = case
    errors = plain_greedy(H, 14)
    for count in (5, 9, 14):
        assert quadrature(operator, count=count).error <= 1.1 * errors[count - 1]


def test_an_error_is_reached_with_few_samples(case):
    operator, H = case
    errors = plain_greedy(H, N_SAMPLES // 2)
    for rtol in (0.4, 0.2):
        found = quadrature(operator, rtol=rtol)
        assert found.error <= rtol and true_error(H, found) <= rtol + 1e-10
        assert len(found.samples) <= 2 + int(np.argmax(errors <= rtol) + 1)


def test_the_reduced_operator(case, comm):
    operator, H = case
    found = quadrature(operator, count=9)
    reduced = operator.reduced(found)
    expected = (found.weights @ H[found.samples]).reshape(operator.shape)
    assert relative(reduced.matmat(np.eye(operator.n_params)), expected) <= 1e-13
    assert reduced.n_samples == 9 and reduced.quadrature is found and reduced.full is operator
    assert operator.quadrature is None and operator.full is operator
    assert np.linalg.eigvalsh(expected)[0] >= -1e-12 * np.linalg.norm(expected)


def test_any_number_of_ranks_chooses_the_same(comm):
    network, inputs = make("classes", 150)
    alone, together = (quadrature(GaussNewton(network, inputs, comm=each), count=30) for each in (MPI.COMM_SELF, comm))
    assert np.array_equal(alone.samples, together.samples)
    np.testing.assert_allclose(together.weights, alone.weights, rtol=1e-9)
    assert abs(alone.error - together.error) <= 1e-11


def test_blocks_do_not_change_the_choice(comm, monkeypatch):
    network, inputs = make("classes", 150)
    operator = GaussNewton(network, inputs, comm=comm)
    expected = quadrature(operator, count=30)
    for name, value in (("_BLOCK", 16), ("_SLAB", 40)):
        monkeypatch.setattr(module, name, value)
    found = quadrature(operator, count=30)
    assert np.array_equal(found.samples, expected.samples) and abs(found.error - expected.error) <= 1e-11


def test_duplicates_are_taken_once(comm):
    network, inputs = make("classes", 8)
    H = np.array([gauss_newton(network, x[None]).ravel() for x in np.repeat(inputs, 5, axis=0)])
    found = quadrature(GaussNewton(network, np.repeat(inputs, 5, axis=0), comm=comm), count=30)
    assert len(found.samples) == 8 == len(np.unique(found.samples // 5)) and true_error(H, found) <= 1e-7
    np.testing.assert_allclose(found.weights, 1 / 8, rtol=1e-6)
    assert found.error <= 1e-7


def test_samples_that_do_not_count(comm):
    """Saturated samples have H_i = 0; without any other H is 0; samples without weight are not chosen."""
    network, inputs = make("deep, values", 30)
    network = Network(network.weights[:1] + [np.ones((1, 4))], None, "relu", "squared-error")
    inputs[::2] = 0
    found = quadrature(GaussNewton(network, inputs, comm=comm), count=12)
    assert np.all(found.samples % 2 == 1)
    nothing = GaussNewton(network, inputs[::2], comm=comm)
    found = quadrature(nothing, count=3)
    assert found.norm == found.error == 0 and not nothing.reduced(found).matmat(np.ones(network.n_params)).any()
    network, inputs = make("classes", 30)
    weights = np.where(np.arange(30) % 3 == 0, 0, 0.1)
    found = quadrature(GaussNewton(network, inputs, weights=weights, comm=comm), count=12)
    H = np.array([30 * w * gauss_newton(network, x[None]).ravel() for w, x in zip(weights, inputs, strict=True)])
    assert np.all(found.samples % 3 > 0) and abs(found.error - true_error(H, found)) <= 1e-10


def test_as_many_as_there_are(case):
    operator, _ = case
    found = quadrature(operator, count=N_SAMPLES + 3)
    assert np.array_equal(found.samples, np.arange(N_SAMPLES)) and np.all(found.weights == 1 / N_SAMPLES) and found.error == 0


def test_many_samples_in_float32(comm, monkeypatch):
    """An error that float32 can tell is the dense one to 1e-4 of it; a smaller one is found in float64."""
    network, inputs = make("classes")
    operator, H = GaussNewton(network, inputs, comm=comm), np.array([gauss_newton(network, x[None]).ravel() for x in inputs])
    monkeypatch.setattr(module, "_DOUBLE_SAMPLES", 0)
    found = quadrature(operator, count=8)
    true = true_error(H, found)
    assert found.error > module._SINGLE_ERROR and 1e-13 < abs(found.error - true) <= 1e-4 * true
    repeated = GaussNewton(network, np.repeat(inputs[:8], 5, axis=0), comm=comm)
    assert quadrature(repeated, count=30).error <= 1e-7
    found = quadrature(repeated, rtol=1e-3)
    assert abs(found.error - true_error(np.repeat(H[:8], 5, axis=0), found)) <= 1e-7


def test_matrices_out_of_the_range_of_float32(comm, monkeypatch):
    network, inputs = make("classes")
    expected = quadrature(GaussNewton(network, inputs, comm=comm), count=8)
    monkeypatch.setattr(module, "_DOUBLE_SAMPLES", 0)
    for scale in (1e-24, 1e18):
        found = quadrature(GaussNewton(network, inputs, weights=np.full(N_SAMPLES, scale / N_SAMPLES), comm=comm), count=8)
        assert np.array_equal(found.samples, expected.samples) and abs(found.error - expected.error) <= 1e-10


def test_each_candidate_reduces_the_residual_most():
    """Against least squares with every other candidate tried in its place; no more are taken than the reduction asked for needs."""
    rng = np.random.default_rng(3)
    A, y = rng.standard_normal((40, 15)) + 1, rng.standard_normal(40) + 2  # correlated columns
    remaining = lambda picked: np.linalg.norm(y - A[:, picked] @ np.linalg.lstsq(A[:, picked], y, rcond=None)[0]) ** 2  # noqa: E731
    arguments = A.T @ A, A.T @ y, np.square(A).sum(axis=0)
    picked = module._pick(*arguments, 4, np.inf).tolist()
    assert len(picked) == 4
    for t in range(4):
        rest = np.setdiff1d(np.arange(15), picked[:t])
        fit = np.linalg.lstsq(A[:, picked[:t]], y, rcond=None)[0] if t else np.zeros(0)
        left = A[:, rest].T @ (y - A[:, picked[:t]] @ fit)
        allowed = rest[left > 0]
        assert picked[t] == allowed[np.argmin([remaining([*picked[:t], i]) for i in allowed])]
    enough = np.linalg.norm(y) ** 2 - remaining(picked[:2])
    assert module._pick(*arguments, 4, enough * (1 - 1e-9)).tolist() == picked[:2]


def test_nnls_against_scipy():
    rng = np.random.default_rng(0)
    for rows, columns in ((30, 20), (25, 24), (100, 60)):
        A = rng.standard_normal((rows, columns)) + 0.3
        y = rng.standard_normal(rows) + A[:, :3].sum(axis=1)
        w, positive, factor = nnls(A.T @ A, A.T @ y)
        expected = scipy.optimize.nnls(A, y)[0]
        assert 0 < positive.sum() < columns and np.all(w > 0)
        assert np.array_equal(positive, expected > 0)
        np.testing.assert_allclose(w, expected[positive], rtol=1e-8)
        np.testing.assert_allclose(factor @ factor.T, (A.T @ A)[np.ix_(positive, positive)], rtol=1e-12)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "either a count or an rtol"),
        ({"count": 3, "rtol": 0.1}, "either a count or an rtol"),
        ({"count": 0}, "at least 1"),
        ({"count": 2.5}, "an integer, not 2.5"),
        ({"rtol": 1.0}, "smaller than 1, not 1.0"),
        ({"rtol": 1e-6}, r"20 of 40 samples still leave an error of .*, 1e-06 was asked for"),
    ],
)
def test_what_cannot_be(comm, asked, message):
    network, inputs = make("classes")
    operator = GaussNewton(network, inputs, comm=comm)
    with pytest.raises(InputError, match=message):
        quadrature(operator, **asked)


def test_a_job_with_a_quadrature(comm, shared_tmp):
    """What is compressed is the weighted matrix; the exact operator of the file is that of all samples."""
    path = on_root(lambda: write_job(shared_tmp))
    job = load_job(path, ["data.quadrature=20"])
    operator, origin = operator_from_job(job, comm)
    arrays, x, _ = small_arrays()
    H = on_root(lambda: dense(arrays, x))
    reduced = operator.matmat(np.eye(len(H)))
    assert operator.n_samples == len(operator.quadrature.samples) == 20 and operator.quadrature.n == 60
    assert abs(relative(reduced, H) - operator.quadrature.error) <= 1e-10
    assert relative(operator.full.matmat(np.eye(len(H))), H) <= 1e-13
    assert "20 chosen and weighted, error " in origin.summary
    assert operator_from_job(load_job(path), comm)[1].digests == origin.digests
    ok(drive("compress", path, "--set", "data.quadrature=20", "--set", "compress.rtol=0.3", "--output", shared_tmp / "F.h5"))
    matrix = load(shared_tmp / "F.h5", comm)
    compressed = matrix.matmat(np.eye(len(H)))
    assert relative(compressed, H) <= 0.3 and relative(compressed, reduced) < 0.1 < operator.quadrature.error
    assert relative(operator_of_matrix(matrix).matmat(np.eye(len(H))), H) <= 1e-13
