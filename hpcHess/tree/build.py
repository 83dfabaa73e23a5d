"""The tree of an operator: embedding by probes, splits level by level, points moving to their nodes' owners on the way."""

import numpy as np
from mpi4py import MPI

from hpcHess.parallel.agree import on_root
from hpcHess.parallel.exchange import reduce_rows
from hpcHess.parallel.ownership import node_owners, row_starts
from hpcHess.runtime.errors import InputError
from hpcHess.tree.distance import normalize
from hpcHess.tree.inputs import EMBEDDING_COLUMNS as EMBEDDED_INPUT_COLUMNS
from hpcHess.tree.inputs import input_order
from hpcHess.tree.split import split_level
from hpcHess.tree.tree import Tree, depth_for, level_sizes

EMBEDDING_COLUMNS = 32
DISTANCES = ("angle", "kernel", "input", "parameter", "random")


def build_tree(operator, leaf_size, distance="parameter", seed=0):
    """Tree over `operator.alive`. Collective; the same on every rank, for any number of ranks up to rounding in the embedding.

    distance: `angle`, `kernel` (geometry-oblivious, from `operator.partial_probe`), `input` (network-respecting, from
    `operator.input_groups`: `tree.inputs`), or the controls `parameter` (parameter order), `random`.
    Raises InputError for an unknown distance, or one that the operator has no embedding for.
    """
    if distance not in DISTANCES:
        raise InputError(f"unknown distance {distance!r}: choose one of {', '.join(DISTANCES)}")
    alive = operator.alive
    depth = depth_for(len(alive), leaf_size)
    if distance == "parameter":
        order = np.arange(len(alive))
    elif distance == "random":
        order = np.random.default_rng(seed).permutation(len(alive))
    elif distance == "input":
        order = _network_order(operator, depth, seed)
    else:
        order = _oblivious_order(operator, depth, distance, seed)
    return Tree.halved(alive[order].astype(np.int64), depth)


def _network_order(operator, depth, seed):
    """Tree position → position in `alive`, int64 [n], computed on rank 0."""
    if not hasattr(operator, "input_groups"):
        raise InputError("this operator has no network inputs: use another distance than 'input'")
    groups, rows = operator.input_groups(EMBEDDED_INPUT_COLUMNS, seed)
    return on_root(operator.comm, input_order, groups[operator.alive], rows, depth)


def embedding(operator, n_columns, seed):
    """Rows of Z with E⟨z_i, z_j⟩ = H_ij for this rank's piece of the alive parameters, [n_local, n_columns]. Collective."""
    if not hasattr(operator, "partial_probe"):
        raise InputError("this operator has no embedding: use distance = 'parameter' or 'random'")
    starts = row_starts(len(operator.alive), operator.comm.size)
    return reduce_rows(operator.comm, operator.partial_probe(n_columns, seed)[operator.alive], starts), starts


def _oblivious_order(operator, depth, distance, seed):
    """Tree position → position in `alive`, int64 [n]."""
    comm = operator.comm
    Z, starts = embedding(operator, EMBEDDING_COLUMNS, seed)
    Z = normalize(Z, distance)
    index = np.arange(starts[comm.rank], starts[comm.rank + 1], dtype=np.int64)
    node = np.zeros(len(Z), np.int64)
    sizes = level_sizes(starts[-1], depth)
    cut = min(depth, int(np.ceil(np.log2(comm.size))) + 2) if comm.size > 1 else 0
    for level in range(depth):
        if level == cut and comm.size > 1:
            Z, index, node = _to_owners(comm, Z, index, node, node_owners(level, depth, comm.size))
        if level < cut:
            right = split_level(Z, index, node, sizes[level + 1][::2], distance, seed + level, comm)
        elif len(node):
            first, last = node.min(), node.max() + 1
            right = split_level(Z, index, node - first, sizes[level + 1][2 * first : 2 * last : 2], distance, seed + level, MPI.COMM_SELF)
        else:
            right = node
        node = 2 * node + right
    order = np.lexsort((index, node))
    pieces = comm.allgather((node[order], index[order]))
    node, index = (np.concatenate(part) for part in zip(*pieces))
    return index[np.lexsort((index, node))]


def _to_owners(comm, Z, index, node, owners):
    """Move every point to the owner of its node."""
    target = owners[node]
    order = np.argsort(target, kind="stable")
    cuts = np.searchsorted(target[order], np.arange(1, comm.size))
    sent = [(Z[part], index[part], node[part]) for part in np.split(order, cuts)]
    return (np.concatenate(part) for part in zip(*comm.alltoall(sent)))
