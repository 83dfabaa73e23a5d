r"""The two sides of a rearranged block: per-sample kernels κ_i and per-sample outer products of inputs, as coordinates.

The block of the layers (ℓ, ℓ') is (1/n) Σ_i κ_i ⊗ x̃_i x̃'_iᵀ; rearranged (Van Loan & Pitsianis 1993), rows (p, p'), columns (q, q'), it is

    R = (1/n) Σ_i vec(κ_i) vec(x̃_i x̃'_iᵀ)ᵀ = (1/n) Φᵀ Ψ,   Φ [n, D_κ], Ψ [n, D_x]:

one row a sample and *isometric* coordinates for the columns, so that singular values are those of R: symmetric matrices (ℓ = ℓ') have their
upper triangle, off the diagonal times √2; kernels of the last layers have the fewer coordinates of `curvature.sample_gram` where there are such.
Neither Φ nor Ψ is formed whole; a side offers, for `block` (int64, numbers of samples),

    combine(W [m, k], block) → [k, D]    Wᵀ Φ_block
    inner(V [k, D], block) → [m, k]      Φ_block Vᵀ
    gram(I, J) → [|I|, |J|]              Φ_I Φ_Jᵀ
    features(block) → [D, m]             Φ_blockᵀ
    unpack(V [k, D]) → [k, …]            the matrices with these coordinates
"""

import numpy as np

from hpcHess.curvature.sample_gram import kernel_features, kernel_gram

_NUMBERS = 1 << 23  # in one temporary
_PARTS = 8  # row blocks of a symmetric matrix: (1 + 1/8)/2 of its work


class Triangle:
    """Coordinates of symmetric [d, d] matrices: the upper triangle row by row, off the diagonal times √2."""

    def __init__(self, d, dtype=np.float64):
        self.d, (rows, columns) = d, np.triu_indices(d)
        self.flat, self.mirror = rows * d + columns, columns * d + rows
        self.weight = np.where(rows == columns, 1.0, np.sqrt(2.0)).astype(dtype)

    def unpack(self, V):
        """[k, D] → [k, d, d]."""
        M = np.empty((len(V), self.d * self.d), V.dtype)
        M[:, self.flat] = M[:, self.mirror] = V / self.weight.astype(V.dtype)
        return M.reshape(-1, self.d, self.d)


class Inputs:
    """x̃_i x̃'_iᵀ of two layers, cut to living inputs, [c, c']."""

    def __init__(self, samples, layer, layer2, columns, columns2, dtype=np.float64):
        self._X, self.dtype, self.symmetric = samples.X, np.dtype(dtype), layer == layer2
        self._rows, self._rows2 = samples.row_starts[layer] + columns, samples.row_starts[layer2] + columns2
        self.shape = len(columns), len(columns2)
        c, c2 = self.shape
        self._triangle = Triangle(c, dtype) if self.symmetric else None
        self.D = c * (c + 1) // 2 if self.symmetric else c * c2
        parts = _PARTS if self.symmetric and c >= 64 else 1
        cuts = [c * at // parts for at in range(parts + 1)]
        self._parts = [(slice(a, b), a if self.symmetric else 0) for a, b in zip(cuts[:-1], cuts[1:], strict=True)]

    def _take(self, block):
        u = self._X[self._rows[:, None], block].astype(self.dtype, copy=False)
        return u, u if self.symmetric else self._X[self._rows2[:, None], block].astype(self.dtype, copy=False)

    def combine(self, W, block):
        u, v = self._take(block)
        W = np.ascontiguousarray(W.T, self.dtype)
        result, width = np.empty((len(W), self.D), self.dtype), self._width(len(block))
        for lo in range(0, len(W), width):
            w = W[lo : lo + width]
            M = np.empty((len(w), *self.shape), self.dtype)
            for rows, first in self._parts:
                left = (u[rows] * w[:, None, :]).reshape(-1, len(block))
                M[:, rows, first:] = (left @ v[first:].T).reshape(len(w), -1, self.shape[1] - first)
            flat = M.reshape(len(w), -1)
            if self.symmetric:
                np.multiply(flat[:, self._triangle.flat], self._triangle.weight, out=result[lo : lo + width])
            else:
                result[lo : lo + width] = flat
        return result

    def inner(self, V, block):
        u, v = self._take(block)
        result, width = np.zeros((len(V), len(block)), self.dtype), self._width(len(block))
        for lo in range(0, len(V), width):
            part = V[lo : lo + width].astype(self.dtype, copy=False)
            if self.symmetric:
                U = np.zeros((len(part), self.shape[0] ** 2), self.dtype)
                U[:, self._triangle.flat] = part * self._triangle.weight
                part = U
            M = part.reshape(-1, *self.shape)
            for rows, first in self._parts:
                T = (M[:, rows, first:].reshape(-1, self.shape[1] - first) @ v[first:]).reshape(len(M), -1, len(block))
                result[lo : lo + width] += np.einsum("kam,am->km", T, u[rows])
        return result.T

    def _width(self, m):
        return max(1, _NUMBERS // max(1, self.shape[0] * max(m, self.shape[1])))

    def gram(self, I, J):
        (u, v), (u2, v2) = self._take(I), self._take(J)
        one = u.T @ u2
        return one * (one if self.symmetric else v.T @ v2)

    def features(self, block):
        u, v = self._take(block)
        F = (u[:, None] * v).reshape(len(u) * len(v), len(block))
        return F[self._triangle.flat] * self._triangle.weight[:, None] if self.symmetric else F

    def unpack(self, V):
        return self._triangle.unpack(V) if self.symmetric else V.reshape(-1, *self.shape)


class Kernels:
    """κ_i of two layers ℓ ≤ ℓ', cut to living neurons, [d, d'].

    kind     "full": matrices [d, d'];  "scaled": rows v_k of diag(v_k) `shared` (squared error, (L−1, L));  "identity": a_k I (squared error, (L, L));
             "diagonal": diag(v_k) (binary cross-entropy, squared error behind an output activation, (L, L))
    shared   [d, d'] or None
    """

    def __init__(self, samples, layer, layer2, rows, rows2, dtype=np.float64):
        self._samples, self._layers, self._rows = samples, (layer, layer2), rows
        self.dtype, self.symmetric, self.shape = np.dtype(dtype), layer == layer2, (len(rows), len(rows2))
        self.kind, self.shared, self._basis, self._triangle, self._keep = "full", None, None, None, None
        last, width, width2 = samples.n_layers - 1, samples.widths[layer + 1], samples.widths[layer2 + 1]
        if samples.M[last] is not None and layer2 == last:
            self._last(samples, layer, rows, rows2)
        elif samples.q is not None and layer == last:
            self.kind, self.D = "diagonal", len(rows)
            self._keep = None if len(rows) == width else rows
        elif self.symmetric:
            self._triangle, self.D = Triangle(len(rows), dtype), len(rows) * (len(rows) + 1) // 2
            if len(rows) < width:
                self._keep = np.flatnonzero(np.isin(np.arange(width), rows)[np.array(np.triu_indices(width))].all(axis=0))
        else:
            self.D = len(rows) * len(rows2)
            if self.D < width * width2:
                self._keep = (rows[:, None] * width2 + rows2).ravel()

    def _last(self, samples, layer, rows, rows2):
        """Pairs with squared error's last layer, whose factor is the same for all samples: M^Lᵀ/√2 has orthonormal rows."""
        last = samples.n_layers - 1
        if layer == last:
            self.kind, self.D = "identity", 1
        elif samples.M[layer] is not None:
            self.kind, self.D = "scaled", len(rows)
            self.shared = (samples.M[layer][rows] @ samples.M[last][rows2].T).astype(np.float64)
            self._norms = np.sqrt(2 * np.square(samples.M[layer][rows]).sum(axis=1))
            self._keep = None if len(rows) == samples.widths[layer + 1] else rows
        else:
            self._basis, self.D = samples.M[last][rows2] / np.sqrt(2.0), len(rows) * samples.rank
            if len(rows) < samples.widths[layer + 1]:
                self._keep = (rows[:, None] * samples.rank + np.arange(samples.rank)).ravel()

    def features(self, block):
        F = kernel_features(self._samples, *self._layers, block, self.dtype)
        return F if self._keep is None else F[self._keep]

    def combine(self, W, block):
        return np.ascontiguousarray(W.T, self.dtype) @ self.features(block).T

    def inner(self, V, block):
        return self.features(block).T @ V.astype(self.dtype, copy=False).T

    def gram(self, I, J):
        return kernel_gram(self._samples, *self._layers, I, J, self.dtype)

    def unpack(self, V):
        """The matrices [k, d, d'], or the rows v_k [k, d] (scaled, diagonal), or the numbers a_k [k] (identity)."""
        if self.kind == "diagonal":
            return V
        if self.kind == "identity":
            return V[:, 0] / np.sqrt(self.shape[0])
        if self.kind == "scaled":
            return np.divide(V, self._norms, out=np.zeros_like(V), where=self._norms > 0)
        if self._triangle is not None:
            return self._triangle.unpack(V)
        if self._basis is not None:
            return V.reshape(len(V), self.shape[0], -1) @ self._basis.T.astype(V.dtype)
        return V.reshape(-1, *self.shape)

    def numbers(self):
        """Numbers of one term's left factor."""
        d, d2 = self.shape
        return {"identity": 1, "scaled": d, "diagonal": d}.get(self.kind, d * (d + 1) // 2 if self.symmetric else d * d2)
