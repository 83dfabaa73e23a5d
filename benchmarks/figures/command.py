"""python -m benchmarks.figures [FIGURE …] [--write]: what is asked of the program's speed, measured here, a row for every line of docs/PERFORMANCE.md.

One process a figure, one after the other (without mpiexec): what fails or takes too long is a row that says so. Results are kept as JSON.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.figures import page
from benchmarks.figures.table import FIGURES
from benchmarks.figures.turns import not_run
from benchmarks.machine import ROOT, describe_here
from benchmarks.processes import Failed, Processes

RESULTS = ROOT / "benchmarks" / "results" / "figures.json"


def build_parser():
    """Arguments."""
    names = "\n".join(f"  {figure.name:<20} {figure.asked}" for figure in FIGURES.values())
    parser = argparse.ArgumentParser(
        prog="benchmarks.figures", description=__doc__, epilog=f"figures (without one: all):\n{names}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help="those below; beginnings of names do")
    parser.add_argument("--without", nargs="+", default=[], metavar="FIGURE", help="leave these out")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), metavar="n", help="of every process (all cores)")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: processor seconds, with --threads 1 on a machine that others use")
    parser.add_argument("--seconds", type=float, default=12.0, metavar="s", help="no further repeat of a comparison after so many (12)")
    parser.add_argument("--limit", type=float, default=3600.0, metavar="s", help="no figure is started after so many (3600)")
    parser.add_argument("--tiny", action="store_true", help="toy sizes: whether it runs, no results")
    parser.add_argument("--page", action="store_true", help="measure nothing: the results there are")
    parser.add_argument("--write", action="store_true", help=f"replace the rows of these figures in {page.PAGE.relative_to(ROOT)}")
    parser.add_argument("--output", metavar="FILE.json", help=f"results ({RESULTS.relative_to(ROOT)})")
    return parser


def main(arguments=None):
    """Measure, keep, print, write. Exit status 0, 1 where a figure failed."""
    parser = build_parser()
    args = parser.parse_args(arguments)
    names = chosen(args.figures, args.without, parser)
    if args.tiny and args.write:
        parser.error("--tiny does not make the page: leave out --write")
    if args.clock == "cpu" and args.threads > 1:
        parser.error("--clock cpu counts all threads together: use it with --threads 1")
    if args.threads < 1 or not args.seconds > 0 or not args.limit > 0:
        parser.error("--threads must be at least 1, --seconds and --limit larger than 0")
    store = Path(args.output).absolute() if args.output else RESULTS.with_name("figures-tiny.json") if args.tiny else RESULTS
    if args.page:
        if not store.exists():
            parser.error(f"{store} is not there: leave out --page to measure")
        known = json.loads(store.read_text("utf-8"))
        documents = [known[name] for name in names if name in known]
        for found in documents:
            show(found)
    else:
        documents = measured_all(names, args, store)
    if args.write:
        page.PAGE.write_text(page.merged(page.PAGE.read_text("utf-8"), documents), "utf-8")
    return int(any(found.get("failed") for found in documents))


def run(names):
    """The documents of these figures, shown and kept as the command keeps them; for `benchmarks.run`."""
    return measured_all(names, build_parser().parse_args(list(names)), RESULTS)


def measured_all(names, args, store):
    """The documents of these figures, each shown and kept when it is there."""
    store.parent.mkdir(parents=True, exist_ok=True)
    known, end = json.loads(store.read_text("utf-8")) if store.exists() else {}, time.monotonic() + args.limit
    for name in names:
        print(f"{name}: {FIGURES[name].asked} …", file=sys.stderr, flush=True)
        known[name] = measured(name, args, end)
        store.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n", "utf-8")
        show(known[name])
    return [known[name] for name in names]


def chosen(given, without, parser):
    """Names of figures in their order, by beginnings."""
    for each in (*given, *without):
        if not any(name.startswith(each) for name in FIGURES):
            parser.error(f"unknown figure {each}: choose from {', '.join(FIGURES)}")
    matches = lambda name, words: any(name.startswith(each) for each in words)  # noqa: E731
    return [name for name in FIGURES if (not given or matches(name, given)) and not matches(name, without)]


def measured(name, args, end):
    """The document of one figure (`one`), or one that says why there is none."""
    processes = Processes(1, args.threads, end)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "figure.json")
        words = ["benchmarks.figures.one", name, "--output", output, "--threads", args.threads, "--clock", args.clock, "--seconds", args.seconds]
        found, failed = {"figure": name, "rows": [], "took": 0.0}, ""
        try:
            processes.start(words + ["--tiny"] * args.tiny, FIGURES[name].limit)
        except Failed as failure:
            failed = str(failure)
        if output.exists():  # also what was measured before it failed
            found = json.loads(output.read_text("utf-8"))
    if failed:
        found |= {"failed": failed, "rows": [*found["rows"], not_run(f"the rest: {FIGURES[name].asked}" if found["rows"] else FIGURES[name].asked, failed)]}
    return {"machine": describe_here()} | found


def show(found):
    """One figure on standard output."""
    for line in page.lines(found):
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        print(f"{cells[0]}: asked {cells[1] or '–'}, measured {cells[2] or '–'}: {cells[3]} ({cells[4]}){'; ' + cells[5] if cells[5] else ''}")
    print(f"  {found['took']:.0f} s", flush=True)
