"""How a ragged batch is cut into CUDA blocks: tables of 64-bit integers made on the host once for every batch, and kept.

No two CUDA blocks write one row, and what one row gets is added in the order of the batch: results depend on nothing but the batch.
"""

import hashlib
from collections import OrderedDict

import numpy as np

from hpcHess.parallel.ownership import starts_of

TILE = 64  # output rows of one CUDA block, as in cuda/multiply.cu
SIDE = 32  # rows and columns of a tile of entries, as in cuda/entries.cu
RUN, RUN_SIZE = 4, 4096  # so many equal blocks of so many numbers in a row go to the library's batched product


def products(outputs, inputs, y_starts):
    """(members int64 [b'], tasks int64 [t, 4]): block numbers sorted by groups of overlapping output rows, and in each the order of the batch;
    (first member, end of members, first row, end of rows) of every task. Blocks without rows or columns are left out."""
    used = np.flatnonzero((outputs > 0) & (inputs > 0))
    used = used[np.argsort(y_starts[used], kind="stable")]
    if not len(used):
        return used, np.zeros((0, 4), np.int64)
    begin = y_starts[used]
    reach = np.maximum.accumulate(begin + outputs[used])
    new = np.concatenate([[True], begin[1:] >= reach[:-1]])
    members = used[np.lexsort((used, np.cumsum(new)))]
    first = np.flatnonzero(new)
    last = np.append(first[1:], len(used))
    low, high = begin[first], reach[last - 1]
    tiles = -(-(high - low) // TILE)
    group = np.repeat(np.arange(len(first)), tiles)
    at = low[group] + TILE * (np.arange(len(group)) - np.repeat(starts_of(tiles)[:-1], tiles))
    return members, np.stack([first[group], last[group], at, np.minimum(at + TILE, high[group])], axis=1)


def disjoint(sizes, starts):
    """Whether the ranges starts[i] … starts[i] + sizes[i] − 1 are pairwise disjoint."""
    used = np.flatnonzero(sizes > 0)
    used = used[np.argsort(starts[used], kind="stable")]
    return bool((starts[used][1:] >= (starts[used] + sizes[used])[:-1]).all())


def runs(rows, cols, offsets):
    """[(first, end)] of maximal runs of at least `RUN` blocks of one shape, stored one after another."""
    if not len(rows):
        return []
    new = (np.diff(rows) != 0) | (np.diff(cols) != 0) | (np.diff(offsets[: len(rows)]) != (rows * cols)[:-1])
    ends = np.concatenate([[0], np.flatnonzero(new) + 1, [len(rows)]])
    return [(int(a), int(b)) for a, b in zip(ends[:-1], ends[1:]) if b - a >= RUN and rows[a] * cols[a] >= RUN_SIZE]


def symmetric(rows, cols, row_at, col_at):
    """Both products of symmetric pairs through a workspace: (tasks [t, 5], rows of Y [n], starts [n + 1], sources, rows of the workspace).

    A task: block, first and end row of at most `TILE`, workspace row of its part of B X and of Bᵀ X (−1 where row_at = col_at). Row Y[rows[i]]
    gets the workspace rows sources[starts[i]] … in this order: by block, B X first.
    """
    used = np.flatnonzero((rows > 0) & (cols > 0))
    tiles = -(-rows[used] // TILE)
    block = np.repeat(used, tiles)
    first = TILE * (np.arange(len(block)) - np.repeat(starts_of(tiles)[:-1], tiles))
    last = np.minimum(first + TILE, rows[block])
    down = np.where(row_at[block] != col_at[block], cols[block], 0)
    at = starts_of(last - first + down)
    tasks = np.stack([block, first, last, at[:-1], np.where(down > 0, at[:-1] + last - first, -1)], axis=1)
    sizes = np.stack([last - first, down], axis=1).reshape(-1)  # the workspace's pieces, in its own order
    targets = np.stack([row_at[block] + first, col_at[block]], axis=1).reshape(-1)
    row = np.repeat(targets - starts_of(sizes)[:-1], sizes) + np.arange(at[-1])
    order = np.argsort(row, kind="stable")
    found, counts = np.unique(row, return_counts=True)
    return tasks, found, starts_of(counts), order, int(at[-1])


def entry_tiles(starts_I, starts_J, offsets):
    """Tiles of the blocks I_b × J_b, sides cut at the starts: (first row, end, first column, end, the block's offset, its columns) [t, 6]."""
    rows, cols = np.diff(starts_I), np.diff(starts_J)
    wide = -(-cols // SIDE)
    counts = -(-rows // SIDE) * wide
    block = np.repeat(np.arange(len(rows)), counts)
    tile = np.arange(len(block)) - np.repeat(starts_of(counts)[:-1], counts)
    i, j = (SIDE * part + starts[block] for part, starts in zip(np.divmod(tile, np.maximum(wide[block], 1)), (starts_I, starts_J)))
    ends = (np.minimum(at + SIDE, starts[block + 1]) for at, starts in ((i, starts_I), (j, starts_J)))
    return np.stack([i, next(ends), j, next(ends), offsets[block], cols[block]], axis=1)


def check_inside(what, sizes, starts, total):
    """ValueError where a range leaves 0 … total − 1 (a number, or one a range); empty ranges are anywhere."""
    outside = (sizes > 0) & ((starts < 0) | (starts + sizes > total))
    if outside.any():
        raise ValueError(f"block {int(np.argmax(outside))} lies outside {what}")


class Kept:
    """The last tables made, by the contents of what they were made of; at most `limit` bytes of them."""

    def __init__(self, limit=1 << 28):
        self._limit, self._bytes, self._made = limit, 0, OrderedDict()

    def get(self, arrays, make):
        """make(), or what it returned when called for the same contents: (bytes, tables)."""
        key = hashlib.blake2b(digest_size=16)
        for array in arrays:
            key.update(repr(array if isinstance(array, str | int | bool) else array.shape).encode())
            if isinstance(array, np.ndarray):
                key.update(np.ascontiguousarray(array))
        key = key.digest()
        if key in self._made:
            self._made.move_to_end(key)
            return self._made[key][1]
        size, tables = make()
        self._made[key] = size, tables
        self._bytes += size
        while self._bytes > self._limit and len(self._made) > 1:
            self._bytes -= self._made.popitem(last=False)[1][0]
        return tables
