"""Who holds which rows of symmetric diagonal blocks, whole ones where they are small, by pieces where they are large."""

import numpy as np

from hpcHess.parallel.exchange import Halo, ranges
from hpcHess.parallel.ownership import starts_of


class Layout:
    """Rows of b symmetric blocks one after another (*block rows*), split over the ranks.

    sizes [b], starts [b + 1]    rows of the blocks; `offsets` [b + 1] where their numbers begin when every block is n × n, row by row
    rows [P + 1]                 first block row of each rank: equal shares of the numbers, cut between blocks unless a block is more than
                                 a rank's share, or as given
    homes [P + 1]                first block row of each rank where all blocks are whole: equal shares of Σ n³, for factors
    block, lo, hi [#pieces]      the pieces of all ranks: rows lo … hi − 1 (block rows) of a block; `owned` [P + 1] first piece of each rank
    """

    def __init__(self, comm, sizes, rows=None):
        self.comm, self.sizes = comm, np.asarray(sizes, np.int64)
        self.starts, self.offsets = starts_of(self.sizes), starts_of(self.sizes**2)
        self.rows = self._cuts() if rows is None else np.asarray(rows, np.int64)
        cubes = starts_of(self.sizes.astype(object) ** 3) if len(self.sizes) else np.zeros(1, np.int64)
        middle = (cubes[:-1] + cubes[1:]).astype(float) / (2 * max(1, int(cubes[-1])))
        self.homes = self.starts[np.searchsorted(middle * comm.size, np.arange(comm.size + 1))]
        self.homes[-1] = self.starts[-1]
        cuts = np.unique(np.concatenate([self.starts, self.rows]))
        self.lo, self.hi = cuts[:-1], cuts[1:]
        self.block = np.searchsorted(self.starts, self.lo, side="right") - 1
        self.owned = np.searchsorted(self.lo, self.rows)
        self.split = np.flatnonzero(np.bincount(self.block, minlength=len(self.sizes)) > 1)

    def _cuts(self):
        """`rows`: the row that begins a rank's share of the numbers, moved to the nearest end of its block where that is small."""
        total, n_ranks = int(self.offsets[-1]), self.comm.size
        rows = np.zeros(n_ranks + 1, np.int64)
        for rank in range(1, n_ranks):
            target = total * rank // n_ranks
            b = min(int(np.searchsorted(self.offsets, target, side="right")) - 1, len(self.sizes) - 1)
            if b < 0:
                continue
            inside = target - self.offsets[b]
            if self.sizes[b] ** 2 > total // n_ranks:
                rows[rank] = self.starts[b] + inside // max(1, self.sizes[b])
            else:
                rows[rank] = self.starts[b] if 2 * inside < self.sizes[b] ** 2 else self.starts[b + 1]
        rows[-1] = self.starts[-1]
        return rows

    @property
    def n(self):
        """Block rows."""
        return int(self.starts[-1])

    @property
    def own(self):
        """Numbers of this rank's pieces."""
        return np.arange(*self.owned[self.comm.rank : self.comm.rank + 2])

    def numbers(self, rows):
        """First numbers of block rows at which ranks begin, int64, when every block is n × n."""
        b = np.minimum(np.searchsorted(self.starts, rows, side="right") - 1, len(self.sizes) - 1)
        return self.offsets[b] + (rows - self.starts[b]) * self.sizes[b] if len(self.sizes) else np.zeros_like(rows)

    def halo(self):
        """(`Halo` of the split blocks' pieces, index [Σ n over own pieces] of every own piece's block in own rows and halo), or None."""
        if not len(self.split):
            return None
        counts, first = self.hi - self.lo, np.searchsorted(self.block, np.arange(len(self.sizes) + 1))
        groups = [np.arange(first[b], first[b + 1]) for b in self.split]
        pairs = np.array([(i, j) for group in groups for i in group for j in group if i != j], np.int64).reshape(-1, 2)
        halo = Halo(self.comm, pairs, self.owned, counts)
        pieces = np.concatenate([np.arange(first[b], first[b + 1]) for b in self.block[self.own]] or [np.zeros(0, np.int64)])
        return halo, ranges(halo.starts(pieces), counts[pieces])
