"""Products with the Gauss–Newton matrix by one forward and one backward sweep for many vectors at once.

V is taken as Vᵀ [k, N], so that every layer is one matrix product over all vectors:

    da^ℓ [n, k·d_ℓ] = X^{ℓ−1} (V_W^ℓ [k·d_ℓ, d_{ℓ−1}])ᵀ + V_b^ℓ + dx^{ℓ−1} W_ℓᵀ,   dx^ℓ = s'^ℓ ∘ da^ℓ,   u = Q da^L / n,
    (HV)_W^ℓ [k·d_ℓ, d_{ℓ−1}] = uᵀ X^{ℓ−1},   (HV)_b^ℓ = Σ_i u,   u ← s'^{ℓ−1} ∘ (u W_ℓ).
"""

import numpy as np

TEMPORARY_BYTES = 1 << 27  # of one [samples, k, width] array


def blocks(samples, rows, k):
    """(sample slices, column slices) that keep temporaries bounded: up to 64 columns at once, at least 1 sample."""
    width, itemsize = max(samples.network.widths), samples.dtype.itemsize
    columns = min(k, 64)
    step = max(1, TEMPORARY_BYTES // (itemsize * width * max(columns, 1)))
    cut = [slice(a, min(rows.stop, a + step)) for a in range(rows.start, rows.stop, step)]
    return cut, [slice(a, min(k, a + columns)) for a in range(0, k, columns)] if k else []


def partial_product(samples, rows, V):
    """(1/n) Σ_{i in rows} J_iᵀ Q_i J_i V, [N, k] for V [N, k]; not collective."""
    Vt = np.ascontiguousarray(np.asarray(V).T, samples.dtype)
    result = np.zeros_like(Vt)
    sample_blocks, column_blocks = blocks(samples, rows, len(Vt))
    for columns in column_blocks:
        for block in sample_blocks:
            dz = _forward(samples, block, Vt[columns])
            u = samples.loss(samples.outputs[block]).hessian_product(dz)
            u /= samples.n
            _backward(samples, block, u, result[columns])
    return result.T


def partial_probe(samples, rows, xi, k):
    """(nk)^{-1/2} Σ_{i in rows} J_iᵀ R_i ξ_i, [N, k]; xi(block, columns) gives ξ [samples, columns, d]."""
    result = np.zeros((k, samples.network.n_params), samples.dtype)
    sample_blocks, column_blocks = blocks(samples, rows, k)
    for columns in column_blocks:
        for block in sample_blocks:
            u = samples.loss(samples.outputs[block]).root_product(xi(block, columns).astype(samples.dtype, copy=False))
            u *= samples.dtype.type(1 / np.sqrt(samples.n * k))
            _backward(samples, block, u, result[columns])
    return result.T


def _pieces(samples):
    """(weight slice, bias slice or None) of every layer in parameter order."""
    at, found = 0, []
    for W, b in zip(samples.weights, samples.biases):
        weight = slice(at, at + W.size)
        at += W.size
        found.append((weight, None if b is None else slice(at, at + b.size)))
        at += 0 if b is None else b.size
    return found


def _forward(samples, block, Vt):
    """J V for a block of samples: [n, k, d]."""
    k, dx, da = len(Vt), None, None
    for layer, (W, (weight, bias)) in enumerate(zip(samples.weights, _pieces(samples))):
        X, (out, inner) = samples.inputs[layer][block], W.shape
        da = (X @ Vt[:, weight].reshape(k * out, inner).T).reshape(len(X), k, out)
        if bias is not None:
            da += Vt[:, bias]
        if dx is not None:
            da += (dx.reshape(-1, inner) @ W.T).reshape(da.shape)
        if layer < len(samples.weights) - 1:
            da *= samples.derivatives[layer][block][:, None, :]
            dx = da
    return da


def _backward(samples, block, u, result):
    """Add Σ_i J_iᵀ u_i for u [n, k, d] to `result` [k, N]."""
    k, pieces = len(result), _pieces(samples)
    for layer in range(len(samples.weights) - 1, -1, -1):
        W, (weight, bias) = samples.weights[layer], pieces[layer]
        X, flat = samples.inputs[layer][block], u.reshape(len(u), -1)
        result[:, weight] += (flat.T @ X).reshape(k, W.size)
        if bias is not None:
            result[:, bias] += u.sum(axis=0)
        if layer:
            u = (u.reshape(-1, len(W)) @ W).reshape(len(u), k, W.shape[1])
            u *= samples.derivatives[layer - 1][block][:, None, :]
