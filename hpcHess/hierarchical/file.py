"""Between a nested-basis matrix and its datasets in a factor file (docs/FORMAT.md): every rank writes and reads its own nodes."""

import json

import numpy as np

from hpcHess.backend.blocks import Blocks
from hpcHess.compressed.file import PRECONDITIONER
from hpcHess.hierarchical.coarse import diagonal_blocks
from hpcHess.hierarchical.factor_arrays import factors_arguments
from hpcHess.hierarchical.matrix import HierarchicalMatrix
from hpcHess.parallel.agree import together
from hpcHess.parallel.ownership import node_starts, starts_of
from hpcHess.runtime.errors import InputError
from hpcHess.skeleton.levels import PairBlocks, new_level, pair_sums
from hpcHess.tree.interactions import far_pairs
from hpcHess.tree.tree import Tree


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


def append(matrix, out):
    """The datasets of `matrix` into `out` (`compressed.file.Pieces`); its root attributes. Not collective."""
    tree = matrix.tree
    out.whole("tree/permutation", tree.permutation)
    out.whole("tree/leaf_starts", tree.leaf_starts)
    _append_levels(out, matrix)
    near, values = matrix.near, matrix.backend.to_host(matrix.near.blocks.data)
    out.whole("near/pairs", near.pairs.ravel())
    out.append("near/values", _packed_counts(near.pairs, tree.leaf_sizes), near.first, near.last, _packed(near, values))
    if matrix.preconditioner is not None:
        _append_levels(out, matrix.preconditioner, PRECONDITIONER)
    return {"depth": int(tree.depth), "leaf_size": int(matrix.report.get("leaf_size", tree.leaf_sizes.max(initial=0)))}


def _append_levels(out, matrix, prefix=""):
    """`<prefix>nodes/…` and `<prefix>far/…`: the bases and couplings of all levels."""
    comm, host = matrix.comm, matrix.backend.to_host
    out.whole(f"{prefix}nodes/rank", np.concatenate([np.zeros(1, np.int64), *(level.ranks for level in matrix.levels[1:])]))
    for name, dtype in (("nodes/order", np.int64), ("nodes/interpolation", matrix.dtype), ("far/values", matrix.dtype)):
        out.begin(prefix + name, dtype)
    for level in matrix.levels[1:]:
        first, last = level.at(comm)
        out.append(f"{prefix}nodes/order", level.columns, first, last, level.order)
        out.append(f"{prefix}nodes/interpolation", level.ranks * (level.columns - level.ranks), first, last, host(level.T.data))
        counts = level.ranks[level.far.pairs[:, 0]] * level.ranks[level.far.pairs[:, 1]]
        out.append(f"{prefix}far/values", counts, level.far.first, level.far.last, host(level.far.blocks.data))
    numbered = [np.column_stack([np.full(len(level.far.pairs), level.level), level.far.pairs]) for level in matrix.levels[1:]]
    out.whole(f"{prefix}far/pairs", np.concatenate([np.zeros((0, 3), np.int64), *numbered]).astype(np.int64).ravel())


def read(file, backend):
    """The matrix in an open factor file, on any number of ranks, with its preconditioner; stored direct factors are installed. Collective.

    InputError for what this version does not read.
    """
    with together(file.comm):
        matrix = _read(file, file.comm, backend)
        found = [(each, factors_arguments(file, each, prefix)) for each, prefix in ((matrix, ""), (matrix.preconditioner, PRECONDITIONER))]
    for each, arguments in found:
        if arguments is not None:
            form, *rest = arguments
            each.install(form(each, *rest))
    return matrix


def _read(file, comm, backend):
    given = file.attributes
    depth, dtype = int(given["depth"]), np.dtype(given["dtype"])
    tree = Tree(depth, file.read_all("tree/permutation"), file.read_all("tree/leaf_starts"))
    near = PairBlocks(comm, file.read_all("near/pairs").reshape(-1, 2), node_starts(depth, depth, comm.size), tree.leaf_sizes)
    near.set(backend.asarray(_read_near(file, near, tree.leaf_sizes), dtype))
    levels = _read_levels(file, backend, tree, near, dtype)
    matrix = HierarchicalMatrix(comm, backend, int(given["n_params"]), tree, near, levels, json.loads(given["report"]))
    if f"{PRECONDITIONER}nodes/rank" in file.names:
        diagonal = diagonal_blocks(backend, near, tree)
        levels = _read_levels(file, backend, tree, diagonal, dtype, PRECONDITIONER)
        report = matrix.report.get("preconditioner", {})
        matrix.preconditioner = HierarchicalMatrix(comm, backend, matrix.n_params, tree, diagonal, levels, report)
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
