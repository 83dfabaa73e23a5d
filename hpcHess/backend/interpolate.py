"""Row interpolative decompositions by truncated QR with column pivoting: the readable twin of the native kernel."""

from dataclasses import dataclass

import numpy as np

from hpcHess.backend.blocks import Blocks
from hpcHess.backend.pivoted import DIRECT, PANEL, BlockedQR, choose_pivots

BATCH = 1 << 24  # entries of small pieces factored at once


@dataclass
class Interpolation:
    """R_i[redundant] ≈ T_iᵀ R_i[skeleton] for b pieces R_i [m_i, k].

    `ranks` int64 [b]; `order` int64 [Σ m_i], positions inside each piece, skeleton first in pivot order, then the
    redundant rows in increasing order; `T`: Blocks [r_i × (m_i − r_i)]; `residual` float64 [b], the corrected tail at
    the rank chosen (inf where r_i ≥ n_i, r_i < m_i: a fit through as many samples as columns says nothing about the error);
    `saturated` bool [b], the tolerance was not met because of k or `max_rank`.
    """

    ranks: np.ndarray
    order: np.ndarray
    T: Blocks
    residual: np.ndarray
    saturated: np.ndarray


def joined(xp, parts):
    """The `Interpolation` of all pieces from those of some after others, one at least."""
    if len(parts) == 1:
        return parts[0]
    ranks, order, residual, saturated = (np.concatenate([getattr(each, name) for each in parts]) for name in ("ranks", "order", "residual", "saturated"))
    T = Blocks.shaped(xp.concatenate([each.T.data for each in parts]), ranks, np.concatenate([each.T.cols for each in parts]))
    return Interpolation(ranks, order, T, residual, saturated)


def corrected_tail(tail, r, m, k, n):
    """(tail/√k)·n/(n − r): the expected error of a rank-r fit outside of its n independent samples, ‖·‖_F²/k being their mean square.

    That is generalized cross-validation (Golub, Heath & Wahba 1979) of a fit with r of n degrees of freedom; n = inf: no correction.
    """
    if r == m:
        return 0.0
    if r >= n:
        return np.inf
    return tail / k**0.5 / (1 - r / n) if tail else 0.0


def interpolate(xp, R, starts, tolerance, max_rank=None, samples=None, to_host=np.asarray):
    """Interpolation of the pieces R[starts[i] : starts[i + 1]] [m_i, k] of the stacked rows R.

    Column-pivoted QR of S_i = R_iᵀ to the smallest rank r ≤ min(m_i, k, n_i, max_rank) of its pivots with corrected_tail(‖S − QQᵀS‖_F) ≤
    tolerance[i] (array or scalar); T = R₁₁⁻¹ R₁₂. Greedy pivots (Businger & Golub 1965) for small pieces, pivots of a sketch in blocks for
    large ones (`pivoted.BlockedQR`). `samples` float64 [b]: the n_i of the correction, default k. Raises FloatingPointError where R
    holds NaN or Inf.
    """
    starts = np.asarray(starts, np.int64)
    sizes = np.diff(starts)
    tolerance = np.broadcast_to(np.asarray(tolerance, float), sizes.shape)
    k = R.shape[1]
    samples = np.full(sizes.shape, float(k)) if samples is None else np.asarray(samples, float)
    limits = np.minimum(np.minimum(sizes, k if max_rank is None else min(k, max_rank)), samples).astype(np.int64)
    if not bool(xp.all(xp.isfinite(R))):
        raise FloatingPointError("interpolate: the sample holds NaN or Inf")
    direct = (np.minimum(sizes, k) <= DIRECT) | (limits <= PANEL // 2)
    pieces = [None] * len(sizes)
    small, batch = np.flatnonzero(direct), max(1, BATCH // max(1, k * int(np.max(sizes[direct], initial=1))))
    for at in range(0, len(small), batch):
        group = small[at : at + batch]
        S = xp.zeros((len(group), k, int(sizes[group].max())), R.dtype)
        for one, i in zip(S, group):
            one[:, : sizes[i]] = R[starts[i] : starts[i + 1]].T
        for i, found in zip(group, _greedy(xp, S, sizes[group], tolerance[group], limits[group], samples[group], to_host)):
            pieces[i] = found
    for i in np.flatnonzero(~direct):
        pieces[i] = _blocked(xp, R[starts[i] : starts[i + 1]].T, tolerance[i], limits[i], samples[i], to_host)
    ranks = np.array([r for r, *_ in pieces], np.int64)
    flat = [T.reshape(-1) for _, _, T, _ in pieces if T.size]
    T = Blocks.shaped(xp.concatenate(flat) if flat else xp.zeros(0, R.dtype), ranks, sizes - ranks)
    order = np.concatenate([np.zeros(0, np.int64), *(order for _, order, _, _ in pieces)])
    residual = np.array([residual for *_, residual in pieces], float)
    return Interpolation(ranks, order, T, residual, residual > tolerance)


def _unit(xp, S):
    """The power of two by which S is divided: squares of small float32 numbers would underflow."""
    most = float(xp.max(xp.abs(S))) if S.size else 0.0
    return 2.0 ** (np.frexp(most)[1] - 1) if most else 1.0


def _greedy(xp, S, sizes, tolerance, limits, samples, to_host):
    """[(rank, order, T, corrected tail)] of the batch S [b, k, max m], zeros behind the columns of each."""
    k, units, residuals = S.shape[1], [_unit(xp, one) for one in S], np.full((len(S), int(limits.max()) + 1), np.inf)
    enough = np.empty_like(residuals)
    for i, n in enumerate(samples):
        S[i] /= S.dtype.type(units[i])
        r = np.arange(residuals.shape[1])
        known = np.where(r < n, 1 - np.minimum(r, n) / n if n else 0, 0)
        enough[i] = np.where(r < n, (tolerance[i] * known / units[i]) ** 2 * k, -1)
    pivots, _, _, taken, tails = choose_pivots(xp, S, limits, enough, to_host)
    found = []
    for i, m in enumerate(sizes):
        residual = [corrected_tail(units[i] * tails[i, r] ** 0.5, r, m, k, samples[i]) for r in range(taken[i] + 1)]
        r = next((r for r, value in enumerate(residual) if value <= tolerance[i]), int(taken[i]))
        chosen = pivots[i, :r]
        order = np.append(chosen, np.setdiff1d(np.arange(m), chosen))
        R = S[i, :r][:, xp.asarray(order)]
        found.append((r, order, _solved(xp, R, r), residual[r]))
    return found


def _blocked(xp, S, tolerance, limit, n, to_host):
    """(rank, order, T, corrected tail) of one matrix S [k, m]."""
    (k, m), unit = S.shape, _unit(xp, S)
    corrected = lambda tail, r: corrected_tail(unit * tail**0.5, r, m, k, n)  # noqa: E731
    qr = BlockedQR(xp, S / S.dtype.type(unit), corrected, float(tolerance), int(limit), to_host)
    r, residual = qr.run()
    back = np.append(np.arange(r), r + np.argsort(qr.order[r:]))  # the redundant columns in their own order
    return r, qr.order[back], _solved(xp, qr.S[:r][:, xp.asarray(back)], r), residual


def _solved(xp, R, r):
    """T = R₁₁⁻¹ R₁₂ of R [r, m]."""
    R11, R12 = xp.triu(R[:, :r]), R[:, r:]
    return xp.linalg.solve(R11, R12) if R12.size else R12
