"""Jobs that are killed, terminated or asked for help, as real processes."""

import importlib.util
import os
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from mpi4py import MPI

from tests.drivers.drive import drive_all, write_job
from tests.storage.launch import FOR_MANY_RANKS, command, launch, outside_mpi

pytestmark = pytest.mark.skipif(MPI.COMM_WORLD.size > 1, reason="starts its own mpiexec")
LARGE = {"widths": (48, 30, 24, 10), "n": 300}  # seconds of work, in steps well below the one that launchers give after SIGTERM


@contextmanager
def started(ranks, *arguments):
    """A running driver, which is gone at the end."""
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command(ranks, *arguments), env={**FOR_MANY_RANKS, **outside_mpi()}, **streams) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()  # a killed mpiexec would leave its ranks
                process.communicate(timeout=20)


def wait_for(process, words):
    """Lines of standard error up to one that holds `words`."""
    seen = []
    for line in process.stderr:
        seen.append(line)
        if words in line:
            return seen
    raise AssertionError(f"{words!r} was never said:\n{''.join(seen)}")


def ranks_of(process):
    """The launcher's children that run Python."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(each) for each in children if "python" in Path(f"/proc/{each}/cmdline").read_text()]


def running(number):
    """Whether a process is there and no zombie (those wait for a parent that may not care)."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def finished(process):
    """(exit status, the rest of standard error)."""
    _, err = process.communicate(timeout=30)
    return process.returncode, err


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    return write_job(tmp_path_factory.mktemp("large"), rtol=1e-4, activation="relu", **LARGE)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_killed_rank_ends_the_job_without_a_file(rank, job, tmp_path):
    """kill -9 in the middle of the compression."""
    with started(3, "-m", "hpcHess.compress", job, "--output", tmp_path / "F.h5") as process:
        wait_for(process, "skeletons (attempt 1) …")
        ranks = ranks_of(process)
        assert len(ranks) == 3
        os.kill(sorted(ranks)[rank], signal.SIGKILL)
        status, err = finished(process)
    assert status != 0
    assert list(tmp_path.iterdir()) == []
    end = time.monotonic() + 10
    while any(map(running, ranks)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(running, ranks))
    assert "Traceback" not in err


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_terminated_compression_leaves_nothing(ranks, job, tmp_path):
    with started(ranks, "-m", "hpcHess.compress", job, "--output", tmp_path / "F.h5") as process:
        wait_for(process, "skeletons (attempt 1) …")
        process.terminate()
        status, err = finished(process)
    assert status == 128 + signal.SIGTERM if ranks == 1 else status != 0
    assert err.count("hpcHess: error: stopped by SIGTERM") == 1 and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_job_killed_while_writing_leaves_the_old_file(tmp_path):
    """What bears the name is whole at any time: here the old file, beside it at most a .partial one."""
    job = write_job(tmp_path, widths=(24, 20, 10))
    F = tmp_path / "F.h5"
    F.write_text("old")
    with started(2, "-m", "hpcHess.compress", job, "--output", F) as process:
        wait_for(process, "write …")
        os.kill(ranks_of(process)[1], signal.SIGKILL)
        finished(process)
    others = [each.name for each in tmp_path.iterdir() if each.name.startswith("F.h5") and each != F]
    assert all(".partial-" in name for name in others) and len(others) <= 1
    assert F.read_bytes() == b"old" or launch(1, "-m", "hpcHess.info", F, "--verify").returncode == 0


def test_help(tmp_path):
    """Once, on standard output, status 0, in any driver."""
    runs = drive_all(2, tmp_path, [(name, "--help") for name in ("compress", "multiply", "solve", "info", "datasets")])
    for run in runs:
        assert run.status == 0 and run.out.count("usage: python -m hpcHess.") == 1 and run.err == ""
    before = time.monotonic()
    done = launch(2, "-m", "hpcHess.compress", "--help")
    assert done.returncode == 0 and done.stdout.count("usage:") == 1 and done.stderr == "" and time.monotonic() - before < 10


def test_the_package_names_its_drivers():
    done = launch(1, "-m", "hpcHess")
    named = [line.split()[0] for line in done.stdout.splitlines()[1:]]
    assert done.returncode == 2 and named and all(importlib.util.find_spec(name) for name in named)


WITHOUT_PETSC = """
import sys
sys.modules["petsc4py"] = sys.modules["slepc4py"] = None
import runpy
name, *arguments = sys.argv[1:]
sys.argv = [name, *arguments]
runpy.run_module(name, run_name="__main__")
"""


def test_without_petsc(tmp_path):
    """Only --refine exact needs it."""
    import numpy as np

    job, F = write_job(tmp_path), tmp_path / "F.h5"
    (tmp_path / "without.py").write_text(WITHOUT_PETSC)
    np.save(tmp_path / "B.npy", np.ones((353, 2)))

    def run(name, *arguments):
        return launch(1, tmp_path / "without.py", f"hpcHess.{name}", *arguments)

    solve = (F, "--rhs", tmp_path / "B.npy", "--damping", "0.1", "--output", tmp_path / "X.npy")
    for done in (
        run("compress", job, "--output", F, "--damping", "0.1"),
        run("multiply", F, "--input", tmp_path / "B.npy", "--output", tmp_path / "U.npy", "--exact"),
        run("solve", *solve),
    ):
        assert done.returncode == 0, done.stderr
    assert "exact residual ‖" in done.stdout
    (tmp_path / "X.npy").unlink()
    done = run("solve", *solve, "--refine", "exact")
    errors = [line for line in done.stderr.splitlines() if line.startswith("hpcHess: error: ")]
    assert done.returncode == 2 and len(errors) == 1 and "install petsc4py" in errors[0] and "Traceback" not in done.stderr
    assert not (tmp_path / "X.npy").exists()
