"""The product H̃w in four passes over the levels (GOFMM, Yu and others, SC 2017, §2.3)."""

from hpcHess.skeleton.levels import expand_to_children, to_parents


def multiply_tree_rows(H, w):
    """H̃w for w [n_local, k] in tree rows, a backend array; the result likewise. Collective."""
    weights = nodes_to_skeletons(H, w)
    potentials = skeletons_to_skeletons(H, weights)
    u = leaves_to_leaves(H, w)
    return skeletons_to_nodes(H, potentials, u)


def nodes_to_skeletons(H, w):
    """Skeleton weights by level, upward: w̃_α = P_α w_α at leaves, P_α [w̃_l; w̃_r] above."""
    weights, rows = [None] * len(H.levels), w
    for number in range(len(H.levels) - 1, 0, -1):
        level = H.levels[number]
        weights[number] = level.compress_rows(H.backend, rows)
        if number > 1:
            rows = to_parents(H.comm, H.backend, weights[number], level, H.levels[number - 1])
    return weights


def skeletons_to_skeletons(H, weights):
    """Skeleton potentials by level: ũ_α = Σ_{β far from α} B_αβ w̃_β."""
    potentials = [None] * len(H.levels)
    for number in range(1, len(H.levels)):
        potentials[number] = H.backend.xp.zeros_like(weights[number])
        H.levels[number].far.multiply(H.backend, weights[number], potentials[number])
    return potentials


def skeletons_to_nodes(H, potentials, u):
    """Downward: [ũ_l; ũ_r] += P_αᵀ ũ_α; at the leaves u_α += P_αᵀ ũ_α. Both in place."""
    for number in range(1, len(H.levels) - 1):
        expand_to_children(H.comm, H.backend, potentials[number], H.levels[number], H.levels[number + 1], potentials[number + 1])
    if len(H.levels) > 1:
        H.levels[-1].expand_rows(H.backend, potentials[-1], u)
    return u


def leaves_to_leaves(H, w):
    """u_α = Σ_{β near α} D_αβ w_β."""
    u = H.backend.xp.zeros_like(w)
    H.near.multiply(H.backend, w, u)
    return u
