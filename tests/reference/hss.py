"""A random HSS matrix written out by loops in float64: its dense form, and the datasets of its factor file (docs/FORMAT.md).

Nothing of the package is used here. With `extra_near` a block between two leaves that are already far is added, as in formats
with more near blocks than the diagonal: the file format allows any set of blocks, and the matrix is their sum.
"""

import json

import numpy as np


class ReferenceHSS:
    """dense [n_params, n_params] in parameter order; `datasets` {name: array} and `attributes` of the file."""

    def __init__(self, n_params=23, n_dead=2, depth=3, max_rank=3, dtype=np.float64, seed=0, extra_near=()):
        self.depth, self.dtype, self.n_params = depth, np.dtype(dtype), n_params
        self.rng = np.random.default_rng(seed)
        self.permutation = self.rng.permutation(n_params)[: n_params - n_dead]
        leaves = 1 << depth
        self.starts = np.arange(leaves + 1) * len(self.permutation) // leaves  # leaves of different sizes
        self._make_bases(max_rank)
        self._make_blocks(extra_near)
        self.dense = np.zeros((n_params, n_params))
        self.dense[np.ix_(self.permutation, self.permutation)] = self._tree_matrix()

    def _values(self, *shape):
        return self.rng.standard_normal(shape).astype(self.dtype)

    def _leaf_size(self, leaf):
        return self.starts[leaf + 1] - self.starts[leaf]

    def _make_bases(self, max_rank):
        """Ranks, orders and T of all nodes, leaves first; every third rank is as large as it can be, some are zero."""
        n_nodes = (2 << self.depth) - 1
        self.rank = np.zeros(n_nodes, dtype=np.int64)
        self.order, self.T = {}, {}
        for node in range(n_nodes - 1, 0, -1):
            first_leaf = (1 << self.depth) - 1
            columns = self._leaf_size(node - first_leaf) if node >= first_leaf else self.rank[2 * node + 1] + self.rank[2 * node + 2]
            most = min(max_rank, columns)
            self.rank[node] = most if node % 3 == 0 else self.rng.integers(0, most + 1)
            self.order[node] = self.rng.permutation(columns)
            self.T[node] = self._values(self.rank[node], columns - self.rank[node])

    def _make_blocks(self, extra_near):
        self.near, self.far = {}, {}
        for leaf in range(1 << self.depth):
            D = self._values(self._leaf_size(leaf), self._leaf_size(leaf))
            self.near[leaf, leaf] = ((D + D.T) / 2).astype(self.dtype)
        for a, b in extra_near:
            self.near[a, b] = self._values(self._leaf_size(a), self._leaf_size(b))
        for level in range(1, self.depth + 1):
            base = (1 << level) - 1
            for a in range(0, 1 << level, 2):
                self.far[level, a, a + 1] = self._values(self.rank[base + a], self.rank[base + a + 1])

    def _basis(self, node):
        """U [rows of the node in tree order, rank], dense: U = (children's U) Pᵀ with P[:, order] = [I T]."""
        P = np.zeros((self.rank[node], len(self.order[node])))
        P[:, self.order[node]] = np.hstack([np.eye(self.rank[node]), self.T[node]])
        if node >= (1 << self.depth) - 1:
            return P.T
        left, right = self._basis(2 * node + 1), self._basis(2 * node + 2)
        below = np.zeros((left.shape[0] + right.shape[0], left.shape[1] + right.shape[1]))
        below[: left.shape[0], : left.shape[1]] = left
        below[left.shape[0] :, left.shape[1] :] = right
        return below @ P.T

    def _tree_matrix(self):
        A = np.zeros((len(self.permutation),) * 2)
        for (level, a, b), B in self.far.items():
            base, width = (1 << level) - 1, 1 << (self.depth - level)
            rows = slice(self.starts[a * width], self.starts[(a + 1) * width])
            columns = slice(self.starts[b * width], self.starts[(b + 1) * width])
            block = self._basis(base + a) @ B @ self._basis(base + b).T
            A[rows, columns] += block
            A[columns, rows] += block.T
        for (a, b), D in self.near.items():
            rows, columns = slice(*self.starts[a : a + 2]), slice(*self.starts[b : b + 2])
            A[rows, columns] += D
            if a != b:
                A[columns, rows] += D.T
        return A

    @property
    def datasets(self):
        joined = lambda parts, dtype: np.concatenate([np.ravel(part) for part in parts] or [[]]).astype(dtype)  # noqa: E731
        nodes = range(1, len(self.rank))
        near, far = sorted(self.near), sorted(self.far)
        triangle = lambda D: D[np.tril_indices(len(D))]  # noqa: E731
        return {
            "tree/permutation": self.permutation.astype(np.int64),
            "tree/leaf_starts": self.starts.astype(np.int64),
            "nodes/rank": self.rank,
            "nodes/order": joined([self.order[node] for node in nodes], np.int64),
            "nodes/interpolation": joined([self.T[node] for node in nodes], self.dtype),
            "near/pairs": joined(near, np.int64),
            "near/values": joined([triangle(self.near[p]) if p[0] == p[1] else self.near[p] for p in near], self.dtype),
            "far/pairs": joined(far, np.int64),
            "far/values": joined([self.far[p] for p in far], self.dtype),
        }

    @property
    def storage_entries(self):
        return sum(self.datasets[name].size for name in ("near/values", "far/values", "nodes/interpolation"))

    @property
    def attributes(self):
        """What a compression would record; the error is that of storing, nothing else was left out."""
        levels = []
        for level in range(self.depth + 1):
            rank = self.rank[(1 << level) - 1 : (2 << level) - 1]
            levels.append({"level": level, "nodes": len(rank), "rank_min": int(rank.min()), "rank_mean": float(rank.mean()),
                           "rank_max": int(rank.max()), "bytes": 8 * int(rank.sum())})  # fmt: skip
        report = {
            "rtol": 1e-3, "rtol_met": True, "error_estimate": {"value": 1e-7, "low": 5e-8, "high": 2e-7, "probes": 32, "confidence": 0.95},
            "norm_frobenius": float(np.linalg.norm(self.dense)), "lambda_max": float(np.abs(np.linalg.eigvalsh(self.dense)).max()),
            "error_spectral": 1e-7, "storage_entries": self.storage_entries, "storage_bytes": self.storage_entries * self.dtype.itemsize,
            "storage_percent": 100 * self.storage_entries / self.n_params**2, "levels": levels,
            "warnings": ["the matrix is random"], "timings": {"sketch": 0.25, "write": 0.5},
        }  # fmt: skip
        provenance = {"versions": {"hpcHess": "0", "numpy": np.__version__}, "created": "2000-01-01T00:00:00Z", "host": "h", "ranks": 1,
                      "threads": 1, "seed": 0, "network_hash": "a" * 64, "data_hash": "b" * 64}  # fmt: skip
        return {"matrix_format": "hss", "n_params": self.n_params, "n_alive": len(self.permutation), "depth": self.depth,
                "leaf_size": int(np.diff(self.starts).max()), "dtype": self.dtype.name, "report": json.dumps(report),
                "job": "[compress]\nrtol = 0.001\n", "job_directory": "jobs", "provenance": json.dumps(provenance)}  # fmt: skip


def pieces_of(array, rank, n_ranks):
    """A share of a dataset in irregular pieces: every rank gets several, not in order, some empty."""
    cuts = np.unique(np.concatenate([[0, array.size], np.random.default_rng(array.size).integers(0, array.size + 1, 3 * n_ranks)]))
    mine = [(int(low), array[low:high]) for low, high in zip(cuts[:-1], cuts[1:], strict=True)][rank::n_ranks]
    return [*mine[::-1], (0, array[:0])]


def write_reference(hss, path, comm):
    """Write `hss` as a factor file, every rank its irregular share. Collective. The one function here that uses the package."""
    from hpcHess.storage.factor_file import write

    datasets = hss.datasets
    pieces = {name: pieces_of(array, comm.rank, comm.size) for name, array in datasets.items()}
    write(path, comm, hss.attributes, pieces, {name: (array.size, array.dtype) for name, array in datasets.items()})
