"""python -m benchmarks.cnn [--samples n] [--vectors k]: products of PyTorch modules' curvatures: the network of jobs/cnn.py and a 784-77-784 autoencoder.

Seconds on the clock and of all the process's threads (of a machine that others use, the latter say more), on one rank.
"""

import argparse
import importlib.util
import os
import time

import numpy as np
import torch
from torch import nn

import hpcHess
from benchmarks.cases import JOBS
from hpcHess.runtime.schema import KINDS


def modules(n):
    """(name, module, loss, data) of random samples: products cost the same for all."""
    found = importlib.util.spec_from_file_location("cnn", JOBS / "cnn.py")
    cnn = importlib.util.module_from_spec(found)
    found.loader.exec_module(cnn)
    torch.manual_seed(0)
    inputs = torch.rand(n, 784)
    yield "784-77-784, sigmoid", nn.Sequential(nn.Linear(784, 77), nn.Sigmoid(), nn.Linear(77, 784)), "squared-error", (inputs, inputs)
    yield "convolutions", cnn.untrained(), "cross-entropy", (inputs, torch.randint(10, (n,)))


def main():
    parser = argparse.ArgumentParser(prog="benchmarks.cnn", description=__doc__)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--vectors", type=int, default=64)
    given = parser.parse_args()
    print(f"n = {given.samples}, {given.vectors} vectors, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}")
    print("| module | N | kind | dtype | seconds | CPU seconds |\n|---|---|---|---|---|---|")
    for name, model, loss, data in modules(given.samples):
        for dtype in (np.float64, np.float32):
            for kind in KINDS:
                operator = hpcHess.TorchCurvature(model.eval(), loss, data, kind, dtype=dtype)
                V = np.random.default_rng(0).standard_normal((operator.n_params, given.vectors)).astype(dtype)
                clock, work = time.perf_counter(), time.process_time()
                operator @ V
                clock, work = time.perf_counter() - clock, time.process_time() - work
                print(f"| {name} | {operator.n_params:,} | {kind} | {np.dtype(dtype)} | {clock:.2f} | {work:.2f} |", flush=True)


if __name__ == "__main__":
    main()
