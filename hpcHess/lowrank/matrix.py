"""H̃ = P M Pᵀ of low rank: coefficients by rows, a small core."""

import numpy as np

from hpcHess.backend.blocks import Blocks
from hpcHess.compressed.matrix import CompressedMatrix
from hpcHess.lowrank.basis import summed
from hpcHess.lowrank.factors import Woodbury
from hpcHess.parallel.exchange import gather_rows
from hpcHess.parallel.shared import HostArray

_ROWS = 4096  # coefficients converted at a time
_COLUMNS_BYTES = 1 << 28  # of whole columns at a time
_BATCH = 1 << 22  # numbers gathered at a time for entries


class LowRankMatrix(CompressedMatrix):
    """Symmetric H̃ [N, N] of rank r: U Λ Uᵀ, or P B Pᵀ with r rows of P an identity (`lowrank.interpolative`).

    numbers       int64 [n], sorted, whole on every rank: parameters whose row of P is stored
    coefficients  backend array [n_own, r]: this rank's of those rows
    skeleton      int64 [r], sorted, whole on every rank: parameters where P is the identity, or [0] for U Λ Uᵀ
    core          backend array: Λ [r], or B [r, r], the same on every rank
    eigenvalues   float64 [r] of H̃, largest magnitude first
    `entries` and `entries_batch` are not collective: they need `gathered()` before.
    """

    format = "low-rank"
    solvers = ("woodbury",)

    def __init__(self, comm, backend, n_params, numbers, coefficients, skeleton, core, eigenvalues, report=None):
        super().__init__(comm, backend, n_params, coefficients.dtype, report)
        self.numbers, self.coefficients, self.skeleton, self.core, self.eigenvalues = numbers, coefficients, skeleton, core, eigenvalues
        mine = self.mine
        self.row_starts = np.searchsorted(numbers, self.parameter_starts)  # of the stored rows of every rank
        self._rows = numbers[self.row_starts[comm.rank] : self.row_starts[comm.rank + 1]] - mine.start
        self._positions = np.flatnonzero((skeleton >= mine.start) & (skeleton < mine.stop))
        self._skeleton_rows = skeleton[self._positions] - mine.start
        self._gram = self._whole_basis = None

    @property
    def rank(self):
        """r."""
        return len(self.eigenvalues)

    @property
    def n_alive(self):
        """Parameters whose row of H̃ is not zero by structure."""
        return len(self.numbers) + len(self.skeleton)

    def matmat_rows(self, V):
        """H̃V in parameter rows, [n_local, k] → [n_local, k]; the wider of stored and given precision."""
        xp, backend = self.backend.xp, self.backend
        dtype = np.result_type(self.dtype, V.dtype)
        X, Y = backend.asarray(np.ascontiguousarray(V[self._rows], dtype)), xp.zeros((self.rank, V.shape[1]), dtype=dtype)
        for at in self._chunks():
            Y += self.coefficients[at].astype(dtype, copy=False).T @ X[at]
        partial = backend.to_host(Y)
        partial[self._positions] += V[self._skeleton_rows]
        Y = self._core_times(backend.asarray(summed(self.comm, partial), dtype))
        for at in self._chunks():
            X[at] = self.coefficients[at].astype(dtype, copy=False) @ Y
        result = np.zeros(V.shape, dtype)
        result[self._rows] = backend.to_host(X)
        result[self._skeleton_rows] = backend.to_host(Y)[self._positions]
        return result

    def _chunks(self):
        return [slice(at, at + _ROWS) for at in range(0, len(self._rows), _ROWS)]

    def _core_times(self, Y):
        """M Y, [r, k]."""
        core = self.core.astype(Y.dtype, copy=False)
        return core[:, None] * Y if core.ndim == 1 else core @ Y

    def core_matrix(self):
        """M as a host array, float64 [r, r]."""
        core = self.backend.to_host(self.core).astype(np.float64)
        return np.diag(core) if core.ndim == 1 else core

    def basis_rows(self, dtype=None):
        """This rank's rows of P of the parameters that are alive, host array [n_alive_local, r], and those rows, counted in parameter rows."""
        P = np.zeros((self._rows.size + self._positions.size, self.rank), dtype or self.dtype)
        rows = np.sort(np.concatenate([self._rows, self._skeleton_rows]))
        P[np.searchsorted(rows, self._rows)] = self.backend.to_host(self.coefficients)
        P[np.searchsorted(rows, self._skeleton_rows), self._positions] = 1
        return P, rows

    def gram(self):
        """PᵀP, float64 [r, r], whole on every rank; kept. Collective."""
        if self._gram is None:
            total = np.zeros((self.rank, self.rank))
            for at in self._chunks():
                C = self.backend.to_host(self.coefficients[at]).astype(np.float64)
                total += C.T @ C
            total[self._positions, self._positions] += 1
            self._gram = summed(self.comm, total)
        return self._gram

    def diagonal_rows(self):
        """H̃_jj of the own parameter rows, float64 [n_local]."""
        result, M = np.zeros(self.mine.stop - self.mine.start), self.core_matrix()
        for at in self._chunks():
            C = self.backend.to_host(self.coefficients[at]).astype(np.float64)
            result[self._rows[at]] = np.einsum("ij,ij->i", C @ M, C)
        result[self._skeleton_rows] = np.diagonal(M)[self._positions]
        return result

    def norm_frobenius(self):
        """‖P M Pᵀ‖_F = tr(M G M G)^½, G = PᵀP; exact."""
        product = self.core_matrix() @ self.gram()
        return float(np.sqrt(max(0.0, np.sum(product * product.T))))

    def storage(self):
        """Numbers that a product needs: the coefficients and the core, its symmetric half once."""
        r = self.rank
        entries = len(self.numbers) * r + (r if self.core.ndim == 1 else r * (r + 1) // 2)
        percent = 100.0 * entries / float(self.n_params) ** 2
        return {"storage_entries": entries, "storage_bytes": entries * self.dtype.itemsize, "storage_percent": percent}

    def gathered(self):
        """P [N, r], whole, once per host, for `entries`; self. Collective."""
        if self._whole_basis is None:
            P, rows = self.basis_rows()
            held = HostArray(self.comm, (self.n_params, self.rank), self.dtype)
            share, width = held.share_of(self.n_params), max(1, _COLUMNS_BYTES // (self.n_params * self.dtype.itemsize))
            for at in range(0, self.rank, width):
                local = np.zeros((self.mine.stop - self.mine.start, min(width, self.rank - at)), self.dtype)
                local[rows] = P[:, at : at + width]
                held.array[share, at : at + width] = gather_rows(self.comm, local, self.parameter_starts)[share]
            held.fence()
            self._whole_basis = held.array
        return self

    def entries(self, I, J):
        """H̃[I, J], [|I|, |J|], after `gathered`. Not collective."""
        return self.entries_batch(I, np.array([0, len(I)]), J, np.array([0, len(J)]))[0]

    def entries_batch(self, I, starts_I, J, starts_J):
        """`backend.Blocks` of H̃[I_b, J_b] for flat index arrays cut at the starts, after `gathered`; blocks of one shape together. Not collective."""
        if self._whole_basis is None:
            raise RuntimeError("entries of a low-rank matrix need gathered() before, on all ranks")
        P, M = self._whole_basis, self.backend.to_host(self.core)
        result = Blocks.shaped(lambda size: np.empty(size, self.dtype), np.diff(starts_I), np.diff(starts_J))
        I, J = np.asarray(I, np.int64), np.asarray(J, np.int64)
        for rows, cols in np.unique(np.stack([result.rows, result.cols], axis=1), axis=0):
            alike = np.flatnonzero((result.rows == rows) & (result.cols == cols))
            step = max(1, _BATCH // max(1, (rows + cols) * self.rank + rows * cols))
            for at in range(0, len(alike), step):
                which = alike[at : at + step]
                left = P[I[np.asarray(starts_I)[which][:, None] + np.arange(rows)]]
                right = P[J[np.asarray(starts_J)[which][:, None] + np.arange(cols)]]
                left = left * M if M.ndim == 1 else left @ M
                where = result.offsets[which][:, None] + np.arange(rows * cols)
                result.data[where] = (left @ right.transpose(0, 2, 1)).reshape(len(which), -1)
        return result

    def _factorized(self, damping, solver):
        return Woodbury.of(self, damping)

    def append(self, out):
        """Its datasets (docs/FORMAT.md) into `out`; the format's root attributes. Not collective."""
        from hpcHess.lowrank.file import append

        return append(self, out)
