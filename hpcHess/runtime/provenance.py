"""Where a result comes from: versions, host, time, ranks and threads."""

import datetime
import importlib.metadata
import os
import platform
import socket

_PACKAGES = ("hpcHess", "numpy", "scipy", "mpi4py", "petsc4py", "scikit-learn")


def _threads():
    """OMP_NUM_THREADS of the outermost level ("4,2" nests), else the processors."""
    try:
        return max(1, int(os.environ.get("OMP_NUM_THREADS", "").split(",")[0]))
    except ValueError:
        return os.cpu_count() or 1


def provenance(comm):
    """What made this run, as plain values; the same on every rank is not promised (host, time). Not collective."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "ranks": comm.size,
        "threads": _threads(),
        "versions": versions,
    }
