"""Thin roots of the losses' second derivatives: R [d, r] with R Rᵀ = Q and as few columns as Q has rank; samples come last."""

import numpy as np


class ProbabilityRoot:
    """Q = diag(p) − ppᵀ, r = d − 1: R = diag(√p) − p√pᵀ has √p in its null space, so R H with a Householder reflection H √p = −e_0 has a first
    column of zeros, which is dropped. With s = √p, γ = s_0 / (1 + s_0): R_ke = s_e (δ_ke − p_k) − γ s_e (δ_k0 − p_k), e = 1 … d − 1.
    """

    def __init__(self, p):
        p = p / p.sum(axis=0)  # to 1 in this precision, whatever it was stored in
        self.p, self.s, self.rank = p, np.sqrt(p), len(p) - 1
        self.gamma = self.s[0] / (1 + self.s[0])

    def transposed(self, U):
        """Rᵀ U, [k, d, n] → [k, r, n]."""
        centred = U - (U * self.p).sum(axis=1, keepdims=True)
        return self.s[1:] * (centred[:, 1:] - self.gamma * centred[:, :1])

    def apply(self, Y):
        """R Y, [k, r, n] → [k, d, n]."""
        weighted = self.s[1:] * Y
        total = weighted.sum(axis=1, keepdims=True)
        result = -self.p * ((1 - self.gamma) * total)
        result[:, 1:] += weighted
        result[:, :1] -= self.gamma * total
        return result


class ConstantRoot:
    """Q = 2 I."""

    def __init__(self, d):
        self.rank = d

    def transposed(self, U):
        """√2 U."""
        return np.sqrt(2.0) * U

    apply = transposed


class DiagonalRoot:
    """Q = diag(q), r = d, for q ≥ 0 [d, n]."""

    def __init__(self, q):
        self.root, self.rank = np.sqrt(q), len(q)

    def transposed(self, U):
        """√q U."""
        return self.root * U

    apply = transposed


class GradientRoot:
    """Q = δδᵀ, r = 1, for gradients δ [d, n]."""

    def __init__(self, delta):
        self.delta, self.rank = delta, 1

    def transposed(self, U):
        """δᵀ U, [k, d, n] → [k, 1, n]."""
        return (U * self.delta).sum(axis=1, keepdims=True)

    def apply(self, Y):
        """δ Y, [k, 1, n] → [k, d, n]."""
        return self.delta * Y
