"""Distances between parameters, evaluated on the rows of the embedding Z (⟨z_i, z_j⟩ ≈ H_ij). GOFMM (Yu and others, SC 2017), §2.1."""

import numpy as np


def normalize(Z, distance):
    """Rows ready for `pairwise`: unit rows for angles (a zero row stays zero), Z itself otherwise."""
    if distance != "angle":
        return Z
    norms = np.linalg.norm(Z, axis=1, keepdims=True)
    return Z / np.where(norms > 0, norms, 1)


def pairwise(Z, W, distance):
    """d(z_i, w_i) row by row, [m] from [m, k] and [m, k].

    kernel: d = ‖z − w‖² ≈ H_ii + H_jj − 2 H_ij.   angle: d = 1 − ⟨z, w⟩² ≈ 1 − H_ij² / (H_ii H_jj), for unit rows.
    """
    if distance == "angle":
        return 1 - np.einsum("ij,ij->i", Z, W) ** 2
    difference = Z - W
    return np.einsum("ij,ij->i", difference, difference)
