"""python -m benchmarks.entries [--quick] [--page] [--write]: cost and error of exact and sampled entries, as docs/ENTRIES.md.

One process, one thread. Times are seconds of the processor, not of the clock (medians): others may use the machine. Networks and inputs are random,
30 % of the inputs not zero. Results are kept as JSON after every network, the page is made of them.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mpi4py import MPI

from benchmarks.entries_page import page
from benchmarks.gram import gram_pairs
from benchmarks.machine import ROOT, describe
from hpcHess.curvature.gauss_newton import GaussNewton
from hpcHess.curvature.sampled import SampledEntries
from hpcHess.networks.network import Network

RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "ENTRIES.md"
SECONDS, REPEATS = 0.25, 15  # of one measurement: until either is reached, once at least
SEEDS = 5  # of the errors
GRAM_SAMPLES = 1000  # of which the Gram route is timed
PROBES = 32  # of ‖H‖_F


@dataclass(frozen=True)
class Case:
    """A network and numbers of samples; `sizes` of its square blocks."""

    name: str
    widths: tuple
    loss: str
    counts: tuple
    sizes: tuple = (64, 256)


CASES = (
    Case("one output", (100, 100, 1), "squared-error", (1000, 60000)),
    Case("ten classes", (784, 20, 30, 10), "cross-entropy", (1000, 10000, 60000), (64, 256, 512)),
    Case("hundred classes", (256, 128, 100), "cross-entropy", (1000, 10000)),
    Case("autoencoder", (256, 100, 30, 100, 256), "squared-error", (1000, 10000)),
    Case("wide", (784, 1000, 200, 10), "cross-entropy", (1000, 5000)),
)
QUICK = (Case("small", (12, 8, 4), "cross-entropy", (500,), (16,)), Case("small values", (6, 4, 6), "squared-error", (400,), (16,)))


def main(arguments=None):
    """Measure, keep, print, write. Exit status 0."""
    parser = argparse.ArgumentParser(prog="benchmarks.entries", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two tiny networks")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="networks whose names begin so; the others keep their former results")
    parser.add_argument("--page", action="store_true", help="measure nothing: the page of the results there are")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    parser.add_argument("--output", metavar="FILE.json", help="results (benchmarks/results/entries.json)")
    args = parser.parse_args(arguments)
    if args.quick and args.write:
        parser.error("--quick does not make the page: leave out --write")
    store = Path(args.output or RESULTS / ("entries-quick.json" if args.quick else "entries.json"))
    store.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(store.read_text("utf-8")) if args.page or args.only and store.exists() else {"cases": []}
    wanted = [case for case in (QUICK if args.quick else CASES) if not args.page and (not args.only or case.name.startswith(tuple(args.only)))]
    found = known | {"cases": [each for each in known["cases"] if each["case"] not in {case.name for case in wanted}]}
    for case in wanted:
        for n in case.counts:
            print(f"{case.name}, n = {n} …", file=sys.stderr, flush=True)
            found["cases"].append(measured(case, n) | {"machine": describe(MPI.COMM_SELF)})
            found["cases"].sort(key=lambda each: [case.name for case in (*CASES, *QUICK)].index(each["case"]))
            store.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")
    text = page(found)
    if args.write:
        PAGE.write_text(text, "utf-8")
    print(text)
    return 0


def measured(case, n):
    """Plain values of one network with n samples: `rows`, one for each kind of block and size."""
    operator = GaussNewton(*problem(case.widths, case.loss, n), comm=MPI.COMM_SELF, dtype=np.float32)
    count = 100 if n > 100 else n // 4
    ways = {"sampled": {"error": 0.1} if n > 100 else {"samples_per_entry": count}}
    ways |= {"sampled, 10,000": {"samples_per_entry": 10000}} if n > 10000 else {}
    ways |= {"one draw": ways["sampled"] | {"global_draw": True}}
    made = {way: [SampledEntries(operator, seed=seed, **options) for seed in range(SEEDS)] for way, options in ways.items()}
    diagonal = operator.diagonal().astype(np.float64)
    omega = np.random.default_rng(1).standard_normal((operator.n_params, PROBES)).astype(np.float32)
    norm = np.linalg.norm(operator.matmat(omega).astype(np.float64)) / np.sqrt(PROBES)
    facts = {"case": case.name, "widths": list(case.widths), "loss": case.loss, "n": n, "d": case.widths[-1], "N": operator.n_params}
    facts |= {"stored": operator._entries.kernel.stored is not None, "ratio": float(diagonal.sum() / norm), "rows": []}
    for kind, size in [("pair", 1), *((kind, size) for size in case.sizes for kind in ("neighbours", "scattered"))]:
        facts["rows"].append(row(operator, made, diagonal, kind, size))
    for each in [sampled for seeds in made.values() for sampled in seeds]:
        for part in (each._sampler, each._whole):
            if part is not None:
                part.close()
    operator.close()
    return facts


def row(operator, made, diagonal, kind, size):
    """Seconds and errors of blocks of one kind: a pair, neighbouring parameters of two neurons, scattered ones."""
    I, J = indices(operator, kind, size)
    exact = operator.entries(I, J).astype(np.float64)
    bound, norm = np.sqrt(diagonal[I].sum() * diagonal[J].sum()), np.linalg.norm(exact)
    found = {"kind": kind, "size": size, "seconds": {"grouped": cpu(lambda: operator.entries(I, J))}, "errors": {}}
    most = min(operator.n_samples, GRAM_SAMPLES)
    times = np.array([time for _, time in gram_pairs(operator, [(I, J), (I[:1], J[:1])] * 3, most)]) * operator.n_samples / most
    found["seconds"] |= {"gram": float(np.median(times[::2])), "one by one": float(np.median(times[1::2])) * size**2}
    for way, seeds in made.items():
        found["seconds"][way] = cpu(lambda: seeds[0].entries(I, J))  # noqa: B023
        error = np.sqrt(np.mean([np.sum((each.entries(I, J) - exact) ** 2) for each in seeds]))
        found["errors"][way] = {"draws": seeds[0].entry_draws, "of block": ratio(error, norm), "of bound": ratio(error * np.sqrt(seeds[0].entry_draws), bound)}
    return found


def problem(widths, loss, n):
    """(Network with random weights, inputs [n, d_0] of which 30 % are not zero)."""
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((out, inner)) * np.sqrt(2 / inner) for inner, out in zip(widths[:-1], widths[1:], strict=True)]
    inputs = rng.standard_normal((n, widths[0]), np.float32) * (rng.random((n, widths[0])) < 0.3)
    return Network(weights, [np.zeros(out) for out in widths[1:]], "relu", loss), inputs.astype(np.float32)


def indices(operator, kind, size):
    """(I, J) int64 of alive parameters: the ones next to each other from 1/4 and from 3/4 of all on, or spread over all."""
    alive, rng = operator.alive, np.random.default_rng(size)
    if kind == "neighbours":
        return tuple(alive[at : at + size] for at in (len(alive) // 4, 3 * len(alive) // 4 - size))
    return tuple(np.sort(rng.choice(alive, size, replace=False)) for _ in range(2))


def cpu(work):
    """Median processor seconds of one call, the first one not counted where there is time for a second."""
    times, end = [_once(work)], time.process_time() + SECONDS
    while time.process_time() < end and len(times) < REPEATS:
        times.append(_once(work))
    return float(np.median(times[1:] or times))


def _once(work):
    start = time.process_time()
    work()
    return time.process_time() - start


def ratio(a, b):
    """a / b, 0 for 0 / 0."""
    return float(a / b) if b else 0.0


if __name__ == "__main__":
    sys.exit(main())
