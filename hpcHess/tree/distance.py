"""Distances between parameters (GOFMM: Yu, Levitt, Reiz & Biros, SC 2017, §2.1), from an embedding or from exact entries.

    kernel   d = H_ii + H_jj − 2 H_ij            angle   d = 1 − H_ij² / (H_ii H_jj)

Where H is indefinite |H_ii| stands for H_ii, a zero diagonal counts as the mean of the others in an angle, and d may be negative:
only the order of distances is used, nothing takes a root. Unrelated parameters (H_ij = 0) are at angle 1, not at 0.

A metric has `points`, an array with one row for every parameter of this rank, which may be moved between ranks and picked from;
`to_nodes` and `within` take such rows.
"""

import numpy as np
from mpi4py import MPI

from hpcHess.parallel.exchange import reduce_rows
from hpcHess.parallel.ownership import row_starts, starts_of
from hpcHess.runtime.errors import InputError


def metric_of(operator, distance, n_columns, seed):
    """The metric `angle` or `kernel` of an operator: by its embedding in n_columns dimensions where it has one, else by exact entries.

    Kernel distances are up to a factor. `points` are this rank's piece (`row_starts`) of the alive parameters. Collective. InputError
    where the operator offers neither.
    """
    if hasattr(operator, "partial_probe"):
        Z = embedding(operator, n_columns, seed)[0]
        largest = operator.comm.allreduce(float(np.abs(Z).max(initial=0)), MPI.MAX)
        return Embedded(Z / Z.dtype.type(largest) if 0 < largest < np.inf else Z, distance)
    if hasattr(operator, "entries_batch") and hasattr(operator, "diagonal"):
        return Exact(operator, distance)
    raise InputError("this operator has no embedding: use distance = 'parameter' or 'random'")


def embedding(operator, n_columns, seed):
    """Rows of Z with E⟨z_i, z_j⟩ = H_ij for this rank's piece of the alive parameters, [n_local, n_columns], and the pieces' starts.

    Collective. InputError where the operator has no probe.
    """
    if not hasattr(operator, "partial_probe"):
        raise InputError("this operator has no embedding: use distance = 'parameter' or 'random'")
    starts = row_starts(len(operator.alive), operator.comm.size)
    return reduce_rows(operator.comm, operator.partial_probe(n_columns, seed)[operator.alive], starts), starts


class Embedded:
    """Distances by rows z_i with ⟨z_i, z_j⟩ ≈ H_ij, up to a factor: ‖z_i − z_j‖² (kernel), 1 − ⟨z_i, z_j⟩² of unit rows (angle; zero rows stay)."""

    def __init__(self, Z, distance):
        self.distance, self.points = distance, Z
        if distance == "angle":
            norms = np.linalg.norm(Z, axis=1, keepdims=True)
            self.points = Z / np.where(norms > 0, norms, 1)

    def to_nodes(self, points, node, references):
        """d(points[i], references[node[i]]), [m] from rows [m, k] and [#nodes, k]."""
        others = references[node]
        if self.distance == "angle":
            return 1 - np.einsum("ij,ij->i", points, others) ** 2
        difference = points - others
        return np.einsum("ij,ij->i", difference, difference)

    def within(self, points, size, rows=slice(None)):
        """All distances inside consecutive groups of `size` points: [#groups, size, size], or of their points `rows` to all of them."""
        Z = points.reshape(-1, size, points.shape[-1]).astype(np.float32, copy=False)
        gram = Z[:, rows] @ Z.transpose(0, 2, 1)
        if self.distance == "angle":
            return 1 - gram**2
        squares = np.einsum("bij,bij->bi", Z, Z)
        return squares[:, rows, None] + squares[:, None, :] - 2 * gram


class Exact:
    """The same from `entries_batch` and `diagonal`, one entry for every distance. A point is its parameter's index, [m, 1].

    All entries are divided by the largest diagonal one, kernel distances therefore too; a list of neighbours does not depend on it.
    """

    def __init__(self, operator, distance):
        self.operator, self.distance = operator, distance
        starts, rank = row_starts(len(operator.alive), operator.comm.size), operator.comm.rank
        self.points = operator.alive[starts[rank] : starts[rank + 1], None]
        self.scale = np.abs(operator.diagonal()).astype(np.float64)
        self.unit = self.scale.max(initial=0) or 1.0  # of all entries, against overflow
        self.scale /= self.unit
        if distance == "angle":
            some = self.scale[self.scale > 0]
            self.scale[self.scale == 0] = some.mean() if len(some) else 1.0
            self.scale = np.sqrt(self.scale)

    def to_nodes(self, points, node, references):
        """d(points[i], references[node[i]]), [m]; an entry for every point."""
        order = np.argsort(node, kind="stable")
        counts = np.bincount(node, minlength=len(references))
        held = np.flatnonzero(counts)
        I, J = points[order, 0], references[held, 0]
        H = self.operator.entries_batch(I, starts_of(counts[held]), J, np.arange(len(held) + 1)).data
        result = np.empty(len(points))
        result[order] = self._distances(H, self.scale[I], self.scale[np.repeat(J, counts[held])])
        return result

    def within(self, points, size, rows=slice(None)):
        """All distances inside consecutive groups of `size` points: [#groups, size, size], or of their points `rows` to all of them."""
        J = points.reshape(-1, size)
        I = J[:, rows]
        groups = np.arange(len(J) + 1)
        H = self.operator.entries_batch(I.ravel(), groups * I.shape[1], J.ravel(), groups * size).data.reshape(*I.shape, size)
        return self._distances(H, self.scale[I][:, :, None], self.scale[J][:, None, :])

    def _distances(self, H, scale_i, scale_j):
        if self.distance == "angle":
            return 1 - np.square(H / self.unit / scale_i / scale_j)
        return scale_i + scale_j - 2.0 * (H / self.unit)
