r"""U Λ Uᵀ by fewer numbers: r of U's rows as an identity.

With U₁ = U[J] [r, r] well-conditioned, P = U U₁⁻¹ is the identity in the rows J, and U Λ Uᵀ = P B Pᵀ with B = U₁ Λ U₁ᵀ: (n − r) r + r(r + 1)/2
numbers instead of n r + r. J by pivoted QR of Uᵀ keeps the entries of P small (Cheng, Gimbutas, Martinsson & Rokhlin, SISC 2005).
"""

import numpy as np
from scipy.linalg import lu_factor, lu_solve, qr
from scipy.linalg.lapack import dgecon

from hpcHess.lowrank.basis import summed
from hpcHess.parallel.replicated import replicated

_CANDIDATES = 128  # rows of a round
_SHARE = 0.5  # of the largest ‖·‖² of rows that are no candidates: smaller pivots wait for the next round
_ROWS = 4096  # of U at a time


def skeleton_rows(comm, U, numbers):
    """r rows of U [n, r], as their sorted `numbers` (those of this rank's rows: int64 [n], sorted). Collective.

    Rounds of QR with column pivoting among the rows that are longest outside of the span of those chosen: pivots at least `_SHARE` of the
    greedy ones, every pass over U a matrix product.
    """
    r = U.shape[1]
    Z, done, chosen = np.empty((r, r), order="F"), 0, np.zeros(0, np.int64)
    left = np.einsum("ij,ij->i", U, U, dtype=np.float64)
    while done < r:
        names, lengths = _longest(comm, numbers, left)
        rows, own = np.zeros((len(names), r)), np.flatnonzero(np.isin(names, numbers))
        rows[own] = U[np.searchsorted(numbers, names[own])]
        rows = summed(comm, rows)
        Q, pivots, order = replicated(comm, _pivoted, rows, Z[:, :done])
        count = max(1, int(np.argmin(np.append(pivots >= _SHARE * lengths[-1], False))))
        count = min(count, r - done, int(np.count_nonzero(pivots > 0)) or 1)
        Z[:, done : done + count] = Q[:, :count]
        left = np.maximum(left - np.square(U @ Q[:, :count].astype(U.dtype), dtype=np.float64).sum(axis=1), 0)
        taken = names[order[:count]]
        left[np.isin(numbers, taken)] = -1
        chosen, done = np.append(chosen, taken), done + count
    return np.sort(chosen)


def _pivoted(rows, Z):
    """(Q, the squared diagonal of R, the order of the rows) of QR with pivoting of what the rows [n, r] have outside of the span of Z [r, k]."""
    for _ in range(2):
        rows = rows - (rows @ Z) @ Z.T
    Q, R, order = qr(rows.T, mode="economic", pivoting=True)
    return Q, np.diagonal(R) ** 2, order


def _longest(comm, numbers, left):
    """(numbers, ‖·‖²) of the `_CANDIDATES` rows with the largest `left` of all ranks, longest first."""
    order = np.lexsort((numbers, -left))[:_CANDIDATES]
    found = comm.allgather((numbers[order], left[order]))
    names, lengths = (np.concatenate(each) for each in zip(*found))
    keep = lengths >= 0
    names, lengths = names[keep], lengths[keep]
    order = np.lexsort((names, -lengths))[:_CANDIDATES]
    return names[order], lengths[order]


def interpolation(comm, U, numbers, skeleton, dtype):
    """(P's rows that are not in the skeleton, `dtype` [n', r]; U₁, float64 [r, r]) for U [n, r] with those numbers. Collective.

    None where U₁ is singular to working precision.
    """
    r, inside = len(skeleton), np.isin(numbers, skeleton)
    first = np.zeros((r, r))
    first[np.searchsorted(skeleton, numbers[inside])] = U[inside]
    first = summed(comm, first)
    factors = replicated(comm, lu_factor, first.T)
    if not comm.bcast(dgecon(factors[0], np.linalg.norm(first.T, 1))[0]) > 100 * np.finfo(dtype).eps:
        return None
    rest = np.flatnonzero(~inside)
    T = np.empty((len(rest), r), dtype)
    for at in range(0, len(rest), _ROWS):
        T[at : at + _ROWS] = lu_solve(factors, U[rest[at : at + _ROWS]].T.astype(np.float64)).T
    return T, first
