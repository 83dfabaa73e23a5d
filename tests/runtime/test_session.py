"""What a driver leaves behind: exit status, one line of error, streams; in this process and under mpiexec with real failures."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
from mpi4py import MPI

from hpcHess.runtime.errors import HpcHessWarning, InputError
from hpcHess.runtime.session import run_driver, split_petsc_options

ROOT = Path(__file__).parents[2]
RANK = MPI.COMM_WORLD.rank
starts_mpiexec = pytest.mark.skipif(MPI.COMM_WORLD.size > 1, reason="starts its own mpiexec")


def build_parser():
    parser = argparse.ArgumentParser(description="a trial driver")
    parser.add_argument("job")
    parser.add_argument("--damping", type=float)
    return parser


def status_of(main, *arguments):
    with pytest.raises(SystemExit) as left:
        run_driver("trial", build_parser, main, list(arguments))
    return left.value.code


def test_split_of_petsc_options():
    own, petsc = split_petsc_options(
        "F.h5 -ksp_type cg --damping -1e-3 -ksp_monitor --rhs B.npy -ksp_rtol 1e-9 -shift -2 -h -- -pc_type".split()
    )
    assert own == ["F.h5", "--damping", "-1e-3", "--rhs", "B.npy", "-h", "--", "-pc_type"]
    assert petsc == ["-ksp_type", "cg", "-ksp_monitor", "-ksp_rtol", "1e-9", "-shift", "-2"]


def test_a_driver_that_works(capfd):
    seen = {}

    def main(session, args):
        seen.update(job=args.job, damping=args.damping, petsc=session.petsc_options, size=session.comm.size)
        with session.phase("sketch", total=2) as steps:
            steps.advance(2)
        session.output("result")
        session.say("said")
        session.warn("careful\nplease")
        warnings.warn("rank saturated", HpcHessWarning)
        warnings.warn("rank saturated", HpcHessWarning)
        seen["phases"] = list(session.timings.as_dict())
        return 3

    assert status_of(main, "j.toml", "-ksp_type", "cg", "--damping", "0.5") == 3
    assert seen == {"job": "j.toml", "damping": 0.5, "petsc": ["-ksp_type", "cg"], "size": MPI.COMM_WORLD.size, "phases": ["sketch"]}
    out, err = capfd.readouterr()
    if RANK > 0:
        assert (out, err) == ("", "")
        return
    lines = err.splitlines()
    assert out == "result\n"
    assert lines[0] == "sketch …" and lines[2:4] == ["said", "hpcHess: warning: careful please"]
    assert lines[4:] == ["hpcHess: warning: rank saturated"] * 2


@pytest.mark.parametrize("returned, status", [(None, 0), (0, 0), (4, 4)])
def test_status_is_what_main_returns(returned, status):
    assert status_of(lambda session, args: returned, "j.toml") == status


def test_the_worst_of_different_statuses_is_everyones():
    assert status_of(lambda session, args: 4 if session.comm.rank == session.comm.size - 1 else 0, "j.toml") == 4


@pytest.mark.parametrize(
    "error, status, line",
    [
        (InputError("rtol is -1:\nit must be positive"), 2, "hpcHess: error: rtol is -1: it must be positive\n"),
        (KeyError("lost"), 1, "hpcHess: error: internal error: KeyError: 'lost' (use --traceback)\n"),
        (SystemExit("no more"), 1, "hpcHess: error: no more\n"),
        (SystemExit(4), 4, "hpcHess: error: left with status 4\n"),
        (SystemExit(0), 0, ""),
    ],
)
def test_an_error_of_all_ranks_is_one_line(error, status, line, capfd):
    def main(session, args):
        raise error

    assert status_of(main, "j.toml") == status
    assert capfd.readouterr() == ("", line if RANK == 0 else "")


def test_the_lowest_failing_rank_speaks(capfd):
    def main(session, args):
        if session.comm.rank == session.comm.size - 1:
            raise InputError("only here")

    assert status_of(main, "j.toml") == 2
    assert capfd.readouterr().err == ("hpcHess: error: only here\n" if RANK == MPI.COMM_WORLD.size - 1 else "")


def test_traceback_is_shown_on_request_once(capfd):
    def main(session, args):
        raise InputError("wrong")

    assert status_of(main, "j.toml", "--traceback") == 2
    err = capfd.readouterr().err
    assert err.count("Traceback") == (1 if RANK == 0 else 0)
    if RANK == 0:
        assert err.startswith("hpcHess: error: wrong\ntraceback of rank 0:\n") and "test_session.py" in err


def test_help_is_said_once_on_standard_output(capfd):
    assert status_of(lambda session, args: 1, "--help") == 0
    out, err = capfd.readouterr()
    assert err == "" and out.startswith("usage: python -m hpcHess.trial") == (RANK == 0) and ("--traceback" in out) == (RANK == 0)


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        ([], "the following arguments are required: job"),
        (["j.toml", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["j.toml", "--damping", "x"], "argument --damping: invalid float value: 'x'"),
        (["j.toml", "-x"], "unrecognized arguments: -x"),
    ],
)
def test_a_wrong_command_line_is_one_line(arguments, complaint, capfd):
    assert status_of(lambda session, args: 0, *arguments) == 2
    assert capfd.readouterr() == ("", f"hpcHess: error: {complaint} (see --help)\n" if RANK == 0 else "")


def test_signal_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    status_of(lambda session, args: 0, "j.toml")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before


DRIVER = '''
import argparse, os, pathlib, signal, sys, time
from hpcHess.runtime.session import run_driver
from hpcHess.runtime.errors import InputError

def build_parser():
    parser = argparse.ArgumentParser()
    parser.add_argument("what")
    parser.add_argument("--rank", type=int)
    parser.add_argument("--file")
    return parser

def main(session, args):
    here = session.comm.rank == args.rank
    if args.what == "alone" and here:
        raise InputError("bad row")  # the others wait in a collective call
    if args.what == "bug" and session.comm.rank >= args.rank:
        raise ZeroDivisionError("bug")
    if args.what == "kill" and here:
        os.kill(os.getpid(), signal.SIGKILL)
    if args.what == "late":
        session.comm.Barrier()
        if here:
            raise InputError("late")  # the others have finished
        return 0
    if args.what == "wait":
        file = pathlib.Path(f"{args.file}.{session.comm.rank}")
        file.write_text("temporary")
        session.comm.Barrier()
        try:
            session.say("waiting")
            time.sleep(60)
        except Exception:
            session.say("a signal is no error to recover from")
        finally:
            file.unlink()
    if args.what == "talk":
        for line in range(10000):
            session.output(f"line {line}")
        return 0
    if args.what == "json":
        with session.phase("work"):
            session.output('{"ranks": %d}' % session.comm.size)
        session.warn("on standard error")
        return 0
    session.comm.Barrier()
    return 0

run_driver("trial", build_parser, main)
'''


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    path = tmp_path_factory.mktemp("driver") / "trial.py"
    path.write_text(DRIVER)
    return path


def environment():
    mpi = ("OMPI_COMM_", "OMPI_UNIVERSE", "OMPI_FILE", "OMPI_NUM", "OMPI_APP", "OMPI_FIRST", "PMIX_", "PMI_", "ORTE_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(mpi)}
    kept.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", OMPI_MCA_rmaps_base_oversubscribe="1")
    return {**kept, "OMPI_MCA_hwloc_base_binding_policy": "none", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def start(ranks, driver, *arguments):
    launcher = ["mpiexec", "-n", str(ranks)] if ranks else []
    command = [*launcher, sys.executable, str(driver), *arguments]
    return subprocess.Popen(
        command, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )


def launch(ranks, driver, *arguments):
    """(exit status, standard output, our own lines of standard error) of a driver on `ranks` ranks (0: without mpiexec)."""
    process = start(ranks, driver, *arguments)
    try:
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    return process.returncode, out, [line for line in err.splitlines() if line.startswith(("hpcHess", "Traceback"))]


@starts_mpiexec
@pytest.mark.parametrize(
    "arguments, status, lines",
    [
        (["alone", "--rank", "1"], 2, ["hpcHess: error: bad row"]),
        (["bug", "--rank", "1"], 1, ["hpcHess: error: internal error: ZeroDivisionError: bug (use --traceback)"]),
        (["late", "--rank", "2"], 2, ["hpcHess: error: late"]),
        (["nonsense", "--nonsense"], 2, ["hpcHess: error: unrecognized arguments: --nonsense (see --help)"]),
    ],
)
def test_a_failing_rank_ends_the_job_with_one_line_and_its_status(driver, arguments, status, lines):
    assert launch(3, driver, *arguments) == (status, "", lines)


@starts_mpiexec
def test_a_killed_rank_ends_the_job(driver):
    status, _, _ = launch(3, driver, "kill", "--rank", "1")
    assert status == 128 + signal.SIGKILL


@starts_mpiexec
def test_standard_output_holds_the_result_alone(driver):
    status, out, lines = launch(2, driver, "json")
    assert status == 0 and json.loads(out) == {"ranks": 2} and lines == ["hpcHess: warning: on standard error"]


@starts_mpiexec
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_removes_temporary_files(driver, tmp_path, number):
    process = start(0, driver, "wait", "--file", str(tmp_path / "temporary"))
    try:
        assert process.stderr.readline() == "waiting\n"
        process.send_signal(number)
        _, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 128 + number and err == f"hpcHess: error: stopped by {number.name}\n"
    assert not list(tmp_path.iterdir())


@starts_mpiexec
def test_a_terminated_job_removes_the_temporary_files_of_all_ranks(driver, tmp_path):
    process = start(2, driver, "wait", "--file", str(tmp_path / "temporary"))
    try:
        assert any(line == "waiting\n" for line in process.stderr)  # the launcher may have lines of its own
        process.terminate()
        _, err = process.communicate(timeout=20)
    finally:
        process.kill()
    forwarded = not MPI.Get_library_version().startswith("Open MPI v5")  # which passes nothing on once it is told to end
    assert process.returncode != 0 and err.count("hpcHess: error: stopped by SIGTERM") in ((1,) if forwarded else (0, 1))
    assert not list(tmp_path.iterdir())


@starts_mpiexec
def test_notice_of_the_end_of_time_does_not_kill(driver, tmp_path):
    process = start(0, driver, "wait", "--file", str(tmp_path / "temporary"))
    try:
        assert process.stderr.readline() == "waiting\n"
        process.send_signal(signal.SIGUSR1)
        assert process.stderr.readline() == "hpcHess: warning: the batch system announces the end of the job's time\n"
        time.sleep(0.1)
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()


@starts_mpiexec
def test_a_reader_that_stops_reading_is_no_error(driver):
    process = start(0, driver, "talk")
    try:
        assert process.stdout.readline() == "line 0\n"
        process.stdout.close()
        assert process.wait(timeout=20) == 0 and process.stderr.read() == ""
    finally:
        process.kill()
        process.stderr.close()
