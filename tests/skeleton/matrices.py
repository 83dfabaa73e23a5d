"""Matrices and operators for the samplings: what `rows` and `products` may use of an operator, and matrices that are exactly HSS."""

import numpy as np

from tests.reference.dense_operator import DenseOperator, exponential_kernel, gaussian_kernel


class BlackBox:
    """A dense matrix of which only products are known: no entries, no diagonal, no probes."""

    def __init__(self, H, comm, dtype=np.float64):
        dense = DenseOperator(H, comm, dtype)
        self.comm, self.dtype, self.shape, self.n_params = comm, dense.dtype, dense.shape, dense.n_params
        self.alive = np.arange(dense.n_params)
        self.partial_matmat, self.matmat = dense.partial_matmat, dense.matmat


class WithDiagonal(DenseOperator):
    """A dense matrix with a diagonal: distances between its parameters can be had."""

    def diagonal(self):
        return self.H.diagonal().copy()


OPERATORS = {"sketch": DenseOperator, "rows": WithDiagonal, "products": BlackBox}


def exactly_hss(n, rank, depth, seed=3):
    """Telescoping sum of `depth` levels of random nested bases: off-diagonal blocks have rank ≤ `rank`. Indefinite."""
    rng = np.random.default_rng(seed)
    H = rng.standard_normal((n, n))
    if depth:
        left, right = (exactly_hss(size, rank, depth - 1, seed + child) for child, size in ((1, (n + 1) // 2), (2, n // 2)))
        B = rng.standard_normal((rank, rank))
        bases = [nested(m, rank, depth - 1, seed + child) for child, m in ((1, (n + 1) // 2), (2, n // 2))]
        H[: (n + 1) // 2, : (n + 1) // 2], H[(n + 1) // 2 :, (n + 1) // 2 :] = left, right
        H[: (n + 1) // 2, (n + 1) // 2 :] = bases[0] @ B @ bases[1].T
        H[(n + 1) // 2 :, : (n + 1) // 2] = H[: (n + 1) // 2, (n + 1) // 2 :].T
    return (H + H.T) / 2


def nested(n, rank, depth, seed):
    """The basis [n, rank] of the node that `exactly_hss(n, rank, depth, seed)` fills: nested in its children's."""
    if not depth:
        return np.linalg.qr(np.random.default_rng(1000 + seed).standard_normal((n, rank)))[0]
    children = [nested(m, rank, depth - 1, seed + child) for child, m in ((1, (n + 1) // 2), (2, n // 2))]
    transfer = np.linalg.qr(np.random.default_rng(2000 + seed).standard_normal((2 * rank, rank)))[0]
    return np.concatenate([children[0] @ transfer[:rank], children[1] @ transfer[rank:]])


def zero_blocks(n):
    """A kernel between the members of three groups, zero between the groups."""
    group = np.arange(n) * 3 // n
    return exponential_kernel(n) * (group[:, None] == group)


N = 330  # not a power of two times anything

MATRICES = {
    "kernel": lambda: exponential_kernel(N),
    "narrow kernel": lambda: gaussian_kernel(N, 0.03),
    "low rank and diagonal": lambda: np.diag(np.linspace(1, 2, N)) + np.outer(np.sin(np.arange(N)), np.sin(np.arange(N))),
    "zero blocks": lambda: zero_blocks(N),
    "indefinite": lambda: np.random.default_rng(2).choice([-1, 1], N)[:, None] * exponential_kernel(N) - 3 * np.eye(N),
}


def matrix_named(name):
    """Symmetric float64."""
    H = MATRICES[name]()
    return (H + H.T) / 2


def relative(H, A):
    """‖H̃ − A‖_F / ‖A‖_F."""
    return np.linalg.norm(H @ np.eye(len(A)) - A) / np.linalg.norm(A)
