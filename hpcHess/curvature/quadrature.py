r"""Fewer samples with a known error: c of n samples and weights w ≥ 0 with H̃ = Σ_k w_k H_{i_k} ≈ H = (1/n) Σ_i H_i.

The H_i [N, N] are vectors in the Frobenius inner product, whose Gram matrix G_ij = ⟨H_i, H_j⟩ is cheap (`sample_gram`). With b_i = ⟨H, H_i⟩
= (1/n) Σ_j G_ij and ‖H‖² = (1/n) Σ_i b_i,

    ‖H − H̃‖² = ‖H‖² − 2 wᵀ b_S + wᵀ G_SS w,

exactly; w is its minimum over w ≥ 0 (NNLS), so H̃ is positive semidefinite. The samples S are chosen in steps of some at a time: candidates are
those with the largest ⟨R, H_i⟩ / ‖H_i‖, R = H − H̃; among these each next one reduces the error most once all weights are free to follow
(orthogonal least squares: the largest r_i² / s_ii, r and s updated by one column of a Cholesky factorization of the Schur complement of G_SS).
Those whose weight becomes 0 leave. Chen, Cowan, Grant, Signal Processing 1991 (orthogonal least squares); Kim and Park, SIAM J. Sci. Comput. 2011
(NNLS by block principal pivoting).

The error² is a difference of numbers near ‖H‖², so the error has a floor: 1e-8 to 3e-8 with b in float64, 3e-4 with b in float32 (many samples),
where below _SINGLE_ERROR everything is done again in float64. No rank holds more than its samples' rows of G's columns S.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from mpi4py import MPI

from hpcHess.curvature.sample_gram import hessian_gram, hessian_norms2
from hpcHess.parallel.agree import on_root, together
from hpcHess.parallel.exchange import gather_rows
from hpcHess.parallel.ownership import row_starts
from hpcHess.runtime.errors import InputError
from hpcHess.runtime.progress import Silent

COLUMN_BYTES = 1 << 33  # of all ranks' columns of G together, where an error is asked for
_DOUBLE_SAMPLES = 8192  # most samples whose inner products are computed in float64 at once
_FLOORS = {"float64": 3e-8, "float32": 3e-4}  # of the error
_SINGLE_ERROR = 2e-3  # smallest error that is left to float32
_SINGLE_RANGE = 1e-25, 1e30  # of the largest ‖H_i‖² whose inner products are left to float32
_BLOCK, _SLAB = 2048, 8192  # rows and columns of G at a time
_GROWTH, _POOL, _FEWEST = 8, 6, 50  # a step adds max(1, c / _GROWTH) samples of _POOL times as many candidates, at least _FEWEST
_DEPENDENT = 1e-10  # s_ii / ‖H_i‖² of a candidate that is a combination of the chosen
_EXCHANGES = 100  # rounds of NNLS in which weights that were 0 may become positive
_ROUNDS = 20  # steps that replace samples without weight, at the count asked for


@dataclass(frozen=True)
class Quadrature:
    """samples   int64 [c], sorted
    weights   float64 [c], > 0
    error     ‖H − H̃‖_F / ‖H‖_F, exact but for rounding
    norm      ‖H‖_F
    n         number of samples of H
    floor     what error² is known to, its root: the floor above
    """

    samples: np.ndarray
    weights: np.ndarray
    error: float
    norm: float
    n: int
    floor: float = 0.0

    @property
    def high(self):
        """What the error is at most."""
        return float(np.hypot(self.error, self.floor))


def quadrature(operator, count=None, rtol=None, progress=None):
    """The `Quadrature` of an operator with `samples` (`curvature.gauss_newton.GaussNewton`). Collective; deterministic.

    count   c, the number of samples. Fewer where n is smaller or no other sample reduces the error (duplicates, H_i = 0)
    rtol    the error to be reached instead, with as few samples as are found to

    Operators with weights: H_i then is n w_i J_iᵀ Q_i J_i. Raises InputError for operators without samples, where neither or both are given, or where more than n / 2 samples
    or COLUMN_BYTES are needed for rtol.
    """
    comm, n = operator.comm, getattr(operator, "n_samples", 0)
    with together(comm):
        if not hasattr(operator, "samples"):
            reason = getattr(operator, "without_samples", "this operator has no samples")
            raise InputError(f"a quadrature weights samples by the inner products of their matrices of Gram type: {reason}; take all samples")
        _check(count, rtol)
    progress = Silent() if progress is None else progress
    double = n <= _DOUBLE_SAMPLES or (rtol is not None and rtol < 1.5 * _SINGLE_ERROR)
    for dtype in [np.float64] if double else [np.float32, np.float64]:
        search = _Search(operator, np.dtype(dtype), progress)
        found = search.found(count, rtol)
        if search.dtype == np.float64 or found.error >= _SINGLE_ERROR:
            return found


def _check(count, rtol):
    if (count is None) == (rtol is None):
        raise InputError("a quadrature of the samples needs either a count or an rtol")
    if count is not None and (isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1):
        raise InputError(f"a quadrature needs a count of at least 1, an integer, not {count!r}")
    if rtol is not None and not 0 < rtol < 1:
        raise InputError(f"a quadrature needs an rtol larger than 0 and smaller than 1, not {rtol!r}")


class _Search:
    """chosen, weights [c] on every rank; gram [c, c] float64 and its Cholesky factor on rank 0; held [capacity, own samples], this rank's
    rows of G's columns, those of `chosen` in `slots`."""

    def __init__(self, operator, dtype, progress):
        self.comm, self.samples, self.dtype, self.progress = operator.comm, operator.samples, dtype, progress
        self.n, starts = self.samples.n, row_starts(operator.n_samples, operator.comm.size)
        self.mine = slice(*starts[self.comm.rank : self.comm.rank + 2].tolist())
        with together(self.comm):
            norms2 = hessian_norms2(self.samples, self.mine)
        self.norms2 = gather_rows(self.comm, norms2[:, None], starts)[:, 0]
        if not _SINGLE_RANGE[0] < self.norms2.max() < _SINGLE_RANGE[1]:
            self.dtype = np.dtype(np.float64)
        self.b = self._means()
        self.norm2 = self.error2 = float(self.b.mean())
        self.chosen, self.weights, self.slots = np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int64)
        self.gram = self.factor = np.zeros((0, 0))
        self.held = np.empty((0, self.mine.stop - self.mine.start), self.dtype)

    def _means(self):
        """b [n] float64, whole on every rank: blocks of rows with the columns from their own on, dealt to the ranks. Collective."""
        n, b, n_blocks = self.n, np.zeros(self.n), -(-self.n // _BLOCK)
        with self.progress.phase("inner products of samples", n_blocks) as steps, together(self.comm):
            for at in range(n_blocks):
                turn, place = divmod(at, self.comm.size)
                if self.comm.rank == (place if turn % 2 == 0 else self.comm.size - 1 - place):
                    rows = slice(at * _BLOCK, min(n, (at + 1) * _BLOCK))
                    for lo in range(rows.start, n, _SLAB):
                        columns = slice(lo, min(n, lo + _SLAB))
                        K, own = hessian_gram(self.samples, rows, columns, self.dtype), max(0, rows.stop - lo)
                        b[rows] += K.sum(axis=1, dtype=np.float64)
                        b[lo + own : columns.stop] += K[:, own:].sum(axis=0, dtype=np.float64)
                steps.advance()
        self.comm.Allreduce(MPI.IN_PLACE, b)
        return b / n

    def found(self, count, rtol):
        """Steps until the count or the error is reached. Collective."""
        n, norm = self.n, float(np.sqrt(self.norm2))
        if count is not None and count >= n:
            return Quadrature(np.arange(n), np.full(n, 1 / n), 0.0, norm, n)
        if not self.norm2 > 0:  # H = 0, and so are all H_i
            return Quadrature(np.zeros(1, np.int64), np.ones(1), 0.0, 0.0, n)
        limit = count if rtol is None else min(n, max(n // 2, 1), COLUMN_BYTES // (n * self.dtype.itemsize))
        goal, rounds = 0.0 if rtol is None else rtol**2 * self.norm2, _ROUNDS
        with self.progress.phase("choice of samples", count) as steps:
            while len(self.chosen) < limit and self.error2 > goal and rounds:
                before = len(self.chosen)
                more = min(max(1, before // _GROWTH), limit - before)
                if not self._step(more, goal):
                    break
                rounds -= before + more == limit
                steps.advance(max(0, len(self.chosen) - before))
        error = float(np.sqrt(max(self.error2 / self.norm2, np.finfo(float).eps)))
        if rtol is not None and error > rtol:
            raise InputError(
                f"{len(self.chosen)} of {n} samples still leave an error of {error:.2e}, {rtol:g} was asked for (with an error asked for, no more than "
                "half of the samples are taken): ask for a larger one, give a count, or take all samples"
            )
        order = np.argsort(self.chosen)
        return Quadrature(self.chosen[order], self.weights[order], error, norm, n, _FLOORS[self.dtype.name])

    def _step(self, more, goal):
        """Choose up to `more` samples, solve for all weights; whether that reduced the error. Collective."""
        candidates = self._candidates(max(_FEWEST, _POOL * more))
        if not len(candidates):
            return False
        before = self.error2
        new, keep, self.weights, self.error2 = on_root(self.comm, self._extend, candidates, more, goal)
        self._settle(new, keep)
        return self.error2 < before

    def _candidates(self, most):
        """Samples with the largest ⟨R, H_i⟩ / ‖H_i‖ > 0, the best first; ties by number. Whole on every rank. Collective."""
        weights = np.zeros(len(self.held), self.dtype)
        weights[self.slots] = self.weights
        residual = self.b[self.mine] - weights @ self.held
        norms2 = self.norms2[self.mine]
        score = np.divide(residual, np.sqrt(norms2), out=np.zeros(len(norms2)), where=norms2 > 0)
        own = self.chosen[(self.chosen >= self.mine.start) & (self.chosen < self.mine.stop)]
        score[own - self.mine.start] = 0
        score = score.astype(np.float32)
        best = np.argsort(-score, kind="stable")[:most]
        best = best[score[best] > 0]
        parts = self.comm.allgather((score[best], best + self.mine.start))
        score, best = (np.concatenate(each) for each in zip(*parts, strict=True))
        return best[np.argsort(-score, kind="stable")[:most]]

    def _extend(self, candidates, more, goal):
        """(new samples, which of the chosen and the new to keep, weights of those, error²). On rank 0."""
        c = len(self.chosen)
        products = hessian_gram(self.samples, candidates, np.concatenate([self.chosen, candidates]))
        old, among = products[:, :c], products[:, c:]
        F = scipy.linalg.solve_triangular(self.factor, old.T, lower=True) if c else np.zeros((0, len(candidates)))
        picked = _pick(among - F.T @ F, self.b[candidates] - old @ self.weights, among.diagonal(), more, self.error2 - goal)
        if not len(picked):
            return candidates[:0], np.ones(c, bool), self.weights, self.error2
        gram = np.block([[self.gram, old[picked].T], [old[picked], among[np.ix_(picked, picked)]]])
        new = candidates[picked]
        every = np.concatenate([self.chosen, new])
        weights, keep, self.factor = nnls(gram, self.b[every])
        self.gram = gram[np.ix_(keep, keep)]
        error2 = self.norm2 - 2 * weights @ self.b[every[keep]] + weights @ (self.gram @ weights)
        return new, keep, weights, float(error2)

    def _settle(self, new, keep):
        """Take `new` in and let go of the samples without weight; columns of those that left are overwritten."""
        c = len(self.chosen)
        free = np.setdiff1d(np.arange(len(self.held)), self.slots)
        if len(free) < len(new):
            more = max(len(new) - len(free), len(self.held) // 4)
            free = np.append(free, len(self.held) + np.arange(more))
            grown = np.empty((len(self.held) + more, self.held.shape[1]), self.dtype)
            grown[: len(self.held)] = self.held
            grown[len(self.held) :] = 0
            self.held = grown
        slots = free[: len(new)]
        stay = keep[c:]
        with together(self.comm):
            for lo in range(0, int(stay.sum()), _BLOCK):
                some = slice(lo, lo + _BLOCK)
                self.held[slots[stay][some]] = hessian_gram(self.samples, new[stay][some], self.mine, self.dtype)
        self.chosen, self.slots = np.concatenate([self.chosen, new])[keep], np.concatenate([self.slots, slots])[keep]


def _pick(S, r, norms2, most, enough):
    """Up to `most` candidates one after the other, each of the largest r_i² / s_ii with r_i > 0, the reduction of ‖R‖² by a free weight; no
    more once the sum of the reductions is `enough`. S [p, p], r [p]: inner products of what the chosen leave of the candidates, and with R.
    """
    d, r, picked = S.diagonal().copy(), r.copy(), []
    L = np.zeros((len(r), most))
    while len(picked) < most and enough > 0:
        usable = (d > _DEPENDENT * norms2) & (r > 0)
        gain = np.divide(r * r, d, out=np.zeros(len(r)), where=usable)
        best, t = int(gain.argmax()), len(picked)
        if not gain[best] > 0:
            break
        root = np.sqrt(d[best])
        L[:, t] = (S[:, best] - L[:, :t] @ L[best, :t]) / root
        r -= L[:, t] * (r[best] / root)
        d -= L[:, t] ** 2
        d[best] = 0
        picked.append(best)
        enough -= gain[best]
    return np.array(picked, np.int64)


def nnls(G, b):
    """argmin ½ wᵀGw − bᵀw over w ≥ 0 for G [c, c] positive definite: (w of the positive ones, which those are, their Cholesky factor).

    Block principal pivoting from all of them: exchange every w_i < 0 and every (Gw − b)_i < 0 at once while their number falls (three
    more trials when it does not), then the last one alone (Kim and Park 2011), which ends in exact arithmetic; after _EXCHANGES rounds none
    enters any more. One factorization a round: few rounds, because few change.
    """
    positive, fewest, trials = np.ones(len(b), bool), len(b) + 1, 3
    small = 1e-12 * np.abs(b).max()
    for done in itertools.count():
        at = np.flatnonzero(positive)
        factor = scipy.linalg.cholesky(G[np.ix_(at, at)], lower=True, check_finite=False)
        w = scipy.linalg.cho_solve((factor, True), b[at])
        wrong = (G[:, at] @ w - b < -small) & (done < _EXCHANGES)
        wrong[at] = w <= 0
        count = int(wrong.sum())
        if not count:
            return w, positive, factor
        if count < fewest:
            fewest, trials = count, 3
        elif trials:
            trials -= 1
        else:
            wrong[: np.flatnonzero(wrong)[-1]] = False
        positive ^= wrong
