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
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "growth.json")
        words = ["benchmarks.growth", "--output", output, *(["--tiny"] if options.tiny else [])]
        try:
            Processes(1, options.threads, time.monotonic() + FIGURES["growth"].limit).start(words, FIGURES["growth"].limit)
            rows = json.loads(output.read_text("utf-8"))["rows"]
        except Failed as failure:
            return [not_run(WHAT, str(failure))]
    each = [(int(one["n_params"]), float(one["seconds"])) for one in rows]
    (small, first), (large, last) = min(each), max(each)
    table = ", ".join(f"{n:,}: {seconds:.1f} s" for n, seconds in each)
    return [row(WHAT, ASKED, (last / large) / (first / small), "growth", table, "", rows=rows)]
