"""Factors of symmetric blocks + λI, each whole on one rank: Cholesky, and spectral factors V diag(w) Vᵀ where a block is not definite."""

import numpy as np
from mpi4py import MPI
from scipy.linalg import eigh
from scipy.linalg.lapack import dpotrf, dpotrs

from hpcHess.compressed.damping import check_damping
from hpcHess.compressed.factors import DirectFactors
from hpcHess.parallel.agree import agree
from hpcHess.parallel.memory import check_room
from hpcHess.runtime.errors import InputError

SOLVE_COLUMNS = 256  # right-hand sides at a time


class BlockFactors:
    """Factors of A_b + λI for the blocks of `SymmetricBlocks` on their homes, in float64. Making them is collective.

    log_abs, negative    Σ log|eigenvalues| and number of negative eigenvalues of all blocks
    size                 max|A + λI|, of all entries
    Raises InputError beyond the hosts' memory, and where a block is singular to working precision: |pivot| ≤ n ε max|A + λI|.
    """

    def __init__(self, blocks, damping, what="H̃"):
        check_damping(damping)
        comm, self.layout = blocks.comm, blocks.layout
        largest = int(blocks.layout.sizes.max(initial=0)) if blocks.bytes_of_whole() else 0
        check_room(comm, blocks.bytes_of_whole() + 8 * largest, f"factors of {what} + λI, whole blocks of up to {blocks.layout.sizes.max(initial=0):,} rows,")
        whole = blocks.whole()
        self._each, self.log_abs, self.negative, singular = [], 0.0, 0, False
        with np.errstate(all="ignore"):
            for b in range(len(whole)):
                each = _Block(whole[b], damping)
                self._each.append(each)
                self.log_abs += each.log_abs
                self.negative += each.negative
                singular |= not each.smallest > each.n * np.finfo(np.float64).eps * each.size
        if comm.allreduce(singular, MPI.LOR):
            raise InputError(f"{what} + λI is singular to working precision at damping {damping:g}: use a larger damping")
        self.log_abs, self.negative = comm.allreduce(self.log_abs), comm.allreduce(self.negative)
        self.size = comm.allreduce(max((each.size for each in self._each), default=0.0), MPI.MAX)

    def solve(self, rows, absolute=False):
        """(A + λI)⁻¹ of the rows at home, float64 [n_home, k]; absolute: |A + λI|⁻¹. Not collective."""
        X, at = np.empty(rows.shape), 0
        for each in self._each:
            X[at : at + each.n] = each.solve(rows[at : at + each.n], absolute)
            at += each.n
        return X


class _Block:
    """A + λI of one block [n, n] float64, whose memory is used for Cholesky's triangle; `size` = max|A + λI|."""

    def __init__(self, A, damping):
        self.n, self.negative, self._spectrum = len(A), 0, None
        diagonal = np.arange(self.n)
        A[diagonal, diagonal] += damping
        self.size = max((float(np.abs(row).max()) for row in A), default=0.0)
        definite = bool((A[diagonal, diagonal] > 0).all())
        kept = A[diagonal, diagonal].copy()
        # the memory row by row is that of Aᵀ column by column: LAPACK's lower triangle is A's upper one, A's lower one stays as it was
        self._L, failed = dpotrf(A.T, lower=1, clean=0, overwrite_a=1) if definite and self.n else (A.T, not definite)
        pivots = np.square(self._L[diagonal, diagonal])
        if failed or not np.isfinite(pivots).all():
            A[diagonal, diagonal] = kept
            w, V = eigh(A, lower=True, driver="evd")
            self._spectrum, self._L = (w, V), None
            pivots, self.negative = np.abs(w), int((w < 0).sum())
        self.smallest = float(pivots.min(initial=np.inf))
        self.log_abs = float(np.log(pivots).sum())

    def solve(self, B, absolute):
        if self._spectrum is None:
            return dpotrs(self._L, B, lower=1)[0] if self.n else B
        w, V = self._spectrum
        return V @ ((V.T @ B) / (np.abs(w) if absolute else w)[:, None])


class BlockwiseFactors(DirectFactors):
    """Factors of H̃ + λI for a `BlockMatrix`."""

    solver = "cholesky"

    def __init__(self, matrix, damping):
        self._factors = BlockFactors(matrix.blocks, damping)
        dead = matrix.n_params - matrix.n_alive
        log_abs = self._factors.log_abs + (dead * np.log(damping) if dead and damping > 0 else -np.inf if dead else 0.0)
        super().__init__(matrix, damping, log_abs, self._factors.negative, dead if damping == 0 else 0)

    @property
    def described(self):
        """What solves, for people: a block that is not definite has no Cholesky factor."""
        return "eigenvalues and eigenvectors of the blocks" if self.negative else self.solver

    def solve_rows(self, B, absolute=False):
        """(H̃ + λI)⁻¹B in parameter rows, float64 [n_local, k]. Raises InputError at λ = 0 where a dead parameter's b is not 0."""
        move, X = self.matrix.to_homes, np.empty(B.shape)
        for a in range(0, B.shape[1], SOLVE_COLUMNS):
            part = np.ascontiguousarray(B[:, a : a + SOLVE_COLUMNS], np.float64)
            X[:, a : a + SOLVE_COLUMNS] = move.to_parameters(self._factors.solve(move.to_tree(part), absolute))
        dead, error = self.matrix.dead_rows, None
        if self.damping > 0:
            X[dead] = B[dead] / self.damping
        elif np.any(B[dead]):
            error = InputError("H̃ is singular: dead parameters have zero rows, where the right-hand side is not zero; use a damping > 0")
        agree(self.comm, error)
        return X
