"""Truncated QR with column pivoting, greedy and in blocks: the readable twins of native/pivoted.hpp and native/interpolate.cpp."""

from functools import lru_cache

import numpy as np

from hpcHess.parallel.random import scramble

PANEL = 32  # pivots of a block
SKETCH = 40  # rows of the sketch that chooses them
DIRECT = 160  # pieces with no more rows or columns are factored greedily: there a block costs more than it saves


@lru_cache(maxsize=8)
def sketch_signs(k, dtype):
    """Ω [k, SKETCH] of ±1 by a hash of their positions: the same in every run, on every machine and for every k."""
    return np.where(scramble(np.arange(k * SKETCH), 0) >> np.uint64(63), 1, -1).astype(dtype).reshape(k, SKETCH)


def choose_pivots(xp, A, steps, enough=None, to_host=np.asarray):
    """Greedy pivoted QR of a batch A [b, k, n] in place, A_i ← Q_iᵀA_i with columns where they are: row q of R_i is row q of A_i.

    Step j takes the column whose rows ≥ j are longest (Businger & Golub 1965; the first of equal ones) and reflects, until steps[i] (int
    [b]) or tail²(j) ≤ enough[i, j] ([b, max steps + 1]). Returns (pivots int64 [b, s], V [b, s, k] and tau [b, s] of the reflectors
    I − τvvᵀ, v_q = 1, zeros above and where the column vanishes, taken int64 [b] the steps done, tails float64 [b, s + 1]: tail²(j) =
    ‖rows ≥ j of what is not chosen‖_F², inf behind the last). The kernel for a device: one block of threads a matrix, R in shared
    memory for the sketches ([SKETCH, n]), norms fresh in every step.
    """
    b, k, n = A.shape
    most, each = int(np.max(steps, initial=0)), xp.arange(b)
    tails, taken = np.full((b, most + 1), np.inf), np.zeros(b, np.int64)
    pivots, live = xp.zeros((b, most), np.int64), np.ones(b, bool)
    V, tau, chosen = xp.zeros((b, most, k), A.dtype), xp.zeros((b, most), A.dtype), xp.zeros((b, n), bool)
    for j in range(most + 1):
        squares = xp.where(chosen, -1.0, xp.sum(xp.square(A[:, j:], dtype=np.float64), axis=1))
        tails[live, j] = to_host(xp.sum(xp.maximum(squares, 0), axis=1))[live]
        live &= j < np.asarray(steps)
        if enough is not None:
            live &= tails[:, j] > enough[:, j]
        if not live.any():
            break
        taken += live
        at, mine = xp.argmax(squares, axis=1), xp.asarray(live)
        v = xp.where(mine[:, None], A[each, j:, at], 0)
        beta = -xp.copysign(xp.sqrt(xp.sum(xp.square(v, dtype=np.float64), axis=1)), v[:, 0]).astype(A.dtype)
        whole = beta != 0
        safe = xp.where(whole, beta, 1)
        tau[:, j] = xp.where(whole, (safe - v[:, 0]) / safe, 0)
        v = xp.where(whole[:, None], v / xp.where(whole, v[:, 0] - beta, 1)[:, None], 0)
        v[:, 0] = whole
        A[:, j:] -= (tau[:, j, None] * v)[:, :, None] * (v[:, None, :] @ A[:, j:])
        A[each[mine], j, at[mine]] = beta[mine]
        V[:, j, j:], pivots[:, j] = v, xp.where(mine, at, 0)
        chosen[each[mine], at[mine]] = True
    return to_host(pivots), V, tau, taken, tails


class BlockedQR:
    """Truncated pivoted QR of S [k, m] in blocks of PANEL pivots, S overwritten by R in its first `rank` rows (zeros are not made).

    Pivots of a block are those of Y = ΩᵀS, a few random sums of the rows that remain (Duersch & Gu, SISC 2017; Martinsson, Quintana-Ortí,
    Heavner & van de Geijn, SISC 2017), and the longest column; among themselves they are taken greedily. With the reflectors V of a block

        H₁ … H_b = I − V L⁻ᵀ Vᵀ,  L = strictly lower part of VᵀV + diag(1/τ),      Y ← Y₂ − Y₁ R₁₁⁻¹ R₁₂  a sketch of what remains.

    tail²(r) = ‖S − Q_rQ_rᵀS‖_F² behind a block is by difference of squares while more than ε^⅓ of it is left, else measured; at the ranks inside
    it is walked back by the rows of R. `order` int64 [m]: the columns in their new places; `corrected(tail², r)`: the residual to bring
    under `tolerance` with at most `limit` pivots.
    """

    def __init__(self, xp, S, corrected, tolerance, limit, to_host=np.asarray):
        self.xp, self.S, self.corrected, self.tolerance, self.limit, self.to_host = xp, S, corrected, tolerance, limit, to_host
        self.eps = float(np.finfo(S.dtype).eps)
        self.order, self.Y = np.arange(S.shape[1]), None

    def run(self):
        """(rank, residual): the smallest sufficient rank among those of the pivots chosen."""
        squares = self._squares(0)
        tail, done = float(squares.sum()), 0
        residual = self.corrected(tail, 0)
        while residual > self.tolerance and done < self.limit:
            first, wide = done, self._choose(done, squares)
            V, tau = self._panel(first, wide)
            done = first + V.shape[1]
            rows = self._rows(first, V, tau, wide)
            before, tail = tail, max(0.0, tail - rows.sum())
            behind = slice(done, None), slice(first + wide, None)
            measured = tail < (5e-3 if self.S.dtype == np.float32 else 6e-6) * before
            self.S[behind] -= V[V.shape[1] :] @ self.X
            squares = self._squares(done)
            if measured:
                tail = float(squares.sum())
            tails = tail + np.append(np.cumsum(rows[::-1])[::-1], 0)[1:]  # at first + 1 … done
            found = [(self.corrected(t, r), r) for t, r in zip(tails, range(first + 1, done + 1))]
            residual, rank = next((each for each in found if each[0] <= self.tolerance), found[-1])
            if residual <= self.tolerance or done == self.limit:
                return rank, residual
            tail = float(squares.sum())
            residual = self.corrected(tail, done)
            self._downdate(first, done, wide)
        return done, residual

    def _squares(self, r):
        """‖what remains of column c‖², zeros for the pivots."""
        squares = self.xp.sum(self.xp.square(self.S[r:], dtype=np.float64), axis=0)
        squares[:r] = 0
        return self.to_host(squares)

    def _choose(self, first, squares):
        """The pivots of the next block to columns first, first + 1, …; how many."""
        xp, S = self.xp, self.S
        if self.Y is None:
            self.Y = xp.zeros((SKETCH, S.shape[1]), S.dtype)
            self.Y[:, first:] = xp.asarray(sketch_signs(len(S), S.dtype.name)[first:]).T @ S[first:, first:]
        steps = min(PANEL, self.limit - first)
        Y = self.Y[None, :, first:].copy()
        pivots, _, _, taken, tails = choose_pivots(xp, Y, np.array([steps]), to_host=self.to_host)
        self.Y[:, first:] = Y[0]
        spent = np.flatnonzero(tails[0, 1 : steps + 1] <= (64 * self.eps) ** 2 * tails[0, 0])
        chosen = list(pivots[0, : spent[0] + 1 if len(spent) else taken[0]])
        longest = int(np.argmax(squares[first:]))
        if longest not in chosen:
            chosen[-1] = longest
        places = np.arange(S.shape[1] - first)
        for q in range(len(chosen)):
            places[[q, chosen[q]]] = places[[chosen[q], q]]
            chosen[q + 1 :] = [chosen[q] if c == q else c for c in chosen[q + 1 :]]
        self._move(first, places)
        return len(chosen)

    def _move(self, first, places):
        """Columns first + places to first, first + 1, …"""
        to, by = slice(first, first + len(places)), self.xp.asarray(first + places)
        self.order[to] = self.order[first + places]
        self.S[:, to], self.Y[:, to] = self.S[:, by], self.Y[:, by]

    def _panel(self, first, wide):
        """(V [k − first, b], τ [b]) of the block's columns, put into the order of greedy pivots; b < wide where they are dependent."""
        xp, panel = self.xp, self.S[None, first:, first : first + wide].copy()
        steps = np.array([min(wide, len(self.S) - first)])
        pivots, V, tau, taken, _ = choose_pivots(xp, panel, steps, np.zeros((1, wide + 1)), self.to_host)
        b = int(taken[0])
        places = np.append(pivots[0, :b], np.setdiff1d(np.arange(wide), pivots[0, :b]))
        self._move(first, places)
        self.S[first:, first : first + wide] = panel[0][:, xp.asarray(places)]
        self.S[first:, first : first + b] = xp.triu(self.S[first:, first : first + b])
        return V[0, :b].T, tau[0, :b]

    def _rows(self, first, V, tau, wide):
        """The block's rows of R; their squares float64 [b]. X = L⁻¹ Vᵀ S stays for the rows behind."""
        xp, S, b = self.xp, self.S, V.shape[1]
        L = xp.tril(V.T @ V, -1) + xp.diag(xp.where(tau != 0, 1 / xp.where(tau != 0, tau, 1), 1))
        self.X = xp.linalg.solve(L, V.T @ S[first:, first + wide :])
        S[first : first + b, first + wide :] -= V[:b] @ self.X
        return self.to_host(xp.sum(xp.square(S[first : first + b, first:], dtype=np.float64), axis=1))

    def _downdate(self, first, done, wide):
        """The sketch of what remains; none where rounding has taken it over: the next block makes another."""
        xp, S, b = self.xp, self.S, done - first
        R11 = S[first:done, first:done]
        if b < wide or abs(float(R11[-1, -1])) < self.eps**0.5 * abs(float(R11[0, 0])):
            self.Y = None
        else:
            G = xp.linalg.solve(R11.T, self.Y[:, first:done].T).T
            self.Y[:, done:] -= G @ S[first:done, done:]
