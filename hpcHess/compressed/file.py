"""The frame of a factor file (docs/FORMAT.md): what is the same in all formats. Reading: `formats.file.load`."""

import json

import numpy as np

from hpcHess.networks.network import Network
from hpcHess.parallel.ownership import starts_of
from hpcHess.runtime.provenance import provenance
from hpcHess.storage.factor_file import write
from hpcHess.storage.hdf5 import hdf5_versions

PRECONDITIONER = "preconditioner/"  # where what belongs to the matrix's `preconditioner` lies


class Pieces:
    """Collects this rank's pieces of the datasets; datasets run over all nodes or pairs, level by level."""

    def __init__(self, comm, prefix=""):
        self.comm, self.prefix, self.pieces, self.totals = comm, prefix, {}, {}

    def whole(self, name, array):
        """A replicated array, written by rank 0."""
        name = self.prefix + name
        self.totals[name] = len(array), array.dtype
        self.pieces[name] = [(0, array)] if self.comm.rank == 0 else []

    def append(self, name, counts, first, last, data, dtype=None):
        """The next part of a dataset: items of `counts` numbers each, of which this rank holds first … last − 1 in `data`."""
        name, starts = self.prefix + name, starts_of(counts)
        done, dtype = self.totals.get(name, (0, np.dtype(dtype or data.dtype)))
        self.pieces.setdefault(name, []).append((done + int(starts[first]), data))
        self.totals[name] = done + int(starts[-1]), dtype
        assert len(data) == starts[last] - starts[first]

    def begin(self, name, dtype):
        """A dataset of that type, there even if nothing is appended."""
        self.totals[self.prefix + name] = 0, np.dtype(dtype)

    def under(self, prefix):
        """The same collection for a part of the matrix: names of datasets get the prefix."""
        part = Pieces(self.comm, self.prefix + prefix)
        part.pieces, part.totals = self.pieces, self.totals
        return part

    def rows(self, name, starts, data, dtype=None):
        """A matrix whose rows the ranks hold by `starts` [P + 1], here `data` [n_local, width]; row by row, all of one width."""
        width, rank = data.shape[1], self.comm.rank
        self.append(name, np.diff(starts) * width, rank, rank + 1, data.reshape(-1), dtype)


class PartOfFile:
    """The datasets of an open `FactorFile` under a prefix, with the `attributes` of the part: what a format's `read` takes."""

    def __init__(self, file, prefix, attributes):
        self._file, self._prefix = file, prefix
        self.path, self.comm, self.attributes = file.path, file.comm, attributes
        self.names = [name.removeprefix(prefix) for name in file.names if name.startswith(prefix)]

    def size(self, name):
        """Length of a dataset."""
        return self._file.size(self._prefix + name)

    def read(self, name, low, high):
        """Elements low … high − 1 of a dataset. Not collective."""
        return self._file.read(self._prefix + name, low, high)

    def read_all(self, name):
        """A whole dataset. Not collective."""
        return self._file.read_all(self._prefix + name)


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

    Without a job, that of the file which the matrix was loaded from is kept, with its network and digests.
    """
    if job is not None:
        matrix.job_text, matrix.job_directory = job.text, str(job.directory)
    elif matrix.job_text:
        digests = digests or {key: value for key, value in matrix.provenance.items() if key.endswith("_hash")}
        network = matrix.network and Network.from_arrays(**matrix.network)
    out = Pieces(matrix.comm)
    attributes = _attributes(matrix, digests) | matrix.append(out)
    if network is not None:
        arrays = network.to_arrays()
        shapes = {name: list(array.shape) for name, array in arrays.items()}
        attributes["network"] = json.dumps({"activation": network.activation, "loss": network.loss, "output": network.output, "shapes": shapes})
        for name, array in arrays.items():
            out.whole(f"network/{name}", np.ascontiguousarray(array, np.float64).ravel())
    if factors is not None:
        attributes |= factors.append(out, "" if factors.matrix is matrix else PRECONDITIONER) or {}
    write(path, matrix.comm, attributes, out.pieces, out.totals)


def stored_network(file):
    """What `save` wrote of a fitted network, as arguments of `Network.from_arrays`; None where there is none. Not collective."""
    if "network" not in file.attributes:
        return None
    network = json.loads(file.attributes["network"])
    shapes = network.pop("shapes")
    return network | {"arrays": {name: file.read_all(f"network/{name}").reshape(shape) for name, shape in shapes.items()}}


def _attributes(matrix, digests):
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
        "job": matrix.job_text,
        "job_directory": matrix.job_directory,
        "provenance": json.dumps(origin),
    }
