"""Symmetric diagonal blocks over the ranks by rows: made from lower triangles, multiplied, moved whole to one rank for factors."""

import numpy as np

from hpcHess.backend.blocks import Blocks
from hpcHess.blockwise.layout import Layout
from hpcHess.parallel.exchange import ranges, repartition

TILE = 512  # rows of one tile of a lower triangle
_MESSAGE = 1 << 27  # numbers in one message
_MULTIPLIED = 256  # rows of a piece in one block of a product


class SymmetricBlocks:
    """blockdiag(A_1 … A_b), every rank its block rows of `layout`, both triangles: `data` [Σ own rows · n], pieces row by row, one after another.

    `backend` holds the data once `finish` was called; before, `piece(i)` is a host array to be filled in its lower trapezoid.
    """

    def __init__(self, comm, backend, sizes, dtype, rows=None):
        self.comm, self.backend, self.layout, self.dtype = comm, backend, Layout(comm, sizes, rows), np.dtype(dtype)
        layout, own = self.layout, self.layout.own
        self.lo, self.hi = layout.lo[own], layout.hi[own]
        self.first = self.lo - layout.starts[layout.block[own]]  # row in its block where a piece begins
        self.width = layout.sizes[layout.block[own]]
        self._blocks = Blocks.shaped(lambda size: np.zeros(size, self.dtype), self.hi - self.lo, self.width)
        self._halo = layout.halo()

    @staticmethod
    def bytes_needed(comm, sizes, dtype, rows=None, factors=False):
        """Bytes of this rank's rows, with those of the whole blocks that factors need at home."""
        layout = Layout(comm, sizes, rows)
        count = lambda cut: int(np.diff(layout.numbers(cut))[comm.rank])  # noqa: E731
        return count(layout.rows) * np.dtype(dtype).itemsize + factors * 8 * count(layout.homes)

    def piece(self, i):
        """Own piece i on the host, [rows, n of its block]."""
        return self._blocks[i]

    def tiles(self, columns=2048):
        """(piece, first row, last row, first column, last column) within pieces: what `fill` covers of the lower triangles, all own."""
        for i, (rows, first) in enumerate(zip(self.hi - self.lo, self.first, strict=True)):
            for a in range(0, rows, TILE):
                b = min(rows, a + TILE)
                for c in range(0, first + b, columns):
                    yield i, a, int(b), c, int(min(first + b, c + columns))

    def finish(self):
        """The upper triangles from the lower ones, here and between the pieces of split blocks; to the backend. Collective."""
        for i, (rows, first) in enumerate(zip(self.hi - self.lo, self.first, strict=True)):
            square = self.piece(i)[:, first : first + rows]
            for a in range(0, rows, TILE):
                b = min(rows, a + TILE)
                tile = square[a:b, a:b]
                tile[...] = np.tril(tile) + np.tril(tile, -1).T
                square[:a, a:b] = square[a:b, :a].T
        for block in self.layout.split:
            self._mirror(block)
        self._place()
        return self

    def _mirror(self, block):
        """A[rows of s, rows of r] = A[rows of r, rows of s]ᵀ for ranks s < r that share a block. Collective."""
        layout, comm, me = self.layout, self.comm, self.comm.rank
        pieces = np.flatnonzero(layout.block == block)
        owner = np.searchsorted(layout.owned, pieces, side="right") - 1
        spans = {int(r): (int(layout.lo[p] - layout.starts[block]), int(layout.hi[p] - layout.starts[block])) for r, p in zip(owner, pieces, strict=True)}
        mine = self.piece(int(pieces[owner == me][0] - layout.owned[me])) if me in spans else None
        for shift in range(1, comm.size):
            to, source = me - shift, me + shift
            sends, receives = me in spans and to in spans, me in spans and source in spans
            if not (sends or receives):
                continue
            out = np.zeros((0, 0), self.dtype)
            if sends:
                out = mine[:, slice(*spans[to])].T
            arrives = mine[:, slice(*spans[source])] if receives else np.zeros((0, 0), self.dtype)
            step = lambda a: max(1, _MESSAGE // max(1, a.shape[1]))  # noqa: E731
            requests = []
            for a in range(0, len(out), step(out)):
                piece = np.ascontiguousarray(out[a : a + step(out)])
                requests.append((comm.Isend(piece, to), piece))
            for a in range(0, len(arrives), step(arrives)):
                received = np.empty(arrives[a : a + step(arrives)].shape, self.dtype)
                comm.Recv(received, source)
                arrives[a : a + step(arrives)] = received
            for request, _ in requests:
                request.Wait()

    def _place(self):
        """The blocks of products: rows of pieces in groups, so that all threads have work."""
        rows = self.hi - self.lo
        counts = -(-rows // _MULTIPLIED)
        of = np.repeat(np.arange(len(rows)), counts)
        at = ranges(np.zeros(len(rows), np.int64), counts) * _MULTIPLIED
        data = self.backend.asarray(self._blocks.data)
        pieces = self._blocks
        self._groups = Blocks(data, np.minimum(rows[of] - at, _MULTIPLIED), self.width[of], pieces.offsets[of] + at * self.width[of])
        own = starts = np.concatenate([[0], np.cumsum(rows)])[:-1]
        if self._halo is not None:
            starts = np.concatenate([[0], np.cumsum(self.width)])[:-1]
        self._from, self._to = starts[of], own[of] + at
        self._blocks = Blocks(data, pieces.rows, pieces.cols, pieces.offsets)

    @property
    def data(self):
        """All numbers of this rank, of the backend."""
        return self._blocks.data

    def multiply(self, rows):
        """blockdiag(A) X in own block rows, [n_own, k] → [n_own, k], host arrays. Collective."""
        extended = rows
        if self._halo is not None:
            halo, index = self._halo
            extended = np.concatenate([rows, halo.fetch(rows)])[index]
        xp = self.backend.xp
        result = xp.zeros(rows.shape, rows.dtype)
        self.backend.multiply(self._groups, self.backend.asarray(np.ascontiguousarray(extended)), self._from, result, self._to)
        return self.backend.to_host(result)

    def diagonal(self):
        """A_jj of the own block rows, float64 [n_own]."""
        rows = self.hi - self.lo
        within = ranges(np.zeros(len(rows), np.int64), rows)
        each = lambda a: np.repeat(a, rows)  # noqa: E731
        index = each(self._blocks.offsets[:-1]) + within * each(self.width) + each(self.first) + within
        return self.backend.to_host(self.data[self.backend.asarray(index)]).astype(np.float64)

    def norm2(self):
        """Σ ‖A_b‖_F², sums in float64. Collective."""
        total, data = 0.0, self.data
        for a in range(0, len(data), 1 << 22):
            part = data[a : a + (1 << 22)].astype(np.float64)
            total += float(part @ part)
        return self.comm.allreduce(total)

    def entries(self):
        """Numbers of all blocks, symmetric ones once."""
        return int((self.layout.sizes * (self.layout.sizes + 1) // 2).sum())

    def append(self, out, name):
        """The lower triangles row by row as dataset `name`, into `compressed.file.Pieces`. Not collective."""
        values = self.backend.to_host(self.data)
        pieces, layout = Blocks(values, self._blocks.rows, self._blocks.cols, self._blocks.offsets), self.layout
        packed = [np.zeros(0, self.dtype)]
        for i, first in enumerate(self.first):
            packed += [row[: first + at + 1] for at, row in enumerate(pieces[i])]
        counts = np.array([np.diff(self._triangle_ends(p)).sum() for p in range(len(layout.lo))], np.int64)
        out.append(name, counts, *(int(at) for at in layout.owned[self.comm.rank : self.comm.rank + 2]), np.concatenate(packed), self.dtype)

    def _triangle_ends(self, piece):
        """(first, last) packed number of a piece within its block."""
        layout = self.layout
        a, b = (int(at - layout.starts[layout.block[piece]]) for at in (layout.lo[piece], layout.hi[piece]))
        return a * (a + 1) // 2, b * (b + 1) // 2

    def read(self, file, name):
        """The lower triangles of the own rows, as `append` wrote them on any number of ranks; `finish` is to follow. Not collective."""
        layout = self.layout
        begins = np.concatenate([[0], np.cumsum(layout.sizes * (layout.sizes + 1) // 2)])
        for i, p in enumerate(layout.own):
            first, last = self._triangle_ends(p)
            begin, piece, at = int(begins[layout.block[p]]), self.piece(i), 0
            values = file.read(name, begin + first, begin + last)
            for row, length in enumerate(range(int(self.first[i]) + 1, int(self.first[i]) + len(piece) + 1)):
                piece[row, :length] = values[at : at + length]
                at += length

    def whole(self):
        """float64 `Blocks` of the blocks that are this rank's at home, both triangles. Collective."""
        layout, comm = self.layout, self.comm
        source, target, me = layout.numbers(layout.rows), layout.numbers(layout.homes), comm.rank
        mine = self.backend.to_host(self.data)
        first, last = np.searchsorted(layout.starts, layout.homes[me : me + 2])
        sizes = layout.sizes[first:last]
        result = Blocks.shaped(lambda size: np.empty(size), sizes, sizes)
        step = _MESSAGE // 4 * comm.size
        for a in range(0, int(layout.offsets[-1]), step):
            s, t = (np.clip(each, a, min(int(layout.offsets[-1]), a + step)) for each in (source, target))
            part = repartition(comm, mine[s[me] - source[me] : s[me + 1] - source[me]], s, t)
            result.data[t[me] - target[me] : t[me + 1] - target[me]] = part
        return result

    def bytes_of_whole(self):
        """Bytes that `whole` takes on this rank."""
        layout = self.layout
        return int(np.diff(layout.numbers(layout.homes))[self.comm.rank]) * 8

