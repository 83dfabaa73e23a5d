"""python -m benchmarks.tables [--only NAME …] [--write]: the published tables, measured here, as docs/TABLES.md.

Every case runs as a user would run it, in processes of its own: `mpiexec -n P python -m hpcHess.compress`, then `benchmarks.tables_measure`.
A case that fails says so in its row; the others go on. Results so far are kept as JSON after every case.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.processes import DONE_STATUS, ROOT, Failed, Processes, shown
from benchmarks.tables_cases import CASES, JOBS, QUICK
from benchmarks.tables_page import page

RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "TABLES.md"
ENOUGH = 20.0  # seconds of compressions after which none is repeated
SHORT, LONG = 720.0, 14400.0  # seconds of the whole command, and with --high-autoencoder
MEASURING, MAKING = 240.0, 600.0  # most seconds of `tables_measure`, and of making a matrix
NOT_MET = 3  # status of hpcHess.compress: the file is written, too
OUTSIDE = ("network and data", "matrix")  # phases that are no part of a compression


def main(arguments=None):
    """Run the cases, print the page, write it where asked. Exit status 1 where a case failed, 2 for bad input."""
    args = build_parser().parse_args(arguments)
    cases = selected(args)
    store = Path(args.output or RESULTS / ("tables-quick.json" if args.quick else "tables.json")).absolute()
    args.folder, args.matrices = store.parent, Path(args.matrices or store.parent).absolute()
    for folder in (args.folder, args.matrices):
        folder.mkdir(parents=True, exist_ok=True)
    results = json.loads(store.read_text("utf-8")) if args.only and store.exists() else {}
    end = time.monotonic() + args.limit
    for case in cases:
        start = time.monotonic()
        print(f"{case.name} …", file=sys.stderr, flush=True)
        results[case.name] = run_case(case, args, end)
        store.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", "utf-8")
        told = results[case.name].get("failed") or "done"
        print(f"{case.name}: {told} in {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)
    text = page(QUICK if args.quick else CASES, results)
    if args.write:
        PAGE.write_text(text, "utf-8")
    print(text)
    return int(any(results[case.name].get("failed") for case in cases))


def build_parser():
    """Arguments."""
    names = ", ".join(case.name for case in CASES)
    parser = argparse.ArgumentParser(prog="benchmarks.tables", description=__doc__.splitlines()[0], epilog=f"cases: {names}")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="cases whose names begin so; the others keep their former results")
    parser.add_argument("--quick", action="store_true", help="three small cases, seconds, no data needed")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    parser.add_argument("--high-autoencoder", action="store_true", help="also the autoencoder at 9e-5: hours, tens of GB")
    parser.add_argument("--ranks", type=int, default=2, metavar="P", help="ranks (2)")
    parser.add_argument("--threads", type=int, default=1, metavar="T", help="threads of a rank (1)")
    parser.add_argument("--repeat", type=int, metavar="n", help="compressions of a case of which the median counts (1 to 3, as the case says)")
    parser.add_argument("--limit", type=float, metavar="s", help="no case goes on after so many seconds (720)")
    parser.add_argument("--matrices", metavar="FOLDER", help="where the dense matrices lie, or are made: GN16384.f32, … (benchmarks/results)")
    parser.add_argument("--output", metavar="FILE.json", help="results (benchmarks/results/tables.json)")
    return parser


def selected(args):
    """The cases to run; ends with status 2 where the arguments make no sense."""
    refuse = build_parser().error
    if "OMPI_COMM_WORLD_SIZE" in os.environ or "PMI_SIZE" in os.environ:
        refuse("this command starts mpiexec itself: run it without")
    if min(args.ranks, args.threads, args.repeat or 1) < 1 or (args.limit is not None and not args.limit > 0):
        refuse("--ranks, --threads and --repeat must be at least 1, --limit positive")
    if args.quick and args.write:
        refuse("--quick does not make the page: leave out --write")
    args.limit = args.limit or (LONG if args.high_autoencoder else SHORT)
    cases = QUICK if args.quick else CASES
    for name in args.only or ():
        if not any(case.name.startswith(name) for case in cases):
            refuse(f"no case begins with {name}: {', '.join(case.name for case in cases)}")
    wanted = [case for case in cases if not args.only or any(case.name.startswith(name) for name in args.only)]
    return [case for case in wanted if not case.optional or args.high_autoencoder]


def run_case(case, args, end):
    """Plain values of one case; `failed`: the line that says why something is missing. Never raises for a case's own failure."""
    ranks, threads = case.layout or (args.ranks, args.threads)
    result = {"case": case.name, "layout": [ranks, threads], "failed": None}
    with tempfile.TemporaryDirectory(prefix=".tables", dir=args.folder) as folder:
        run = Run(case, ranks, threads, Path(folder), end)
        try:
            matrix = run.matrix(args.matrices)
            result["commands"] = [shown(run.command(*words)) for words in (run.compression(matrix), run.measurement())]
            result |= run.compress(matrix, args.repeat or case.repeats)
            result |= run.measure()
        except Failed as failure:
            result["failed"] = str(failure)
            result |= run.partial
    return result


class Run(Processes):
    """The processes of one case; `partial`: what is known when it fails."""

    def __init__(self, case, ranks, threads, folder, end):
        super().__init__(ranks, threads, end)
        self.case, self.folder, self.partial = case, folder, {}
        self.factors, self.found = folder / "F.h5", folder / "R.json"

    def matrix(self, folder):
        """The file of the case's dense matrix, made where it is not there yet; None without one."""
        if not self.case.matrix:
            return None
        path = folder / self.case.file
        if not path.exists():
            self.start((*self.case.matrix, "--output", path), MAKING)
        return path

    def compression(self, matrix):
        """Arguments of hpcHess.compress."""
        sets = (*self.case.sets, *((f"matrix.file={matrix}",) if matrix else ()))
        return ("hpcHess.compress", JOBS / self.case.job, "--output", self.factors, *(word for each in sets for word in ("--set", each)))

    def measurement(self):
        """Arguments of benchmarks.tables_measure."""
        words, solves = ("benchmarks.tables_measure", self.factors, "--output", self.found, *self.case.measuring), self.case.solves
        if solves is None:
            return words
        words += ("--damping", solves.damping, "--solvers", *solves.solvers, "--columns", str(solves.columns))
        return (*words, "--refine-columns", str(solves.refine_columns), "--refine-rtol", str(solves.refine_rtol))

    def compress(self, matrix, repeats):
        """The report of the factor file and the seconds of every run."""
        spent, found = 0.0, {"compression_seconds": [], "input_seconds": [], "wall_seconds": []}
        while len(found["wall_seconds"]) < repeats and spent < ENOUGH:
            start = time.monotonic()
            self.start(self.compression(matrix), self.case.limit, (DONE_STATUS, NOT_MET))
            found["wall_seconds"].append(time.monotonic() - start)
            report = json.loads(self.start(("hpcHess.info", self.factors, "--json"), 60.0, ranks=1))
            phases = {name: value for name, value in report["provenance"]["timings"].items() if "/" not in name}
            found["compression_seconds"].append(sum(value for name, value in phases.items() if name not in OUTSIDE))
            found["input_seconds"].append(sum(value for name, value in phases.items() if name in OUTSIDE))
            spent += found["wall_seconds"][-1]
        report.pop("job")
        self.partial = {**found, "report": report}
        return self.partial

    def measure(self):
        """Products, solves, ceilings and machine."""
        self.start(self.measurement(), MEASURING)
        return json.loads(self.found.read_text("utf-8"))


if __name__ == "__main__":
    sys.exit(main())
