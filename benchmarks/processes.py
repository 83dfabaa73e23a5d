"""Programs started one after the other under mpiexec, each with a limit, until the time of all of them is over."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
DONE_STATUS = 0
# of a process that is itself a rank: its children are of another run
LAUNCHER = ("OMPI_COMM_", "OMPI_UNIVERSE", "OMPI_FILE", "OMPI_NUM", "OMPI_APP", "OMPI_FIRST", "PMIX_", "PMI_", "ORTE_", "PRTE_")


class Failed(Exception):
    """One line: why there is no result."""


class Processes:
    """`python -m module words…` on `ranks` ranks of `threads` threads each, none after the monotonic time `end`."""

    def __init__(self, ranks, threads, end):
        self.ranks, self.end = ranks, end
        outside = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHER)}
        self.environment = {**outside, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
        self.environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))

    def command(self, module, *words, ranks=None):
        """The words of a command line."""
        ranks = ranks or self.ranks
        launcher = ["mpiexec", "-n", str(ranks)] if ranks > 1 else []
        return [*launcher, sys.executable, "-m", module, *map(str, words)]

    def start(self, words, limit, good=(DONE_STATUS,), ranks=None):
        """Standard output of a command; `Failed` with its last line where its status is not good, or the time is over."""
        limit = min(limit, self.end - time.monotonic())
        if limit <= 0:
            raise Failed("not run: the time is over (--limit)")
        command = self.command(*words, ranks=ranks)
        try:
            process = subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                errors="replace", start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise Failed(f"{command[0]}: {error.strerror}") from None
        try:
            output, errors = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            raise Failed(f"{words[0]} took more than {limit:.0f} s") from None
        finally:
            stop(process)
        if process.returncode not in good:
            raise Failed(f"{words[0]}: {told(errors) or f'exit status {process.returncode}'}")
        return output


def stop(process):
    """End a process and all that it started."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        os.killpg(process.pid, sign)
        try:
            process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            continue


def told(errors):
    """The line of a program's standard error that says what was wrong: the last one with "error" in it, else the last."""
    lines = [line.strip() for line in errors.splitlines() if line.strip() and not set(line.strip()) <= set("-=")]
    wrong = [line for line in lines if "error" in line.lower() and "Warning:" not in line]
    return wrong[-1] if wrong else lines[-1] if lines else ""


def shown(command):
    """A command line as people type it, paths of this checkout shortened."""
    words = [str(word).replace(f"{ROOT}{os.sep}", "") for word in command]
    words = ["python" if word == sys.executable or word.endswith("/bin/python") else word for word in words]
    return " ".join(re.sub(r"[^=]*/(F\.h5|R\.json|[^/]+\.(?:f32|np[yz]))$", r"\1", word) for word in words)
