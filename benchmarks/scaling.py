"""python -m benchmarks.scaling [--counts] [--write]: strong scaling on this machine, and what ranks tell each other (without mpiexec).

Without --counts: seconds of every phase on 1 and more ranks of one thread (`scaling_times`). With --counts: bytes, messages and memory of the busiest rank
by phase, counted call by call (`traffic`) on 1 … 64 ranks, more than there are cores, of a tiny problem (`scaling_counts`), against the model (`traffic_model`); every
call whose volume or number, and every phase whose memory grows faster than log P is named, with what it would be on 4,096 ranks.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.figures.page import PAGE
from benchmarks.figures.ranks import speedups, times
from benchmarks.machine import ROOT, describe_here
from benchmarks.processes import Failed, Processes

RESULTS = ROOT / "benchmarks" / "results"
COUNTED = (1, 2, 4, 8, 16, 32, 64)
FAR = 4096  # ranks that are extrapolated to
SLACK = 1.35  # of growth beyond log P
SMALL = 1 << 20  # bytes of one call on FAR ranks that are no matter
LIMIT = 500
BEGIN, END = "<!-- counts: written by `python -m benchmarks.scaling --counts --write` -->", "<!-- counts end -->"


def main(arguments=None):
    """Measure, print, keep. Exit status 0; 1 where a phase breaks the rule, or nothing could be measured."""
    parser = argparse.ArgumentParser(prog="benchmarks.scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", action="store_true", help="bytes, messages, memory instead of seconds")
    parser.add_argument("--ranks", type=int, nargs="+", metavar="P", help="1 2; with --counts 1 2 4 8 16 32 64")
    parser.add_argument("--rounds", type=int, default=2, metavar="n", help="runs of each number of ranks, by turns (2)")
    parser.add_argument("--tiny", action="store_true", help="toy sizes")
    parser.add_argument("--page", action="store_true", help="with --counts: measure nothing, take the results there are")
    parser.add_argument("--write", action="store_true", help=f"with --counts: the table into {PAGE.relative_to(ROOT)}")
    parser.add_argument("--output", metavar="FILE.json")
    args = parser.parse_args(arguments)
    if args.rounds < 1 or any(each < 1 for each in args.ranks or ()):
        parser.error("--rounds and --ranks must be at least 1")
    if (args.page or args.write) and not args.counts:
        parser.error("--page and --write are of --counts")
    if args.tiny and args.write:
        parser.error("--tiny does not make the page: leave out --write")
    args.ranks = args.ranks or (COUNTED if args.counts else (1, 2))
    store = Path(args.output or RESULTS / f"scaling{'-counts' if args.counts else ''}{'-tiny' if args.tiny else ''}.json").absolute()
    store.parent.mkdir(parents=True, exist_ok=True)
    try:
        if args.page:
            if not store.exists():
                parser.error(f"{store} is not there: leave out --page to measure")
            found = json.loads(store.read_text("utf-8"))
        else:
            found = counts(args.ranks, args.tiny) if args.counts else times(tuple(args.ranks), args.tiny, args.rounds)
    except Failed as failure:
        print(failure, file=sys.stderr)
        return 1
    store.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")
    if not args.counts:
        print("\n".join(seconds_table(found, args.ranks)))
        return 0
    lines, broken = counts_table(found)
    print("\n".join(lines))
    if args.write:
        PAGE.write_text(written(PAGE.read_text("utf-8"), lines), "utf-8")
    return int(bool(broken))


def counts(ranks, tiny=False):
    """The documents of `scaling_counts` for every number of ranks, up to the first that fails. Starts mpiexec."""
    found, end = [], time.monotonic() + LIMIT * len(ranks)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "counts.json")
        for count in ranks:
            print(f"{count} ranks …", file=sys.stderr, flush=True)
            words = ["benchmarks.scaling_counts", "--output", output]
            try:
                Processes(count, 1, end).start(words + (["--leaf", 32] if tiny else []), LIMIT)
            except Failed as failure:
                if not found:
                    raise
                print(f"{count} ranks: {failure}; the counts of fewer ranks are shown", file=sys.stderr, flush=True)
                break
            found.append(json.loads(output.read_text("utf-8")))
    return {"machine": describe_here(), "runs": found}


def seconds_table(found, ranks):
    """Lines: a phase, its seconds on each number of ranks, how many times faster."""
    head = f"{'phase':<44}" + "".join(f"{count:>10} ranks" for count in ranks) + "  times faster"
    lines = [head]
    speeds = {count: speedups(found, count) for count in ranks[1:]}
    for phase in found[0][ranks[0]]["phases"]:
        seconds = [float(np.median([each[count]["phases"][phase]["median"] for each in found])) for count in ranks]
        faster = ", ".join(f"{speeds[count][phase][1]:.2f}" for count in ranks[1:])
        lines.append(f"{phase:<44}" + "".join(f"{each:14.4g} s" for each in seconds) + f"  {faster}")
    return lines


def counts_table(found):
    """(lines in Markdown, the calls and phases that break the rule)."""
    runs = found["runs"]
    ranks = [run["ranks"] for run in runs]
    names = [name for name in runs[-1]["phases"]]
    first = runs[-1]
    shape = "-".join(map(str, first["widths"]))
    lines = [
        f"{found['machine']['date'][:10]}: {shape}, N = {first['n_params']:,}, n = {first['samples']}, HSS at {first['rtol']:g}, leaves of {first['leaf']}, ranks up to {first['rank']}, {first['attempts']} attempts, {first['columns']} columns; kB that the busiest rank sends or receives, "
        f"its messages, and measured / model on {ranks[-1]} ranks; MB of its largest Python allocations.",
        "",
        "| phase | " + " | ".join(f"{count}" for count in ranks) + f" | / model | messages, {ranks[-1]} | MB, {ranks[0]} | MB, {ranks[-1]} |",
        "|---" * (len(ranks) + 5) + "|",
    ]
    for name in names:
        phases = [run["phases"].get(name, {"bytes": 0, "memory": 0, "messages": 0, "model": None}) for run in runs]
        last = phases[-1]
        model = f"{last['bytes'] / last['model']:.2f}" if last.get("model") else "–"
        sizes = " | ".join(f"{each['bytes'] / 1e3:.4g}" for each in phases)
        lines.append(f"| {name} | {sizes} | {model} | {last['messages']:,} | {phases[0]['memory'] / 1e6:.2f} | {last['memory'] / 1e6:.2f} |")
    broken, small = violations(runs)
    lines += ["", "Faster than log P: " + ("; ".join(broken) if broken else "nothing that matters") + "."]
    lines += [f"Faster than log P but small (on {FAR:,} ranks below {SMALL >> 20} MiB a call): " + "; ".join(small) + "."] if small else []
    return lines, broken


def violations(runs):
    """([what grows faster than log P, in words], [the same where it stays small]): a call's volume, how often it comes (there are log P levels
    whose nodes change owners), phases' memory, from the last two runs."""
    broken, small = [], []
    if len(runs) < 3 or runs[-1]["ranks"] < 4:
        return broken, small
    few, many = runs[-2], runs[-1]
    allowed = SLACK * np.log2(many["ranks"]) / np.log2(few["ranks"])
    for name, phase in many["phases"].items():
        before = few["phases"].get(name, {"sites": {}, "memory": 0})
        for site, (calls, size, _) in phase["sites"].items():
            former_calls, former, _ = before["sites"].get(site, [0, 0, 0])
            if former and (size / calls > allowed * former / former_calls or calls > allowed * former_calls):
                note(broken, small, f"{name}, {site}", former, size, few["ranks"], many["ranks"])
        if before["memory"] and phase["memory"] > allowed * before["memory"]:
            note(broken, small, f"{name}, memory", before["memory"], phase["memory"], few["ranks"], many["ranks"])
    return broken, small


def note(broken, small, what, before, size, few, many):
    """File it under what matters or not, by its power of the ranks between both counts, on FAR ranks."""
    power = np.log2(size / before) / np.log2(many / few)
    far = size * (FAR / many) ** power
    (broken if far > SMALL else small).append(f"{what}: {before:,} B on {few}, {size:,} B on {many} (P^{power:.2f}), {far / 1e3:.3g} kB on {FAR:,}")


def written(text, lines):
    """The page with the table between its markers, which are put at the end of the section where they are missing."""
    block = f"{BEGIN}\n\n" + "\n".join(lines) + f"\n\n{END}"
    if BEGIN in text:
        before, _, rest = text.partition(BEGIN)
        return before + block + rest.partition(END)[2]
    before, heading, after = text.partition("## Ranks: volume, messages, memory\n")
    body, more, rest = after.partition("\n## ")
    return before + heading + body.rstrip("\n") + f"\n\n{block}\n" + more + rest


if __name__ == "__main__":
    sys.exit(main())
