"""A symmetric dense matrix behind the operator protocol, for testing the compression against plain linear algebra."""

import numpy as np

from hpcHess.backend.blocks import Blocks
from hpcHess.parallel.exchange import gather_rows
from hpcHess.parallel.ownership import row_starts
from hpcHess.parallel.random import gaussian_rows


class DenseOperator:
    """H [N, N] given whole; each rank contributes its columns to products."""

    def __init__(self, H, comm, dtype=np.float64):
        self.H, self.comm, self.dtype = np.asarray(H, dtype), comm, np.dtype(dtype)
        self.shape, self.n_params = self.H.shape, len(self.H)
        self.alive = np.flatnonzero(np.any(self.H != 0, axis=1)).astype(np.int64)
        bounds = np.linspace(0, len(H), comm.size + 1).astype(int)
        self.mine = slice(bounds[comm.rank], bounds[comm.rank + 1])

    def partial_matmat(self, V):
        return self.H[:, self.mine] @ np.asarray(V, self.dtype)[self.mine]

    def matmat(self, V):
        return self.comm.allreduce(self.partial_matmat(V))

    def matmat_rows(self, V):
        starts = row_starts(self.n_params, self.comm.size)
        return self.matmat(gather_rows(self.comm, np.ascontiguousarray(V, self.dtype), starts))[slice(*starts[self.comm.rank :][:2])]

    def diagonal(self):
        return np.diagonal(self.H).copy()

    def entries(self, I, J):
        return self.H[np.ix_(I, J)]

    def entries_batch(self, I, starts_I, J, starts_J):
        blocks = [self.entries(I[a:b], J[c:d]) for a, b, c, d in zip(starts_I[:-1], starts_I[1:], starts_J[:-1], starts_J[1:])]
        return Blocks.shaped(np.concatenate([b.ravel() for b in blocks] or [np.zeros(0, self.dtype)]), np.diff(starts_I), np.diff(starts_J))

    def partial_probe(self, k, seed):
        w, V = np.linalg.eigh(self.H)
        root = V * np.sqrt(np.maximum(w, 0))
        Z = root[:, self.mine] @ gaussian_rows(seed, "probe", 0, len(w), range(k), np.float64)[self.mine] / np.sqrt(k)
        return Z.astype(self.dtype)


def gaussian_kernel(n, bandwidth=0.4, ridge=0.0, seed=0, dimension=2):
    """exp(−‖x−y‖²/2h²) on random points, points in random order."""
    x = np.random.default_rng(seed).random((n, dimension))
    d2 = ((x[:, None] - x[None]) ** 2).sum(-1)
    return np.exp(-d2 / (2 * bandwidth**2)) + ridge * np.eye(n)


def exponential_kernel(n, scale=0.5, seed=0, dimension=2):
    """exp(−‖x−y‖/h): slowly decaying ranks, positive definite."""
    x = np.random.default_rng(seed).random((n, dimension))
    return np.exp(-np.sqrt(((x[:, None] - x[None]) ** 2).sum(-1)) / scale)


def dense(H):
    """All columns of a compressed matrix, [N, N]. Collective."""
    return H @ np.eye(H.n_params)
