"""2 ranks against 1, a thread each: every phase of `benchmarks.scaling_times` under mpiexec, by turns."""

import json
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.figures.turns import not_run, row
from benchmarks.processes import Failed, Processes
from benchmarks.scaling_times import BANDWIDTH, CEILING, GEMM

ASKED = {GEMM: 1.8, BANDWIDTH: 1.4}
ROUNDS, LIMIT = 1, 300


def measure(options):
    """A row a phase."""
    try:
        return rows(times((1, 2), options.tiny, 1 if options.tiny else ROUNDS), 2)
    except Failed as failure:
        return [not_run("2 ranks against 1", str(failure))]


def times(counts, tiny=False, rounds=ROUNDS, limit=1e9):
    """[round][ranks] → the document of `benchmarks.scaling_times`. Starts mpiexec."""
    found, end = [], time.monotonic() + limit
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "times.json")
        for _ in range(rounds):
            found.append({})
            for ranks in counts:
                words = ["benchmarks.scaling_times", "--output", output, *(["--tiny", "--repeat", 2] if tiny else [])]
                Processes(ranks, 1, end).start(words, LIMIT)
                found[-1][ranks] = json.loads(output.read_text("utf-8"))
    return found


def speedups(found, ranks):
    """{phase: (kind, median over the rounds of the seconds on 1 rank / on `ranks`, median seconds on 1, on `ranks`)}; ceilings by their rates."""
    result = {}
    for phase, first in found[0][1]["phases"].items():
        pairs = np.array([[each[count]["phases"][phase]["median"] for count in (1, ranks)] for each in found])
        more = found[0][ranks]["phases"][phase]["amount"]
        factor = more / first["amount"] if first["amount"] else 1.0
        result[phase] = first["kind"], float(np.median(factor * pairs[:, 0] / pairs[:, 1])), *map(float, np.median(pairs, axis=0))
    return result


def rows(found, ranks):
    """Rows of the figure; the machine's own speedup of its ceilings is what phases are held against."""
    speed = speedups(found, ranks)
    triad, sgemm = (next(each[1] for phase, each in speed.items() if phase.startswith(name)) for name in ("triad", "sgemm"))
    result = []
    for phase, (kind, faster, one, more) in speed.items():
        if kind == CEILING:
            continue
        ceiling = f"{one:.3g} s on 1, {more:.3g} s on {ranks}; triad {triad:.2f} ×, sgemm {sgemm:.2f} × on {ranks}"
        holds = f"the machine's own {'triad' if kind == BANDWIDTH else 'sgemm'} gains {triad if kind == BANDWIDTH else sgemm:.2f} ×; exchange, uneven shares"
        result.append(row(f"{phase} ({kind})", ASKED.get(kind), faster, "times", ceiling, holds))
    return result
