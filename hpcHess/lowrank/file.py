"""Between a low-rank matrix and its datasets in a factor file (docs/FORMAT.md): every rank writes and reads its own rows."""

import numpy as np

from hpcHess.compressed.file import read_rows
from hpcHess.lowrank.matrix import LowRankMatrix
from hpcHess.parallel.agree import together
from hpcHess.parallel.ownership import row_starts


def append(matrix, out):
    """The datasets of `matrix` into `out` (`compressed.file.Pieces`); its root attributes. Not collective."""
    core = matrix.backend.to_host(matrix.core)
    out.whole("lowrank/numbers", matrix.numbers)
    out.whole("lowrank/skeleton", matrix.skeleton)
    out.whole("lowrank/eigenvalues", matrix.eigenvalues)
    out.whole("lowrank/core", core if core.ndim == 1 else core[np.tril_indices(len(core))])
    out.rows("lowrank/coefficients", matrix.row_starts, matrix.backend.to_host(matrix.coefficients))
    return {"rank": int(matrix.rank)}


def read(file, backend):
    """The matrix in an open factor file, on any number of ranks. Collective."""
    with together(file.comm):
        given = file.attributes
        n_params, rank, dtype = int(given["n_params"]), int(given["rank"]), np.dtype(given["dtype"])
        numbers, skeleton, values = (file.read_all(f"lowrank/{name}") for name in ("numbers", "skeleton", "eigenvalues"))
        core = file.read_all("lowrank/core")
        if len(skeleton):
            packed, core = core, np.zeros((rank, rank), dtype)
            lower = np.tril_indices(rank)
            core[lower] = packed
            core.T[lower] = packed
        starts = np.searchsorted(numbers, row_starts(n_params, file.comm.size))
        coefficients = backend.asarray(read_rows(file, "lowrank/coefficients", starts, rank), dtype)
    return LowRankMatrix(file.comm, backend, n_params, numbers, coefficients, skeleton, backend.asarray(core, dtype), values)
