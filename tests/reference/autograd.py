"""Dense curvature matrices by PyTorch's automatic differentiation in float64: independent of every formula of the package.

A module that needs it begins with `torch = pytest.importorskip("torch")`.
"""

import numpy as np
import torch
from torch.nn import functional

ACTIVATIONS = {
    "relu": torch.relu,
    "leaky-relu": functional.leaky_relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": lambda a: functional.softplus(a, threshold=1e9),
    "gelu": functional.gelu,
    "gelu-tanh": lambda a: functional.gelu(a, approximate="tanh"),
    "silu": functional.silu,
    "identity": lambda a: a,
}


def activation(name):
    """The function of a name, of leaky-relu(0.2) too."""
    base, _, parameter = name.partition("(")
    return ACTIVATIONS[base] if not parameter else lambda a: functional.leaky_relu(a, float(parameter.rstrip(")")))


def parameters(network):
    """θ of all layers, chosen or not, [N] torch float64, in PyTorch's order."""
    pieces = [each.ravel() for pair in zip(network.weights, network.biases, strict=True) for each in pair if each is not None]
    return torch.tensor(np.concatenate(pieces))


def chosen(network):
    """Numbers of the parameters of the chosen layers among all, int64."""
    at, found = 0, []
    for layer, (W, b) in enumerate(zip(network.weights, network.biases, strict=True)):
        size = W.size + (0 if b is None else len(b))
        if layer in network.chosen:
            found.append(np.arange(at, at + size))
        at += size
    return np.concatenate(found)


def outputs(network, theta, x):
    """z [d] of one sample."""
    at, names = 0, [*network.activations, network.output]
    for W, b, name in zip(network.weights, network.biases, names, strict=True):
        a = theta[at : at + W.size].reshape(W.shape) @ x
        at += W.size
        if b is not None:
            a, at = a + theta[at : at + len(b)], at + len(b)
        x = activation(name)(a)
    return x


def loss(network, z, y):
    """f(z, y) of one sample."""
    if network.loss == "cross-entropy":
        return functional.cross_entropy(z, y)
    if network.loss == "binary-cross-entropy":
        return functional.binary_cross_entropy_with_logits(z, y, reduction="sum")
    return torch.square(z - y).sum()


def _mean(network, inputs, targets, weights, one):
    """Σ_i w_i one(θ, x_i, y_i), its rows and columns of the chosen layers, NumPy [N, N]."""
    theta = parameters(network)
    weights = np.full(len(inputs), 1 / len(inputs)) if weights is None else weights
    targets = [None] * len(inputs) if targets is None else torch.as_tensor(np.asarray(targets))
    total = sum(w * one(theta, torch.tensor(np.asarray(x, np.float64)), y) for w, x, y in zip(weights, inputs, targets, strict=True))
    rows = chosen(network)
    return total.detach().numpy()[np.ix_(rows, rows)]


def gauss_newton(network, inputs, weights=None):
    """Σ w_i J_iᵀ (∂²f/∂z²) J_i."""
    if network.loss == "cross-entropy":
        y = torch.tensor(0)
    else:
        y = torch.zeros(network.n_outputs, dtype=torch.float64)

    def one(theta, x, _):
        J, z = torch.func.jacrev(lambda t: outputs(network, t, x))(theta), outputs(network, theta, x)
        return J.T @ torch.func.hessian(lambda u: loss(network, u, y))(z) @ J

    return _mean(network, inputs, None, weights, one)


def outer_products(network, inputs, targets, weights=None):
    """Σ w_i g_i g_iᵀ, g_i the gradient of sample i's loss."""

    def one(theta, x, y):
        g = torch.func.grad(lambda t: loss(network, outputs(network, t, x), y))(theta)
        return torch.outer(g, g)

    return _mean(network, inputs, targets, weights, one)


def hessian(network, inputs, targets, weights=None):
    """Σ w_i ∂²f/∂θ²."""
    return _mean(network, inputs, targets, weights, lambda theta, x, y: torch.func.hessian(lambda t: loss(network, outputs(network, t, x), y))(theta))
