r"""Nyström approximations of semidefinite matrices from one sketch.

With orthonormal Ω [n, l] and Y = HΩ, H̃ = Y (ΩᵀY + νI)⁻¹ Yᵀ, ν ≈ ε‖Y‖₂ (Tropp, Yurtsever, Udell & Cevher, NeurIPS 2017; Frangella, Tropp &
Udell, SIMAX 2023): 0 ≼ H̃ ≼ H, by l products. Y = QR [m, l] is kept factored, so that H̃ = Q (R A Rᵀ) Qᵀ with A = (ΩᵀY + νI)⁻¹ needs small matrices
alone, and Ω and Y grow by blocks.
"""

import numpy as np

from hpcHess.lowrank.basis import Basis, summed
from hpcHess.parallel.agree import on_root
from hpcHess.parallel.replicated import replicated
from hpcHess.runtime.errors import InputError

BLOCK = 32
GROWTH = 1.15
OVERSAMPLED = 3.0  # columns for a rank that max_rank bounds
LOST = 50  # ε of a column of Y: what Q need not hold
INDEFINITE = 100  # ε‖H‖₂: a more negative eigenvalue is no rounding


class Nystrom:
    """Q [n, m] and R A Rᵀ of a growing sketch. InputError as soon as the sketch, or it and the steering probes, show a negative eigenvalue."""

    def __init__(self, products, steering, seed=0):
        self.products, self._steering, self._seed = products, steering, seed
        comm, rows = products.comm, len(products.rows)
        self.basis, self._omega, self._Y = (Basis(comm, rows, products.dtype) for _ in range(3))
        self._R, self._A, self._drawn = np.zeros((0, 0)), np.zeros((0, 0)), 0
        self._eps = float(np.finfo(products.dtype).eps)
        self.exhausted = products.n == 0

    def grow(self):
        """To `GROWTH` times the columns, at least a block more. Collective; InputError where H is seen to be indefinite."""
        omega, products, last = self._omega, self.products, self._omega.size
        count = min(products.n - last, max(BLOCK, int((GROWTH - 1) * last)))
        columns = range(self._drawn, self._drawn + count)
        self._drawn += count
        new = omega.added(products.gaussian(self._seed, "nystrom", columns))
        omega.append(new)
        Y = products.apply(np.ascontiguousarray(new))
        self._Y.append(Y)
        before = self.basis.size
        self.basis.extend(Y, LOST * self._eps)
        R = np.zeros((self.basis.size, omega.size))
        R[:before, :last], R[:, last:] = self._R, self.basis.project(Y)
        A = np.zeros((omega.size,) * 2)
        A[:last, :last], A[:, last:] = self._A, omega.project(Y)
        A[last:, :last] = A[:last, last:].T
        A[last:, last:] = (A[last:, last:] + A[last:, last:].T) / 2
        self._R, self._A = R, A
        self.exhausted = omega.size >= products.n or (omega.size > last and not new.shape[1])
        self._refuse_indefinite()

    def core(self):
        """R (ΩᵀY + νI)⁻¹ Rᵀ, float64 [m, m]. Collective."""
        return replicated(self.products.comm, self._core) if self.basis.size else np.zeros((0, 0))

    def _core(self):
        alpha, V = np.linalg.eigh(self._A)
        shift = 4 * self._eps * np.linalg.norm(self._R, 2)
        half = (self._R @ V) / np.sqrt(np.maximum(alpha, 0) + shift)
        return half @ half.T

    def settled(self, S, allowed):
        """Whether the kept pairs S [m, r] are good enough: the sketch is some columns larger than the rank."""
        return self.exhausted or self._omega.size >= min(self.products.n, OVERSAMPLED * S.shape[1])

    def _refuse_indefinite(self):
        """Ritz values of H on span[Ω, G], all ≥ λ_min(H)."""
        omega, G, HG = self._omega, self._steering.G, self._steering.HG
        C = omega.project(G)
        outside, image = G - omega.combine(C), HG - self._Y.combine(C)
        gram, vectors = replicated(omega.comm, np.linalg.eigh, omega.gram(outside))
        keep = gram > 1e-4 * gram.max(initial=0) if omega.size < self.products.n else np.zeros(len(gram), bool)
        scale = (vectors[:, keep] / np.sqrt(gram[keep])).astype(G.dtype)
        outside, image = outside @ scale, image @ scale
        corner, side = summed(omega.comm, outside.T @ image), omega.project(image)
        on_root(omega.comm, self._refuse, np.block([[self._A, side], [side.T, (corner + corner.T) / 2]]))

    def _refuse(self, compressed):
        """InputError where H compressed to a space has a negative eigenvalue. Not collective."""
        ritz = np.linalg.eigvalsh(compressed)
        largest = max(abs(ritz[0]), abs(ritz[-1]), np.linalg.norm(self._R, 2) if self._R.size else 0.0)
        if ritz[0] < -INDEFINITE * self._eps * largest:
            raise InputError(
                f'the matrix is indefinite (an eigenvalue of about {ritz[0]:.2g} or below, where the largest is about {largest:.2g}): '
                'method = "nystrom" is for semidefinite matrices, use method = "randomized"'
            )
