"""`none`: H itself in its factored form, exact products, solves by CG; or, where H is no network's, the operator."""

import numpy as np

from hpcHess.compressed.matrix import CompressedMatrix
from hpcHess.curvature.dense import DenseMatrix
from hpcHess.curvature.sample_gram import hessian_norm
from hpcHess.factored.gram import gram_flops, norm_from_gram
from hpcHess.parallel.random import gaussian_rows
from hpcHess.runtime.errors import InputError

_EXACT_NORM = 4e11  # operations that ‖H‖_F may take on each rank, …
_EXACT_SAMPLES = 4096  # … or samples, where the operator is at hand; …
_NORM_PROBES = 64  # … else products with as many random vectors
_UNITS, _EXACT_COLUMNS = 64, 2048


class FactoredMatrix(CompressedMatrix):
    """H = (1/n) Σ_i J_iᵀ Q_i J_i by its `form` (`factored.form.FactoredForm`): exact, nothing of it is compressed. Solves are by CG."""

    format = "none"

    def __init__(self, form, n_alive, report=None):
        super().__init__(form.comm, form.backend, form.network.n_params, form.dtype, report)
        self.form, self.n_alive = form, int(n_alive)

    def matmat_rows(self, V):
        """HV in parameter rows, [n_local, k] → [n_local, k]; the wider of stored and given precision."""
        return self.form.matmat_rows(V)

    def diagonal_rows(self):
        """H_jj of the own parameter rows, float64."""
        return self.form.diagonal_rows()

    def norm_frobenius(self):
        """‖H‖_F: that of the samples' Gram matrix, exact, where that is affordable, else from random vectors."""
        if self.operator is not None and self.form.n <= _EXACT_SAMPLES and self.dtype == self.operator.dtype:
            return hessian_norm(self.operator.samples, self.comm)
        return norm_from_gram(self.form) if gram_flops(self.form) <= _EXACT_NORM * self.comm.size else probed_norm(self)

    def storage(self):
        """Numbers of the factored form (`factored.form`)."""
        return stored(self.form.entries, self.form.bytes, self.n_params)

    def append(self, out):
        """`factored/…` into `out`. Not collective."""
        return self.form.append(out)


class OperatorMatrix(CompressedMatrix):
    """An operator that is no network's as it is: nothing is stored. Products are in its own precision."""

    format = "none"

    def __init__(self, operator, backend, report=None):
        super().__init__(operator.comm, backend, operator.shape[0], operator.dtype, report)
        self.operator = operator

    @property
    def n_alive(self):
        """Parameters whose row of H is not zero."""
        return len(self.operator.alive)

    def matmat_rows(self, V):
        """HV in parameter rows, [n_local, k] → [n_local, k], computed in the operator's type."""
        found = self.operator.matmat_rows(np.ascontiguousarray(V, self.dtype))
        return found.astype(np.result_type(self.dtype, V.dtype), copy=False)

    def diagonal_rows(self):
        """H_jj of the own parameter rows, float64; of a black box by N products."""
        if hasattr(self.operator, "diagonal"):
            return self.operator.diagonal()[self.mine].astype(np.float64)
        return self._columns()[0]

    def norm_frobenius(self):
        """‖H‖_F: by N products, exact, where N is small, else from random vectors."""
        return self._columns()[1] if self.n_params <= _EXACT_COLUMNS else probed_norm(self)

    def _columns(self):
        """(H_jj of the own rows, ‖H‖_F) from products with all unit vectors. Collective."""
        first, diagonal, square = self.mine.start, np.empty(self.mine.stop - self.mine.start), 0.0
        for c in range(0, self.n_params, _UNITS):
            columns = np.arange(c, min(self.n_params, c + _UNITS))
            own = np.flatnonzero((columns >= first) & (columns < self.mine.stop))
            E = np.zeros((len(diagonal), len(columns)), self.dtype)
            E[columns[own] - first, own] = 1
            found = self.operator.matmat_rows(E)
            diagonal[columns[own] - first] = found[columns[own] - first, own]
            square += float(np.square(found, dtype=np.float64).sum())
        return diagonal, float(np.sqrt(self.comm.allreduce(square)))

    def storage(self):
        """Nothing: the matrix's own file, or the program, holds it."""
        return stored(0, 0, self.n_params)

    def append(self, out):
        """What the operator is made from again: the job that the frame of the file holds, or the file of a dense matrix and its digest. InputError
        where there is neither. Not collective.
        """
        if not isinstance(self.operator, DenseMatrix) or not self.operator.path:
            if self.job_text:
                return {"operator_job": True}
            raise InputError('format = "none" stores nothing of an operator that is in no file and of no job: compress it to another format to save it')
        return {"operator_file": self.operator.path, "operator_digest": self.operator.digest}


def stored(entries, n_bytes, n_params):
    """The report's storage of so many numbers."""
    return {
        "storage_entries": int(entries),
        "storage_bytes": int(n_bytes),
        "storage_percent": 100.0 * entries / float(n_params) ** 2,
    }


def probed_norm(matrix):
    """‖H‖_F estimated from random vectors: E ‖Hg‖² = ‖H‖_F². Collective."""
    mine, total = matrix.mine, 0.0
    for a in range(0, _NORM_PROBES, 32):
        G = np.ascontiguousarray(gaussian_rows(0, "norm", mine.start, mine.stop, range(a, a + 32), matrix.dtype))
        total += matrix.comm.allreduce(float(np.square(matrix.matmat_rows(G), dtype=np.float64).sum()))
    return float(np.sqrt(total / _NORM_PROBES))
