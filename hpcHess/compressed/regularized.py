"""H̃ + l2 I for a compressed H̃ of any format."""

from hpcHess.compressed.certificate import largest_eigenvalue
from hpcHess.compressed.damping import check_damping
from hpcHess.compressed.matrix import CompressedMatrix
from hpcHess.curvature.regularized import Regularized

_WITHOUT = "lambda_max_unregularized"  # of the report


class RegularizedMatrix(CompressedMatrix):
    """H̃ + l2 I [N, N] of `unregularized` = H̃, a CompressedMatrix of any format, whose format it has. Collective.

    Everything it says is of the sum: products, diagonal, trace, norm, solves (H̃ + (l2 + λ) I)⁻¹ with a damping λ apart, log-determinants, inertia,
    λ_max (and λ_min) of the report. What H̃ was judged by stays what it is without the term: `report["rtol"]`, `error_estimate` and `norm_frobenius` are
    of H and relative to ‖H‖_F. The error is that of the sum too, (H̃ + l2 I) − (H + l2 I) = H̃ − H, and relative to ‖H + l2 I‖_F, which for a semidefinite
    H is no smaller than ‖H‖_F, it is no larger. So much of the matrix; products in float32 round l2 V and the sum as well, by up to
    6e-8 (‖H̃V‖_F + 3 l2 ‖V‖_F), which for l2 ≫ ‖H‖ may be more than that error.
    """

    def __init__(self, unregularized, l2, report=None):
        # not the base's: what it sets are properties here
        self.unregularized, self.l2, inner = unregularized, float(l2), unregularized
        self.comm, self.backend, self.n_params, self.dtype = inner.comm, inner.backend, inner.n_params, inner.dtype
        self.parameter_starts, self._told, self.network = inner.parameter_starts, None, None
        self.provenance, self.job_text, self.job_directory = {}, "", ""
        if report is None:
            more = {_WITHOUT: inner.report["lambda_max"], "lambda_max": largest_eigenvalue(self, inner.report.get("seed", 0))}
            report = inner.report | {"l2": self.l2} | more | _moved(inner.report, self.l2)
        self.report = report

    @classmethod
    def read(cls, unregularized, l2, report):
        """Of H̃ and the report in its file, which H̃ gets as it was without the term."""
        unregularized.report = {key: value for key, value in report.items() if key not in ("l2", _WITHOUT)} | {"lambda_max": report[_WITHOUT]}
        unregularized.report |= _moved(report, -l2)
        return cls(unregularized, l2, report)

    def __repr__(self):
        return f"{self.unregularized!r} + {self.l2:g} I"

    @property
    def format(self):
        """That of H̃."""
        return self.unregularized.format

    @property
    def solvers(self):
        """Forms of direct factors: those of H̃."""
        return self.unregularized.solvers

    @property
    def stores_factors(self):
        """Whether factors go into the file: as of H̃."""
        return self.unregularized.stores_factors

    @property
    def n_alive(self):
        """N: no row is zero."""
        return self.n_params

    @property
    def operator(self):
        """H + l2 I, or None: a `curvature.regularized.Regularized` where one is known; set as such."""
        inner = self.unregularized.operator
        return None if inner is None else Regularized(inner, self.l2)

    @operator.setter
    def operator(self, operator):
        self.unregularized.operator = None if operator is None else operator.unregularized

    @property
    def preconditioner(self):
        """A second matrix that preconditions solves: as of H̃."""
        return self.unregularized.preconditioner

    @property
    def indefinite(self):
        """H̃ + (l2 + σ) I is known to have negative eigenvalues for all 0 ≤ σ ≤ this."""
        return self.unregularized.indefinite - self.l2

    def matmat_rows(self, V):
        """(H̃ + l2 I)V in parameter rows, [n_local, k] → [n_local, k]."""
        result = self.unregularized.matmat_rows(V)
        return (result + self.l2 * V).astype(result.dtype, copy=False)

    def diagonal_rows(self):
        """H̃_jj + l2 of the own parameter rows, float64."""
        return self.unregularized.diagonal_rows() + self.l2

    def norm_frobenius(self):
        """‖H̃ + l2 I‖_F² = ‖H̃‖_F² + 2 l2 tr H̃ + N l2²."""
        inner = self.unregularized
        return float((inner.norm_frobenius() ** 2 + 2 * self.l2 * inner.trace() + self.n_params * self.l2**2) ** 0.5)

    def storage(self):
        """That of H̃: the term is one number."""
        return self.unregularized.storage()

    def factors(self, damping, solver=None):
        """Direct factors of H̃ + (l2 + λ) I, as `CompressedMatrix.factors`; kept by H̃."""
        check_damping(damping)
        return _Shifted(self.unregularized.factors(damping + self.l2, solver), self, damping)

    def holds(self, damping, solver=None):
        """Whether those are at hand. Not collective; the same on all ranks."""
        return self.unregularized.holds(damping + self.l2, solver)

    def preconditioning_factors(self, damping, solver=None):
        """Those of H̃ and l2 + λ."""
        check_damping(damping)
        factors = self.unregularized.preconditioning_factors(damping + self.l2, solver)
        return None if factors is None else _Shifted(factors, self, damping)

    def logdet(self, damping, solver=None, **keywords):
        """(sign, log|det(H̃ + (l2 + λ) I)|) as of H̃ at l2 + λ."""
        check_damping(damping)
        return self.unregularized.logdet(damping + self.l2, solver, **keywords)

    def append(self, out):
        """The datasets of H̃; its attributes, `n_alive` of its own, and `l2`. Not collective."""
        self.unregularized.job_text, self.unregularized.job_directory = self.job_text, self.job_directory
        return {"n_alive": int(self.unregularized.n_alive)} | self.unregularized.append(out) | {"l2": self.l2}


class _Shifted:
    """Factors of H̃ and l2 + λ as those of H̃ + l2 I and λ; everything else is theirs."""

    def __init__(self, factors, matrix, damping):
        self._factors = factors
        exactly = factors.damping == damping + matrix.l2
        self.damping = damping if exactly else factors.damping - matrix.l2
        self.matrix = matrix if factors.matrix is matrix.unregularized else factors.matrix

    def __getattr__(self, name):
        return getattr(self._factors, name)


def _moved(report, shift):
    """λ_min of a report that has it (of an indefinite matrix), moved."""
    return {"lambda_min": report["lambda_min"] + shift} if "lambda_min" in report else {}
