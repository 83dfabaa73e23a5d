"""A factor file as a preconditioner of any PETSc program, by options alone.

    -pc_type python -pc_python_type hpcHess.FactorFilePC -pc_hpchess_file F.h5 -pc_hpchess_damping 0.01*lmax [-pc_hpchess_solver ulv]
"""

from argparse import ArgumentTypeError

from hpcHess.hierarchical.damping import damping_of, parse_damping
from hpcHess.hierarchical.file import load
from hpcHess.hierarchical.iterative import preconditioning_factors
from hpcHess.krylov.preconditioner import ApproximateInverse, mpi_comm, own_rows, pc_options
from hpcHess.runtime.errors import InputError


class FactorFilePC(ApproximateInverse):
    """Context of a PC of type python: (H̃ + λI)⁻¹ by direct factors from a factor file, positive definite (`Factors.preconditioner`).

    Options, behind the PC's prefix: `pc_hpchess_file`, `pc_hpchess_damping` (a number, or like 0.01*lmax), `pc_hpchess_solver`
    (default: that of the file's job). The program's Mat is H + λI in parameter order, with PETSc's default rows. An FMM file gives its
    coarser HSS matrix; a λ below the compression error is raised to a safe one (`hierarchical.iterative`). Stored factors of
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
        if any(matrix.comm.allgather(own_rows(pc) != matrix.tree_rows(matrix.parameter_starts))):
            raise InputError(f"the matrix of this PC has not the {matrix.n_params} parameter rows of {path} in PETSc's default layout")
        factors = preconditioning_factors(matrix, damping_of(damping, matrix), solver)
        if factors is None:
            raise InputError(f"{path} holds an FMM matrix without a preconditioner: compress again")
        self._S, self._made = factors.preconditioner(), given
        self._told = f"{factors.solver} factors of {path} for damping {factors.damping:g}"

    def view(self, _pc, viewer):
        """One line for -ksp_view."""
        viewer.printfASCII(f"  hpcHess: {self._told if self._made else 'not set up'}\n")
