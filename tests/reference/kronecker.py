"""Kronecker sums of a dense matrix by plain linear algebra, and K-FAC by a loop over samples. Nothing of the package is used here."""

import numpy as np

from tests.reference.gauss_newton import loss_hessian


def matrix_order(network):
    """Of every layer the parameter indices (PyTorch's order) as a matrix [W b], [d, c]."""
    found, at = [], 0
    for W, b in zip(network.weights, network.biases, strict=True):
        index = at + np.arange(W.size).reshape(W.shape)
        at += W.size
        if b is not None:
            index = np.column_stack([index, at + np.arange(len(b))])
            at += len(b)
        found.append(index)
    return found


def rearranged(H, one, other):
    """The block of H of two layers' index matrices [d, c], [d', c'] with rows (p, p') and columns (q, q'), [d d', c c']."""
    block = H[np.ix_(one.ravel(), other.ravel())].reshape(*one.shape, *other.shape)
    return block.transpose(0, 2, 1, 3).reshape(len(one) * len(other), -1)


def best_sum(H, network, counts):
    """The best sums of counts[ℓ, ℓ'] Kronecker products of all pairs ℓ ≤ ℓ', [N, N], and the singular values of all pairs."""
    result, values, order = np.zeros_like(H), {}, matrix_order(network)
    for (a, b), count in counts.items():
        one, other = order[a], order[b]
        U, s, Vt = np.linalg.svd(rearranged(H, one, other), full_matrices=False)
        values[a, b] = s
        R = (U[:, :count] * s[:count]) @ Vt[:count]
        block = R.reshape(len(one), len(other), one.shape[1], other.shape[1]).transpose(0, 2, 1, 3).reshape(one.size, other.size)
        result[np.ix_(one.ravel(), other.ravel())] = block
        result[np.ix_(other.ravel(), one.ravel())] = block.T
    return result, values


def kfac(network, inputs, weights=None):
    """K-FAC [N, N]: of every layer E[∂z/∂aᵀ Q ∂z/∂a] ⊗ E[x̃ x̃ᵀ] · Σ w, sample by sample with the chain rule written out."""
    weights = np.full(len(inputs), 1 / len(inputs)) if weights is None else weights
    order, L = matrix_order(network), len(network.weights)
    G, S = [0.0] * L, [0.0] * L
    for x, weight in zip(np.asarray(inputs, np.float64), weights, strict=True):
        slopes, layer_inputs = [], []
        for layer, (W, b) in enumerate(zip(network.weights, network.biases, strict=True)):
            layer_inputs.append(x if b is None else np.append(x, 1.0))
            a = W @ x + (0 if b is None else b)
            if network.activation == "relu":
                x, slope = np.maximum(a, 0), (a > 0).astype(float)
            elif network.activation == "tanh":
                x, slope = np.tanh(a), 1 - np.tanh(a) ** 2
            else:
                x = 1 / (1 + np.exp(-a))
                slope = x * (1 - x)
            slopes.append(slope)
        J, Q = np.eye(len(a)), loss_hessian(a, network.loss)
        for layer in range(L - 1, -1, -1):
            G[layer] = G[layer] + weight * J.T @ Q @ J
            S[layer] = S[layer] + weight * np.outer(layer_inputs[layer], layer_inputs[layer])
            if layer:
                J = (J @ network.weights[layer]) * slopes[layer - 1]
    result = np.zeros((sum(index.size for index in order),) * 2)
    for index, A, B in zip(order, G, S, strict=True):
        result[np.ix_(index.ravel(), index.ravel())] = np.kron(A, B) / weights.sum()
    return result
