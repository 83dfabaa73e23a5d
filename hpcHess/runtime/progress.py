"""Progress of long phases on rank 0's standard error: a bar on a terminal, plain lines elsewhere."""

import os
import sys
import time
from contextlib import contextmanager

from hpcHess.runtime.timing import Timings

LINE_INTERVAL = 5.0  # seconds between two plain lines of one phase


class _Quiet:
    """Steps that nobody watches."""

    def advance(self, steps=1):
        """Count `steps` more steps as done."""


class Silent:
    """The default of library code: shows nothing, keeps the times. Same interface as `Progress`."""

    def __init__(self):
        self.timings = Timings()

    @contextmanager
    def phase(self, name, total=None):
        """`with progress.phase("sketch", total=n) as steps: steps.advance(m)`. Not collective."""
        with self.timings.phase(name):
            yield _Quiet()

    def write(self, text):
        """A line that nobody reads."""


class Progress:
    """Shows phases on `stream` (standard error); made on the rank that shows, `Silent` on the others.

    bar: True for tqdm bars, False for plain lines, None to decide by whether `stream` ends at a terminal.
    """

    def __init__(self, stream=None, bar=None, interval=LINE_INTERVAL):
        self.stream = sys.stderr if stream is None else stream
        self.timings = Timings()
        self._bar_class = _bar_class() if (ends_at_terminal(self.stream) if bar is None else bar) else None
        self._interval = interval
        self._depth = 0

    @contextmanager
    def phase(self, name, total=None):
        """`with progress.phase("sketch", total=n) as steps: steps.advance(m)`. Not collective."""
        kind = _Lines if self._bar_class is None else _Bar
        steps = kind(self, name, total, self._depth)
        self._depth += 1
        try:
            with self.timings.phase(name):
                yield steps
            steps.finish()
        finally:
            self._depth -= 1
            steps.close()

    def write(self, text):
        """One line between the bars; a reader that has gone away is no error."""
        try:
            if self._bar_class is None:
                print(text, file=self.stream, flush=True)
            else:
                self._bar_class.write(text, file=self.stream)
                self.stream.flush()
        except BrokenPipeError:
            silence(self.stream)


class _Lines:
    """Start, end with seconds, and at most one line every few seconds between."""

    def __init__(self, progress, name, total, depth):
        self._progress, self._name, self._total = progress, "  " * depth + name, total
        self._done, self._start = 0, time.perf_counter()
        self._shown = self._start
        progress.write(f"{self._name} …")

    def advance(self, steps=1):
        self._done += steps
        now = time.perf_counter()
        if now - self._shown >= self._progress._interval:
            self._shown = now
            of_total = f"/{self._total}" if self._total else ""
            self._progress.write(f"{self._name}: {self._done}{of_total}, {now - self._start:.1f} s")

    def finish(self):
        self._progress.write(f"{self._name}: done in {time.perf_counter() - self._start:.1f} s")

    def close(self):
        pass


class _Bar:
    """A tqdm bar; the seconds stay when it is done."""

    def __init__(self, progress, name, total, depth):
        self._progress, self._name, self._start = progress, "  " * depth + name, time.perf_counter()
        shape = "{desc} … {n_fmt} [{elapsed}]"
        if total:
            shape = "{desc}: {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]"
        self._bar = progress._bar_class(
            desc=self._name, total=total, file=progress.stream, leave=False, ncols=80, bar_format=shape, mininterval=0.2, position=depth
        )

    def advance(self, steps=1):
        self._bar.update(steps)

    def finish(self):
        self._bar.close()
        self._progress.write(f"{self._name}: done in {time.perf_counter() - self._start:.1f} s")

    def close(self):
        self._bar.close()


def ends_at_terminal(stream):
    """Whether what is written to `stream` (standard error) is seen on a terminal, directly or through a launcher that forwards it.

    Launchers give every rank a pipe, so for a launcher's child the launcher's own standard error decides (Linux).
    """
    try:
        if stream.isatty():
            return True
        if stream is not sys.stderr:
            return False
        parent = f"/proc/{os.getppid()}"
        with open(f"{parent}/comm") as comm:
            is_launcher = comm.read().strip() in {"mpiexec", "mpirun", "orterun", "prterun"}
        return is_launcher and os.readlink(f"{parent}/fd/2").startswith(("/dev/pts/", "/dev/tty"))
    except (OSError, ValueError, AttributeError):
        return False


def _bar_class():
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm


def silence(stream):
    """Send what is still written to `stream`, whose reader has gone away, nowhere: not even the flush at exit complains."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, ValueError):
        pass
