"""PETSc and SLEPc: shell matrices, preconditioners, block Krylov solves. The only home of petsc4py and slepc4py, imported on first use."""
