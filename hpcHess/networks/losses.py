"""Second derivatives of the losses with respect to the outputs z: Q = ∂²f/∂z² = R Rᵀ."""

import numpy as np


class CrossEntropy:
    """f = −log softmax(z)_y:  Q = diag(p) − p pᵀ,  R = diag(√p) − p √pᵀ (not symmetric: RᵀR ≠ Q),  p = softmax(z)."""

    constant = False

    def __init__(self, z):
        e = np.exp(z - z.max(axis=1, keepdims=True))
        self.p = e / e.sum(axis=1, keepdims=True)

    def hessian_product(self, u):
        """Q u for u [n, k, d]."""
        pu = self.p[:, None, :] * u
        return pu - self.p[:, None, :] * pu.sum(axis=2, keepdims=True)

    def root_product(self, u):
        """R u for u [n, k, d]."""
        r = np.sqrt(self.p)[:, None, :]
        return r * u - self.p[:, None, :] * (r * u).sum(axis=2, keepdims=True)

    def root_transposed(self):
        """Rᵀ [n, d, d]: (Rᵀ)_eo = √p_e (δ_eo − p_o)."""
        r = np.sqrt(self.p)
        return r[:, :, None] * (np.eye(self.p.shape[1], dtype=r.dtype) - self.p[:, None, :])


class SquaredError:
    """f = ‖z − y‖², summed over outputs:  Q = 2 I,  R = √2 I, the same for every sample."""

    constant = True

    def __init__(self, z):
        self.d, self.dtype = z.shape[1], z.dtype

    def hessian_product(self, u):
        """Q u for u [n, k, d]."""
        return 2 * u

    def root_product(self, u):
        """R u for u [n, k, d]."""
        return u * u.dtype.type(np.sqrt(2.0))

    def root_transposed(self):
        """Rᵀ [d, d]."""
        return np.sqrt(2.0) * np.eye(self.d, dtype=self.dtype)


LOSSES = {"cross-entropy": CrossEntropy, "squared-error": SquaredError}
