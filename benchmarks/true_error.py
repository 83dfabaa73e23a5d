"""The true error of a factor file, column by column against the exact matrix in float64 (N products: minutes for N = 16,640).

    mpiexec -n P python -m benchmarks.true_error F.h5
"""

import sys

import numpy as np
from mpi4py import MPI

import hpcHess as hh
from hpcHess.curvature.from_job import operator_of_matrix

COLUMNS = 512


def true_error(H, operator):
    """(‖H̃ − H‖_F / ‖H‖_F, ‖H‖_F) from all N columns. Collective."""
    N, error, norm = H.shape[0], 0.0, 0.0
    for first in range(0, N, COLUMNS):
        I = np.zeros((N, min(COLUMNS, N - first)))
        I[first + np.arange(I.shape[1]), np.arange(I.shape[1])] = 1
        exact = operator.matmat(I)
        error += float(np.sum((H.matmat(I) - exact) ** 2))
        norm += float(np.sum(exact**2))
    return np.sqrt(error / norm), np.sqrt(norm)


if __name__ == "__main__":
    comm = MPI.COMM_WORLD
    matrix = hh.load(sys.argv[1], comm)
    found, norm = true_error(matrix, operator_of_matrix(matrix))
    if comm.rank == 0:
        print(f"true error {found:.4e} of ‖H‖_F = {norm:.5g}; estimated {matrix.report['error_estimate']}")
