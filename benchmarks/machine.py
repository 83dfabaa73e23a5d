"""What the results were measured on."""

import os
import platform
import subprocess
from pathlib import Path

from mpi4py import MPI

from hpcHess.runtime.provenance import provenance

ROOT = Path(__file__).parents[1]


def describe(comm):
    """Plain values of rank 0: processor, cores, ranks and threads, versions, date, commit (None where this is no checkout). Collective."""
    found = None
    if comm.rank == 0:
        origin = provenance(comm)
        found = {
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "cores_allowed": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "load_average": list(os.getloadavg()),
            "system": platform.platform(),
            "date": origin["created"],
            "host": origin["host"],
            "ranks": comm.size,
            "threads": {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")},
            "versions": origin["versions"] | {"mpi": MPI.Get_library_version().partition(",")[0].strip("\0\n ")},
            "blas": _blas(),
            "commit": _commit(),
        }
    return comm.bcast(found)


def describe_here():
    """The same of one process that is no rank."""
    return describe(MPI.COMM_SELF)


def _cpu_model():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _blas():
    """[{library, version, threads}] of the BLAS libraries loaded, None where threadpoolctl is missing."""
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return None
    loaded = (info for info in threadpool_info() if info["user_api"] == "blas")
    return [{"library": info["internal_api"], "version": info["version"], "threads": info["num_threads"]} for info in loaded]


def _commit():
    """The commit checked out, with "+" where files differ from it; None outside of a checkout."""
    git = lambda *words: subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=10)  # noqa: E731
    try:
        commit = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.TimeoutExpired):
        return None
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "") if commit.returncode == 0 else None
