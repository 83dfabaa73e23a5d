"""The dense Gauss–Newton test matrix of a trained network, as a raw little-endian float32 file (row-major).

    python -m benchmarks.gauss_newton_matrix --n 16384 --output GN.f32

A 196-h-10 tanh network with softmax and cross-entropy, fitted to the first 2,000 samples of MNIST, 28 × 28 pixels averaged in 2 × 2 cells and
scaled to 0 … 1; h is the smallest width with at least N parameters (207 h + 10). Of its Gauss–Newton matrix H = (1/n) Σ J_iᵀ Q_i J_i the N parameters
with the largest diagonal are kept, in PyTorch's order, and H is scaled to mean diagonal 1; some of them are dead (pixels that are never lit).
Dense test matrix of the comparisons with GOFMM (Yu et al., SC 2017), which takes matrices as files. Ranks of one host share the work.
"""

import argparse

import numpy as np

from hpcHess.curvature.gauss_newton import GaussNewton
from hpcHess.networks import datasets
from hpcHess.networks.fit import fit
from hpcHess.parallel.agree import on_root, together
from hpcHess.runtime.errors import DONE, InputError
from hpcHess.runtime.session import run_driver
from hpcHess.storage.atomic import check_room, check_writable, discard, partial_name, publish

SAMPLES, SIDE, INPUTS, CLASSES = 2000, 28, 196, 10
ROWS = 256  # of one block of the matrix


def build_parser():
    """Arguments of the program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, required=True, help="order of the matrix")
    parser.add_argument("--output", required=True, metavar="GN.f32", help="file to write")
    parser.add_argument("--seed", type=int, default=0, help="of the fit")
    parser.add_argument("--epochs", type=int, default=50, help="of the fit")
    return parser


def main(session, args):
    """Fit, choose the parameters, write block by block. Collective."""
    comm, n = session.comm, args.n
    if n < 1 or args.epochs < 1 or args.seed < 0:
        raise InputError("--n and --epochs must be at least 1, --seed at least 0")
    target = check_writable(args.output, comm)
    on_root(comm, check_room, target, 4 * n * n)
    with session.phase("fit"):
        network, inputs = trained(comm, n, args.seed, args.epochs)
    with session.phase("operator"):
        operator = GaussNewton(network, inputs, comm=comm, dtype=np.float32)
        kept, scale = selection(operator.diagonal(), n)
    session.say(f"{network!r}: {n} parameters kept, H scaled by {scale:.6g}")
    temporary = partial_name(target, comm)
    try:
        on_root(comm, _allocate, temporary, 4 * n * n)
        with session.phase("entries", -(-n // ROWS)) as steps, together(comm):
            matrix = np.memmap(temporary, "<f4", "r+", shape=(n, n))
            for number in range(comm.rank, -(-n // ROWS), comm.size):
                fill_block(operator, kept, scale, matrix, number * ROWS)
                steps.advance(comm.size)
            matrix.flush()
        on_root(comm, publish, temporary, target)
    finally:
        discard(temporary)
    session.output(f"{args.output}: N = {n}, float32, {4 * n * n:,} bytes")
    return DONE


def trained(comm, n, seed, epochs):
    """(the fitted Network of at least n parameters, its inputs float32 [SAMPLES, INPUTS]) on every rank. Collective."""
    return on_root(comm, _trained, -(-(n - CLASSES) // (INPUTS + 1 + CLASSES)), seed, epochs)


def _trained(hidden, seed, epochs):
    pixels, labels = datasets.load("mnist", SAMPLES)
    cells = pixels.reshape(SAMPLES, SIDE // 2, 2, SIDE // 2, 2).mean(axis=(2, 4), dtype=np.float64)
    inputs = cells.reshape(SAMPLES, INPUTS).astype(np.float32)
    return fit(inputs, labels, [max(1, hidden)], epochs, seed, activation="tanh"), inputs


def selection(diagonal, n):
    """(indices of the n largest diagonal entries in increasing order, the factor that makes their mean 1)."""
    kept = np.sort(np.argsort(-diagonal, kind="stable")[:n])
    return kept, float(n / diagonal[kept].sum(dtype=np.float64))


def fill_block(operator, kept, scale, matrix, first):
    """Rows first … first + ROWS − 1 of the scaled matrix from the diagonal on, and their transpose below it. Not collective."""
    last = min(len(kept), first + ROWS)
    values = operator.entries(kept[first:last], kept[first:]) * np.float32(scale)
    square = values[:, : last - first]
    square[...] = np.triu(square) + np.triu(square, 1).T
    matrix[first:last, first:] = values
    for at in range(last, len(kept), ROWS):
        rows = slice(at, min(len(kept), at + ROWS))
        matrix[rows, first:last] = values[:, rows.start - first : rows.stop - first].T


def _allocate(path, n_bytes):
    try:
        with open(path, "wb") as file:
            file.truncate(n_bytes)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None


if __name__ == "__main__":
    run_driver("benchmarks.gauss_newton_matrix", build_parser, main)
