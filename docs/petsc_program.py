"""Any PETSc program: A x = b with what the options say. A.npy [N, N] is H + λI in parameter order, b.npy [N]; x.npy is written.

mpiexec -n 2 python docs/petsc_program.py A.npy b.npy x.npy -ksp_type cg -ksp_rtol 1e-10 -ksp_monitor \\
    -pc_type python -pc_python_type hpcHess.FactorFilePC -pc_hpchess_file F.h5 -pc_hpchess_damping 0.01*lmax
"""

import sys

import petsc4py

petsc4py.init(sys.argv)
import numpy as np  # noqa: E402
from petsc4py import PETSc  # noqa: E402

A, b = np.load(sys.argv[1]), np.load(sys.argv[2])
mat = PETSc.Mat().createDense(A.shape, comm=PETSc.COMM_WORLD)  # PETSc's default rows: those of the factor file
mat.setUp()
first, last = mat.getOwnershipRange()
mat.setValues(range(first, last), range(len(A)), A[first:last])
mat.assemble()
ksp = PETSc.KSP().create(PETSc.COMM_WORLD)
ksp.setOperators(mat)
ksp.setFromOptions()
x, right = mat.createVecs()
right.setValues(range(first, last), b[first:last])
right.assemble()
ksp.solve(right, x)
PETSc.Sys.Print(f"{ksp.getIterationNumber()} iterations, converged reason {ksp.getConvergedReason()}")
zeroth = PETSc.Scatter.toZero(x)
zeroth[0].scatter(x, zeroth[1])
if PETSc.COMM_WORLD.rank == 0:
    np.save(sys.argv[3], zeroth[1].getArray())
