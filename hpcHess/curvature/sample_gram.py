r"""Inner products of the samples' matrices H_i = J_iᵀ Q_i J_i, as matrix products over blocks of samples.

With x̃_i^ℓ the input of layer ℓ (the bias input 1 last, where the layer has a bias), C_i^ℓ = R_iᵀ ∂z_i/∂a_i^ℓ [r, d_ℓ] and the
pre-activation kernel κ_i^{ℓℓ'} = C_i^{ℓᵀ} C_i^{ℓ'} [d_ℓ, d_ℓ'], the block (ℓ, ℓ') of H_i is κ_i^{ℓℓ'} ⊗ x̃_i^ℓ x̃_i^{ℓ'ᵀ}. Hence

    ⟨H_i, H_j⟩_F = Σ_{ℓℓ'} a_ij^ℓ a_ij^{ℓ'} ⟨κ_i^{ℓℓ'}, κ_j^{ℓℓ'}⟩_F = ‖ Σ_ℓ a_ij^ℓ T_ij^ℓ ‖_F²,
    a_ij^ℓ = ⟨x̃_i^ℓ, x̃_j^ℓ⟩,   T_ij^ℓ = C_i^ℓ C_j^{ℓᵀ} [r, r],

the sums over the layers that are chosen (`Network.restricted`).

A pair of samples costs, besides the a, either the numbers in the kernels (features: the kernel's entries, on the diagonal p ≤ p' alone with the
others times √2; of a diagonal κ^LL = diag(q) it alone) or r² Σ d_ℓ by way of T; the cheaper is taken. Squared error's last two layers, where C_i = M diag(g_i), have closed forms with
S = ⟨M e_p, M e_p'⟩: features S_pp' g_p g_p' for (L−1, L−1), g_p (Σ_p' S_pp'²)^½ for (L−1, L), √2 C for (ℓ, L), and 2√d for (L, L):
no r × r for any pair.

Everything is computed in `dtype`: in float64 to rounding, relative to ‖H_i‖ ‖H_j‖; in float32 to about 1e-6 of that (inner dimensions of
hundreds, summed by the BLAS), which bounds the relative error of sums of the nonnegative ⟨H_i, H_j⟩ as well. Not collective.
"""

import numpy as np

_BYTES = 1 << 27  # of the features of one block of samples
_LARGEST, _SMALLEST = 2048, 32  # samples in a block
_TEMPORARY = 1 << 18  # numbers in one temporary over pairs of samples
_NORM_ROWS = 256  # samples of a block of `hessian_norm`
_PASSES = 8  # elementwise operations on each T, counted as products


def input_gram(samples, layer, layer2, I, J, dtype=np.float64):
    """⟨x̃_i, x̃_j⟩ ∘ ⟨x̃'_i, x̃'_j⟩ for the inputs of two layers, [|I|, |J|]; I, J index arrays or slices of the samples."""
    one = _products(samples.parameter_inputs(layer), I, J, dtype)
    return one * (one if layer == layer2 else _products(samples.parameter_inputs(layer2), I, J, dtype))


def _products(X, I, J, dtype):
    return X[:, I].astype(dtype, copy=False).T @ X[:, J].astype(dtype, copy=False)


def kernel_gram(samples, layer, layer2, I, J, dtype=np.float64):
    """⟨κ_i^{ℓℓ'}, κ_j^{ℓℓ'}⟩_F = ⟨T_ij^ℓ, T_ij^ℓ'⟩_F, [|I|, |J|]."""
    pair = min(layer, layer2), max(layer, layer2)
    by_factors = set(pair) if _factors_pay(samples, set(pair), [pair]) else set()
    return _by_blocks(samples, I, J, dtype, _Plan([] if by_factors else [pair], by_factors), _kernel_block)


def hessian_gram(samples, I, J, dtype=np.float64):
    """⟨H_i, H_j⟩_F, [|I|, |J|]."""
    return _by_blocks(samples, I, J, dtype, _plan(samples), _hessian_block)


def hessian_norms2(samples, I):
    """⟨H_i, H_i⟩_F, float64 [|I|]."""
    every = np.arange(samples.n)[I]
    plan, result = _plan(samples), np.empty(len(every))
    step = _block_size(samples, plan, np.dtype(np.float64))
    for lo in range(0, len(every), step):
        side = _Side(samples, every[lo : lo + step], np.float64, plan)
        a = {layer: np.einsum("qn,qn->n", x, x) for layer, x in side.inputs.items()}
        total = np.zeros(len(side))
        for (layer, layer2), F in side.features.items():
            total += (1 if layer == layer2 else 2) * a[layer] * a[layer2] * np.einsum("fn,fn->n", F, F)
        if side.factors:
            T = sum(a[layer][:, None, None] * (C @ C.transpose(0, 2, 1)) for layer, C in side.factors.items())
            total += np.einsum("nef,nef->n", T, T)
        result[lo : lo + step] = total
    return result


def hessian_norm(samples, comm):
    """‖H‖_F of H = (1/n) Σ_i H_i, float64, exact: the root of (1/n²) Σ_ij ⟨H_i, H_j⟩, whose blocks the ranks share. Collective."""
    n, total = samples.n, 0.0
    for at, lo in enumerate(range(0, n, _NORM_ROWS)):
        if at % comm.size == comm.rank:
            hi = min(n, lo + _NORM_ROWS)
            block = hessian_gram(samples, slice(lo, hi), slice(0, hi))
            total += 2 * float(block.sum()) - float(block[:, lo:].sum())
    return float(np.sqrt(comm.allreduce(total))) / n


class _Plan:
    """pairs      (ℓ, ℓ') with ℓ ≤ ℓ', done by their kernels' features
    by_factors    the set of layers done together by T
    """

    def __init__(self, pairs, by_factors):
        self.pairs, self.by_factors = pairs, by_factors


def _plan(samples):
    """The cheaper way to ⟨H_i, H_j⟩ for layers with factors; pairs with a shared factor go by features."""
    layers = _chosen(samples)
    pairs = [(a, b) for a in layers for b in layers if a <= b]
    with_factors = {layer for layer in layers if samples.M[layer] is None}
    theirs = [pair for pair in pairs if with_factors.issuperset(pair)]
    if not _factors_pay(samples, with_factors, theirs):
        return _Plan(pairs, set())
    return _Plan([pair for pair in pairs if pair not in theirs], with_factors)


def _chosen(samples):
    """Layers with parameters."""
    return [layer for layer, inner in enumerate(samples.inner) if inner]


def _factors_pay(samples, layers, pairs):
    if any(samples.M[layer] is not None for layer in layers):
        return False
    rank = samples.rank
    return rank**2 * sum(samples.widths[layer + 1] + _PASSES for layer in layers) < sum(_n_features(samples, *pair) for pair in pairs)


def _n_features(samples, layer, layer2):
    width, width2, last = samples.widths[layer + 1], samples.widths[layer2 + 1], samples.n_layers - 1
    if samples.M[layer2] is not None and layer2 == last:
        return 1 if layer == last else width if samples.M[layer] is not None else width * samples.rank
    if layer == last and samples.q is not None:
        return width
    return width * (width + 1) // 2 if layer == layer2 else width * width2


def _block_size(samples, plan, dtype):
    """Samples whose features and inputs fit in _BYTES."""
    numbers = sum(_n_features(samples, *pair) for pair in plan.pairs) + len(samples.X)
    numbers += samples.rank * sum(samples.widths[layer + 1] for layer in plan.by_factors)
    return int(min(_LARGEST, max(_SMALLEST, _BYTES // (numbers * dtype.itemsize))))


def _by_blocks(samples, I, J, dtype, plan, block):
    """`block(side of I, side of J)` for all pairs of blocks of samples."""
    I, J, dtype = np.arange(samples.n)[I], np.arange(samples.n)[J], np.dtype(dtype)
    result, step = np.empty((len(I), len(J)), dtype), _block_size(samples, plan, dtype)
    per_pair = samples.rank**2 if plan.by_factors else 1
    for lo in range(0, len(I), step):
        left = _Side(samples, I[lo : lo + step], dtype, plan)
        for at in range(0, len(J), step):
            right = _Side(samples, J[at : at + step], dtype, plan)
            rows = max(1, int((_TEMPORARY // per_pair) ** 0.5))
            for a in range(0, len(left), rows):
                one = left.part(slice(a, a + rows))
                for b in range(0, len(right), rows):
                    other = right.part(slice(b, b + rows))
                    result[lo + a : lo + a + len(one), at + b : at + b + len(other)] = block(one, other)
    return result


def _hessian_block(left, right):
    a = {layer: x.T @ right.inputs[layer] for layer, x in left.inputs.items()}
    total = np.zeros((len(left), len(right)), left.dtype)
    for (layer, layer2), F in left.features.items():
        K = F.T @ right.features[layer, layer2]
        K *= a[layer]
        K *= a[layer2]
        if layer != layer2:
            K *= 2
        total += K
    if left.factors:
        T = None
        for layer in left.factors:
            part = _factor_products(left, right, layer)
            part *= a[layer][:, None, :, None]
            T = part if T is None else np.add(T, part, out=T)
        total += np.einsum("iejf,iejf->ij", T, T)
    return total


def _kernel_block(left, right):
    for pair, F in left.features.items():
        return F.T @ right.features[pair]
    T = [_factor_products(left, right, layer) for layer in left.factors]
    return np.einsum("iejf,iejf->ij", T[0], T[-1])


def _factor_products(left, right, layer):
    """T [|I|, r, |J|, r]."""
    one, other = left.factors[layer], right.factors[layer]
    return (one.reshape(-1, one.shape[2]) @ other.reshape(-1, other.shape[2]).T).reshape(*one.shape[:2], *other.shape[:2])


class _Side:
    """What the blocks need of some samples: `inputs` {ℓ: [d̃_ℓ, m]}, `features` {(ℓ, ℓ'): [f, m]}, `factors` {ℓ: C [m, r, d_ℓ]}."""

    def __init__(self, samples, chosen, dtype, plan):
        self.dtype = np.dtype(dtype)
        made = _Made(samples, chosen, self.dtype)
        self.inputs = {layer: samples.parameter_inputs(layer)[:, chosen].astype(dtype, copy=False) for layer in _chosen(samples)}
        self.features = {pair: made.features(*pair) for pair in plan.pairs}
        self.factors = {layer: np.ascontiguousarray(made.factor(layer).transpose(2, 1, 0)) for layer in sorted(plan.by_factors)}

    def __len__(self):
        return next(iter(self.inputs.values())).shape[1]

    def part(self, rows):
        part = object.__new__(_Side)
        part.dtype = self.dtype
        part.inputs = {layer: x[:, rows] for layer, x in self.inputs.items()}
        part.features = {pair: F[:, rows] for pair, F in self.features.items()}
        part.factors = {layer: C[rows] for layer, C in self.factors.items()}
        return part


class _Made:
    """Factors and kernels of some samples in one type."""

    def __init__(self, samples, chosen, dtype):
        self.samples, self.chosen, self.dtype, self._factors = samples, chosen, dtype, {}

    def _take(self, array):
        return array[..., self.chosen].astype(self.dtype, copy=False)

    def factor(self, layer):
        """C [d_ℓ, r, m] of a layer without a shared one."""
        if layer not in self._factors:
            self._factors[layer] = self._last_factor() if self.samples.C[layer] is None else self._take(self.samples.C[layer])
        return self._factors[layer]

    def _last_factor(self):
        """√p_e (δ_ep − p_p) or √q_p δ_ep, [p, e, m]."""
        root = np.sqrt(self._take(self.samples.output))
        every = np.arange(len(root))
        if self.samples.q is not None:
            C = np.zeros((len(root), *root.shape), self.dtype)
            C[every, every] = root
            return C
        p, rest = self._take(self.samples.p), self._take(self.samples.rest)
        C = -p[:, None] * root
        C[every, every] = root * rest
        return C

    def features(self, layer, layer2):
        """[f, m] whose inner products are ⟨κ_i, κ_j⟩, ℓ ≤ ℓ'."""
        samples, last = self.samples, self.samples.n_layers - 1
        if samples.M[layer2] is not None:
            return self._shared_features(layer, layer2)
        if layer2 == last and samples.C[last] is None:
            if layer < last:
                return self._flat(self.factor(layer) * np.sqrt(self._take(samples.output)))
            if samples.q is not None:
                return self._take(samples.q)
            p = self._take(samples.p)
            return _packed(lambda a: -p[a] * p[a:], p * self._take(samples.rest))
        C, C2 = self.factor(layer), self.factor(layer2)
        if layer == layer2:
            return _packed(lambda a: np.einsum("en,pen->pn", C[a], C[a:]), np.einsum("pen,pen->pn", C, C))
        return self._flat(np.stack([np.einsum("en,pen->pn", each, C2) for each in C]))

    def _shared_features(self, layer, layer2):
        samples, last = self.samples, self.samples.n_layers - 1
        if layer2 == last:
            if layer == last:
                return np.full((1, len(self.chosen)), 2 * np.sqrt(samples.widths[-1]), self.dtype)
            if samples.M[layer] is None:
                return self._flat(np.sqrt(2.0).astype(self.dtype) * self.factor(layer))
            return np.sqrt(2 * np.square(samples.M[layer]).sum(axis=1)).astype(self.dtype)[:, None] * self._take(samples.slope(layer))
        g, M = self._take(samples.slope(layer2)), samples.M[layer2].astype(self.dtype)
        if samples.M[layer] is None:
            return self._flat(np.stack([(M @ each) * g for each in self.factor(layer)]))
        S = (samples.M[layer] @ samples.M[layer].T).astype(self.dtype)
        return _packed(lambda a: S[a, a:, None] * g[a] * g[a:], np.diag(S)[:, None] * g * g)

    @staticmethod
    def _flat(kappa):
        return kappa.reshape(kappa.shape[0] * kappa.shape[1], kappa.shape[2])


def _packed(row, diagonal):
    """The upper triangles of symmetric κ [d, d, m] with those off the diagonal times √2; `row(a)` gives κ[a, a:]."""
    width, m = diagonal.shape
    packed, at = np.empty((width * (width + 1) // 2, m), diagonal.dtype), 0
    for a in range(width):
        part = packed[at : at + width - a]
        np.multiply(row(a), diagonal.dtype.type(np.sqrt(2.0)), out=part)
        part[0] = diagonal[a]
        at += width - a
    return packed


def kernel_features(samples, layer, layer2, chosen, dtype=np.float64):
    """[f, m]: columns whose inner products are ⟨κ_i^{ℓℓ'}, κ_j^{ℓℓ'}⟩, ℓ ≤ ℓ', for an index array of samples: κ_i row by row, the upper triangle
    with √2 off the diagonal for ℓ = ℓ', or the fewer numbers of the closed forms above (of a diagonal κ its diagonal).
    """
    return _Made(samples, chosen, np.dtype(dtype)).features(layer, layer2)
