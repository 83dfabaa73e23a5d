"""Direct factors of H̃ + λI: what all formats' have in common."""

import numpy as np

from hpcHess.parallel.random import gaussian_rows

PROBES, ROUNDS = 2, 2  # of the backward error


class DirectFactors:
    """Factors of H̃ + λI, float64. A subclass has `solver` (its form's name) and `solve_rows(B, absolute=False)`: (H̃ + λI)⁻¹B in parameter rows,
    float64 [n_local, k]; absolute: |H̃ + λI|⁻¹B or another positive definite inverse near it, where `signed`.

    log_abs, negative, zero   log|det(H̃ + λI)|, its numbers of negative and of zero eigenvalues
    backward_error            ‖b − (H̃ + λI)x‖ / ‖b‖, the largest found for random b and for what was left of them
    All methods are collective.
    """

    solver = None
    signed = True  # whether `solve_rows(absolute=True)` is positive definite

    def __init__(self, matrix, damping, log_abs, negative=0, zero=0, backward_error=None):
        self.matrix, self.damping, self.comm = matrix, damping, matrix.comm
        self.log_abs, self.negative, self.zero = float(log_abs), int(negative), int(zero)
        self.backward_error = self._measured() if backward_error is None else backward_error

    @np.errstate(all="ignore")
    def _measured(self):
        """The backward error of `PROBES` random right-hand sides, and of their normalized remainders: inf where it is not a number.

        At λ = 0 the right-hand sides are in the range of H̃.
        """
        matrix, mine, worst = self.matrix, self.matrix.mine, 0.0
        B = np.ascontiguousarray(gaussian_rows(0, "backward error", mine.start, mine.stop, range(PROBES), np.float64))
        if self.damping == 0:
            B = np.asarray(matrix.matmat_rows(B), np.float64)
        for _ in range(ROUNDS):
            X = self.solve_rows(B)
            remainder = B - np.asarray(matrix.matmat_rows(X), np.float64) - self.damping * X
            squares = self.comm.allreduce(np.stack([np.square(each).sum(axis=0) for each in (remainder, B)]))
            ratio = np.sqrt(squares[0] / np.where(squares[1] > 0, squares[1], 1))
            if not np.isfinite(ratio).all():
                return np.inf
            worst = max(worst, float(ratio.max()))
            B = remainder / np.where(squares[0] > 0, np.sqrt(squares[0]), 1)
            if self.damping == 0:
                break
        return worst

    def solve_rows(self, B, absolute=False):
        """(H̃ + λI)⁻¹B in parameter rows, float64 [n_local, k]."""
        raise NotImplementedError

    def append(self, out, prefix=""):
        """Its datasets into `compressed.file.Pieces`, the attributes; None where it is not stored but made anew. Not collective."""
        return None

    def slogdet(self):
        """(sign, log|det(H̃ + λI)|)."""
        return (0.0 if self.zero else (-1.0) ** self.negative), self.log_abs

    def inertia(self):
        """(positive, negative) eigenvalues of H̃ + λI."""
        return self.matrix.n_params - self.zero - self.negative, self.negative

    @property
    def described(self):
        """What solves, for people."""
        return self.solver

    @property
    def definite(self):
        """Whether `solve_rows` is positive definite."""
        return self.negative == 0 and self.zero == 0

    def preconditioner(self):
        """A positive definite one for H̃ + λI and what is near it: these factors, or, where they are indefinite, (L|D|Lᵀ)⁻¹ (Gill,
        Murray, Ponceleón & Saunders, SIMAX 1992), for MINRES. Factors that keep no signs stay as they are (`definite` tells).
        """
        return self if self.definite or not self.signed else Absolute(self)


class Absolute:
    """(L|D|Lᵀ)⁻¹ of indefinite factors L D Lᵀ: a positive definite preconditioner, `solve_rows` as of `DirectFactors`."""

    definite = True

    def __init__(self, factors):
        self.comm, self._factors = factors.comm, factors

    def solve_rows(self, B):
        """(L|D|Lᵀ)⁻¹B in parameter rows, float64 [n_local, k]. Collective."""
        return self._factors.solve_rows(B, absolute=True)
