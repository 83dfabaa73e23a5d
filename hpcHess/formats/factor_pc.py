"""Compressed matrices as preconditioners of any PETSc program; of a factor file by options alone:

    -pc_type python -pc_python_type hpcHess.FactorFilePC -pc_hpchess_file F.h5 -pc_hpchess_damping 0.01*lmax [-pc_hpchess_solver ulv]
"""

from argparse import ArgumentTypeError

from hpcHess.compressed.damping import damping_of, parse_damping
from hpcHess.curvature.from_job import operator_of_matrix
from hpcHess.formats.file import load
from hpcHess.krylov.preconditioner import ApproximateInverse, mpi_comm, own_rows, pc_options
from hpcHess.krylov.preconditioner import petsc_pc as pc_of_inverse
from hpcHess.runtime.errors import InputError


def petsc_pc(H, damping, columns=1, solver=None):
    """A PETSc PC of type python that applies an approximate (H̃ + λI)⁻¹. Collective; needs petsc4py (`krylov.preconditioner`).

    By direct factors (`solver`: elimination, ulv, woodbury) with the signs dropped where H̃ + λI is indefinite; where a format has none, by
    what preconditions its solves. Give it to a KSP before the operator: `ksp.setPC(pc)`, then `ksp.setOperators(hh.petsc_mat(op, shift=λ))`.
    InputError where there is none.
    """
    factors = H.factorize(damping, solver) if H.direct else H.preconditioning_factors(damping, solver)
    if factors is None:
        raise InputError(f"a matrix of the format {H.format} has no preconditioner")
    return pc_of_inverse(factors.preconditioner(), columns)


def _operator_or_none(matrix):
    """The uncompressed operator of the file's job, of whose samples some preconditioners are made; None where its files are gone. Collective."""
    try:
        return operator_of_matrix(matrix)
    except InputError:
        return None


class FactorFilePC(ApproximateInverse):
    """Context of a PC of type python: an approximate (H̃ + λI)⁻¹ from a factor file of any format, positive definite (`DirectFactors.preconditioner`).

    Options, behind the PC's prefix: `pc_hpchess_file`, `pc_hpchess_damping` (a number, or like 0.01*lmax), `pc_hpchess_solver`
    (default: that of the file's job). The program's Mat is H + λI in parameter order, with PETSc's default rows. An FMM file gives its
    coarser HSS matrix, a Kronecker sum the elimination of the last layers, for which the job's files must be there; a λ below the compression error is raised to a safe one (`compressed.iterative`). Stored factors of
    that λ and solver are used. Factors are made once; PETSc shows InputErrors as its own, with their line.
    """

    def __init__(self):
        super().__init__(None)
        self._made = None

    def setUp(self, pc):
        """Read the file and make the factors, unless these options did before. Collective."""
        given = pc_options(pc, "pc_hpchess_file", "pc_hpchess_damping", "pc_hpchess_solver")
        if given == self._made:
            return
        path, text, solver = given
        for name, value in (("file F.h5", path), ("damping λ", text)):
            if value is None:
                raise InputError(f"the preconditioner hpcHess.FactorFilePC needs the option -pc_hpchess_{name}")
        try:
            damping = parse_damping(text)
        except ArgumentTypeError as error:
            raise InputError(f"-pc_hpchess_damping: {error}") from None
        matrix = load(path, mpi_comm(pc))
        if any(matrix.comm.allgather(own_rows(pc) != (matrix.mine.start, matrix.mine.stop))):
            raise InputError(f"the matrix of this PC has not the {matrix.n_params} parameter rows of {path} in PETSc's default layout")
        if not matrix.direct and matrix.preconditioner is None:
            matrix.operator = _operator_or_none(matrix)
        factors = matrix.preconditioning_factors(damping_of(damping, matrix), solver)
        if factors is None:
            raise InputError(f"{path} holds a matrix of the format {matrix.format} without a preconditioner")
        self._S, self._made = factors.preconditioner(), given
        self._told = f"{factors.solver} factors of {path} for damping {factors.damping:g}"

    def view(self, _pc, viewer):
        """One line for -ksp_view."""
        viewer.printfASCII(f"  hpcHess: {self._told if self._made else 'not set up'}\n")
