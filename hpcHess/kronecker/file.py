"""Between a sum of Kronecker products and its datasets in a factor file (docs/FORMAT.md, "Kronecker sums")."""

import numpy as np

from hpcHess.kronecker.layers import Layer
from hpcHess.kronecker.matrix import KroneckerSum
from hpcHess.kronecker.terms import KINDS, Terms
from hpcHess.parallel.agree import together
from hpcHess.parallel.ownership import row_starts
from hpcHess.parallel.shared import HostArray
from hpcHess.runtime.errors import InputError


def append(matrix, out):
    """The datasets of `matrix` into `out` (`compressed.file.Pieces`): every rank writes an equal share of each pair's terms; no attributes."""
    layers, comm = matrix.layers, matrix.comm
    table = [[layer.start, layer.out, layer.inner, layer.has_bias, len(layer.rows), len(layer.columns)] for layer in layers]
    out.whole("kronecker/layers", np.array(table, np.int64).ravel())
    for name in ("rows", "columns"):
        out.whole(f"kronecker/{name}", np.concatenate([getattr(layer, name) for layer in layers]))
    pairs = [[*each.layers, KINDS.index(each.kind), len(each)] for each in matrix.terms]
    out.whole("kronecker/pairs", np.array(pairs, np.int64).reshape(-1))
    shared = [each.shared.ravel() for each in matrix.terms if each.shared is not None]
    out.whole("kronecker/shared", np.concatenate(shared or [np.zeros(0, matrix.dtype)]).astype(matrix.dtype))
    for name in ("left", "right"):
        out.begin(f"kronecker/{name}", matrix.dtype)
        for each in matrix.terms:
            starts = row_starts(len(each), comm.size)
            mine = slice(int(starts[comm.rank]), int(starts[comm.rank + 1]))
            symmetric = each.symmetric and (name == "right" or each.kind == "full")
            values = getattr(each, name)
            width = _width(values.shape[1:], symmetric)
            counts = np.diff(starts) * width
            out.append(f"kronecker/{name}", counts, comm.rank, comm.rank + 1, _packed(values[mine], symmetric).ravel())
    return {}


def _width(shape, symmetric):
    """Numbers of one term's factor in the file."""
    return shape[0] * (shape[0] + 1) // 2 if symmetric else int(np.prod(shape, dtype=np.int64))


def _packed(values, symmetric):
    """Upper triangles row by row of symmetric matrices [K, d, d]; else as they are."""
    return values[(slice(None), *np.triu_indices(values.shape[1]))] if symmetric else values


def _unpacked(flat, shape, symmetric):
    """[K, …] of flat numbers."""
    width = _width(shape, symmetric)
    values = flat.reshape(len(flat) // max(1, width), width)
    if not symmetric:
        return values.reshape(len(values), *shape)
    result, (rows, columns) = np.empty((len(values), *shape), flat.dtype), np.triu_indices(shape[0])
    result[:, rows, columns] = result[:, columns, rows] = values
    return result


def read(file, backend):
    """The matrix in an open factor file, on any number of ranks; one copy of the terms a host. Collective.

    InputError for what does not fit together.
    """
    comm, given = file.comm, file.attributes
    n_params, dtype = int(given["n_params"]), np.dtype(given["dtype"])
    with together(comm):
        layers = _layers(file, n_params)
        pairs = file.read_all("kronecker/pairs").reshape(-1, 4).tolist()
        if any(not 0 <= a <= b < len(layers) or kind >= len(KINDS) for a, b, kind, _ in pairs):
            raise InputError(f"{file.path} has layer pairs that this version does not read")
    at, terms = dict.fromkeys(("left", "right", "shared"), 0), []
    for a, b, kind, count in pairs:
        (d, c), (d2, c2), kind = layers[a].shape, layers[b].shape, KINDS[kind]
        shapes = {"full": (d, d2), "scaled": (d,), "identity": (), "diagonal": (d,)}
        left = _shared_array(file, "left", at, count, shapes[kind], a == b and kind == "full", dtype)
        right = _shared_array(file, "right", at, count, (c, c2), a == b, dtype)
        shared = None
        if kind == "scaled":
            with together(comm):
                shared = file.read("kronecker/shared", at["shared"], at["shared"] + d * d2).reshape(d, d2)
            at["shared"] += d * d2
        terms.append(Terms((a, b), kind, (d, d2), left, right, shared))
    return KroneckerSum(comm, backend, n_params, dtype, layers, terms)


def _layers(file, n_params):
    table, rows, columns = (file.read_all(f"kronecker/{name}") for name in ("layers", "rows", "columns"))
    layers, row, column = [], 0, 0
    for start, out, inner, has_bias, n_rows, n_columns in table.reshape(-1, 6).tolist():
        layers.append(Layer(start, out, inner, has_bias, rows[row : row + n_rows], columns[column : column + n_columns]))
        row, column = row + n_rows, column + n_columns
    if sum(layer.n_params for layer in layers) != n_params:
        raise InputError(f"{file.path} has layers that do not add up to its {n_params} parameters")
    return layers


def _shared_array(file, name, at, count, shape, symmetric, dtype):
    """The next `count` factors of a dataset, [count, …], read by one rank of every host. Collective."""
    held, width = HostArray(file.comm, (count, *shape), dtype), _width(shape, symmetric)
    share = held.share_of(count)
    with together(file.comm):
        values = file.read(f"kronecker/{name}", at[name] + share.start * width, at[name] + share.stop * width)
        held.array[share] = _unpacked(values, shape, symmetric)
    held.fence()
    at[name] += count * width
    return held.array
