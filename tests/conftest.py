"""Fixtures of every test, and the guard that keeps the ranks of a parallel run together.

Under ``mpiexec`` every rank runs every test. After each phase of a test (set-up, call, tear-down) the ranks tell each other how it went:

* a phase that fails on one rank fails on all, with that rank's report, so rank 0's report is complete and ``-x`` stops everyone;
* a rank that failed while the others wait in a collective call would wait for ever: after ``PATIENCE`` seconds it prints its report
  and aborts the job. (A test that takes longer than pytest's ``timeout`` ends its rank, and with it the job.)
"""

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI

PATIENCE = 30.0
PASSED, SKIPPED, FAILED = 0, 1, 2
CODES = {"passed": PASSED, "skipped": SKIPPED, "failed": FAILED}


class RankGuard:
    """Agreement of the ranks of COMM_WORLD on the outcome of every phase; its hooks are collective."""

    def __init__(self):
        self.comm = MPI.COMM_WORLD.Dup()

    def pytest_collection_finish(self, session):
        """Ranks that collected different tests cannot run them together."""
        everywhere = self.comm.allgather((session.testsfailed, tuple(item.nodeid for item in session.items)))
        if any(other != everywhere[0] for other in everywhere):
            counts = [len(ids) for _, ids in everywhere]
            pytest.exit(f"the ranks collected different tests: {counts}, errors {[errors for errors, _ in everywhere]}", 3)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        """A failed phase, and a set-up that skips, have that outcome on every rank."""
        report = yield
        own = CODES[report.outcome]
        worst = self._worst(own, report)
        if worst == FAILED or (worst == SKIPPED and call.when == "setup"):
            self._share(own, worst, report)
        return report

    def _worst(self, own, report):
        worst = np.zeros(1, dtype="i")
        request = self.comm.Iallreduce(np.array([own], dtype="i"), worst, op=MPI.MAX)
        deadline = time.monotonic() + PATIENCE if own == FAILED else float("inf")
        pause = 1e-4
        while not request.Test():
            if time.monotonic() > deadline:
                self._abort(report)
            time.sleep(pause)
            pause = min(2 * pause, 1e-2)
        return int(worst[0])

    def _abort(self, report):
        where = f"{report.nodeid} failed on rank {self.comm.rank}"
        print(f"\n{where}, and other ranks have not come to its end within {PATIENCE:.0f} s: the job is aborted.", file=sys.stderr)
        print(report.longreprtext, file=sys.stderr, flush=True)
        time.sleep(0.2)  # Open MPI 5 drops what is still on its way at an abort
        self.comm.Abort(1)

    def _share(self, own, worst, report):
        if isinstance(report.longrepr, tuple):
            text = report.longrepr[2]
        else:
            crash = getattr(report.longrepr, "reprcrash", None)
            text = f"{crash.message if crash else 'failed'}\n{report.longreprtext}"
        texts = self.comm.allgather((own, text))
        if own == worst:
            return
        ranks = [rank for rank, (code, _) in enumerate(texts) if code == worst]
        message = f"on rank {', '.join(map(str, ranks))}: {texts[ranks[0]][1]}"
        if worst == FAILED:
            report.outcome, report.longrepr = "failed", message
        else:
            report.outcome, report.longrepr = "skipped", (str(report.fspath), report.location[1], message)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    if MPI.COMM_WORLD.size > 1:
        # a signal cannot interrupt an MPI call; the thread ends the rank, and with it the job
        config.option.timeout_method = "thread"
        config.pluginmanager.register(RankGuard(), "rank-guard")


def no_gpu():
    """Why tests marked ``gpu`` cannot run here; None where they can."""
    try:
        import cupy

        return None if cupy.cuda.runtime.getDeviceCount() else "no GPU"
    except ImportError:
        return "cupy is not installed"
    except Exception as error:  # no driver: the class is cupy's own
        return f"no GPU: {error}"


def no_slurm():
    """Why tests marked ``slurm`` cannot run here; None where they can."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin"
    missing = [name for name in ("slurmctld", "slurmd", "sbatch", "munged") if shutil.which(name, path=path) is None]
    return f"Slurm is not installed: no {', '.join(missing)}" if missing else None


def pytest_collection_modifyitems(items):
    for marker, why in (("gpu", no_gpu), ("slurm", no_slurm)):
        marked = [item for item in items if item.get_closest_marker(marker)]
        if marked and (reason := why()):
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def comm():
    """All ranks."""
    return MPI.COMM_WORLD


@pytest.fixture
def shared_tmp(comm):
    """A new folder, the same on all ranks, gone after the test. Collective."""
    folder = comm.bcast(tempfile.mkdtemp(prefix="hpcHess-") if comm.rank == 0 else None)
    yield Path(folder)
    comm.Barrier()
    if comm.rank == 0:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def data_dir():
    """The folder of the data sets (HPCHESS_DATA)."""
    folder = os.environ.get("HPCHESS_DATA")
    if not folder:
        pytest.skip("HPCHESS_DATA is not set: no data sets")
    if not Path(folder).is_dir():
        pytest.skip(f"HPCHESS_DATA is not a folder: {folder}")
    return Path(folder)
