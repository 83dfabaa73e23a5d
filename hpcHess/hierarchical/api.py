"""What `import hpcHess` offers around a compressed matrix, with COMM_WORLD where no communicator is given."""

from hpcHess.hierarchical.file import load as load_file
from hpcHess.hierarchical.iterative import preconditioning_factors
from hpcHess.runtime.errors import InputError


def load(path, comm=None, backend="auto", verify=True):
    """The compressed matrix in a factor file, on any number of ranks (`hierarchical.file.load`). Collective; COMM_WORLD by default."""
    if comm is None:
        from mpi4py import MPI

        comm = MPI.COMM_WORLD
    return load_file(path, comm, backend, verify)


def petsc_pc(H, damping, columns=1, solver=None):
    """A PETSc PC of type python by direct factors (`solver`: elimination, ulv, woodbury). Collective; needs petsc4py (`krylov.preconditioner`).

    It applies (H̃ + λI)⁻¹, with the signs dropped where H̃ + λI is indefinite; for an FMM matrix that of its coarser HSS matrix.

    Give it to a KSP before the operator: `ksp.setPC(pc)`, then `ksp.setOperators(hh.petsc_mat(op, shift=λ))`.
    """
    from hpcHess.krylov.preconditioner import petsc_pc as make

    factors = H.factorize(damping, solver) if H.format == "hss" else preconditioning_factors(H, damping, solver)
    if factors is None:
        raise InputError("this FMM matrix has no preconditioner: compress it again")
    return make(factors.preconditioner(), columns)
