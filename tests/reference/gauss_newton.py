"""The dense Gauss–Newton matrix from the definition: Jacobians by complex steps of the network's function of all parameters."""

import numpy as np

STEP = 1e-40  # f(θ + ih e_j) = f + ih ∂f/∂θ_j + O(h²): no subtraction, hence exact to rounding


def outputs(theta, shapes, has_bias, activation, x):
    """z of one sample x for a complex parameter vector in PyTorch's order; `shapes` of the weights."""
    at = 0
    for layer, (rows, columns) in enumerate(shapes):
        W = theta[at : at + rows * columns].reshape(rows, columns)
        at += rows * columns
        a = W @ x
        if has_bias[layer]:
            a = a + theta[at : at + rows]
            at += rows
        if layer == len(shapes) - 1:
            return a
        if activation == "relu":
            x = np.where(a.real > 0, a, 0)
        elif activation == "tanh":
            x = np.tanh(a)
        else:
            x = 1 / (1 + np.exp(-a))


def loss_hessian(z, loss):
    """∂²f/∂z² of one sample."""
    if loss == "squared-error":
        return 2 * np.eye(len(z))
    p = np.exp(z - z.max())
    p /= p.sum()
    return np.diag(p) - np.outer(p, p)


def gauss_newton(network, inputs):
    """H [N, N] float64, mean over the samples; `network` has weights, biases (None where a layer has none), activation, loss."""
    pieces = [each.ravel() for pair in zip(network.weights, network.biases, strict=True) for each in pair if each is not None]
    theta = np.concatenate(pieces).astype(complex)
    shapes, has_bias = [W.shape for W in network.weights], [b is not None for b in network.biases]
    H = np.zeros((len(theta), len(theta)))
    for x in np.asarray(inputs, np.float64):
        z = outputs(theta, shapes, has_bias, network.activation, x).real
        J = np.empty((len(z), len(theta)))
        for j in range(len(theta)):
            stepped = theta.copy()
            stepped[j] += 1j * STEP
            J[:, j] = outputs(stepped, shapes, has_bias, network.activation, x).imag / STEP
        H += J.T @ loss_hessian(z, network.loss) @ J
    return H / len(inputs)


def outer_products(network, inputs, targets):
    """(1/n) Σ g gᵀ [N, N] float64 of the gradients g of every sample's loss, by complex steps of the loss itself."""
    pieces = [each.ravel() for pair in zip(network.weights, network.biases, strict=True) for each in pair if each is not None]
    theta = np.concatenate(pieces).astype(complex)
    shapes, has_bias = [W.shape for W in network.weights], [b is not None for b in network.biases]
    H = np.zeros((len(theta), len(theta)))
    for x, y in zip(np.asarray(inputs, np.float64), targets, strict=True):
        g = np.empty(len(theta))
        for j in range(len(theta)):
            stepped = theta.copy()
            stepped[j] += 1j * STEP
            z = outputs(stepped, shapes, has_bias, network.activation, x)
            value = ((z - y) ** 2).sum() if network.loss == "squared-error" else np.log(np.exp(z - z[y]).sum())
            g[j] = value.imag / STEP
        H += np.outer(g, g)
    return H / len(inputs)
