"""H + l2 I of operators with entries and without, against the dense sum; automatic differentiation says what weight decay is."""

import numpy as np
import pytest

from hpcHess.curvature.black_box import BlackBox
from hpcHess.curvature.gauss_newton import GaussNewton
from hpcHess.curvature.quadrature import quadrature
from hpcHess.curvature.regularized import Regularized
from hpcHess.curvature.submatrix import PrincipalSubmatrix
from hpcHess.parallel.ownership import row_starts
from hpcHess.runtime.errors import InputError
from tests.curvature.networks import classifier, make
from tests.reference.gauss_newton import gauss_newton

L2 = 0.375


@pytest.fixture(scope="module")
def problem(comm):
    network, inputs, _ = classifier()
    return network, inputs, comm.bcast(gauss_newton(network, inputs) if comm.rank == 0 else None)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("which", ["network", "callable"])
def test_everything_against_the_dense_sum(comm, problem, which, dtype):
    network, inputs, H = problem
    base = GaussNewton(network, inputs, comm=comm, dtype=dtype) if which == "network" else BlackBox(lambda V: H @ V, len(H), comm=comm, dtype=dtype)
    R, N, wanted = Regularized(base, L2), len(H), H + L2 * np.eye(len(H))
    accuracy = (1e-13 if dtype == np.float64 else 1e-5) * np.linalg.norm(H)
    assert R.shape == (N, N) and R.dtype == dtype and np.array_equal(R.alive, np.arange(N)) and len(base.alive) < N
    assert R.unregularized is base and R.l2 == L2 and R.full is R and R.quadrature is None and not hasattr(R, "samples")
    V = np.random.default_rng(0).standard_normal((N, 5)).astype(dtype)
    lo, hi = row_starts(N, comm.size)[comm.rank :][:2]
    for found, exact in (
        (R @ V, wanted @ V),
        (R.matmat(V[:, 0]), wanted @ V[:, 0]),
        (R.matmat_rows(V[lo:hi]), (wanted @ V)[lo:hi]),
        (comm.allreduce(R.partial_matmat(V)), wanted @ V),
    ):
        assert found.dtype == dtype
        np.testing.assert_allclose(found, exact, rtol=0, atol=accuracy)
    assert hasattr(R, "entries") == hasattr(R, "diagonal") == hasattr(R, "entries_batch") == (which == "network")
    if which == "network":
        I, J = np.array([4, 0, 10, 4]), np.array([1, 4, 10])
        np.testing.assert_allclose(R.diagonal(), np.diagonal(wanted), atol=accuracy)
        np.testing.assert_allclose(R.entries(I, J), wanted[np.ix_(I, J)], atol=accuracy)
        many, starts_I, other, starts_J = np.array([7, 9, 4, 0, 10, 3, 3]), np.array([1, 3, 3, 7]), np.array([9, 4, 5, 3, 0, 1]), np.array([0, 2, 3, 6])
        blocks = R.entries_batch(many, starts_I, other, starts_J)
        for b in range(3):
            rows, columns = many[starts_I[b] : starts_I[b + 1]], other[starts_J[b] : starts_J[b + 1]]
            np.testing.assert_allclose(blocks[b], wanted[np.ix_(rows, columns)], atol=accuracy)


def test_probes_have_the_sum_as_their_mean(comm, problem):
    network, inputs, H = problem
    R, k = Regularized(GaussNewton(network, inputs, comm=comm), 3.0), 20_000
    Z, wanted = comm.allreduce(R.partial_probe(k, 1)), H + 3 * np.eye(len(H))
    deviation = np.sqrt((np.outer(np.diagonal(wanted), np.diagonal(wanted)) + wanted**2) / k)  # of an entry of ZZᵀ
    assert np.abs(Z @ Z.T - wanted).max() < 6 * deviation.max() and np.linalg.norm(Z @ Z.T - wanted) < 2 * np.linalg.norm(deviation)


def test_it_is_the_hessian_of_weight_decay(comm):
    """The Gauss–Newton matrix of a linear network is the Hessian; PyTorch's of f + l2/2 ‖θ‖² therefore H + l2 I, biases too."""
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch's automatic differentiation")
    network, inputs, targets = make("one layer, values")
    x, y, W = (torch.tensor(each, dtype=torch.float64) for each in (inputs, targets, network.weights[0]))
    loss = lambda theta: ((x @ theta.reshape(W.shape).T - y) ** 2).sum(1).mean() + L2 / 2 * theta.square().sum()  # noqa: E731
    wanted = torch.autograd.functional.hessian(loss, W.ravel()).numpy()
    np.testing.assert_allclose(Regularized(GaussNewton(network, inputs, comm=comm), L2) @ np.eye(len(wanted)), wanted, atol=1e-12)


def test_terms_add_up_and_parts_commute(comm, problem):
    network, inputs, H = problem
    base, chosen = GaussNewton(network, inputs, comm=comm), np.array([7, 3, 12])
    twice = Regularized(Regularized(base, 0.25), 0.5)
    assert twice.l2 == 0.75 and twice.unregularized is base
    block = PrincipalSubmatrix(Regularized(base, L2), chosen)
    np.testing.assert_allclose(block @ np.eye(3), H[np.ix_(chosen, chosen)] + L2 * np.eye(3), atol=1e-13)
    np.testing.assert_array_equal(Regularized(base, 0).alive, base.alive)


def test_fewer_samples(comm, problem):
    base = GaussNewton(*problem[:2], comm=comm)
    reduced = base.reduced(quadrature(base, count=4))
    R = Regularized(reduced, L2)
    with pytest.raises(InputError, match="before it is regularized"):
        quadrature(R, count=4)
    assert R.quadrature is reduced.quadrature and R.full.unregularized is base and R.full.l2 == L2


@pytest.mark.parametrize("l2", [-1e-9, np.nan, np.inf, "1", None, 1j])
def test_what_is_no_term(comm, problem, l2):
    with pytest.raises(InputError, match="l2 must be a number ≥ 0"):
        Regularized(GaussNewton(*problem[:2], comm=comm), l2 if comm.rank == comm.size - 1 else 1.0)
