"""The compressed matrix H̃ as users hold it: products, solves, log-determinants, storage."""

import numpy as np

from hpcHess.hierarchical.damping import check_damping, doubts
from hpcHess.hierarchical.evaluate import multiply_tree_rows
from hpcHess.hierarchical.iterative import solve_rows
from hpcHess.hierarchical.solvers import direct_solver
from hpcHess.parallel.agree import tell
from hpcHess.parallel.exchange import RowPermutation, gather_rows
from hpcHess.parallel.ownership import row_starts, whole_rows

KEPT = 2  # direct factors at a time: those of λ, and of the shift that preconditions (`hierarchical.iterative`)


class HierarchicalMatrix:
    """Symmetric H̃ [N, N] = near blocks + Σ over far pairs U_α B_αβ U_βᵀ, U nested (an H² matrix; HSS when near = self).

    Built by `hpcHess.compress` or `hpcHess.load`. All methods are collective. `report` holds what was asked and reached,
    `preconditioner` a coarser HSS matrix for solves where this one has no direct factors (FMM), else None.
    """

    def __init__(self, comm, backend, n_params, tree, near, levels, report=None):
        self.comm, self.backend, self.n_params, self.tree = comm, backend, n_params, tree
        self.near, self.levels, self.report = near, levels, report if report is not None else {}
        self.leaf_rows = tree.leaf_starts[near.owned]  # first tree row of each rank
        self.parameter_starts = row_starts(n_params, comm.size)
        self.permutation = RowPermutation(comm, tree.permutation, self.parameter_starts, self.leaf_rows)
        self._factors, self._told = {}, None
        self.indefinite = -1.0  # H̃ + σI is known to have negative eigenvalues for all 0 ≤ σ ≤ this
        self.operator = self.network = self.preconditioner = None
        self.provenance, self.job_text, self.job_directory = {}, "", ""

    def __repr__(self):
        described = f"HierarchicalMatrix(N = {self.n_params}, {self.dtype}, depth {self.tree.depth}"
        if "error_estimate" in self.report:
            storage, error = self.report["storage_percent"], self.report["error_estimate"]["value"]
            described += f", {storage:.3g} % of N², error {error:.2e} of ‖H‖_F"
        return described + ")"

    @property
    def shape(self):
        """(N, N)."""
        return self.n_params, self.n_params

    @property
    def dtype(self):
        """Of the stored numbers."""
        return np.dtype(self.near.blocks.dtype)

    @property
    def format(self):
        """`hss` where every leaf is near itself alone, else `fmm`."""
        return "hss" if np.array_equal(self.near.pairs[:, 0], self.near.pairs[:, 1]) else "fmm"

    @property
    def n_alive(self):
        """Parameters in the tree; the other rows of H are zero."""
        return self.tree.n

    def tree_rows(self, starts):
        """This rank's (first, last) of a row partition."""
        return int(starts[self.comm.rank]), int(starts[self.comm.rank + 1])

    def matmat_rows(self, V):
        """H̃V in parameter rows, [n_local, k] → [n_local, k]; the wider of stored and given precision."""
        W = np.ascontiguousarray(self.permutation.to_tree(V), np.result_type(self.dtype, V.dtype))
        return self.permutation.to_parameters(self.backend.to_host(multiply_tree_rows(self, self.backend.asarray(W))))

    def matmat(self, V):
        """H̃V for V [N] or [N, k], whole on every rank, as is the result."""
        return self._whole(self.matmat_rows, V)

    __matmul__ = matmat

    def _whole(self, apply, V):
        V = whole_rows(V, self.n_params)
        lo, hi = self.tree_rows(self.parameter_starts)
        result = gather_rows(self.comm, apply(V.reshape(self.n_params, -1)[lo:hi]), self.parameter_starts)
        return result.reshape(V.shape)

    @property
    def solver(self):
        """Form of the direct factors where none is named: what the compression was asked for, else elimination."""
        return self.report.get("solver", "elimination")

    def factorize(self, damping, solver=None):
        """Direct factors of H̃ + λI (`hierarchical.factors.Factors`), made at the first call for each λ and solver; the last ones are kept.

        solver: elimination, ulv, woodbury, or None for `self.solver`. InputError for an FMM matrix: it has none.
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
        key = damping, direct_solver(solver or self.solver).solver
        if key not in self._factors:
            self._drop(KEPT - 1)
            self.install(direct_solver(key[1]).factorize(self, damping))
        self._factors[key] = self._factors.pop(key)  # the last used are kept
        return self._factors[key]

    def holds(self, damping, solver=None):
        """Whether `factors` of these are at hand. Not collective; the same on all ranks."""
        return (damping, direct_solver(solver or self.solver).solver) in self._factors

    def _drop(self, kept):
        for key in list(self._factors)[: max(0, len(self._factors) - kept)]:
            del self._factors[key]

    def solve(self, B, damping, solver=None, rtol=1e-10):
        """(H̃ + λI)⁻¹B in float64 for B [N] or [N, k], whole on every rank.

        HSS: by direct factors (`factorize`). FMM: by PETSc's CG or MINRES, preconditioned by the factors of `preconditioner`, to
        a residual of rtol·‖b‖ for every column (`hierarchical.iterative`).
        """
        if self.format == "hss":
            return self._whole(self.factorize(damping, solver).solve_rows, B)
        return self._whole(lambda rows: solve_rows(self, rows, damping, solver, rtol=rtol), B)

    def logdet(self, damping, solver=None):
        """(sign, log|det(H̃ + λI)|) with λ's share of the dead parameters. HSS only."""
        return self.factorize(damping, solver).slogdet()

    def inertia(self, damping, solver=None):
        """(positive, negative) eigenvalues of H̃ + λI. HSS only."""
        return self.factorize(damping, solver).inertia()

    def aslinearoperator(self):
        """H̃ as a `scipy.sparse.linalg.LinearOperator` (whole vectors on every rank)."""
        from scipy.sparse.linalg import LinearOperator

        products = dict.fromkeys(("matvec", "rmatvec", "matmat", "rmatmat"), self.matmat)
        return LinearOperator(self.shape, dtype=self.dtype, **products)

    def install(self, factors):
        """Keep `Factors` made before, for solves with their damping and solver; the last `KEPT` that were used are kept."""
        self._factors[factors.damping, factors.solver], self._told = factors, None
        self._drop(KEPT)
        if factors.negative:
            self.indefinite = max(self.indefinite, factors.damping)

    def save(self, path, **details):
        """Write the factor file (docs/FORMAT.md); details as of `hierarchical.file.save`."""
        from hpcHess.hierarchical.file import save

        save(self, path, **details)
