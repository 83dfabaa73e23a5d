"""Growth of the compression from N = 125k to 1M at fixed rank, by `benchmarks.growth`, whose seconds a parameter are compared."""

import importlib.util
import json
import tempfile
import time
from pathlib import Path

from benchmarks.figures.table import FIGURES
from benchmarks.figures.turns import not_run, row
from benchmarks.processes import Failed, Processes

ASKED, WHAT = 1.3, "time a parameter, N = 125k to 1M"


def measure(options):
    """One row."""
    if importlib.util.find_spec("benchmarks.growth") is None:
        return [not_run(WHAT, "there is no benchmarks.growth yet")]
    if options.tiny:
        return [not_run(WHAT, "toy sizes do not grow")]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "growth.json")
        words = ["benchmarks.growth", "--output", output, "--threads", options.threads]
        try:
            Processes(1, options.threads, time.monotonic() + FIGURES["growth"].limit).start(words, FIGURES["growth"].limit)
        except Failed as failure:
            return [not_run(WHAT, str(failure))]
        return grown(json.loads(output.read_text("utf-8"))["sizes"], "cpu_seconds" if options.clock == "cpu" else "seconds")


def grown(sizes, clock):
    """The row: seconds a parameter of the largest over those of the smallest N."""
    each = sorted((int(one["n_params"]), float(one[clock]), one["peak_bytes"] / 1e9) for one in sizes)
    (small, first, _), (large, last, _) = each[0], each[-1]
    table = ", ".join(f"{n:,}: {seconds:.1f} s, {peak:.1f} GB" for n, seconds, peak in each)
    slower = {name: last / max(sizes[0]["timings"].get(name, 0), 1e-9) for name, last in sizes[-1]["timings"].items()}
    holds = "seconds of the last over the first: " + ", ".join(f"{name} {ratio:.1f} ×" for name, ratio in sorted(slower.items(), key=lambda item: -item[1])[:4])
    return [row(WHAT, ASKED, (last / large) / (first / small), "growth", table, f"{holds}, N {large / small:.1f} ×", sizes=sizes)]
