"""The product H̃w in four passes over the levels (GOFMM, Yu and others, SC 2017, §2.3)."""

import numpy as np

from hpcHess.skeleton.levels import expand_to_children, to_parents


def multiply_parameter_rows(H, V):
    """H̃V from and to parameter rows [N, k], backend arrays, of an HSS matrix on one rank: its leaves gather and scatter the rows themselves."""
    backend, rows = H.backend, leaf_rows(H)
    result = (backend.empty if H.n_alive == H.n_params else backend.zeros)(V.shape, V.dtype)
    backend.multiply_at(H.near.blocks, rows[0], V, result)
    if len(H.levels) > 1:
        T = H.levels[-1].T
        potentials = skeletons_to_skeletons(H, nodes_to_skeletons(H, backend.compress_rows(T, *rows[1:], V)))
        skeletons_down(H, potentials)
        backend.expand_rows(T, *rows[1:], potentials[-1], result)
    return result


def leaf_rows(H):
    """Parameter rows of the leaves' columns, of their skeletons and of the rest, int64 arrays of the backend; kept with H."""
    if H.leaf_parameters is None:
        backend, place = H.backend, H.tree.permutation.astype(np.int64, copy=False)
        kinds = [backend.to_host(each) for each in (H.levels[-1].skeleton_rows, H.levels[-1].redundant_rows)] if len(H.levels) > 1 else []
        H.leaf_parameters = [backend.asarray(np.ascontiguousarray(each)) for each in (place, *(place[kind] for kind in kinds))]
    return H.leaf_parameters


def multiply_tree_rows(H, w):
    """H̃w for w [n_local, k] in tree rows, a backend array; the result likewise. Collective."""
    u = leaves_to_leaves(H, w)
    if len(H.levels) > 1:
        potentials = skeletons_to_skeletons(H, nodes_to_skeletons(H, H.levels[-1].compress_rows(H.backend, w)))
        skeletons_down(H, potentials)
        H.levels[-1].expand_rows(H.backend, potentials[-1], u)
    return u


def nodes_to_skeletons(H, at_leaves):
    """Skeleton weights by level, upward, from the leaves' w̃_α = P_α w_α: P_α [w̃_l; w̃_r] above."""
    weights = [None] * (len(H.levels) - 1) + [at_leaves]
    for number in range(len(H.levels) - 2, 0, -1):
        below, level = H.levels[number + 1], H.levels[number]
        weights[number] = level.compress_rows(H.backend, to_parents(H.comm, H.backend, weights[number + 1], below, level))
    return weights


def skeletons_to_skeletons(H, weights):
    """Skeleton potentials by level: ũ_α = Σ_{β far from α} B_αβ w̃_β."""
    potentials = [None] * len(H.levels)
    for number in range(1, len(H.levels)):
        potentials[number] = H.backend.zeros(weights[number].shape, weights[number].dtype)
        H.levels[number].far.multiply(H.backend, weights[number], potentials[number])
    return potentials


def skeletons_down(H, potentials):
    """Downward to the leaves' skeletons, in place: [ũ_l; ũ_r] += P_αᵀ ũ_α."""
    for number in range(1, len(H.levels) - 1):
        expand_to_children(H.comm, H.backend, potentials[number], H.levels[number], H.levels[number + 1], potentials[number + 1])


def leaves_to_leaves(H, w):
    """u_α = Σ_{β near α} D_αβ w_β."""
    u = H.backend.zeros(w.shape, w.dtype)
    H.near.multiply(H.backend, w, u)
    return u
