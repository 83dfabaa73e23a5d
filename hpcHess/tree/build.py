"""The tree of an operator, by any of the distances."""

import numpy as np

from hpcHess.parallel.agree import on_root
from hpcHess.parallel.ownership import row_starts
from hpcHess.runtime.errors import InputError
from hpcHess.tree.distance import metric_of
from hpcHess.tree.inputs import EMBEDDING_COLUMNS as EMBEDDED_INPUT_COLUMNS
from hpcHess.tree.inputs import input_order
from hpcHess.tree.neurons import network_layers, neuron_tree
from hpcHess.tree.split import split_points
from hpcHess.tree.tree import Tree, depth_for

EMBEDDING_COLUMNS = 32
DISTANCES = ("angle", "kernel", "input", "neuron", "parameter", "random")


def build_tree(operator, leaf_size, distance="parameter", seed=0, rtol=1e-2):
    """Tree over `operator.alive`. Collective; the same on every rank, for any number of ranks up to rounding in the embedding.

    distance: `angle`, `kernel` (geometry-oblivious, `tree.distance.metric_of`), `input` (network-respecting, from
    `operator.input_groups`: `tree.inputs`), `neuron` (rectangles of neurons and inputs, `tree.neurons`; leaves differ in size, cuts
    depend on rtol), or the controls `parameter` (parameter order), `random`.
    Raises InputError for an unknown distance, or one that the operator has no embedding for.
    """
    if distance not in DISTANCES:
        raise InputError(f"unknown distance {distance!r}: choose one of {', '.join(DISTANCES)}")
    alive = operator.alive
    if distance == "neuron":
        return on_root(operator.comm, _neuron_tree, operator, leaf_size, seed, rtol)
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


def _neuron_tree(operator, leaf_size, seed, rtol):
    """The tree of rectangles, on one rank."""
    if not hasattr(operator, "neuron_groups"):
        raise InputError("this operator has no neurons: use another distance than 'neuron'")
    return neuron_tree(network_layers(operator, EMBEDDED_INPUT_COLUMNS, seed), operator.alive, leaf_size, rtol)


def _oblivious_order(operator, depth, distance, seed):
    """Tree position → position in `alive`, int64 [n]."""
    comm, starts = operator.comm, row_starts(len(operator.alive), operator.comm.size)
    metric = metric_of(operator, distance, EMBEDDING_COLUMNS, seed)
    index = np.arange(starts[comm.rank], starts[comm.rank + 1], dtype=np.int64)
    _, index, node = split_points(metric, index, int(starts[-1]), depth, seed, comm)
    node, index = (np.concatenate(part) for part in zip(*comm.allgather((node, index))))
    return index[np.lexsort((index, node))]
