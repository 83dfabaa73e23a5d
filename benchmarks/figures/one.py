"""python -m benchmarks.figures.one NAME --output FILE.json: one figure in this process; `benchmarks.figures` starts it."""

import argparse
import importlib
import json
import os
import time
from pathlib import Path

from mpi4py import MPI

from benchmarks.figures.table import FIGURES
from benchmarks.figures.turns import Options
from benchmarks.machine import describe


def main(arguments=None):
    """Measure and write."""
    parser = argparse.ArgumentParser(prog="benchmarks.figures.one", description=__doc__)
    parser.add_argument("name", choices=list(FIGURES))
    parser.add_argument("--output", required=True, metavar="FILE.json")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=Options.seconds)
    args = parser.parse_args(arguments)
    machine, start = describe(MPI.COMM_SELF), time.perf_counter()
    measure = importlib.import_module(FIGURES[args.name].module).measure
    rows, output = [], Path(args.output)
    for row in measure(Options(args.tiny, args.clock, args.threads, args.seconds)):  # kept one by one: some may take too long
        rows.append(row)
        machine["load_average_after"] = list(os.getloadavg())
        found = {"figure": args.name, "rows": rows, "took": time.perf_counter() - start, "clock": args.clock, "tiny": args.tiny, "machine": machine}
        text = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False)
        output.with_suffix(".part").write_text(text, "utf-8")
        output.with_suffix(".part").replace(output)


if __name__ == "__main__":
    main()
