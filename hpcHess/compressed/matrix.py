"""What every compressed matrix offers, whatever its format: products, solves, log-determinants, diagonal, trace, saving."""

import numpy as np
from mpi4py import MPI

from hpcHess.compressed.damping import check_damping, doubts
from hpcHess.compressed.iterative import preconditioning_factors, solve_rows
from hpcHess.compressed.stochastic import LogDet, logdet
from hpcHess.parallel.agree import tell
from hpcHess.parallel.exchange import gather_rows
from hpcHess.parallel.ownership import row_starts, whole_rows
from hpcHess.runtime.errors import InputError

KEPT = 2  # direct factors at a time: those of λ, and of the shift that preconditions (`compressed.iterative`)


class CompressedMatrix:
    """Symmetric H̃ [N, N] over the parameters, distributed over `comm`. Built by `hpcHess.compress` or `hpcHess.load`.

    A format is a subclass. It sets

        format     its name in job files and factor files (an attribute or a property)
        solvers    names of the forms of direct factors that `_factorized` makes, the default first; () where solves are iterative

        stores_factors  whether direct factors, its own or its preconditioner's, go into its file (`DirectFactors.append`)

    and offers, all collective,

        matmat_rows(V)                  H̃V in parameter rows (`parallel.ownership.row_starts`), [n_local, k] → [n_local, k], in the wider of
                                        stored and given precision
        diagonal_rows()                 H̃_jj of the own parameter rows, float64 [n_local]
        norm_frobenius()                ‖H̃‖_F, float; exact but where a format says otherwise
        storage()                       {"storage_entries", "storage_bytes", "storage_percent", …} for the report
        _factorized(damping, solver)    `compressed.factors.DirectFactors` of H̃ + λI, where there are direct ones
        append(out)                     its datasets into `compressed.file.Pieces`; returns its root attributes
        n_alive                         number of parameters whose row of H̃ is not zero by structure

    l2             of a term l2·I that H̃ holds besides what is compressed (`compressed.regularized`), else 0
    report         what was asked and reached (docs/FORMAT.md)
    operator       the uncompressed operator where the matrix was made from it here, else None
    preconditioner a second CompressedMatrix with direct factors, that preconditions solves where this one has none, or None
    """

    format = None
    solvers = ()
    stores_factors = False
    l2 = 0.0  # of a term l2 I in H̃ (`compressed.regularized`)

    def __init__(self, comm, backend, n_params, dtype, report=None):
        self.comm, self.backend, self.n_params, self.dtype = comm, backend, int(n_params), np.dtype(dtype)
        self.report = report if report is not None else {}
        self.parameter_starts = row_starts(n_params, comm.size)
        self._factors, self._told = {}, None
        self.indefinite = -1.0  # H̃ + σI is known to have negative eigenvalues for all 0 ≤ σ ≤ this
        self.operator = self.network = self.preconditioner = None
        self.provenance, self.job_text, self.job_directory = {}, "", ""

    def __repr__(self):
        described = f"{type(self).__name__}(N = {self.n_params}, {self.dtype}"
        if "error_estimate" in self.report:
            storage, error = self.report["storage_percent"], self.report["error_estimate"]["value"]
            described += f", {storage:.3g} % of N², error {error:.2e} of ‖H‖_F"
        return described + ")"

    @property
    def shape(self):
        """(N, N)."""
        return self.n_params, self.n_params

    @property
    def mine(self):
        """The slice of this rank's parameter rows."""
        return slice(*(int(at) for at in self.parameter_starts[self.comm.rank : self.comm.rank + 2]))

    def matmat(self, V):
        """H̃V for V [N] or [N, k], whole on every rank, as is the result."""
        return self._whole(self.matmat_rows, V)

    __matmul__ = matmat

    def _whole(self, apply, V):
        V = whole_rows(V, self.n_params)
        result = gather_rows(self.comm, apply(V.reshape(self.n_params, -1)[self.mine]), self.parameter_starts)
        return result.reshape(V.shape)

    def diagonal(self):
        """H̃_jj, float64 [N], whole on every rank."""
        return gather_rows(self.comm, np.ascontiguousarray(self.diagonal_rows())[:, None], self.parameter_starts)[:, 0]

    def trace(self):
        """tr H̃, exact."""
        return self.comm.allreduce(float(np.sum(self.diagonal_rows())), MPI.SUM)

    @property
    def direct(self):
        """Whether `factorize` gives direct factors of H̃ + λI."""
        return bool(self.solvers)

    @property
    def solver(self):
        """Form of the direct factors where none is named: what the compression was asked for, else the first."""
        asked = self.report.get("solver")
        return asked if asked in self.solvers or not self.solvers else self.solvers[0]

    def factorize(self, damping, solver=None):
        """Direct factors of H̃ + λI, made at the first call for each λ and solver; the last ones are kept.

        solver: one of `solvers`, or None for `self.solver`. InputError where this format has none.
        HpcHessWarning (on rank 0, once) where λ is below the compression error, H̃ + λI is not definite, or digits were lost.
        """
        factors = self.factors(damping, solver)
        key = damping, factors.solver
        if self._told != key:
            self._told = key
            tell(self.comm, doubts(factors))
        return factors

    def factors(self, damping, solver=None):
        """`factorize` without its warnings."""
        check_damping(damping)
        key = damping, self._form(solver)
        if key not in self._factors:
            self._drop(KEPT - 1)
            self.install(self._factorized(*key))
        self._factors[key] = self._factors.pop(key)  # the last used are kept
        return self._factors[key]

    def _form(self, solver):
        """The name of a form of direct factors; InputError where this format has none of that name."""
        solver = solver or self.solver
        if not self.direct:
            raise InputError(f"a matrix of the format {self.format} has no direct factors or inertia (its solves are iterative)")
        if solver not in self.solvers:
            raise InputError(f"the solver of the format {self.format} must be {' or '.join(self.solvers)}, not {solver!r}")
        return solver

    def holds(self, damping, solver=None):
        """Whether `factors` of these are at hand. Not collective; the same on all ranks."""
        return (damping, self._form(solver)) in self._factors

    def _drop(self, kept):
        for key in list(self._factors)[: max(0, len(self._factors) - kept)]:
            del self._factors[key]

    def install(self, factors):
        """Keep direct factors made before, for solves with their damping and solver; the last `KEPT` that were used are kept."""
        self._factors[factors.damping, factors.solver], self._told = factors, None
        self._drop(KEPT)
        if factors.negative:
            self.indefinite = max(self.indefinite, factors.damping)

    def preconditioning_factors(self, damping, solver=None):
        """An approximate (H̃ + λI)⁻¹ and (H + λI)⁻¹: anything with `solve_rows`, `definite`, `damping`, `solver`, `preconditioner()`; None
        where there is none. A format with a better one than direct factors (`compressed.iterative`) overrides this.
        """
        return preconditioning_factors(self, damping, solver)

    def solve(self, B, damping, solver=None, rtol=1e-10):
        """(H̃ + λI)⁻¹B in float64 for B [N] or [N, k], whole on every rank.

        By direct factors (`factorize`) where there are any; else by PETSc's CG or MINRES with `preconditioning_factors`, to a
        residual of rtol·‖b‖ for every column (`compressed.iterative`).
        """
        if self.direct:
            return self._whole(self.factorize(damping, solver).solve_rows, B)
        return self._whole(lambda rows: solve_rows(self, rows, damping, solver, rtol=rtol), B)

    def logdet(self, damping, solver=None, **keywords):
        """(sign, log|det(H̃ + λI)|) as a `compressed.stochastic.LogDet`: exact by direct factors, else by stochastic Lanczos quadrature with a
        95 % interval in `.low` and `.high` (keywords: probes, steps, seed). λ's share of the dead parameters is in it.
        """
        if self.direct:
            return LogDet(*self.factorize(damping, solver).slogdet())
        return logdet(self, damping, **keywords)

    def inertia(self, damping, solver=None):
        """(positive, negative) eigenvalues of H̃ + λI, where there are direct factors."""
        return self.factorize(damping, solver).inertia()

    def aslinearoperator(self):
        """H̃ as a `scipy.sparse.linalg.LinearOperator` (whole vectors on every rank)."""
        from scipy.sparse.linalg import LinearOperator

        products = dict.fromkeys(("matvec", "rmatvec", "matmat", "rmatmat"), self.matmat)
        return LinearOperator(self.shape, dtype=self.dtype, **products)

    def save(self, path, **details):
        """Write the factor file (docs/FORMAT.md); details as of `compressed.file.save`."""
        from hpcHess.compressed.file import save

        save(self, path, **details)
