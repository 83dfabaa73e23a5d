"""A compressed matrix written and read again: the same numbers, the same factors, the same report."""

import numpy as np
import pytest
from mpi4py import MPI

from hpcHess.hierarchical.compress import compress
from hpcHess.formats.file import load
from hpcHess.runtime.errors import InputError
from tests.reference.dense_operator import DenseOperator, exponential_kernel

N = 300


def compressed(comm, leaf_size=32, indefinite=False, **options):
    K = exponential_kernel(N) - (np.diag(np.random.default_rng(1).random(N)) if indefinite else 0)
    K[::11], K[:, ::11] = 0, 0
    return compress(DenseOperator(K, comm), rtol=1e-3, leaf_size=leaf_size, distance="angle", **options)


@pytest.mark.parametrize("leaf_size", [8, 32, 1000])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_round_trip(comm, shared_tmp, leaf_size, dtype):
    H, path = compressed(comm, leaf_size, dtype=dtype), shared_tmp / "h.h5"
    H.save(path)
    G, I = load(path, comm), np.eye(N)
    assert np.array_equal(G @ I, H @ I) and G.dtype == H.dtype
    assert {key: value for key, value in H.report.items() if key != "timings"} == G.report
    assert np.array_equal(G.solve(I[:, :2], damping=0.1), H.solve(I[:, :2], damping=0.1))
    alone = load(path, MPI.COMM_SELF)
    assert np.allclose(alone @ I, H @ I, rtol=0, atol=1e-6)


@pytest.mark.parametrize("indefinite", [False, True])
@pytest.mark.parametrize("damping", [0.5, 1e-9])
def test_factors_are_stored(comm, shared_tmp, indefinite, damping):
    H, path = compressed(comm, indefinite=indefinite, dtype="float64"), shared_tmp / "f.h5"
    H.save(path, factors=H.factorize(damping))
    B = np.random.default_rng(0).standard_normal((N, 3))
    for each in (comm, MPI.COMM_SELF):
        G = load(path, each)
        assert list(G._factors) == [(damping, "elimination")]
        X = G.solve(B, damping=damping)
        assert np.linalg.norm(X - H.solve(B, damping=damping)) <= 1e-9 * np.linalg.norm(X)
        assert G.logdet(damping=damping) == pytest.approx(H.logdet(damping=damping))
        assert G.inertia(damping=damping) == H.inertia(damping=damping)


def test_delayed_directions_are_stored(comm, shared_tmp):
    """A leaf block that is singular where it is eliminated: the direction goes up, in the file too."""
    i = np.arange(16)
    K = np.zeros((32, 32))
    K[::2, ::2] = np.exp(-np.abs(i[:, None] - i)) * (i[:, None] != i)  # couples the first parameter of every leaf alone
    K[2 * i, 2 * i + 1] = K[2 * i + 1, 2 * i] = 1  # and the leaf is [[0, 1], [1, 0]]: X_RR = 0
    H = compress(DenseOperator(K, comm), rtol=1e-6, leaf_size=2, dtype="float64")
    factors = H.factorize(0.0)
    assert comm.allreduce(sum(int(e.delayed.sum()) for e in factors.eliminations)) > 0, "the case must delay something"
    A, B = H @ np.eye(32), np.random.default_rng(0).standard_normal((32, 2))
    path = shared_tmp / "d.h5"
    H.save(path, factors=factors)
    for G in (H, load(path, comm), load(path, MPI.COMM_SELF)):
        X = G.solve(B, damping=0.0)
        assert np.linalg.norm(A @ X - B) <= 1e-10 * np.linalg.cond(A) * np.linalg.norm(B)
        assert G.inertia(damping=0.0) == (int((np.linalg.eigvalsh(A) > 0).sum()), int((np.linalg.eigvalsh(A) < 0).sum()))


def test_another_format_is_refused(comm, shared_tmp):
    from hpcHess.storage.factor_file import write

    write(shared_tmp / "x.h5", comm, {"matrix_format": "butterfly"}, {}, {})
    with pytest.raises(InputError, match="butterfly"):
        load(shared_tmp / "x.h5", comm)
