"""Ragged batches of matrices in one flat buffer."""

from dataclasses import dataclass

import numpy as np

from hpcHess.parallel.ownership import starts_of


@dataclass
class Blocks:
    """b matrices of shapes rows[i] × cols[i], each row-major, one after another in `data`.

    `data` [offsets[-1]] is an array of the backend; `rows`, `cols` [b] and `offsets` [b + 1] are int64 host arrays.
    """

    data: object
    rows: np.ndarray
    cols: np.ndarray
    offsets: np.ndarray

    @classmethod
    def shaped(cls, data, rows, cols):
        """Blocks over `data`, or zeros made by `data(n)` when it is callable (the total size is its argument)."""
        rows, cols = np.ascontiguousarray(rows, np.int64), np.ascontiguousarray(cols, np.int64)
        offsets = starts_of(rows * cols)
        return cls(data(int(offsets[-1])) if callable(data) else data, rows, cols, offsets)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        """Block i as a view [rows[i], cols[i]]."""
        return self.data[self.offsets[i] : self.offsets[i] + self.rows[i] * self.cols[i]].reshape(self.rows[i], self.cols[i])

    def cut(self, groups, cols):
        """Blocks of cols[i] columns out of side-by-side ones on the host: block b is cut into groups[b] … groups[b + 1] − 1."""
        result = Blocks.shaped(lambda size: np.empty(size, self.dtype), np.repeat(self.rows, np.diff(groups)), cols)
        if len(result) == len(self):
            return self
        for b, (first, last) in enumerate(zip(groups[:-1], groups[1:])):
            whole, at = self[b], 0
            for i in range(first, last):
                result[i][...] = whole[:, at : at + cols[i]]
                at += cols[i]
        return result

    def part(self, which):
        """The blocks numbered `which`, over the same data: for products, which need no more than `offsets` [b]."""
        return Blocks(self.data, self.rows[which], self.cols[which], self.offsets[which])

    @property
    def dtype(self):
        return self.data.dtype
