"""The formats dense and block-diagonal: made from exact entries or from products with unit vectors, read from files, registered."""

from functools import partial

import numpy as np

from hpcHess import backend as backends
from hpcHess.blockwise.matrix import BlockMatrix
from hpcHess.blockwise.predict import predict_block_diagonal, predict_dense
from hpcHess.blockwise.symmetric import SymmetricBlocks
from hpcHess.compressed.certificate import certify, exact_error, reported
from hpcHess.compressed.format import Format
from hpcHess.compressed.options import stored_dtype
from hpcHess.curvature.sample_gram import hessian_norm
from hpcHess.curvature.sampled import noise_of
from hpcHess.parallel.agree import agree, tell, together
from hpcHess.parallel.exchange import RowPermutation
from hpcHess.parallel.memory import check_room
from hpcHess.parallel.ownership import row_starts, starts_of
from hpcHess.runtime.errors import InputError
from hpcHess.runtime.schema import BLOCKS
from hpcHess.runtime.progress import Silent

_BATCH = 1 << 22  # entries evaluated at a time
_UNITS = 128  # products with unit vectors at a time
_EXACT_SAMPLES = 4096  # whose inner products give ‖H‖_F
_CANCELLED = 1e-3  # of ‖H‖²: a smaller difference is not trusted


def compress(operator, rtol, format, seed=0, dtype="auto", probes=32, backend="auto", progress=None, blocks="layer"):
    """A `BlockMatrix` of an operator. Collective.

    dense            all of H: its relative error is that of rounding the entries to `dtype`, measured (0 where nothing is rounded)
    block-diagonal   the exact blocks of a layer's, or a neuron's, weights and bias: an error that has no tolerance, exact or certified (`_error`)

    Raises InputError for what does not fit into the memory, for block-diagonal matrices of operators without layers or without entries.
    """
    progress, dtype, kernels = Silent() if progress is None else progress, stored_dtype(dtype, rtol), backends.get(backend)
    comm, n = operator.comm, operator.shape[0]
    if format == "dense":
        blocks, permutation, starts = None, operator.alive, np.array([0, len(operator.alive)], np.int64)
    else:
        permutation, starts = _groups(operator, blocks)
    sizes = np.diff(starts)
    needed = SymmetricBlocks.bytes_needed(comm, sizes, dtype)
    check_room(comm, needed, f"the format {format} of {n:,} parameters, blocks of up to {int(sizes.max(initial=0)):,} rows,")
    with progress.phase("entries"):
        made = SymmetricBlocks(comm, kernels, sizes, dtype)
        fill = _fill if hasattr(operator, "entries_batch") else _fill_by_products
        lost = comm.allreduce(fill(operator, permutation, made))
        matrix = BlockMatrix(comm, kernels, format, n, permutation, made.finish())
    matrix.operator, norm = operator, matrix.norm_frobenius()
    with progress.phase("certificate"):
        if format == "dense" and not getattr(operator, "entry_draws", 0):
            error, spectral = exact_error(np.sqrt(lost) / norm if norm else 0.0), float(np.sqrt(lost))
        else:
            error, norm, spectral = *_error(matrix, operator, norm, probes, seed), None
        matrix.report = reported(matrix, error, rtol, norm, operator, seed, spectral)
    matrix.report |= {"backend": kernels.name, "timings": progress.timings.as_dict()} | ({} if blocks is None else {"blocks": blocks})
    if getattr(operator, "entry_draws", 0):
        matrix.report["entry_draws"] = operator.entry_draws
    matrix.report["warnings"] = _warnings(matrix.report, rtol, format, noise_of(operator, norm, rtol))
    tell(comm, matrix.report["warnings"])
    return matrix


def _error(matrix, operator, norm, probes, seed):
    """(error, ‖H‖_F): H̃ has some of H's entries, so ‖H̃ − H‖² = ‖H‖² − ‖H̃‖², where ‖H‖_F is affordable; else (no Gram
    matrix, entries that are sampled) certified by probes. Collective."""
    if not getattr(operator, "entry_draws", 0) and hasattr(operator, "samples") and operator.samples.n <= _EXACT_SAMPLES:
        whole = hessian_norm(operator.samples, operator.comm)
        left = 1 - (norm / whole) ** 2 if whole else 0.0
        if left > _CANCELLED or not whole:
            return exact_error(np.sqrt(left)), whole
    error, found = certify(matrix, operator, probes, seed)
    return error, found.value


def _warnings(report, rtol, format, noise):
    if report["rtol_met"]:
        return []
    reached = report["error_estimate"]["high"]
    if format == "dense" and noise:
        return [f"rtol {rtol:g} not met: error up to {reached:.3g}; {noise}"]
    if format == "dense":
        return [f"rtol {rtol:g} not met: entries rounded to single precision have an error of {reached:.3g}; use float64"]
    line = f"rtol {rtol:g} not met: error up to {reached:.3g}; block-diagonal matrices leave out what is between blocks and have no tolerance to meet"
    return [f"{line}; {noise}" if noise else line]


def _groups(operator, blocks):
    """(permutation, starts): the alive parameters layer by layer or neuron by neuron. InputError where there are none."""
    if blocks not in BLOCKS:
        raise InputError(f"blocks must be {' or '.join(BLOCKS)}, not {blocks!r}")
    network = getattr(operator, "network", None)
    if network is None:
        raise InputError('format = "block-diagonal" needs a network with layers; this operator has none: use format = "dense", "hss" or "low-rank"')
    labels, at = np.empty(network.n_params, np.int64), 0
    for (weight, bias), out, inner in zip(network.layer_offsets, network.widths[1:], network.inner, strict=True):
        neurons = np.arange(out) if blocks == "neuron" else np.zeros(out, np.int64)
        labels[weight : weight + out * inner] = at + np.repeat(neurons, inner)
        if bias is not None:
            labels[bias : bias + out] = at + neurons
        at += int(neurons[-1]) + 1
    alive = operator.alive
    permutation = alive[np.argsort(labels[alive], kind="stable")]
    counts = np.bincount(labels[alive], minlength=at)
    return permutation, starts_of(counts[counts > 0])


def _fill(operator, permutation, blocks):
    """Lower triangles of the own rows from exact entries; the sum of the squares of what rounding took off H. Not collective."""
    layout, lost, batch, size = blocks.layout, 0.0, [], 0
    starts = layout.starts[layout.block[layout.own]]

    def evaluate():
        rows = [permutation[blocks.lo[i] + a : blocks.lo[i] + b] for i, a, b, _, _ in batch]
        columns = [permutation[starts[i] + c : starts[i] + d] for i, _, _, c, d in batch]
        cut = [starts_of([len(each) for each in side]) for side in (rows, columns)]
        found, total = operator.entries_batch(np.concatenate(rows), cut[0], np.concatenate(columns), cut[1]), 0.0
        for at, (i, a, b, c, d) in enumerate(batch):
            target = blocks.piece(i)[a:b, c:d]
            target[...] = found[at]
            if blocks.dtype.itemsize < found.dtype.itemsize:
                total += _squares(found[at] - target, int(blocks.first[i]) + a - c)
        return total

    for tile in blocks.tiles():
        batch.append(tile)
        size += (tile[2] - tile[1]) * (tile[4] - tile[3])
        if size >= _BATCH:
            lost += evaluate()
            batch, size = [], 0
    return lost + (evaluate() if batch else 0.0)


def _squares(difference, shift):
    """Σ d_ij² of a symmetric matrix's tile in the lower triangle, j ≤ i + shift; what is below the diagonal counts twice."""
    squares = np.square(difference, dtype=np.float64)
    return float(2 * np.tril(squares, shift - 1).sum() + np.trace(squares, shift))


def _fill_by_products(operator, permutation, blocks):
    """The same for one block of all alive parameters, from products with unit vectors. Collective."""
    comm, n = operator.comm, operator.shape[0]
    starts = row_starts(n, comm.size)
    move = RowPermutation(comm, permutation, starts, blocks.layout.rows)
    lost, first = 0.0, int(starts[comm.rank])
    for c in range(0, len(permutation), _UNITS):
        chosen = permutation[c : c + _UNITS]
        E = np.zeros((int(starts[comm.rank + 1]) - first, len(chosen)), operator.dtype)
        own = np.flatnonzero((chosen >= first) & (chosen < first + len(E)))
        E[chosen[own] - first, own] = 1
        found = move.to_tree(np.ascontiguousarray(operator.matmat_rows(E)))
        for i in range(len(blocks.lo)):
            target = blocks.piece(i)[:, c : c + len(chosen)]
            target[...] = found
            if blocks.dtype.itemsize < found.dtype.itemsize:
                lost += _squares(found - target, int(blocks.first[i]) - c)
    return lost


def read(file, backend, format):
    """The matrix in an open factor file, on any number of ranks. Collective."""
    given, comm = file.attributes, file.comm
    with together(comm):
        permutation, starts = file.read_all("blocks/permutation"), file.read_all("blocks/starts")
    dtype = np.dtype(given["dtype"])
    check_room(comm, SymmetricBlocks.bytes_needed(comm, np.diff(starts), dtype), f"the matrix in {file.path}")
    blocks, error = SymmetricBlocks(comm, backend, np.diff(starts), dtype), None
    try:
        blocks.read(file, "blocks/values")
    except Exception as caught:  # of any kind: the other ranks must hear of it
        error = caught
    agree(comm, error)
    return BlockMatrix(comm, backend, format, int(given["n_params"]), permutation, blocks.finish())


def describe(summary):
    """What the blocks are."""
    of, draws = f" of one {summary['blocks']} each" if "blocks" in summary else "", summary.get("entry_draws")
    entries = f"sampled ({draws} draws a tile)" if draws else "exact"
    yield f"blocks      {summary['n_blocks']:,}{of}, up to {summary['largest_block']:,} rows, their entries {entries}"


DENSE = Format(
    "dense",
    "all entries, exact",
    partial(compress, format="dense"),
    partial(read, format="dense"),
    (),
    describe,
    predict_dense,
    approximates=False,
    cheap=True,
)
BLOCK_DIAGONAL = Format(
    "block-diagonal",
    "exact blocks of the layers or the neurons, nothing between them",
    partial(compress, format="block-diagonal"),
    partial(read, format="block-diagonal"),
    ("blocks",),
    describe,
    partial(predict_block_diagonal, groups=_groups),
)
