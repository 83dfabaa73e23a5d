"""`python -m hpcHess`: the drivers, one line each."""

import sys

DRIVERS = {
    "compress": "a network's curvature matrix into a factor file",
    "multiply": "vectors with a factor file's matrix, or with the exact operator",
    "solve": "linear systems by a factor file, or by PETSc with its factors as preconditioner",
    "info": "what a factor file holds, what was asked and what was reached",
    "datasets": "fetch the known data sets",
}

if __name__ == "__main__":
    print("mpiexec -n P python -m hpcHess.<driver> …, each with --help:")
    for name, what in DRIVERS.items():
        print(f"  hpcHess.{name:<10}{what}")
    sys.exit(0 if sys.argv[1:] in (["--help"], ["-h"]) else 2)
