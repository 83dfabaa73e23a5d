"""mpiexec -n P python -m benchmarks.run [CASE or FIGURE …]: time, operations and bytes of every phase beside the machine's ceilings; what is asked and reached.

Without names: the cases below, then (on one rank, without mpiexec) the figures of docs/PERFORMANCE.md as `python -m benchmarks.figures` measures them.
"""

import argparse
import json
from pathlib import Path

from benchmarks import machine, rows
from benchmarks.cases import CASES
from benchmarks.ceilings import CeilingMeter
from benchmarks.figures import command
from benchmarks.figures.table import FIGURES
from benchmarks.phases import CaseRun
from hpcHess.parallel.agree import on_root
from hpcHess.runtime.errors import DONE, InputError
from hpcHess.runtime.session import run_driver

RESULTS = Path(__file__).parent / "results"
DEFAULT_CASES = ("digits", "mnist", "adult", "autoencoder")


def build_parser():
    """Arguments."""
    cases = "\n".join(f"  {case.name:<12} {case.description}" for case in CASES.values())
    figures = "\n".join(f"  {figure.name:<20} {figure.asked}" for figure in FIGURES.values())
    parser = argparse.ArgumentParser(
        usage="mpiexec -n P python -m benchmarks.run [CASE or FIGURE …] [--output FILE.json] [--repeat n] [--budget s]",
        description=__doc__,
        epilog=f"cases (without a name: {' '.join(DEFAULT_CASES)}):\n{cases}\nfigures (without a name: all, on one rank):\n{figures}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="CASE or FIGURE", help="those below")
    parser.add_argument("--output", metavar="FILE.json", help="default: benchmarks/results/CASES-RANKSxTHREADS.json")
    parser.add_argument("--repeat", type=int, default=5, metavar="n", help="runs of every phase, of which the median counts (5)")
    parser.add_argument("--budget", type=float, default=10.0, metavar="s", help="no further run of a phase after so many seconds (10)")
    return parser


def main(session, args):
    """Run the cases that have their data, print a table each, write everything as JSON. Collective."""
    comm, asked = session.comm, args.names or (*DEFAULT_CASES, *(FIGURES if session.comm.size == 1 else ()))
    unknown = [name for name in asked if name not in CASES and name not in FIGURES]
    if unknown:
        raise InputError(f"unknown case {unknown[0]}: choose from {', '.join((*CASES, *FIGURES))}")
    names, figures = [name for name in asked if name in CASES], [name for name in asked if name in FIGURES]
    if figures and comm.size > 1:
        raise InputError(f"the figure {figures[0]} starts its own ranks: run it without mpiexec")
    if args.repeat < 1 or not args.budget > 0:
        raise InputError("--repeat must be at least 1, --budget larger than 0")
    description = machine.describe(comm)
    output = _output(args.output, names or figures, description)
    on_root(comm, _make_folder, output.parent)
    results, skipped = [], []
    for name in names:
        reason = on_root(comm, CASES[name].unavailable)
        if reason:
            skipped.append({"case": name, "reason": reason})
            session.say(f"{name}: skipped, {reason}")
            continue
        with session.phase(name):
            results.append(run_case(comm, CASES[name], args.repeat, args.budget, output.parent))
        _show(session, results[-1])
    document = {"machine": description, "repeat": args.repeat, "budget": args.budget, "cases": results, "skipped": skipped}
    if figures:
        with session.phase("figures"):
            document["figures"] = command.run(figures)
    on_root(comm, output.write_text, json.dumps(document, indent=1, ensure_ascii=False) + "\n", "utf-8")
    session.say(f"wrote {output}")
    return DONE


def run_case(comm, case, repeats, budget, folder, meter=None):
    """One case's plain values: sizes, rows, ceilings (sampled before and after it). Collective.

    folder: where the factor file lies for a while; meter: `CeilingMeter`, default one of full size.
    """
    meter = CeilingMeter(comm) if meter is None else meter
    meter.sample()
    run = CaseRun(comm, case, repeats, budget, folder)
    run.run()
    meter.sample()
    ceilings = meter.ceilings()
    return {**run.result(ceilings), "ceilings": ceilings.as_dict()}


def _output(given, names, description):
    if given:
        return Path(given).absolute()
    threads = description["threads"]["OMP_NUM_THREADS"] or description["cores"]
    return RESULTS / f"{'-'.join(names)}-{description['ranks']}x{threads}.json"


def _make_folder(folder):
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error.strerror}") from None


def _show(session, result):
    """One case on standard output: sizes, ceilings, rows."""
    sizes, ceilings = result["sizes"], result["ceilings"]
    report = sizes["compressed"]
    error = report["error_estimate"]
    ranks = ", ".join(f"{level['level']}: {level['rank_mean']:.1f} (max {level['rank_max']})" for level in report["levels"][1:])
    several = ceilings["ranks"] > 1
    measured = [(f"{ceilings['ranks']} ranks together" if several else "1 rank", ceilings["together"])]
    measured += [("one rank alone", ceilings["alone"])] * several
    lines = [
        f"\n{result['case']}: {'-'.join(map(str, sizes['layers']))}, N = {sizes['n_params']:,} ({sizes['n_alive']:,} alive), "
        f"n = {sizes['n_samples']:,}, products in {sizes['dtype']}",
        f"storage {report['storage_percent']:.4f} % of N² ({report['storage_bytes']:,} bytes), error {error['value']:.2e} "
        f"({error['low']:.2e} … {error['high']:.2e}), asked {report['rtol']:g}",
        f"{report['attempts']} attempts, {report['sketch_columns']} columns, mean ranks by level {ranks}",
        f"damping {sizes['damping']:.3g}, Woodbury residual {sizes['woodbury_residual']:.1e}, refine exact {sizes['refine']}",
    ]
    for mode, rates in measured:
        triads = ", ".join(f"{size} {rate:.1f}" for size, rate in rates["triad_gbytes"].items())
        lines.append(f"{mode}: sgemm {rates['sgemm_gflops']:.0f}, dgemm {rates['dgemm_gflops']:.0f} GFLOP/s; triad GB/s {triads}")
    parts = ", ".join(f"{each['phase']} {each['seconds']:.3g} s ({100 * each['fraction']:.0f} %)" for each in result["lost"])
    for line in [*lines, *rows.table(result["rows"]), f"compression: lost against the ceilings in {parts}"]:
        session.output(line)


if __name__ == "__main__":
    run_driver("benchmarks", build_parser, main)
