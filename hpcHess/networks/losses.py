"""Second derivatives of the losses with respect to the outputs z: Q = ∂²f/∂z² = R Rᵀ, never formed.

Samples come last: U is [k, d, n], what a sample's Q needs is [d, n], both arrays of the namespace `xp`.
"""

import numpy as np

from hpcHess.networks.activations import sigmoid


def softmax(z):
    """(p, 1 − p) for logits z [d, n]; 1 − p is a sum of the other classes where p is large, accurate for sure samples too."""
    top, samples = z.argmax(axis=0), np.arange(z.shape[1])
    e = np.exp(z - z[top, samples])
    others = e.copy()
    others[top, samples] = 0
    others = others.sum(axis=0)  # Σ over the classes but the likeliest, whose e is 1
    rest = 1 + others - e
    rest[top, samples] = others
    return e / (1 + others), rest / (1 + others)


class CrossEntropy:
    """f = −log softmax(z)_y:  Q = diag(p) − p pᵀ,  R = diag(√p) − p √pᵀ (not symmetric: RᵀR ≠ Q),  p = softmax(z)."""

    constant = False

    @staticmethod
    def gradient(z, labels):
        """∂f/∂z = p − e_y for logits z [d, n] and integer labels [n], [d, n]; −(1 − p) of the label without cancellation."""
        p, rest = softmax(z)
        samples = np.arange(z.shape[1])
        p[labels, samples] = -rest[labels, samples]
        return p

    @staticmethod
    def draw(z, uniform):
        """Labels [n] from softmax(z) for numbers [n] in [0, 1)."""
        total = np.cumsum(softmax(z)[0], axis=0)
        return np.minimum((total < uniform * total[-1]).sum(axis=0), len(z) - 1)

    @staticmethod
    def apply_hessian(U, p, xp=np):
        """U ← Q U in place: p ∘ (U − Σ p U), which does not change when U's row of the likeliest class is taken off all rows; then nothing cancels
        where a sample is sure, and Q U is small.
        """
        U -= xp.take_along_axis(U, p.argmax(axis=0)[None, None], axis=1)
        U -= (U * p).sum(axis=1, keepdims=True)
        U *= p

    @staticmethod
    def apply_root(U, p, xp=np):
        """U ← R U in place: √p ∘ U − p Σ √p U."""
        U *= xp.sqrt(p)
        U -= p * U.sum(axis=1, keepdims=True)


class SquaredError:
    """f = ‖z − y‖², summed over outputs:  Q = 2 I,  R = √2 I, the same for every sample."""

    constant = True

    @staticmethod
    def gradient(z, targets):
        """∂f/∂z = 2 (z − y) for z [d, n] and y [n, d], [d, n]."""
        return 2 * (z - targets.T)

    @staticmethod
    def apply_hessian(U, p=None, xp=np):
        """U ← Q U in place."""
        U *= 2

    @staticmethod
    def apply_root(U, p=None, xp=np):
        """U ← R U in place."""
        U *= U.dtype.type(np.sqrt(2.0))


class BinaryCrossEntropy:
    """f = Σ_e log(1 + exp z_e) − y_e z_e, y_e in [0, 1]:  Q = diag(q),  q = σ(z) (1 − σ(z)),  R = diag(√q): logistic regression in every output."""

    constant = False

    @staticmethod
    def gradient(z, targets):
        """∂f/∂z = σ(z) − y for z [d, n] and y [n, d], [d, n]; ∓1/(1 + exp ±z) without cancellation where y is 0 or 1."""
        s = sigmoid(z)[0]
        y = targets.T
        return np.where(y == 1, -sigmoid(-z)[0], s - y)

    @staticmethod
    def curvature(z):
        """q, [d, n]."""
        return sigmoid(z)[1]

    @staticmethod
    def draw(z, uniform):
        """Targets [n, d] of 0 and 1 with the probabilities σ(z), for numbers [n, d] in [0, 1)."""
        return (uniform < sigmoid(z)[0].T).astype(np.float64)


class Diagonal:
    """Q = diag(q), q ≥ 0 [d, n], R = diag(√q): binary cross-entropy, and squared error behind an output activation, seen from a^L."""

    constant = False

    @staticmethod
    def apply_hessian(U, q, xp=np):
        """U ← diag(q) U in place."""
        U *= q

    @staticmethod
    def apply_root(U, q, xp=np):
        """U ← diag(√q) U in place."""
        U *= xp.sqrt(q)


class OuterProduct:
    """Q = δ δᵀ, R = δ for the gradients δ = ∂f/∂z of whichever loss, [d, n]: no Hessian, but it takes the place of one."""

    constant = False

    @staticmethod
    def apply_hessian(U, delta, xp=np):
        """U ← δ δᵀ U in place."""
        U[...] = delta * (U * delta).sum(axis=1, keepdims=True)

    @staticmethod
    def apply_root(U, delta, xp=np):
        """U ← δ u_0 in place, u_0 the first of U's d numbers a sample: R has one column."""
        U[...] = delta * U[:, :1].copy()


LOSSES = {"cross-entropy": CrossEntropy, "binary-cross-entropy": BinaryCrossEntropy, "squared-error": SquaredError}
