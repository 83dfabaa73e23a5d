"""Structured part + hierarchical part: sums of formats against dense algebra, and what taking a part out leaves of the tolerance."""

import warnings
from functools import cache

import numpy as np
import pytest
from mpi4py import MPI

import hpcHess as hh
from hpcHess.curvature.gauss_newton import GaussNewton
from hpcHess.formats.compress import compress
from hpcHess.formats.remainder import Remainder
from hpcHess.formats.sum import SumMatrix
from hpcHess.networks.network import Network
from hpcHess.runtime.errors import HpcHessWarning, InputError
from tests.formats.test_interface import problem
from tests.reference.dense_operator import DenseOperator, exponential_kernel
from tests.reference.gauss_newton import gauss_newton

COMM = MPI.COMM_WORLD
RTOL = 1e-4


@cache
def compressed(structured, format="hss"):
    """(H̃, dense H̃, dense H): the classifier of the other tests."""
    operator, exact = problem()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HpcHessWarning)
        H = compress(operator, RTOL, format, structured=structured, structured_size=3, leaf_size=12, dtype="float64", budget=0.4 if format == "fmm" else None)
    return H, H @ np.eye(len(exact)), exact


SUMS = [("low-rank", "hss"), ("kronecker-sum", "hss"), ("low-rank", "fmm")]


@pytest.mark.parametrize(("structured", "format"), SUMS)
def test_the_sum_meets_the_tolerance_of_the_whole(structured, format):
    H, A, exact = compressed(structured, format)
    assert isinstance(H, SumMatrix) and [part.format for part in H.parts] == [structured, format]
    error, found = np.linalg.norm(A - exact) / np.linalg.norm(exact), H.report["error_estimate"]
    assert error <= RTOL and H.report["rtol_met"] and found["low"] * 0.9 <= error <= found["high"]
    part = H.parts[0] @ np.eye(len(exact))
    assert np.linalg.norm(A - part - H.parts[1] @ np.eye(len(exact))) <= 1e-12 * np.linalg.norm(exact)
    assert np.linalg.norm(exact - part) > 10 * RTOL * np.linalg.norm(exact)  # there was something left for the tree
    assert H.report["structured_error"] == pytest.approx(np.linalg.norm(exact - part) / np.linalg.norm(exact), rel=0.3)
    stored = [each.storage()["storage_entries"] for each in H.parts]
    assert H.report["storage_entries"] == sum(stored) and [each["storage_entries"] for each in H.report["parts"]] == stored
    np.testing.assert_allclose(H.diagonal(), np.diagonal(A), atol=1e-13)
    assert H.trace() == pytest.approx(np.trace(A))
    assert H.report["lambda_max"] == pytest.approx(np.linalg.eigvalsh(A)[-1], rel=1e-4)


@pytest.mark.parametrize(("structured", "format"), SUMS)
def test_solves_and_determinants(structured, format):
    H, A, _ = compressed(structured, format)
    assert H.direct == ((structured, format) == ("low-rank", "hss"))
    damping = 1e-2 * H.report["lambda_max"]
    damped, B = A + damping * np.eye(len(A)), np.random.default_rng(0).standard_normal((len(A), 3))
    X, found, (sign, log_abs) = H.solve(B, damping), H.logdet(damping), np.linalg.slogdet(damped)
    assert np.linalg.norm(damped @ X - B) <= 1e-9 * np.linalg.norm(B)
    assert found[0] == sign
    if H.direct:
        assert found[1] == pytest.approx(log_abs, rel=1e-10)
        assert H.factorize(damping).backward_error < 1e-10
    else:
        assert abs(found[1] - log_abs) <= found.high - found.low < 0.2 * abs(log_abs)


@pytest.mark.parametrize("damping", [1e-3, 0.1, 0.3])
def test_inertia_where_the_parts_are_indefinite(comm, damping):
    """A low rank with eigenvalues of both signs on an indefinite HSS matrix."""
    K = exponential_kernel(160) - np.diag(2 * np.random.default_rng(3).random(160))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HpcHessWarning)
        H = compress(DenseOperator(K, comm), 1e-5, structured="low-rank", structured_size=5, leaf_size=16, dtype="float64")
        A = H @ np.eye(160) + damping * np.eye(160)
        values = np.linalg.eigvalsh((A + A.T) / 2)
        assert (values < 0).any() and (values > 0).any() and np.abs(values).min() > 1e-8
        assert H.inertia(damping) == (int((values > 0).sum()), int((values < 0).sum()))
        assert H.logdet(damping) == pytest.approx(np.linalg.slogdet(A), rel=1e-8)
        b = np.ones(160)
        assert np.linalg.norm(A @ H.solve(b, damping) - b) <= 1e-7 * np.linalg.norm(b)


@pytest.mark.parametrize(("structured", "format"), SUMS)
def test_files(structured, format, shared_tmp):
    H, A, _ = compressed(structured, format)
    H.save(shared_tmp / "F.h5")
    again = hh.load(shared_tmp / "F.h5", COMM)
    assert isinstance(again, SumMatrix) and [part.format for part in again.parts] == [structured, format]
    np.testing.assert_allclose(again @ np.eye(len(A)), A, atol=1e-13)
    damping = 0.1 * H.report["lambda_max"]
    np.testing.assert_allclose(again.solve(np.ones(len(A)), damping), H.solve(np.ones(len(A)), damping), rtol=1e-6, atol=1e-9)


def test_what_is_left_is_what_it_says():
    operator, exact = problem()
    H = compressed("kronecker-sum")[0]
    rest, part = Remainder(operator, H.parts[0]), H.parts[0] @ np.eye(len(exact))
    V = np.random.default_rng(1).standard_normal((len(exact), 3))
    np.testing.assert_allclose(rest.matmat(V), (exact - part) @ V, atol=1e-12)
    np.testing.assert_allclose(COMM.allreduce(rest.partial_matmat(V)), (exact - part) @ V, atol=1e-12)
    np.testing.assert_allclose(rest.diagonal(), np.diagonal(exact - part), atol=1e-13)
    I, J = np.array([70, 8, 31]), np.array([9, 90, 100, 12])
    np.testing.assert_allclose(rest.entries(I, J), (exact - part)[np.ix_(I, J)], atol=1e-13)
    blocks = rest.entries_batch(I, np.array([0, 2, 3]), J, np.array([0, 1, 4]))
    np.testing.assert_allclose(blocks[1], (exact - part)[np.ix_(I[2:], J[1:])], atol=1e-13)


def test_auto_keeps_the_smallest():
    operator, _ = problem()
    H = compress(operator, 1e-2, structured="auto", leaf_size=12, dtype="float64")
    tried = H.report["structured_tried"]
    assert set(tried) == {"none", "low-rank", "kronecker-sum"} and H.report["storage_percent"] == min(tried.values())


def test_a_part_that_is_enough_stays_alone():
    """A matrix of rank 4: nothing is left for the tree."""
    U = np.random.default_rng(2).standard_normal((90, 4))
    H = compress(DenseOperator(U @ U.T, COMM), 1e-3, structured="low-rank", structured_size=8, leaf_size=16)
    assert H.format == "low-rank" and H.report["rtol_met"] and H.report["rank"] == 4


def test_bad_input():
    with pytest.raises(InputError, match="needs a network's layers"):
        compress(DenseOperator(np.eye(40), COMM), structured="kronecker-sum")


def test_parameters_that_are_dead_though_their_neuron_and_input_live():
    """A Kronecker sum is not zero there, H and its sum with a tree are."""
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((5, 6)), rng.standard_normal((3, 5))]
    x = np.array([[1, 0, 2, 0, 1, 0], [0, 1.5, 0, 1, 0, 2]])
    network = Network(weights, None, "relu", "cross-entropy")
    operator, exact = GaussNewton(network, x, comm=COMM), gauss_newton(network, x)
    H = compress(operator, 1e-8, structured="kronecker-sum", leaf_size=4, dtype="float64")
    A, dead = H @ np.eye(len(exact)), np.setdiff1d(np.arange(len(exact)), operator.alive)
    part = H.parts[0] @ np.eye(len(exact))
    assert np.abs(part[dead]).max() > 1e-3 * np.abs(exact).max(), "the case is not what it should be"
    assert not A[dead].any() and not A[:, dead].any() and not H.diagonal()[dead].any()
    assert np.linalg.norm(A - exact) <= 1e-8 * np.linalg.norm(exact) and H.report["rtol_met"]
