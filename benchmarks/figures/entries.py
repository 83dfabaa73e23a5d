"""Grouped entries of all leaf blocks against sgemm and against the Gram route."""

import numpy as np
from mpi4py import MPI

from benchmarks import models
from benchmarks.entries import problem
from benchmarks.figures.turns import Turns, gemm, row
from benchmarks.gram import gram_blocks
from hpcHess.curvature.gauss_newton import GaussNewton
from hpcHess.tree.build import build_tree

ASKED, ASKED_GRAM = 0.4, 10.0
GRAM_BLOCKS = 2
LEAVES = 512  # blocks of one batch at most, evenly chosen
CASES = {  # widths, loss, samples, leaf size
    "784-20-30-10, cross-entropy": ((784, 20, 30, 10), "cross-entropy", 1000, 64),
    "784-77-784, squared error": ((784, 77, 784), "squared-error", 1000, 64),
    "784-1000-200-10, cross-entropy": ((784, 1000, 200, 10), "cross-entropy", 1000, 64),
}
TINY = {"12-8-4, cross-entropy": ((12, 8, 4), "cross-entropy", 100, 16)}


def measure(options):
    """Two rows a network."""
    yield from (each for name, case in (TINY if options.tiny else CASES).items() for each in _rows(name, *case, options))


def _rows(name, widths, loss, n, leaf, options):
    operator = GaussNewton(*problem(widths, loss, n), comm=MPI.COMM_SELF, dtype=np.float32)
    tree = build_tree(operator, leaf, "neuron", rtol=1e-1)
    leaves = [tree.permutation[a:b] for a, b in zip(tree.leaf_starts[:-1], tree.leaf_starts[1:], strict=True) if b > a]
    sets = leaves[:: -(-len(leaves) // LEAVES)]
    I, starts = np.concatenate(sets), np.cumsum([0, *map(len, sets)])
    multiply, gemm_flops = gemm(order=256 if options.tiny else 2048)
    few = sets[:: -(-len(sets) // GRAM_BLOCKS)][:GRAM_BLOCKS]
    few_entries, entries = (float(sum(len(each) ** 2 for each in chosen)) for chosen in (few, sets))

    def grouped():
        operator.entries_batch(I, starts, I, starts)

    turns = Turns({"grouped": grouped, "sgemm": multiply_alone(multiply), "Gram route": lambda: gram_blocks(operator, few)[1]}, options)
    difference = _difference(operator, few)
    operator.close()
    needed = models.entries(entries, n, np.float32).flops
    what = f"{name}, n = {n:,}, {len(sets)} blocks of {np.mean(list(map(len, sets))):.0f}"
    ceiling = f"sgemm {gemm_flops / turns.median('sgemm') / 1e9:.0f} GFLOP/s; 2n operations an entry"
    share, gram = turns.ratio("grouped", "sgemm", needed, gemm_flops), turns.ratio("grouped", "Gram route", entries, few_entries)
    holds = "products x κ of every pair of groups are formed besides the inner products over the samples"
    facts = {"gflop": needed / 1e9, "difference": difference}
    return [
        row(f"{what}: of sgemm", ASKED, share, "share", ceiling, holds, turns, **facts),
        row(f"{what}: Gram route / grouped", ASKED_GRAM, gram, "times", f"Gram route, {len(few)} blocks, an entry", "the Gram route is itself a gemm with few outputs", turns),
    ]


def multiply_alone(multiply):
    """The product without its result."""

    def run():
        multiply()

    return run


def _difference(operator, sets):
    """Largest relative difference of both routes' blocks."""
    I, starts = np.concatenate(sets), np.cumsum([0, *map(len, sets)])
    blocks, by_gram = operator.entries_batch(I, starts, I, starts), gram_blocks(operator, sets)[0]
    return max(float(np.abs(blocks[i] - H).max() / max(np.abs(H).max(), 1e-300)) for i, H in enumerate(by_gram))
