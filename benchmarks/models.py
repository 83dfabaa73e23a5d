"""Operations and bytes that the work needs: lower bounds of what a program does, so that a ratio to a ceiling flatters nobody.

A `Work` counts, over all ranks,

    flops   additions and multiplications, by the type they are done in (float32, float64)
    bytes   the data that must come from or go to memory at least once: inputs read once, results written once (an array that two
            passes need is counted twice where the algorithm's order forces it). What a cache holds between two steps is not counted.

The time that no program beats on this machine is the larger of flops / gemm rate and bytes / memory rate: Williams, Waterman &
Patterson, "Roofline", CACM 2009.
"""

from dataclasses import dataclass

import numpy as np


@dataclass
class Work:
    """Operations in float32 and float64, and bytes."""

    flops32: float = 0.0
    flops64: float = 0.0
    bytes: float = 0.0

    @classmethod
    def of(cls, dtype, flops, n_bytes):
        """Work done in one type."""
        return cls(flops, 0.0, n_bytes) if np.dtype(dtype) == np.float32 else cls(0.0, flops, n_bytes)

    @property
    def flops(self):
        """In either type."""
        return self.flops32 + self.flops64

    def __add__(self, other):
        return Work(self.flops32 + other.flops32, self.flops64 + other.flops64, self.bytes + other.bytes)

    def __mul__(self, factor):
        return Work(self.flops32 * factor, self.flops64 * factor, self.bytes * factor)

    def summed(self, comm):
        """Over the ranks, each with its share. Collective."""
        return Work(*comm.allreduce(np.array([self.flops32, self.flops64, self.bytes])).tolist())


def layer_shapes(network):
    """[(d_ℓ, d_{ℓ−1}, c_ℓ)] with c = d_{ℓ−1} + 1 where the layer has a bias."""
    return [(*W.shape, W.shape[1] + (b is not None)) for W, b in zip(network.weights, network.biases, strict=True)]


def product_flops(network, n, k):
    """Of HV with n samples and k vectors, by one forward and one backward sweep, N = Σ d_ℓ c_ℓ:

        da^ℓ = V_ℓ x̃ + W_ℓ dx^{ℓ−1}          2 d_ℓ c_ℓ,  and above the first layer 2 d_ℓ d_{ℓ−1}
        dx^ℓ = s' ∘ da^ℓ                      d_ℓ   below the last layer
        u^L = Q da^L                          5 d   (cross-entropy: p ∘ (da − Σ p da)), d (squared error)
        (HV)_ℓ = u^ℓ x̃ᵀ                       2 d_ℓ c_ℓ
        u^{ℓ−1} = s' ∘ W_ℓᵀ u^ℓ               2 d_ℓ d_{ℓ−1} + d_{ℓ−1}   above the first layer

    times n k: 4 n k (N + Σ_{ℓ>1} d_ℓ d_{ℓ−1}) and lower terms.
    """
    shapes = layer_shapes(network)
    sample = sum(4 * d * c for d, _, c in shapes) + sum(4 * d * inner + 2 * inner for d, inner, _ in shapes[1:])
    sample += shapes[-1][0] * (5 if network.loss == "cross-entropy" else 1)
    return float(n) * k * sample


def product(network, n, k, dtype):
    """HV: reads V and writes HV, N k each; reads inputs x̃ of all layers, s' and p of all samples once."""
    numbers = sum(d for d, *_ in layer_shapes(network)) + sum(inner for _, inner, _ in layer_shapes(network))
    n_bytes = np.dtype(dtype).itemsize * (2.0 * network.n_params * k + float(n) * numbers)
    return Work.of(dtype, product_flops(network, n, k), n_bytes)


def probe(network, n, k, dtype):
    """(nk)^{-1/2} Σ JᵀRξ: the backward half of `product_flops`; writes N k."""
    shapes = layer_shapes(network)
    sample = sum(2 * d * c for d, _, c in shapes) + sum(2 * d * inner + inner for d, inner, _ in shapes[1:]) + 5 * shapes[-1][0]
    return Work.of(dtype, float(n) * k * sample, np.dtype(dtype).itemsize * float(network.n_params) * k)


def entries(n_entries, n, dtype):
    """Exact entries H_jk = (1/n) Σ_i x_iq x_iq' κ_i(p, p') at 2 n operations each: one inner product over the samples, with the products
    x κ (or x x') shared by many entries; writes them. The Gram route Σ_i ⟨R_iᵀJ_ij, R_iᵀJ_ik⟩ needs 2 n d: its Work is `entries` too,
    so that both rates count useful operations alone.
    """
    return Work.of(dtype, 2.0 * n * float(n_entries), np.dtype(dtype).itemsize * float(n_entries))


def truncated_qr(sizes, ranks, k, dtype):
    """Row interpolative decompositions of pieces [m_i, k] to rank r_i: column-pivoted QR of their transposes stopped at r,

        Σ_{j<r} 4 (k − j)(m − j) = 4 (k m r − (k + m) r(r−1)/2 + (r−1) r (2r−1)/6)   (LAPACK xGEQP3; Golub & Van Loan §5.2.2),

    norms 2 m k, and T = R₁₁⁻¹R₁₂ with r²(m − r). Reads the pieces, writes T.
    """
    m, r, k = np.asarray(sizes, float), np.asarray(ranks, float), float(k)
    flops = 4 * (k * m * r - (k + m) * r * (r - 1) / 2 + (r - 1) * r * (2 * r - 1) / 6) + 2 * m * k + r**2 * (m - r)
    return Work.of(dtype, float(flops.sum()), np.dtype(dtype).itemsize * float((m * k + r * (m - r)).sum()))


def block_products(rows, cols, k, stored, dtype, transpose=False):
    """Y_i += op(A_i) X_i for blocks of shapes rows × cols: 2 rows·cols·k each; reads A and X, reads and writes Y."""
    rows, cols = np.asarray(rows, float), np.asarray(cols, float)
    read, written = (rows, cols) if transpose else (cols, rows)
    size = float((rows * cols).sum())
    vectors = float((read + 2 * written).sum()) * k
    return Work.of(dtype, 2 * size * k, np.dtype(stored).itemsize * size + np.dtype(dtype).itemsize * vectors)


def elimination(skeleton, redundant, stored):
    """Interpolative elimination of blocks of c = s + r rows (`backend.elimination`), definite case, in float64:

        X_JR = D_JR − D_JJ T                                  2 s² r
        X_RR = D_RR − TᵀD_JR − X_JRᵀT (symmetric: half)       2 s r²
        X_RR = LLᵀ, W = L⁻ᵀ                                    r³/3 + r³/3
        K = X_JR W (triangular), D̂ = D_JJ − K Kᵀ (half)        s r² + s² r

    Reads the block's lower triangle and T, writes W's triangle, K and D̂'s triangle.
    """
    s, r = np.asarray(skeleton, float), np.asarray(redundant, float)
    flops = 3 * s**2 * r + 3 * s * r**2 + 2 * r**3 / 3
    numbers = ((s + r) ** 2 + r**2 + s**2) / 2 + s * r
    return Work(0.0, float(flops.sum()), 8 * float(numbers.sum()) + np.dtype(stored).itemsize * float((s * r).sum()))


def matrix_product(matrix, k, dtype):
    """H̃V, this rank's share, of the stored numbers: every basis T [r × (c − r)] in the upward and again in the downward pass, couplings
    B (both B and Bᵀ act, B is read once), near blocks whole (as they lie in memory). Reads V, writes H̃V.

        flops = 2 k (Σ 2 r (c − r) + Σ 2 r_α r_β + Σ m²)
    """
    near = matrix.near
    bases = sum(float(level.T.offsets[-1]) for level in matrix.levels[1:])
    couplings = sum(float(level.far.blocks.offsets[-1]) for level in matrix.levels[1:])
    dense, off = float(near.blocks.offsets[-1]), near.own[:, 0] != near.own[:, 1]
    twice = float((near.rows * near.cols)[off].sum())
    n_local = float(np.diff(matrix.tree_rows(matrix.parameter_starts))[0])
    n_bytes = matrix.dtype.itemsize * (2 * bases + couplings + dense) + np.dtype(dtype).itemsize * 2 * n_local * k
    return Work.of(dtype, 2.0 * k * (2 * bases + 2 * couplings + dense + twice), n_bytes)


def factorization(factors):
    """The Woodbury factors of this rank's nodes, all levels (`elimination`)."""
    return sum((elimination(e.T.rows, e.T.cols, e.T.dtype) for e in factors.eliminations), Work())


def factor_solve(factors, k):
    """(H̃ + λI)⁻¹B, this rank's share: in the forward and again in the backward sweep T [s × r] and K [s × r], and the triangle of
    W [r × r] (a general W where X_RR is not definite, not counted). Reads B, writes X, float64.

        flops = 2 · 2 k Σ (2 s r + r(r+1)/2)
    """
    sizes = [(e.T.rows.astype(float), e.T.cols.astype(float), e.T.dtype.itemsize) for e in factors.eliminations]
    products = sum(float((s * r).sum()) for s, r, _ in sizes)
    triangles = sum(float((r * (r + 1)).sum()) / 2 for _, r, _ in sizes)
    bases = sum(float((s * r).sum()) * itemsize for s, r, itemsize in sizes)
    n_local = float(np.diff(factors.matrix.tree_rows(factors.matrix.parameter_starts))[0])
    return Work(0.0, 4.0 * k * (2 * products + triangles), 2 * (bases + 8 * products + 8 * triangles) + 16 * n_local * k)
