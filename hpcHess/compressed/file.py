"""The frame of a factor file (docs/FORMAT.md): what is the same in all formats. Reading: `formats.file.load`."""

import json

import numpy as np

from hpcHess.parallel.ownership import starts_of
from hpcHess.runtime.provenance import provenance
from hpcHess.storage.factor_file import write
from hpcHess.storage.hdf5 import hdf5_versions

PRECONDITIONER = "preconditioner/"  # where what belongs to the matrix's `preconditioner` lies


class Pieces:
    """Collects this rank's pieces of the datasets; datasets run over all nodes or pairs, level by level."""

    def __init__(self, comm):
        self.comm, self.pieces, self.totals = comm, {}, {}

    def whole(self, name, array):
        """A replicated array, written by rank 0."""
        self.totals[name] = len(array), array.dtype
        self.pieces[name] = [(0, array)] if self.comm.rank == 0 else []

    def append(self, name, counts, first, last, data, dtype=None):
        """The next part of a dataset: items of `counts` numbers each, of which this rank holds first … last − 1 in `data`."""
        starts = starts_of(counts)
        done, dtype = self.totals.get(name, (0, np.dtype(dtype or data.dtype)))
        self.pieces.setdefault(name, []).append((done + int(starts[first]), data))
        self.totals[name] = done + int(starts[-1]), dtype
        assert len(data) == starts[last] - starts[first]

    def rows(self, name, starts, data, dtype=None):
        """A matrix whose rows the ranks hold by `starts` [P + 1], here `data` [n_local, width]; row by row, all of one width."""
        width, rank = data.shape[1], self.comm.rank
        self.append(name, np.diff(starts) * width, rank, rank + 1, data.reshape(-1), dtype)


def read_rows(file, name, starts, width):
    """This rank's rows [n_local, width] of what `Pieces.rows` wrote, on any number of ranks. Not collective."""
    first, last = (int(at) for at in starts[file.comm.rank : file.comm.rank + 2])
    return file.read(name, first * width, last * width).reshape(last - first, width)


def save(matrix, path, job=None, network=None, digests=None, factors=None):
    """Write `matrix` to `path`, atomically. Collective.

    job      `runtime.jobfile.Job` that made it (its text and directory are stored)
    network  a fitted `Network`, stored because no file holds it
    digests  {"network_hash": …, "data_hash": …}
    factors  direct factors of the matrix, or of its preconditioner, to be stored with it where their form can be (`DirectFactors.append`)
    """
    out = Pieces(matrix.comm)
    attributes = _attributes(matrix, job, digests) | matrix.append(out)
    if network is not None:
        arrays = network.to_arrays()
        shapes = {name: list(array.shape) for name, array in arrays.items()}
        attributes["network"] = json.dumps({"activation": network.activation, "loss": network.loss, "shapes": shapes})
        for name, array in arrays.items():
            out.whole(f"network/{name}", np.ascontiguousarray(array, np.float64).ravel())
    if factors is not None:
        attributes |= factors.append(out, "" if factors.matrix is matrix else PRECONDITIONER) or {}
    write(path, matrix.comm, attributes, out.pieces, out.totals)


def _attributes(matrix, job, digests):
    report = dict(matrix.report)
    origin = provenance(matrix.comm)
    origin["versions"] |= hdf5_versions()
    origin |= {"timings": report.pop("timings", {}), "seed": report.get("seed")} | (digests or {})
    return {
        "matrix_format": matrix.format,
        "n_params": int(matrix.n_params),
        "n_alive": int(matrix.n_alive),
        "dtype": matrix.dtype.name,
        "report": json.dumps(report, sort_keys=True),
        "job": "" if job is None else job.text,
        "job_directory": "" if job is None else str(job.directory),
        "provenance": json.dumps(origin),
    }
