"""A driver's run: MPI, command line, output of one rank, errors that end every rank, signals.

The place where drivers get COMM_WORLD; everything below them is given a communicator.

H5PY_ALWAYS_USE_MPI must be set before h5py is imported anywhere in the process: Debian's h5py is otherwise the serial
build in runs without mpiexec.
"""

import os

os.environ.setdefault("H5PY_ALWAYS_USE_MPI", "1")

import io
import re
import signal
import sys
import time
import traceback
import warnings
import zlib
from contextlib import contextmanager, redirect_stderr, redirect_stdout

import numpy as np
from mpi4py import MPI

from hpcHess.runtime.errors import BAD_INPUT, DONE, INTERNAL_ERROR, HpcHessWarning, InputError
from hpcHess.runtime.progress import Progress, Silent, silence

VOTE_SECONDS = 2.0  # how long a failing rank waits for the others before it aborts the job
STOPPED_SECONDS = 0.4  # the same after a signal: launchers kill what is left a second after their SIGTERM
STAGGER_SECONDS = 0.5  # between the aborts of two failing ranks: only the first one is heard
FORWARD_SECONDS = 0.1  # for the launcher to pass the message on: Open MPI 5 drops what is still on its way at an abort

_PETSC_OPTION = re.compile(r"-[A-Za-z]\w+$")


class Session:
    """What a driver's `main(session, args)` gets.

    comm            all ranks of the job
    is_root         whether this rank is the one that speaks (rank 0)
    petsc_options   list of str: the command line's PETSc options, names and values, in order; whoever reads it uses them
    progress        `Progress` on rank 0, `Silent` elsewhere: hand it to library code
    timings         wall seconds of the phases so far
    """

    def __init__(self, name, comm, petsc_options=()):
        self.name = name
        self.comm = comm
        self.is_root = comm.rank == 0
        self._petsc_options, self._petsc_used = list(petsc_options), not petsc_options
        self.progress = Progress() if self.is_root else Silent()

    @property
    def petsc_options(self):
        self._petsc_used = True
        return list(self._petsc_options)

    @property
    def timings(self):
        return self.progress.timings

    def phase(self, name, total=None):
        """`with session.phase("sketch", total=n) as steps: steps.advance(m)`."""
        return self.progress.phase(name, total)

    def say(self, text):
        """A line for the human, on rank 0's standard error."""
        if self.is_root:
            self.progress.write(text)

    def warn(self, text):
        """`hpcHess: warning: …` on rank 0's standard error."""
        self.say(f"hpcHess: warning: {_one_line(text)}")

    def warn_unused(self):
        """Tell of PETSc options that nothing asked for: perhaps meant to be the driver's own, which have two dashes."""
        if not self._petsc_used:
            self.warn(f"not used: {' '.join(self._petsc_options)} (words of one dash are options of PETSc, which had nothing to do)")

    def output(self, text):
        """The driver's result, on rank 0's standard output. A reader that has gone away is no error."""
        if self.is_root:
            _print_output(text)


def run_driver(name, build_parser, main, arguments=None):
    """Run a driver on all ranks and leave with its exit status (raises SystemExit, always). Collective over COMM_WORLD.

    build_parser() -> argparse.ArgumentParser; `--traceback` is added to it.
    main(session, args) -> exit status of `runtime.errors` (None: 0).
    arguments: list of str, default sys.argv[1:].

    Arguments of one dash and a word (`-ksp_type cg`) are PETSc options: they go, each with its value, to
    `session.petsc_options`. An InputError becomes one line `hpcHess: error: …` from one rank and status 2, any other
    exception one line and status 1. If all ranks fail or finish they leave regularly with one status; if only some
    fail while others are still at work, or wait in a collective call, the job is aborted with that status. SIGINT and
    SIGTERM are raised in the main thread (temporary files are removed), then the status is 128 + signal.
    """
    votes = MPI.COMM_WORLD.Dup()
    try:
        with _signals(), _shown_warnings():
            raise SystemExit(_run(name, build_parser, main, sys.argv[1:] if arguments is None else list(arguments), votes))
    except _Stopped as stopped:  # while waiting for the others
        MPI.COMM_WORLD.Abort(128 + stopped.args[0])
    finally:
        votes.Free()


def _run(name, build_parser, main, arguments, votes):
    """Exit status of a run whose end all ranks have agreed on, or no return at all."""
    status, message, trace, show_trace = DONE, "", "", "--traceback" in arguments
    try:
        arguments, petsc_options = split_petsc_options(arguments)
        args, text = _parse(name, build_parser(), arguments)
        session = Session(name, MPI.COMM_WORLD, petsc_options)
        if args is None:
            session.output(text)
        else:
            with _warnings_said_by(session):
                status = main(session, args) or DONE
                session.warn_unused()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else DONE if error.code is None else INTERNAL_ERROR
        message = error.code if isinstance(error.code, str) else f"left with status {status}" if status else ""
    except BaseException as error:
        status, message = _explain(error, "" if show_trace else " (use --traceback)")
        trace = traceback.format_exc() if show_trace else ""
    return _leave(votes, status, message, trace)


def split_petsc_options(arguments):
    """(own, petsc): the arguments for the driver's parser and those for PETSc, each a list in order.

    A PETSc option is one dash and at least two word characters, the first a letter; its value is the next argument unless that
    begins with a dash and a letter or with two dashes (PETSc's rule). Nothing is split after `--`.
    """
    own, petsc = [], []
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        position += 1
        if argument == "--":
            own += arguments[position - 1 :]
            break
        if not _PETSC_OPTION.match(argument):
            own.append(argument)
            continue
        petsc.append(argument)
        if position < len(arguments) and not re.match(r"-[A-Za-z-]", arguments[position]):
            petsc.append(arguments[position])
            position += 1
    return own, petsc


def _parse(name, parser, arguments):
    """(args, None), or (None, text) where the parser only wants to say something (--help). Errors are InputErrors."""
    parser.prog = f"python -m hpcHess.{name}"
    parser.add_argument("--traceback", action="store_true", help="show where an error arose")
    said, complaint = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(complaint):
            return parser.parse_args(_with_negative_values(arguments)), None
    except SystemExit as leave:
        if not leave.code:
            return None, said.getvalue().rstrip("\n")
        message = complaint.getvalue().rpartition(": error: ")[2]
        raise InputError(f"{message.strip()} (see --help)") from None


def _with_negative_values(arguments):
    """`--damping -1e-3` as `--damping=-1e-3`: argparse takes negative numbers with an exponent, or more after them, for options."""
    joined = []
    for argument in arguments:
        if joined and re.match(r"--\w[^=]*$", joined[-1]) and re.match(r"-\.?\d", argument):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


class _Stopped(BaseException):
    """A signal, raised in the main thread. Not an Exception: nothing on the way may take it for an error to recover from."""


@contextmanager
def _signals():
    """SIGINT and SIGTERM raise `_Stopped`, once; SIGUSR1 (a batch system's notice that time runs out) warns."""

    def stop(number, _frame):
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)
        raise _Stopped(number)

    def notice(_number, _frame):
        if MPI.COMM_WORLD.rank == 0:
            os.write(2, b"hpcHess: warning: the batch system announces the end of the job's time\n")

    handlers = {signal.SIGINT: stop, signal.SIGTERM: stop, signal.SIGUSR1: notice}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _shown_warnings():
    """Every HpcHessWarning is shown, not only the first from one line of code."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", HpcHessWarning)
        yield


@contextmanager
def _warnings_said_by(session):
    """HpcHessWarnings become rank 0's `hpcHess: warning:` lines; others are shown as Python shows them."""
    shown = warnings.showwarning

    def show(message, category, *where, **more):
        if issubclass(category, HpcHessWarning):
            session.warn(message)
        else:
            shown(message, category, *where, **more)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = shown


def _explain(error, hint):
    """(exit status, one line) of an exception; `hint` ends the line of an internal error."""
    if isinstance(error, InputError):
        return BAD_INPUT, _one_line(error)
    if isinstance(error, (_Stopped, KeyboardInterrupt)):
        number = error.args[0] if isinstance(error, _Stopped) else signal.SIGINT
        return 128 + number, f"stopped by {signal.Signals(number).name}"
    return INTERNAL_ERROR, f"internal error: {type(error).__name__}: {_one_line(error)}{hint}"


def _leave(votes, status, message, trace):
    """The status all ranks leave with: the lowest failing rank's, which also prints its `message`.

    Every rank votes [status, crc32(trace)] when it is done. A rank without an error waits for the others as long as they need; a
    failing one waits `VOTE_SECONDS` (after a signal `STOPPED_SECONDS`), because others may sit in a collective call that will never end, and then aborts the job.
    """
    mine = np.array([status, zlib.crc32(trace.encode())], dtype=np.int64)
    everyone = np.empty((votes.size, 2), dtype=np.int64)
    request = votes.Iallgather(mine, everyone)
    failed = bool(message)
    stopped = status > 128
    if not _completed(request, (STOPPED_SECONDS if stopped else VOTE_SECONDS) if failed else None):
        time.sleep(0.1 * min(votes.rank, 3) if stopped else STAGGER_SECONDS * min(votes.rank, 20))
        _print_error(message, trace, votes.rank)
        sys.stdout.flush()
        time.sleep(FORWARD_SECONDS)
        MPI.COMM_WORLD.Abort(status)
    statuses, traces = everyone.T
    first = int(np.argmax(statuses != DONE))  # 0 where none failed
    if message and votes.rank == first:
        _print_error(message, "", votes.rank)
    if trace and traces[votes.rank] not in traces[: votes.rank]:  # the same trace only once
        _print_error("", trace, votes.rank)
    return int(statuses[first])


def _completed(request, seconds):
    """Whether a nonblocking operation completes within `seconds` (None: wait for ever), without keeping the core busy."""
    end = None if seconds is None else time.monotonic() + seconds
    while not request.Test():
        if end is not None and time.monotonic() > end:
            return False
        time.sleep(0.002)
    return True


def _print_error(message, trace, rank):
    text = f"hpcHess: error: {message}\n" if message else ""
    if trace:
        text += f"traceback of rank {rank}:\n{trace}"
    try:
        sys.stderr.write(text)  # in one piece: launchers merge the ranks' output
        sys.stderr.flush()
    except BrokenPipeError:
        silence(sys.stderr)


def _print_output(text):
    try:
        print(text, flush=True)
    except BrokenPipeError:
        silence(sys.stdout)


def _one_line(text):
    return " ".join(str(text).split())
