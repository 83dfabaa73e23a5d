"""python -m benchmarks.growth: time and memory of HSS compressions at fixed rank as the number of parameters grows, a process each, as JSON.

784-a-b-10 perceptrons with random weights and `--samples` random inputs; the same leaf_size and max_rank for all, so that operations, bytes and
memory a parameter should stay what they are. CPU seconds (user and system) hold on a machine that others use, seconds on one of one's own.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time

WIDTHS = {125_000: (154, 24), 250_000: (284, 92), 500_000: (540, 136), 1_000_000: (1000, 200)}  # hidden layers


def measured(hidden, samples, leaf_size, max_rank, rtol):
    """Seconds, CPU seconds by phase, and peak bytes of one compression in this process, as a dict."""
    import numpy as np
    from mpi4py import MPI

    from hpcHess.curvature.gauss_newton import GaussNewton
    from hpcHess.hierarchical.compress import compress
    from hpcHess.networks.network import Network
    from hpcHess.parallel.memory import resident_bytes

    rng, widths = np.random.default_rng(0), (784, *hidden, 10)
    weights = [rng.standard_normal((b, a), np.float32) * np.sqrt(2 / a) for a, b in zip(widths, widths[1:], strict=False)]
    biases = [np.zeros(b, np.float32) for b in widths[1:]]
    network = Network(weights, biases, "relu", "cross-entropy")
    H = GaussNewton(network, rng.random((samples, 784), np.float32), comm=MPI.COMM_WORLD, dtype=np.float32)
    before, start, cpu = resident_bytes(), time.perf_counter(), time.process_time()
    report = compress(H, rtol=rtol, leaf_size=leaf_size, max_rank=max_rank, distance="neuron").report
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    sketch = H.dtype.itemsize * H.n_params * report["sketch_columns"] // H.comm.size
    return {
        "n_params": H.n_params,
        "ranks": H.comm.size,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "cpu_microseconds_per_parameter": 1e6 * cpu / H.n_params,
        "timings": report["timings"],
        "attempts": report["attempts"],
        "storage_bytes": report["storage_bytes"],
        "sketch_bytes": sketch,
        "resident_before": before,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def build_parser():
    """Arguments."""
    parser = argparse.ArgumentParser(prog="benchmarks.growth", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=sorted(WIDTHS), choices=sorted(WIDTHS), help="numbers of parameters, about")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--leaf-size", type=int, default=256)
    parser.add_argument("--max-rank", type=int, default=32)
    parser.add_argument("--rtol", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", help="JSON file (default: standard output)")
    parser.add_argument("--one", type=int, nargs="+", metavar="width", help=argparse.SUPPRESS)
    return parser


def main():
    """A process for every size: peaks of memory are of that size alone."""
    parser = build_parser()
    args = parser.parse_args()
    if min(args.samples, args.leaf_size, args.threads) < 1 or args.max_rank < 0 or not 0 < args.rtol < 1:
        parser.error("--samples, --leaf-size and --threads must be at least 1, --max-rank at least 0, --rtol between 0 and 1")
    if args.one:
        print(json.dumps(measured(args.one, args.samples, args.leaf_size, args.max_rank, args.rtol)))
        return
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "OPENBLAS_NUM_THREADS": str(args.threads)}
    options = [f"--{name}={getattr(args, name.replace('-', '_'))}" for name in ("samples", "leaf-size", "max-rank", "rtol")]
    found = []
    for size in args.sizes:
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.growth", *options, "--one", *map(str, WIDTHS[size])]
        found.append(json.loads(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout))
        last = found[-1]
        memory = f"peak {last['peak_bytes'] / 1e9:.2f} GB, sketch {last['sketch_bytes'] / 1e9:.2f} GB, stored {last['storage_bytes'] / 1e9:.2f} GB"
        print(f"N = {last['n_params']:>9,}: {last['cpu_microseconds_per_parameter']:.1f} CPU µs a parameter, {memory}", file=sys.stderr)
    each = [one["cpu_microseconds_per_parameter"] for one in found]
    result = {"options": vars(args), "load": os.getloadavg(), "sizes": found, "growth": each[-1] / each[0]}
    text = json.dumps(result, indent=1)
    if args.output:
        with open(args.output, "w") as file:
            file.write(text + "\n")
    else:
        print(text)


if __name__ == "__main__":
    main()
