"""Processes started by tests."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LAUNCHER = ("OMPI_COMM_", "OMPI_UNIVERSE", "OMPI_FILE", "OMPI_NUM", "OMPI_APP", "OMPI_FIRST", "PMIX_", "PMI_", "ORTE_", "H5PY_")
FOR_MANY_RANKS = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_hwloc_base_binding_policy": "none",
    "OMPI_MCA_mpi_yield_when_idle": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}


def outside_mpi():
    """The environment of a process that is not part of this process's MPI run, and finds the package."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHER)}
    return {**kept, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), kept.get("PYTHONPATH")]))}


def command(ranks, *arguments):
    launcher = ["mpiexec", "-n", str(ranks)] if ranks > 1 else []
    return [*launcher, sys.executable, *map(str, arguments)]


def launch(ranks, *arguments):
    """Run `python arguments…` on `ranks` ranks (one: without mpiexec); CompletedProcess with text output."""
    environment = {**FOR_MANY_RANKS, **outside_mpi()}
    command_line = command(ranks, *arguments)
    return subprocess.run(command_line, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
