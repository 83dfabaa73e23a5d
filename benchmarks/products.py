"""python -m benchmarks.products [--write]: exact curvature products with many vectors against sgemm and another library, as docs/PRODUCTS.md.

One process. Networks have random weights and inputs: the time of a product does not depend on them. Where the package curvlinops (and PyTorch) is
installed its operators multiply the same network, samples and vectors in the same run, by turns with ours, and must agree up to the losses' scaling.
"""

import argparse
import json
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
from mpi4py import MPI

from benchmarks.machine import describe
from benchmarks.models import product_flops
from hpcHess.curvature.from_job import KINDS
from hpcHess.networks.network import Network

ROOT = Path(__file__).parents[1]
PAGE, RESULTS = ROOT / "docs" / "PRODUCTS.md", ROOT / "benchmarks" / "results" / "products.json"
CASES = {  # widths, activation, loss
    "784-77-784, squared error": ((784, 77, 784), "sigmoid", "squared-error"),
    "784-77-784, binary cross-entropy": ((784, 77, 784), "sigmoid", "binary-cross-entropy"),
    "784-20-30-10, cross-entropy": ((784, 20, 30, 10), "relu", "cross-entropy"),
    "784-1000-200-10, cross-entropy": ((784, 1000, 200, 10), "relu", "cross-entropy"),
}
TINY = {"12-5-12, squared error": ((12, 5, 12), "sigmoid", "squared-error")}
PEERS = {"gauss-newton": "GGNLinearOperator", "hessian": "HessianLinearOperator", "opg": "EFLinearOperator"}
ORDER = 2048
PEER_PARAMS = 200_000  # larger networks take the other library minutes a product


def main(arguments=None):
    """Measure, print the page, write it where asked."""
    parser = argparse.ArgumentParser(prog="benchmarks.products", description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--vectors", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=5, metavar="n", help="products of which the median counts (5)")
    parser.add_argument("--tiny", action="store_true", help="one tiny network")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)} and {RESULTS.relative_to(ROOT)}")
    args = parser.parse_args(arguments)
    rows = [measured(name, kind, args) for name in (TINY if args.tiny else CASES) for kind in PEERS if kind in KINDS]
    found = {"machine": describe(MPI.COMM_SELF), "samples": args.samples, "vectors": args.vectors, "rows": rows}
    text = page(found)
    if args.write:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(found, indent=1))
        PAGE.write_text(text, "utf-8")
    print(text)


def problem(name, n):
    """(network, inputs float32, targets) of a case."""
    widths, activation, loss = {**CASES, **TINY}[name]
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((out, inner)) / np.sqrt(inner) for inner, out in zip(widths[:-1], widths[1:], strict=True)]
    network = Network(weights, [np.zeros(len(W)) for W in weights], activation, loss)
    inputs = rng.random((n, widths[0])).astype(np.float32)
    targets = rng.integers(0, widths[-1], n) if loss == "cross-entropy" else rng.random((n, widths[-1])).astype(np.float32)
    return network, inputs, targets


def measured(name, kind, args):
    """One row, plain values: seconds of every repeat, operations, sgemm's rate, the other library's seconds and how far its product is off."""
    network, inputs, targets = problem(name, args.samples)
    operator = KINDS[kind](network, inputs, targets, comm=MPI.COMM_SELF, dtype=np.float32)
    V = np.random.default_rng(1).standard_normal((network.n_params, args.vectors)).astype(np.float32)
    works = {"ours": lambda: operator.partial_matmat(V), "sgemm": sgemm()}
    other = peer(network, inputs, targets, kind) if network.n_params <= PEER_PARAMS else None
    if other is not None:
        works["peer"] = lambda: other(V)
    results = {name: work() for name, work in works.items()}  # not counted: first use
    seconds = {name: [] for name in works}
    for _ in range(args.repeat):
        for which, work in works.items():
            start = time.perf_counter()
            work()
            seconds[which].append(time.perf_counter() - start)
    row = {"case": name, "kind": kind, "n_params": network.n_params, "seconds": seconds["ours"], "gflop": flops(network, kind, args) / 1e9}
    row |= {"temporaries": temporaries(works["ours"]), "sgemm": 2e-9 * ORDER**3 / float(np.median(seconds["sgemm"]))}
    if other is not None:
        A, B = (np.asarray(results[which], np.float64).ravel() for which in ("ours", "peer"))
        row |= {"peer_seconds": seconds["peer"], "difference": float(np.linalg.norm(A - (A @ B) / (B @ B) * B) / np.linalg.norm(A))}
    operator.close()
    print(f"{name}, {kind}: {np.median(seconds['ours']):.3f} s", file=sys.stderr, flush=True)
    return row


def sgemm():
    """A matrix product of order `ORDER` in float32."""
    A = np.random.default_rng(2).standard_normal((ORDER, ORDER)).astype(np.float32)
    return lambda: A @ A


def flops(network, kind, args):
    """Of a forward and a backward sweep, whatever the program does instead; the Hessian's has δ Rxᵀ and Vᵀδ besides."""
    plain = product_flops(network, args.samples, args.vectors)
    if kind != "hessian":
        return plain
    return plain + sum(4.0 * W.size * args.samples * args.vectors for W in network.weights[1:])


def temporaries(work):
    """Bytes that a product needs at most at a time, its result aside."""
    tracemalloc.start()
    result = work()
    found = tracemalloc.get_traced_memory()[1] - result.nbytes
    tracemalloc.stop()
    return int(found)


def peer(network, inputs, targets, kind):
    """V → its product by curvlinops, whole data in one batch; None where it is not installed."""
    try:
        import curvlinops
        import torch
    except ImportError:
        return None
    functions = {"relu": torch.nn.ReLU, "sigmoid": torch.nn.Sigmoid}
    losses = {"cross-entropy": torch.nn.CrossEntropyLoss, "binary-cross-entropy": torch.nn.BCEWithLogitsLoss, "squared-error": torch.nn.MSELoss}
    layers = []
    for W, b in zip(network.weights, network.biases, strict=True):
        layers += [torch.nn.Linear(W.shape[1], W.shape[0]), functions[network.activation]()]
        with torch.no_grad():
            layers[-2].weight.copy_(torch.from_numpy(W))
            layers[-2].bias.copy_(torch.from_numpy(b))
    model = torch.nn.Sequential(*layers[:-1]).to(torch.from_numpy(inputs[:1]).dtype)
    data = [(torch.from_numpy(inputs), torch.from_numpy(targets))]
    operator = getattr(curvlinops, PEERS[kind])(model, losses[network.loss](), list(model.parameters()), data, check_deterministic=False)
    return lambda V: (operator @ torch.from_numpy(V)).numpy()


def page(found):
    """docs/PRODUCTS.md."""
    machine, rows = found["machine"], found["rows"]
    origin = "not run yet" if not machine else f"{machine['date'][:10]}, {machine['cpu']}, {machine['cores']} cores, {_threads(machine)}"
    lines = [
        "# Products, measured",
        "",
        f"Written by `python -m benchmarks.products --write`: {origin}. Exact products HV in float32 with {found['vectors']} vectors and n = "
        f"{found['samples']:,} samples, one process; medians, all in one run and by turns.",
        "",
        "* GFLOP/s: operations of a plain forward and backward sweep (for the Hessian with the two products more of the R-operator), whatever is done "
        "instead, over our seconds. Squared error's contracted last layer and outer products without a sweep do fewer, so the rate may exceed the machine's.",
        "* of sgemm: that rate over the rate of a matrix product of order 2,048 in the same turns.",
        "* curvlinops: the same network, samples, vectors and type in one batch by its operator; `difference` of both products, relative, up to the losses' "
        "scaling factor.",
        "* temporaries: most bytes at a time besides the result.",
        "",
        "| network, loss | kind | seconds | GFLOP/s | of sgemm | temporaries | curvlinops s | times faster | difference |",
        "|" + "---|" * 9,
    ]
    return "\n".join([*lines, *map(_row, rows)]) + "\n"


def _threads(machine):
    return f"{machine['threads'].get('OPENBLAS_NUM_THREADS') or 'all'} threads"


def _row(row):
    seconds = float(np.median(row["seconds"]))
    rate = row["gflop"] / seconds
    cells = [row["case"], row["kind"], f"{seconds:.3f}", f"{rate:.0f}", f"{100 * rate / row['sgemm']:.0f} %", f"{row['temporaries'] / 1e6:.0f} MB"]
    if "peer_seconds" in row:
        theirs = float(np.median(row["peer_seconds"]))
        cells += [f"{theirs:.3f}", f"{theirs / seconds:.1f}", f"{row['difference']:.1e}"]
    else:
        cells += ["–", "–", "–"]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
