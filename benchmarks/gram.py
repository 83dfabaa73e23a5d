"""Entries by the Gram route: H_IJ = (1/n) Σ_i G_iI ᵀ G_iJ with G_i = R_iᵀ ∂z_i/∂θ formed column by column, n d operations an entry.

It is what the grouped entries of `hpcHess.curvature.entries` are measured and checked against. For the weight j = (ℓ, p, q)
G_ij = x_iq C_i^ℓ e_p, C^L = Rᵀ, C^{ℓ−1} = C^ℓ W_ℓ diag(s'^{ℓ−1}).
"""

import time

import numpy as np

PIECE = 1 << 22  # numbers of one layer's C for a piece of samples


def gram_blocks(operator, index_sets):
    """([H_II for every I], seconds) of int64 parameter indices, in the operator's type, sums in it too. Making C is not timed: the grouped
    route's kernel is made before, too. Not collective.
    """
    network, samples = operator.network, operator.samples
    placed = [_place(network, np.asarray(I)) for I in index_sets]
    result = [np.zeros((len(I), len(I)), operator.dtype) for I in index_sets]
    step, seconds = max(1, PIECE // (samples.widths[-1] * max(samples.widths[1:]))), 0.0
    for lo in range(0, samples.n, step):
        piece = slice(lo, min(samples.n, lo + step))
        C, x = _factors(network, samples, piece), [samples.inputs(layer)[:, piece].T for layer in range(samples.n_layers)]
        start = time.perf_counter()
        for H, (order, groups) in zip(result, placed, strict=True):
            G = np.concatenate([_columns(C, x, group) for group in groups], axis=2).reshape(-1, len(order))
            H += (G.T @ G)[np.ix_(order, order)]
        seconds += time.perf_counter() - start
    for H in result:
        H /= samples.n
    return result, seconds


def gram_pairs(operator, blocks, most):
    """[(H_IJ of the first `most` samples, processor seconds)] for pairs (I, J); both sides' columns are formed, C is not timed. Not collective."""
    network, samples = operator.network, operator.samples
    placed = [tuple(_place(network, each) for each in pair) for pair in blocks]
    H, seconds = [np.zeros((len(I), len(J)), operator.dtype) for I, J in blocks], np.zeros(len(blocks))
    step = max(1, PIECE // (samples.widths[-1] * max(samples.widths[1:])))
    for lo in range(0, most, step):
        piece = slice(lo, min(most, lo + step))
        C, x = _factors(network, samples, piece), [samples.inputs(layer)[:, piece].T for layer in range(samples.n_layers)]
        for at, pair in enumerate(placed):
            start = time.process_time()
            G_I, G_J = (np.concatenate([_columns(C, x, group) for group in groups], axis=2) for _, groups in pair)
            H[at] += G_I.reshape(-1, len(H[at])).T @ G_J.reshape(-1, H[at].shape[1])
            seconds[at] += time.process_time() - start
    return [(each[np.ix_(I, J)] / most, time_of) for each, ((I, _), (J, _)), time_of in zip(H, placed, seconds.tolist(), strict=True)]


def _columns(C, x, group):
    """G_ij [samples, d, #] of the parameters of a layer."""
    layer, p, q = group
    return x[layer][:, None, q] * C[layer][:, :, p]


def _place(network, I):
    """(where each index stands among the sorted ones, [(layer, neurons, inputs)] of the sorted ones)."""
    order = np.empty(len(I), np.int64)
    order[np.argsort(I, kind="stable")] = np.arange(len(I))
    sorted_I, groups = np.sort(I), []
    for layer, ((weight, bias), W) in enumerate(zip(network.layer_offsets, network.weights, strict=True)):
        local = sorted_I[(sorted_I >= weight) & (sorted_I < weight + W.size)] - weight
        groups.append((layer, *np.divmod(local, W.shape[1])))
        if bias is not None:
            local = sorted_I[(sorted_I >= bias) & (sorted_I < bias + len(W))] - bias
            groups.append((layer, local, np.full(len(local), W.shape[1])))
    return order, groups


def _factors(network, samples, piece):
    """C of every layer for a piece of samples, [samples, d, d_ℓ]."""
    width, m = samples.widths[-1], piece.stop - piece.start
    if samples.p is None:
        C = np.broadcast_to(np.sqrt(2.0) * np.eye(width), (m, width, width))
    else:  # √p_e (δ_ep − p_p)
        p = samples.p[:, piece].T.astype(np.float64)
        C = np.sqrt(p)[:, :, None] * (np.eye(width) - p[:, None, :])
    found = [C.astype(samples.dtype)]
    for layer in range(samples.n_layers - 1, 0, -1):
        C = (C @ network.weights[layer]) * samples.slope(layer - 1)[:, piece].T[:, None, :]
        found.append(C.astype(samples.dtype))
    return found[::-1]
