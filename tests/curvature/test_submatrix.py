"""The block of some parameters, of operators with entries and without, against the dense block."""

import numpy as np
import pytest

from hpcHess.curvature.black_box import BlackBox
from hpcHess.curvature.dense import DenseMatrix
from hpcHess.curvature.gauss_newton import GaussNewton
from hpcHess.curvature.quadrature import quadrature
from hpcHess.curvature.submatrix import PrincipalSubmatrix
from hpcHess.formats.compress import compress
from hpcHess.parallel.ownership import row_starts
from hpcHess.runtime.errors import InputError
from tests.curvature.networks import classifier
from tests.reference.gauss_newton import gauss_newton

CHOSEN = np.array([31, 2, 3, 40, 17, 1, 55, 8, 21, 22, 6])  # in no order


@pytest.fixture(scope="module")
def problem(comm):
    network, inputs, _ = classifier()
    return network, inputs, comm.bcast(gauss_newton(network, inputs) if comm.rank == 0 else None)


def operators(problem, comm):
    network, inputs, H = problem
    return GaussNewton(network, inputs, comm=comm), DenseMatrix(H, comm=comm), BlackBox(lambda V: H @ V, len(H), comm=comm)


@pytest.mark.parametrize("which", range(3))
def test_everything_against_the_dense_block(comm, problem, which):
    base, H = operators(problem, comm)[which], problem[2]
    S, wanted = PrincipalSubmatrix(base, CHOSEN), H[np.ix_(CHOSEN, CHOSEN)]
    m, size = len(CHOSEN), np.linalg.norm(H)
    assert S.shape == (m, m) and S.dtype == np.float64 and S.full is S and S.quadrature is None
    assert np.array_equal(S.alive, np.flatnonzero(wanted.any(axis=1))) and 0 < len(S.alive) < m
    V = np.random.default_rng(0).standard_normal((m, 5))
    lo, hi = row_starts(m, comm.size)[comm.rank :][:2]
    for found, exact in (
        (S @ V, wanted @ V),
        (S.matmat(V[:, 0]), wanted @ V[:, 0]),
        (S.matmat_rows(V[lo:hi]), (wanted @ V)[lo:hi]),
        (comm.allreduce(S.partial_matmat(V)), wanted @ V),
        (S.matmat_rows(V[lo:hi, :0]), V[lo:hi, :0]),
    ):
        np.testing.assert_allclose(found, exact, rtol=0, atol=1e-14 * size)
    offered = ["diagonal", "entries", "entries_batch", "partial_probe", "input_groups", "neuron_groups"]
    assert [name for name in offered if hasattr(S, name)] == [name for name in offered if hasattr(base, name)]
    if hasattr(S, "entries"):
        I, J = np.array([4, 0, 10]), np.array([1, 4])
        np.testing.assert_allclose(S.diagonal(), np.diagonal(wanted), atol=1e-14 * size)
        np.testing.assert_allclose(S.entries(I, J), wanted[np.ix_(I, J)], atol=1e-14 * size)
        blocks = S.entries_batch(np.array([9, 4, 0, 10]), np.array([1, 2, 4]), J, np.array([0, 1, 2]))
        np.testing.assert_allclose(blocks.data, [wanted[4, 1], wanted[0, 4], wanted[10, 4]], atol=1e-14 * size)
    if hasattr(S, "partial_probe"):
        np.testing.assert_array_equal(S.partial_probe(7, 3), base.partial_probe(7, 3)[CHOSEN])
        np.testing.assert_array_equal(S.input_groups(4, 0)[0], base.input_groups(4, 0)[0][CHOSEN])
        np.testing.assert_array_equal(S.neuron_groups(100)[0], base.neuron_groups(100)[0][CHOSEN])


@pytest.mark.parametrize("format, options", [("hss", {"distance": "neuron", "leaf_size": 8}), ("hss", {"distance": "angle", "leaf_size": 8}), ("low-rank", {}), ("dense", {})])
def test_it_is_compressed_like_any_operator(comm, problem, format, options):
    base, H = operators(problem, comm)[0], problem[2]
    chosen = np.random.default_rng(1).permutation(len(H))[: len(H) // 2]
    compressed = compress(PrincipalSubmatrix(base, chosen), 1e-7, format, **options)
    assert np.linalg.norm(compressed @ np.eye(len(chosen)) - H[np.ix_(chosen, chosen)]) <= 1e-7 * np.linalg.norm(H[np.ix_(chosen, chosen)])


def test_what_needs_samples_says_what_to_do(comm, problem):
    S = PrincipalSubmatrix(operators(problem, comm)[0], CHOSEN)
    for options in ({"format": "data-woodbury"}, {"format": "kronecker-sum"}, {"format": "hss", "structured": "kronecker-sum"}):
        with pytest.raises(InputError, match="curvature.layers"):
            compress(S, 1e-2, **options)


WRONG = [
    (np.array([0.0, 1.0]), "integers"),
    (np.array([[0, 1]]), "integers"),
    (np.array([], np.int64), "empty"),
    (np.array([3, 1000]), r"1000 at \[1\] is no parameter, there are 0 … \d+"),
    (np.array([-1]), r"-1 at \[0\]"),
    (np.array([5, 2, 5]), r"parameter 5 is there twice, at \[0\] and \[2\]"),
    (np.array([True, False]), "integers"),
]


@pytest.mark.parametrize("indices, message", WRONG)
def test_indices_that_are_none(comm, problem, indices, message):
    base = operators(problem, comm)[1]
    with pytest.raises(InputError, match=message):
        PrincipalSubmatrix(base, indices if comm.rank == comm.size - 1 else CHOSEN)


def test_fewer_samples_are_refused(comm, problem):
    base = operators(problem, comm)[0]
    with pytest.raises(InputError, match="quadrature"):
        PrincipalSubmatrix(base.reduced(quadrature(base, count=4)), CHOSEN)
