"""python -m benchmarks.formats [--only CASE[/ROW[/RTOL]] …] [--write]: every format on networks and kernel matrices, as docs/FORMATS.md.

Every run is `mpiexec -n P python -m benchmarks.formats_measure` of its own, with a limit; the cheap ones first. What is refused, what takes too long
and what the time did not suffice for are rows that say so. Results are kept as JSON after every run, the page is made of them.
"""

import argparse
import json
import re
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.formats_cases import CASES, EXACT, JOBS, QUICK, roughly, rows_of
from benchmarks.formats_page import page
from benchmarks.processes import ROOT, Failed, Processes, shown
from hpcHess.formats.registry import FORMATS

RESULTS = ROOT / "benchmarks" / "results"
PAGE, FIGURES = ROOT / "docs" / "FORMATS.md", ROOT / "docs" / "figures"
MEASURE = "benchmarks.formats_measure"
LIMIT = 150.0
NO_TIME = "not run: the time was over (--budget)"


def main(arguments=None):
    """Run what is asked for, print the page, write it where asked. Exit status 1 where the time did not suffice, 2 for bad input."""
    args = build_parser().parse_args(arguments)
    cases = QUICK if args.quick else CASES
    planned = selected(args, cases)
    store = Path(args.output or RESULTS / ("formats-quick.json" if args.quick else "formats.json")).absolute()
    args.folder = store.parent
    args.folder.mkdir(parents=True, exist_ok=True)
    results = json.loads(store.read_text("utf-8")) if store.exists() and (args.only or args.missing or args.page) else {}
    if not args.page:
        Session(args, results, store, planned).run()
    unknown = {key_of(case, row, rtol): described(case, row, rtol) | {"failed": "not run"} for case, row, rtol in runs_of(cases)}
    text = page(cases, {**unknown, **results}, FIGURES if args.write else None)
    if args.write:
        PAGE.write_text(text, "utf-8")
    print(text)
    return int(any(each.get("failed") == NO_TIME for each in results.values()))


def build_parser():
    """Arguments."""
    names = ", ".join(case.name for case in CASES)
    parser = argparse.ArgumentParser(prog="benchmarks.formats", description=__doc__.splitlines()[0], epilog=f"cases: {names}")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="runs whose names CASE/ROW/RTOL begin so; the others keep their former results")
    parser.add_argument("--missing", action="store_true", help="only what has no result yet")
    parser.add_argument("--page", action="store_true", help="run nothing: the page of the results there are")
    parser.add_argument("--list", action="store_true", help="the runs in their order, then nothing")
    parser.add_argument("--quick", action="store_true", help="two small cases, no data needed")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)} and its figures")
    parser.add_argument("--ranks", type=int, default=2, metavar="P", help="ranks (2)")
    parser.add_argument("--threads", type=int, default=1, metavar="T", help="threads of a rank (1)")
    parser.add_argument("--repeat", type=int, default=3, metavar="n", help="short compressions of which the median counts (3)")
    parser.add_argument("--limit", type=float, default=LIMIT, metavar="s", help=f"seconds that a run may take ({LIMIT:.0f})")
    parser.add_argument("--budget", type=float, default=7200.0, metavar="s", help="no run begins after so many seconds (7200)")
    parser.add_argument("--output", metavar="FILE.json", help="results (benchmarks/results/formats.json)")
    return parser


def selected(args, cases):
    """[(Case, Row, rtol)] to be run, what is cheap first; ends with status 2 where the arguments make no sense."""
    refuse = build_parser().error
    if min(args.ranks, args.threads, args.repeat) < 1 or not args.limit > 0 or not args.budget > 0:
        refuse("--ranks, --threads and --repeat must be at least 1, --limit and --budget positive")
    if args.quick and args.write:
        refuse("--quick does not make the page: leave out --write")
    everything = runs_of(cases)
    for name in args.only or ():
        if not any(key_of(*run).startswith(name) for run in everything):
            refuse(f"no run begins with {name}: see --list")
    chosen = [run for run in everything if not args.only or any(key_of(*run).startswith(name) for name in args.only)]
    if args.list:
        for run in chosen:
            print(key_of(*run))
        sys.exit(0)
    return chosen


def runs_of(cases):
    """All runs of the cases, the cheap ones first."""
    runs = [(case, row, rtol) for case in cases for row in rows_of(case, FORMATS) for rtol in (case.rtols if row.steered else case.rtols[:1])]
    return sorted(runs, key=lambda run: (bool(run[1].left_out), roughly(*run)))


def described(case, row, rtol):
    """What a run is, before it is run."""
    given = {"kind": row.kind, "format": row.format, "approximates": row.approximates, "steered": row.steered}
    return {"case": case.name, "row": row.name, "rtol": rtol, **given, "failed": row.left_out or None, "seconds": 0.0}


def key_of(case, row, rtol):
    """The name of a run in the results."""
    return f"{case.name}/{row.name}/{rtol:g}"


class Session:
    """The runs of one command; `results` {key: plain values} goes to `store` after each."""

    def __init__(self, args, results, store, planned):
        self.args, self.results, self.store = args, results, store
        self.planned = [run for run in planned if not args.missing or results.get(key_of(*run), {"failed": NO_TIME}).get("failed") == NO_TIME]
        self.end = time.monotonic() + args.budget
        self.processes = Processes(args.ranks, args.threads, self.end)

    def run(self):
        """All of them, one after the other."""
        for number, (case, row, rtol) in enumerate(self.planned):
            key, exact, start = key_of(case, row, rtol), {} if row.left_out else self._exact(case), time.monotonic()
            found = described(case, row, rtol) | self._found(case, row, rtol, exact)
            self._keep(key, found, start)
            told = found.get("failed") or "done"
            print(f"{number + 1} of {len(self.planned)}  {key}: {told}, {found['seconds']:.1f} s", file=sys.stderr, flush=True)

    def _keep(self, key, found, start):
        found["seconds"] = time.monotonic() - start
        if found.get("failed") != NO_TIME or "report" not in self.results.get(key, {}):  # else the former one is kept
            self.results[key] = found
        self.store.write_text(json.dumps(self.results, indent=1, ensure_ascii=False) + "\n", "utf-8")

    def _found(self, case, row, rtol, exact):
        """What was measured in a run; `failed` says why there is nothing, or not all."""
        if row.left_out:
            return {}
        looser = (self.results.get(key_of(case, row, each), {}) for each in case.rtols[: case.rtols.index(rtol)])
        hopeless = next((each for each in looser if each.get("failed") and each["failed"] != NO_TIME and "report" not in each), None)
        if hopeless is not None:
            told = hopeless["failed"]
            return {"failed": told if told.startswith("as at ") else f"as at {hopeless['rtol']:g}: {told}"}
        if "damping" not in exact:
            return {"failed": f"{EXACT}: {exact['failed']}" if exact.get("failed") != NO_TIME else NO_TIME}
        sets = (*row.sets, f"compress.format={row.format}", f"compress.rtol={rtol:g}")
        return self._measured(case, sets, ("--damping", repr(exact["damping"]), "--solves", *row.solves))

    def _exact(self, case):
        """The result of the operator itself, measured first where there is none."""
        key = f"{case.name}/{EXACT}"
        known = self.results.get(key, {})
        if "damping" not in known or not (self.args.folder / case.file).exists():
            start, found = time.monotonic(), {"case": case.name, "row": EXACT, "kind": EXACT}
            try:
                if case.gallery and not (self.args.folder / case.file).exists():
                    words = ("hpcHess.gallery", case.gallery, "--n", case.n_params, "--output", self.args.folder / case.file)
                    self.processes.start(words, self.args.limit, ranks=1)
                found |= self._measured(case, (), ("--exact",))
            except Failed as failure:
                found["failed"] = self._told(failure)
            self._keep(key, found, start)
        return self.results[key]

    def _measured(self, case, sets, words):
        """What `formats_measure` wrote, complete or not."""
        given = (*case.sets, *sets, *((f"matrix.file={self.args.folder / case.file}",) if case.gallery else ()))
        with tempfile.TemporaryDirectory(prefix=".formats", dir=self.args.folder) as folder:
            output = Path(folder) / "R.json"
            command = (MEASURE, JOBS / case.job, "--output", output, *words)
            command += ("--columns", case.columns, "--exact-columns", case.exact_columns, "--repeat", self.args.repeat)
            command += () if case.gallery else ("--network", self.args.folder / case.file)
            command += tuple(word for each in given for word in ("--set", each))
            failed = None
            try:
                self.processes.start(command, self.args.limit)
            except Failed as failure:
                failed = self._told(failure)
            found = json.loads(output.read_text("utf-8")) if output.exists() else {}
        return found | {"failed": failed, "command": shown(self.processes.command(*command))}

    def _told(self, failure):
        """The line of a failure: where the time of all was over, that."""
        if time.monotonic() >= self.end:
            return NO_TIME
        return re.sub(r"^\S*error: ", "", str(failure).removeprefix(f"{MEASURE}: ").removeprefix(f"{MEASURE} ").removeprefix("hpcHess: "))


if __name__ == "__main__":
    sys.exit(main())
