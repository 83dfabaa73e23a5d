r"""The rank: how far a finder's space must grow, and how many of its eigenpairs are kept.

A finder has a `basis` (orthonormal Q [n, m]) and a `core()` M [m, m], H ≈ Q M Qᵀ. With steering probes G, R = HG − Q M QᵀG and M = SΘSᵀ,

    ‖H − U_r Θ_r U_rᵀ‖_F² = E‖R g‖² + Σ_{i>r} (θ_i² + 2 E[(UᵀR g)_i θ_i (Uᵀg)_i]),   U = QS,

so one product with the probes tells the error for every r; the dropped part is exact where M = QᵀHQ (the cross terms are zero then).
"""

from dataclasses import dataclass

import numpy as np

from hpcHess.compressed.certificate import frobenius_interval
from hpcHess.lowrank.basis import summed
from hpcHess.parallel.agree import on_root
from hpcHess.parallel.replicated import replicated

STEERING = 64  # probes
RANKS_A_PROBE = 8  # of a certificate with more than the probes asked for: a narrow interval saves rank
ROOM = 0.75  # of the steering probes' own interval, beside the certificate's
NOISE = 5  # ε |θ_1|: smaller eigenvalues are rounding


class Steering:
    """Probes G [n, q], their products HG, and what they tell of ‖H‖_F. Making it is collective."""

    def __init__(self, products, seed):
        self.comm, self.G = products.comm, products.gaussian(seed, "steering", range(STEERING))
        self.HG = products.apply(self.G)
        self._squares = summed(self.comm, np.einsum("ij,ij->j", self.HG, self.HG, dtype=np.float64))
        self.zero = not self._squares.any()

    def norm(self):
        """‖H‖_F by the probes alone: to some ten per cent, less where few directions dominate."""
        return float(np.sqrt(self._squares.mean()))


@dataclass
class Cut:
    """The eigenpairs kept: U = QS, S [m, r], values θ [r], largest magnitude first.

    met   whether the error is within the tolerance by the steering probes; wanted: the rank that this took, None where it is unknown
    """

    S: np.ndarray
    values: np.ndarray
    met: bool
    wanted: int | None = None


def search(finder, steering, rtol, norm=None, max_rank=0, probes=STEERING, advance=lambda columns: None):
    """Grow the finder until rtol (relative to `norm`, default ‖H‖_F) or max_rank is reached and its pairs have settled: a `Cut`. Collective.

    rtol is what a certificate by `probes` fresh vectors will most likely show as the upper end of its interval.
    """
    if steering.zero:
        return Cut(np.zeros((finder.basis.size, 0)), np.zeros(0), True, 0)
    while True:
        before = finder.basis.size
        cut = _cut(finder, steering, rtol, norm, max_rank, probes)
        if cut is not None:
            return cut
        finder.grow()
        advance(finder.basis.size - before)


def _cut(finder, steering, rtol, norm, max_rank, probes):
    """A Cut, or None where the space must grow."""
    basis, core, comm = finder.basis, finder.core(), steering.comm
    if not basis.size:
        return None
    C = basis.project(steering.G)
    image = core @ C
    R = steering.HG - basis.combine(image)
    squares = summed(comm, np.einsum("ij,ij->j", R, R, dtype=np.float64))
    D = basis.project(R)
    norm_2 = norm**2 if norm else float(np.mean(squares + 2 * np.einsum("ij,ij->j", image, D))) + float(np.sum(core**2))
    allowed, measured = comm.bcast((rtol**2 * norm_2, float(squares.mean())))  # as all that is decided below: the same on every rank
    enough = measured <= allowed or finder.exhausted
    if not enough and not 0 < max_rank <= basis.size:
        return None
    theta, S = replicated(comm, leading_first, core)
    errors, rank, met = on_root(comm, _rank, squares, theta, S.T @ D, S.T @ C, allowed, probes)
    wanted = rank if met else None
    if finder.exhausted and not met:
        rank = int(np.count_nonzero(np.abs(theta) > NOISE * np.finfo(steering.G.dtype).eps * abs(theta[0])))
    if max_rank and rank > max_rank:
        rank, met = max_rank, False
    elif not met and not finder.exhausted:
        return None
    if not comm.bcast(finder.settled(S[:, :rank], max(allowed, errors[rank]))):
        return None
    return Cut(S[:, :rank], theta[:rank], met, wanted)


def leading_first(matrix):
    """(θ [m], S [m, m]) of a symmetric matrix, largest magnitude first."""
    theta, S = np.linalg.eigh(matrix)
    order = np.argsort(-np.abs(theta), kind="stable")
    return theta[order], S[:, order]


def _rank(squares, theta, D, C, allowed, probes):
    """(error ‖·‖_F² of every rank 0 … m, the smallest rank that is allowed, True), or (…, m, False). Room is left for the certificate's interval
    and `ROOM` of the steering probes' own.
    """
    cross = 2 * theta[:, None] * D * C
    dropped = np.append(np.cumsum((theta**2 + cross.mean(axis=1))[::-1])[::-1], 0.0)
    errors = squares.mean() + dropped
    fits = np.flatnonzero(errors <= allowed)
    if not len(fits):
        return errors, len(theta), False
    first = int(fits[0])
    value, _, high = frobenius_interval(np.maximum(squares + (cross + (theta[:, None] * C) ** 2)[first:].sum(axis=0), 0))
    room = 1 + (high / value - 1 if value else 0.0) * (ROOM + np.sqrt(len(squares) / max(probes, first // RANKS_A_PROBE)))
    fits = np.flatnonzero(errors * room**2 <= allowed)
    return (errors, int(fits[0]), True) if len(fits) else (errors, len(theta), False)
