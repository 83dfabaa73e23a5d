"""What `import hpcHess` offers around a compressed matrix, with COMM_WORLD where no communicator is given."""

from hpcHess.hierarchical.file import load as load_file


def load(path, comm=None, backend="auto", verify=True):
    """The compressed matrix in a factor file, on any number of ranks (`hierarchical.file.load`). Collective; COMM_WORLD by default."""
    if comm is None:
        from mpi4py import MPI

        comm = MPI.COMM_WORLD
    return load_file(path, comm, backend, verify)


def petsc_pc(H, damping, columns=1):
    """A PETSc PC of type python that applies (H̃ + λI)⁻¹ by Woodbury factors. Collective; needs petsc4py (`krylov.preconditioner`).

    Give it to a KSP before the operator: `ksp.setPC(pc)`, then `ksp.setOperators(hh.petsc_mat(op, shift=λ))`.
    """
    from hpcHess.krylov.preconditioner import petsc_pc as make

    return make(H.factorize(damping), columns)
