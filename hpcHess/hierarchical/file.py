"""Between a compressed matrix and its factor file (docs/FORMAT.md): every rank writes and reads its own nodes."""

import json

import numpy as np

from hpcHess import backend as backends
from hpcHess.backend.blocks import Blocks
from hpcHess.hierarchical.coarse import diagonal_blocks
from hpcHess.hierarchical.factor_arrays import append_factors, factors_arguments
from hpcHess.hierarchical.matrix import HierarchicalMatrix
from hpcHess.parallel.agree import together
from hpcHess.parallel.ownership import node_starts, starts_of
from hpcHess.runtime.errors import InputError
from hpcHess.runtime.provenance import provenance
from hpcHess.skeleton.levels import PairBlocks, new_level, pair_sums
from hpcHess.storage.factor_file import FactorFile, write
from hpcHess.storage.hdf5 import hdf5_versions
from hpcHess.tree.interactions import far_pairs
from hpcHess.tree.tree import Tree

PRECONDITIONER = "preconditioner/"  # where a second, coarser HSS matrix of the same tree lies


class _Pieces:
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


def _packed(near, data):
    """Lower triangles row by row of diagonal blocks, whole blocks off the diagonal: (counts of all pairs, own flat data)."""
    parts = [np.zeros(0, data.dtype)]
    for i, (a, b) in enumerate(near.own):
        block = data[near.blocks.offsets[i] : near.blocks.offsets[i + 1]].reshape(near.rows[i], near.cols[i])
        parts.append(block[np.tril_indices(len(block))] if a == b else block.ravel())
    return np.concatenate(parts)


def _packed_counts(pairs, sizes):
    m, n = sizes[pairs[:, 0]], sizes[pairs[:, 1]]
    return np.where(pairs[:, 0] == pairs[:, 1], m * (m + 1) // 2, m * n)


def save(matrix, path, job=None, network=None, digests=None, factors=None):
    """Write `matrix` to `path`, atomically. Collective.

    job      `runtime.jobfile.Job` that made it (its text and directory are stored)
    network  a fitted `Network`, stored because no file holds it
    digests  {"network_hash": …, "data_hash": …}
    factors  direct factors (`hierarchical.factors`) of the matrix, or of its preconditioner, to be stored with it
    """
    comm, tree = matrix.comm, matrix.tree
    out = _Pieces(comm)
    out.whole("tree/permutation", tree.permutation)
    out.whole("tree/leaf_starts", tree.leaf_starts)
    _append_levels(out, matrix)
    near, values = matrix.near, matrix.backend.to_host(matrix.near.blocks.data)
    out.whole("near/pairs", near.pairs.ravel())
    out.append("near/values", _packed_counts(near.pairs, tree.leaf_sizes), near.first, near.last, _packed(near, values))
    if matrix.preconditioner is not None:
        _append_levels(out, matrix.preconditioner, PRECONDITIONER)
    attributes = _attributes(matrix, job, digests)
    if network is not None:
        arrays = network.to_arrays()
        shapes = {name: list(array.shape) for name, array in arrays.items()}
        attributes["network"] = json.dumps({"activation": network.activation, "loss": network.loss, "shapes": shapes})
        for name, array in arrays.items():
            out.whole(f"network/{name}", np.ascontiguousarray(array, np.float64).ravel())
    if factors is not None:
        attributes |= append_factors(out, factors, "" if factors.matrix is matrix else PRECONDITIONER)
    write(path, comm, attributes, out.pieces, out.totals)


def _append_levels(out, matrix, prefix=""):
    """`<prefix>nodes/…` and `<prefix>far/…`: the bases and couplings of all levels."""
    comm, host = matrix.comm, matrix.backend.to_host
    out.whole(f"{prefix}nodes/rank", np.concatenate([np.zeros(1, np.int64), *(level.ranks for level in matrix.levels[1:])]))
    for name, dtype in (("nodes/order", np.int64), ("nodes/interpolation", matrix.dtype), ("far/values", matrix.dtype)):
        out.totals[prefix + name] = 0, np.dtype(dtype)
    for level in matrix.levels[1:]:
        first, last = level.at(comm)
        out.append(f"{prefix}nodes/order", level.columns, first, last, level.order)
        out.append(f"{prefix}nodes/interpolation", level.ranks * (level.columns - level.ranks), first, last, host(level.T.data))
        counts = level.ranks[level.far.pairs[:, 0]] * level.ranks[level.far.pairs[:, 1]]
        out.append(f"{prefix}far/values", counts, level.far.first, level.far.last, host(level.far.blocks.data))
    numbered = [np.column_stack([np.full(len(level.far.pairs), level.level), level.far.pairs]) for level in matrix.levels[1:]]
    out.whole(f"{prefix}far/pairs", np.concatenate([np.zeros((0, 3), np.int64), *numbered]).astype(np.int64).ravel())


def _attributes(matrix, job, digests):
    report = dict(matrix.report)
    origin = provenance(matrix.comm)
    origin["versions"] |= hdf5_versions()
    origin |= {"timings": report.pop("timings", {}), "seed": report.get("seed")} | (digests or {})
    return {
        "matrix_format": matrix.format,
        "n_params": int(matrix.n_params),
        "n_alive": int(matrix.n_alive),
        "depth": int(matrix.tree.depth),
        "leaf_size": int(report.get("leaf_size", matrix.tree.leaf_sizes.max(initial=0))),
        "dtype": matrix.dtype.name,
        "report": json.dumps(report, sort_keys=True),
        "job": "" if job is None else job.text,
        "job_directory": "" if job is None else str(job.directory),
        "provenance": json.dumps(origin),
    }


def load(path, comm, backend="auto", verify=True):
    """The matrix in a factor file, on any number of ranks; `.report`, `.provenance`, `.job_text`, `.job_directory`, `.network`

    (a dict of arrays with activation and loss where the job fitted the network, else None); stored factors are
    installed. Collective. Raises InputError for anything but a complete, intact factor file of a known version.
    """
    kernels = backends.get(backend)
    with FactorFile(path, comm, verify=verify) as file:
        with together(comm):
            matrix = _read(file, comm, kernels)
            found = [(each, factors_arguments(file, each, prefix)) for each, prefix in ((matrix, ""), (matrix.preconditioner, PRECONDITIONER))]
        for each, arguments in found:
            if arguments is not None:
                form, *rest = arguments
                each.install(form(each, *rest))
    return matrix


def _read(file, comm, backend):
    given = file.attributes
    if given["matrix_format"] not in ("hss", "fmm"):
        raise InputError(f"{file.path} holds the format {given['matrix_format']!r}, which this version does not read")
    depth, dtype = int(given["depth"]), np.dtype(given["dtype"])
    tree = Tree(depth, file.read_all("tree/permutation"), file.read_all("tree/leaf_starts"))
    near = PairBlocks(comm, file.read_all("near/pairs").reshape(-1, 2), node_starts(depth, depth, comm.size), tree.leaf_sizes)
    near.set(backend.asarray(_read_near(file, near, tree.leaf_sizes), dtype))
    levels = _read_levels(file, backend, tree, near, dtype)
    matrix = HierarchicalMatrix(comm, backend, int(given["n_params"]), tree, near, levels, json.loads(given["report"]))
    matrix.provenance, matrix.job_text, matrix.job_directory = json.loads(given["provenance"]), given["job"], given["job_directory"]
    if f"{PRECONDITIONER}nodes/rank" in file.names:
        diagonal = diagonal_blocks(backend, near, tree)
        levels = _read_levels(file, backend, tree, diagonal, dtype, PRECONDITIONER)
        report = matrix.report.get("preconditioner", {})
        matrix.preconditioner = HierarchicalMatrix(comm, backend, matrix.n_params, tree, diagonal, levels, report)
    if "network" in given:
        matrix.network = json.loads(given["network"])
        shapes = matrix.network.pop("shapes")
        matrix.network["arrays"] = {name: file.read_all(f"network/{name}").reshape(shape) for name, shape in shapes.items()}
    return matrix


def _read_levels(file, backend, tree, near, dtype, prefix=""):
    """The bases and couplings that `_append_levels` wrote: list over 0 … depth, entry 0 None."""
    comm, depth = file.comm, tree.depth
    all_ranks, far = file.read_all(f"{prefix}nodes/rank"), far_pairs(near.pairs, depth)
    if not np.array_equal(file.read_all(f"{prefix}far/pairs").reshape(-1, 3)[:, 1:], np.concatenate([*far])):
        raise InputError(f"{file.path} has far pairs that do not follow from its near pairs, which this version does not read")
    levels, at = [None] * (depth + 1), dict.fromkeys(("nodes/order", "nodes/interpolation", "far/values"), 0)

    def part(name, counts, first, last):
        starts = at[name] + starts_of(counts)
        at[name] = int(starts[-1])
        return file.read(prefix + name, int(starts[first]), int(starts[last]))

    for number in range(1, depth + 1):
        ranks = all_ranks[(1 << number) - 1 : (2 << number) - 1]
        columns = tree.leaf_sizes if number == depth else pair_sums(all_ranks[(2 << number) - 1 : (4 << number) - 1])
        levels[number] = level = new_level(comm, number, depth, columns)
        level.ranks = ranks
        first, last = level.at(comm)
        level.order = part("nodes/order", columns, first, last)
        T = part("nodes/interpolation", ranks * (columns - ranks), first, last)
        level.T = Blocks.shaped(backend.asarray(T, dtype), ranks[first:last], (columns - ranks)[first:last])
        level.arrange(comm, backend)
        level.far = pairs = PairBlocks(comm, far[number], level.owned, ranks)
        pairs.set(backend.asarray(part("far/values", ranks[far[number][:, 0]] * ranks[far[number][:, 1]], pairs.first, pairs.last), dtype))
    return levels


def _read_near(file, near, sizes):
    """Own near blocks, symmetric ones unpacked."""
    starts = starts_of(_packed_counts(near.pairs, sizes))
    packed = file.read("near/values", int(starts[near.first]), int(starts[near.last]))
    blocks = Blocks.shaped(np.empty(int((near.rows * near.cols).sum()), packed.dtype), near.rows, near.cols)
    at = starts[near.first : near.last + 1] - starts[near.first]
    for i, (a, b) in enumerate(near.own):
        values = packed[at[i] : at[i + 1]]
        if a == b:
            lower = np.tril_indices(near.rows[i])
            blocks[i][lower] = values
            blocks[i].T[lower] = values
        else:
            blocks[i][...] = values.reshape(near.rows[i], near.cols[i])
    return blocks.data
