"""The 1,000,000-parameter network of jobs/mlp1m.toml compressed by the driver in a process of its own: wall and processor seconds, largest resident size."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.cases import JOBS
from benchmarks.figures.turns import not_run, row
from benchmarks.processes import Processes

ASKED_SECONDS, ASKED_GB = 90.0, 12.0
JOB, TINY = "mlp1m.toml", "small.toml"
WHAT = "jobs/mlp1m.toml"


def measure(options):
    """Two rows."""
    job = JOBS / (TINY if options.tiny else JOB)
    if not job.exists():
        return [not_run(WHAT, f"there is no jobs/{job.name}")]
    with tempfile.TemporaryDirectory() as folder:
        found = compressed(job, Path(folder), options.threads)
    if "failed" in found:
        return [not_run(f"jobs/{job.name}", found["failed"])]
    label = f"jobs/{job.name}, {options.threads} threads"
    said = f"CPU {found['cpu']:.1f} s; {found['said']}"
    slowest = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in sorted(found["phases"].items(), key=lambda item: -item[1])[:4])
    return [
        row(f"{label}: compressed in", ASKED_SECONDS, found["wall"], "seconds", said, slowest, **found),
        row(f"{label}: largest resident size", ASKED_GB, found["peak"] / 1e9, "GB", "whole process", slowest),
    ]


def compressed(job, folder, threads):
    """{wall, cpu, peak (bytes), said, phases} of `python -m hpcHess.compress JOB`, reading, fitting and writing included; {failed} otherwise."""
    environment = Processes(1, threads, 0).environment
    command = [sys.executable, "-m", "hpcHess.compress", str(job), "--output", str(folder / "F.h5")]
    start = time.perf_counter()
    with open(folder / "out", "w+") as out, open(folder / "errors", "w+") as errors:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=errors)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)  # it is waited for
        wall = time.perf_counter() - start
        said, told = ((each.seek(0), each.read())[1] for each in (out, errors))
    if process.returncode not in (0, 3):
        return {"failed": (told.strip().splitlines() or [f"exit status {process.returncode}"])[-1]}
    phases = {name.strip(): float(seconds) for name, seconds in re.findall(r"^(\S.*): done in ([\d.]+) s", told, re.MULTILINE)}
    said = said.strip().partition(": ")[2]
    return {"wall": wall, "cpu": used.ru_utime + used.ru_stime, "peak": used.ru_maxrss * 1024, "said": said, "phases": phases}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as at:
        print(json.dumps(compressed(Path(sys.argv[1]).resolve(), Path(at), int((sys.argv[2:] or [os.cpu_count()])[0])), indent=1))
