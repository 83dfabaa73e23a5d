"""A structured part plus a hierarchical part: H̃ = S + (H − S)~ (docs/MATHEMATICS.md, "Sums of parts")."""

import json

import numpy as np

from hpcHess.compressed.factors import DirectFactors
from hpcHess.compressed.file import PartOfFile
from hpcHess.compressed.format import Format
from hpcHess.compressed.matrix import CompressedMatrix
from hpcHess.formats.remainder import dead_rows, masked_product
from hpcHess.parallel.replicated import replicated
from hpcHess.runtime.errors import InputError

NAME = "sum"
_SIZES = ("storage_entries", "storage_bytes", "storage_percent")


class SumMatrix(CompressedMatrix):
    """Π S Π + F, `parts` = [S, F]: CompressedMatrix objects over the same parameters, S of low rank or a Kronecker sum, F hierarchical. Π sets the
    rows to zero that are in no tree: H's are, a Kronecker sum's need not be.

    A low rank and an HSS matrix have direct factors together (`SumFactors`). Every other sum is solved by CG or MINRES with the preconditioner of
    the first of the parts that has one.
    """

    format = NAME

    def __init__(self, parts, report=None):
        first = parts[0]
        dtype = np.result_type(*(part.dtype for part in parts))
        super().__init__(first.comm, first.backend, first.n_params, dtype, report)
        self.parts, self.n_alive = list(parts), parts[-1].n_alive
        self._dead = dead_rows(parts[-1].tree.permutation, self.mine)

    @property
    def solvers(self):
        """Forms of direct factors: those of the HSS part where the other one has low rank."""
        structured, rest = self.parts[0], self.parts[-1]
        return rest.solvers if len(self.parts) == 2 and structured.format == "low-rank" else ()

    def matmat_rows(self, V):
        """(Π S Π + F) V in parameter rows, [n_local, k] → [n_local, k]."""
        return masked_product(self.parts[0], self._dead, V) + self.parts[-1].matmat_rows(V)

    def diagonal_rows(self):
        """H̃_jj of the own parameter rows, float64."""
        structured = self.parts[0].diagonal_rows()
        structured[self._dead] = 0
        return structured + self.parts[-1].diagonal_rows()

    def norm_frobenius(self):
        """‖A + B‖_F² = ‖A‖² + ‖B‖² + 2 tr(M PᵀBP), exact for A = P M Pᵀ; InputError for others, whose inner product with B takes N products."""
        structured, rest = self.parts[0], self.parts[-1]
        if not hasattr(structured, "basis_rows"):
            raise InputError("the Frobenius norm of a sum with Kronecker terms is not known exactly: take report['norm_frobenius']")
        P = _basis(structured)
        inner = float(np.sum(structured.core_matrix() * self.comm.allreduce(P.T @ np.asarray(rest.matmat_rows(P), np.float64))))
        return float(np.sqrt(max(0.0, structured.norm_frobenius() ** 2 + rest.norm_frobenius() ** 2 + 2 * inner)))

    def storage(self):
        """The parts' numbers together, and those of each."""
        stored = [part.storage() for part in self.parts]
        total = {key: sum(each[key] for each in stored) for key in _SIZES}
        return total | {"parts": [{"format": part.format} | each for part, each in zip(self.parts, stored, strict=True)]}

    def preconditioning_factors(self, damping, solver=None):
        """Those of the direct factors where there are any, else of the first part that has some."""
        if self.direct:
            return super().preconditioning_factors(damping, solver)
        for part in self.parts:
            part.operator = part.operator if part.operator is not None else self.operator
        found = (part.preconditioning_factors(damping, solver) for part in self.parts)
        return next((each for each in found if each is not None), None)

    def _factorized(self, damping, solver):
        return SumFactors(self, damping, solver)

    def append(self, out):
        """Every part's datasets under part0/, part1/, …; the attribute `sum_parts`. Not collective."""
        described = []
        for number, part in enumerate(self.parts):
            attributes = part.append(out.under(f"part{number}/"))
            common = {"matrix_format": part.format, "n_params": part.n_params, "n_alive": int(part.n_alive), "dtype": part.dtype.name}
            described.append(common | attributes | {"report": json.dumps(part.report, sort_keys=True)})
        return {"sum_parts": json.dumps(described)}


class SumFactors(DirectFactors):
    """(F + P M Pᵀ)⁻¹ by the Woodbury identity, F = H̃_hss + λI by its direct factors, P [N, r], M [r, r] regular:

        x = F⁻¹b − W C⁻¹ Pᵀ F⁻¹b,   W = F⁻¹P,   C = M⁻¹ + PᵀW,
        log|F + P M Pᵀ| = log|F| + log|M| + log|C|,   negative eigenvalues: those of F, plus positive ones of C, less positive ones of M

    (Haynsworth's inertia additivity on [[F, P], [Pᵀ, −M⁻¹]]). Collective.
    """

    signed = False

    def __init__(self, matrix, damping, solver):
        self.solver, structured = solver, matrix.parts[0]
        self._inner, self._P = matrix.parts[-1].factors(damping, solver), _basis(structured)
        self._W = self._inner.solve_rows(self._P)
        core, rotation = replicated(matrix.comm, np.linalg.eigh, structured.core_matrix())
        capacitance = (rotation / core) @ rotation.T + matrix.comm.allreduce(self._P.T @ self._W)
        self._theta, self._vectors = replicated(matrix.comm, np.linalg.eigh, (capacitance + capacitance.T) / 2)
        sizes = np.abs(self._theta)
        if len(sizes) and not sizes.min() > len(sizes) * np.finfo(np.float64).eps * sizes.max():
            raise InputError(f"H̃ + λI is singular to working precision at damping {damping:g}: use a larger damping")
        log_abs = self._inner.log_abs + float(np.log(np.abs(core)).sum() + np.log(sizes).sum())
        negative = self._inner.negative + int((self._theta > 0).sum()) - int((core > 0).sum())
        super().__init__(matrix, damping, log_abs, negative, self._inner.zero)

    def solve_rows(self, B, absolute=False):
        """(H̃ + λI)⁻¹B in parameter rows, float64 [n_local, k]."""
        X = self._inner.solve_rows(B)
        c = self._vectors @ ((self._vectors.T @ self.comm.allreduce(self._P.T @ X)) / self._theta[:, None])
        return X - self._W @ c


def _basis(low_rank):
    """P of a `LowRankMatrix` in parameter rows, float64 [n_local, r]."""
    stored, rows = low_rank.basis_rows(np.float64)
    P = np.zeros((low_rank.mine.stop - low_rank.mine.start, low_rank.rank))
    P[rows] = stored
    return P


def reader(formats):
    """`read` of the format, for parts of the `formats` {name: Format}."""

    def read(file, backend):
        parts = []
        for number, attributes in enumerate(json.loads(file.attributes["sum_parts"])):
            part = formats[attributes["matrix_format"]].read(PartOfFile(file, f"part{number}/", attributes), backend)
            part.report = json.loads(attributes["report"])
            parts.append(part)
        return SumMatrix(parts)

    return read


def describe(summary):
    """A line for each part."""
    for part in summary.get("parts", ()):
        yield f"part        {part['format']}: {part['storage_entries']:,} numbers, {part['storage_percent']:.4g} % of N²"


def sum_format(formats):
    """The registration, over the formats of the parts; made by `structured`, not asked for by name."""
    return Format(NAME, "a structured part plus a hierarchical part", None, reader(formats), (), describe)
