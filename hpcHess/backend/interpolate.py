"""Row interpolative decompositions by truncated QR with column pivoting: the readable twin of the native kernel."""

from dataclasses import dataclass

import numpy as np

from hpcHess.backend.blocks import Blocks


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


def corrected_tail(tail, r, m, k, n):
    """(tail/√k)·n/(n − r): the expected error of a rank-r fit outside of its n independent samples, ‖·‖_F²/k being their mean square.

    That is generalized cross-validation (Golub, Heath & Wahba 1979) of a fit with r of n degrees of freedom; n = inf: no correction.
    """
    if r == m:
        return 0.0
    if r >= n:
        return np.inf
    return tail / k**0.5 / (1 - r / n) if tail else 0.0


def interpolate(xp, R, starts, tolerance, max_rank=None, samples=None):
    """Interpolation of the pieces R[starts[i] : starts[i + 1]] [m_i, k] of the stacked rows R.

    Column-pivoted QR of S_i = R_iᵀ (Businger & Golub 1965) to the smallest rank r ≤ min(m_i, k, n_i, max_rank) with
    corrected_tail(‖S − QQᵀS‖_F) ≤ tolerance[i] (array or scalar); T = R₁₁⁻¹ R₁₂. `samples` float64 [b]: the n_i of
    the correction, default k. Raises FloatingPointError where R holds NaN or Inf.
    """
    starts = np.asarray(starts, np.int64)
    tolerance = np.broadcast_to(np.asarray(tolerance, float), len(starts) - 1)
    k = R.shape[1]
    samples = np.full(len(tolerance), float(k)) if samples is None else samples
    pieces = []
    for i in range(len(starts) - 1):
        S = R[int(starts[i]) : int(starts[i + 1])].T
        limit = int(min(S.shape[1], k, samples[i], k if max_rank is None else max_rank))
        pieces.append(_interpolate_piece(xp, S, float(tolerance[i]), limit, float(samples[i])))
    ranks = np.array([r for r, *_ in pieces], np.int64)
    sizes = np.diff(starts)
    flat = [T.reshape(-1) for _, _, T, _ in pieces if T.size]
    T = Blocks.shaped(xp.concatenate(flat) if flat else xp.zeros(0, R.dtype), ranks, sizes - ranks)
    order = np.concatenate([np.zeros(0, np.int64), *(order for _, order, _, _ in pieces)])
    residual = np.array([residual for *_, residual in pieces], float)
    return Interpolation(ranks, order, T, residual, residual > tolerance)


def _interpolate_piece(xp, S, tolerance, limit, n):
    """(rank, order, T, corrected tail) of one matrix S [k, m]."""
    k, m = S.shape
    scale = float(xp.max(xp.abs(S))) if k and m else 0.0
    if not np.isfinite(scale):
        raise FloatingPointError("interpolate: the sample holds NaN or Inf")
    if scale == 0:
        return 0, np.arange(m), xp.zeros((0, m), S.dtype), corrected_tail(0.0, 0, m, k, n)
    S = S / scale  # squares of small float32 numbers would underflow
    order = np.arange(m)
    for r in range(limit + 1):
        norms = xp.sum(S[r:, r:] ** 2, axis=0, dtype=np.float64)
        residual = corrected_tail(scale * float(xp.sum(norms)) ** 0.5, r, m, k, n)
        if residual <= tolerance or r == limit:
            break
        _reflect(xp, S, order, r, r + int(xp.argmax(norms)))
    # the redundant columns back in their own order
    back = np.argsort(order[r:])
    order[r:] = order[r:][back]
    R12 = S[:r, r:][:, xp.asarray(back)]
    T = xp.linalg.solve(S[:r, :r], R12) if r and m > r else R12
    return r, order, T, residual


def _reflect(xp, S, order, r, pivot):
    """Swap the pivot into column r and apply the Householder reflection that clears S[r + 1 :, r], in place."""
    if pivot != r:
        order[[r, pivot]] = order[[pivot, r]]
        column = S[:, r].copy()
        S[:, r] = S[:, pivot]
        S[:, pivot] = column
    v = S[r:, r].copy()
    norm = xp.sqrt(xp.sum(v**2))
    beta = -xp.copysign(norm, v[0])
    v[0] -= beta
    S[r:, r + 1 :] -= (2 / xp.sum(v**2)) * v[:, None] * (v @ S[r:, r + 1 :])
    S[r:, r] = 0
    S[r, r] = beta
