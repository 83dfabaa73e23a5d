"""Spectral norms from below: never above the truth, and close to it, for low ranks, clusters and zero."""

import numpy as np
import pytest

from hpcHess.compressed.certificate import spectral_norm
from hpcHess.parallel.ownership import row_starts

N = 90


def found(comm, A, start, iterations=16, rtol=1e-5):
    starts = row_starts(len(A), comm.size)
    mine = slice(starts[comm.rank], starts[comm.rank + 1])
    return spectral_norm(lambda W: A[mine] @ np.concatenate(comm.allgather(W)), comm, start[mine], iterations, rtol)


def symmetric(spectrum, seed):
    Q = np.linalg.qr(np.random.default_rng(seed).standard_normal((N, N)))[0]
    return (Q * np.pad(spectrum, (0, N - len(spectrum)))) @ Q.T


@pytest.mark.parametrize("rank", [1, 2, 3, 6, 8, 20])
def test_exact_ranks(comm, rank):
    """Whether the block has more columns than the matrix has rank, or is its image: rounding is not taken for a direction."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        A, start = symmetric(rng.standard_normal(rank), seed), rng.standard_normal((N, 8))
        true = np.linalg.norm(A, 2)
        for first in (start, A @ start, start * 1e-100):
            value = found(comm, A, first)
            assert 0.999 * true <= value <= (1 + 1e-10) * true


def test_clusters(comm):
    """More equal eigenvalues at the top than columns, an indefinite spectrum."""
    A = symmetric(np.concatenate([np.linspace(0.995, 1, 30), -np.linspace(0, 0.99, 60)]), 1)
    value = found(comm, A, np.random.default_rng(0).standard_normal((N, 8)))
    assert 0.998 <= value <= 1 + 1e-12


def test_nothing(comm):
    start = np.random.default_rng(0).standard_normal((N, 8))
    assert found(comm, np.zeros((N, N)), start) == 0.0 and found(comm, np.eye(N), 0 * start) == 0.0
    assert np.isclose(found(comm, np.eye(3), np.ones((3, 8))), 1.0, rtol=1e-12)
