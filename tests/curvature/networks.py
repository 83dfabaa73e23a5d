"""Small networks of all shapes, activations and losses, for tests of the curvatures."""

import numpy as np

from hpcHess.networks.network import Network

# widths, activation(s), loss, which layers have a bias, output activation
CASES = {
    "logistic regression, classes": ([5, 4], "relu", "cross-entropy", (True,), "identity"),
    "logistic regression, binary": ([6, 1], "relu", "binary-cross-entropy", (True,), "identity"),
    "one layer, values": ([5, 4], "relu", "squared-error", (False,), "identity"),
    "classes, gelu, some biases": ([5, 4, 4, 3], "gelu", "cross-entropy", (True, False, True), "identity"),
    "classes, mixed": ([5, 4, 6, 4, 3], ["leaky-relu(0.2)", "softplus", "silu"], "cross-entropy", (True, True, False, True), "identity"),
    "binary, many outputs": ([4, 5, 3, 4], "tanh", "binary-cross-entropy", (True, True, True), "identity"),
    "autoencoder": ([6, 3, 6], "sigmoid", "squared-error", (True, True), "identity"),
    "autoencoder, binary": ([6, 3, 6], "relu", "binary-cross-entropy", (True, True), "identity"),
    "values, output sigmoid": ([4, 5, 3], "gelu-tanh", "squared-error", (True, True), "sigmoid"),
    "values, deep, output tanh": ([4, 3, 5, 3, 2], ["tanh", "identity", "leaky-relu"], "squared-error", (True, True, False, True), "tanh"),
    "deep linear, values": ([4, 6, 3, 5, 2], "identity", "squared-error", (True, True, False, True), "identity"),
}
N_SAMPLES = 9
WEIGHTS = np.array([0.3, 0, 2, 0.125, 1e-3, 0, 0.7, 0.1, 5])


def make(name):
    """(network, inputs [9, d_0], targets) of a case; input 1 is 0 in all samples."""
    widths, activation, loss, biases, output = CASES[name]
    rng = np.random.default_rng(sum(map(ord, name)))
    shapes = list(zip(widths[1:], widths[:-1], strict=True))
    weights = [1.5 * rng.standard_normal(shape) / np.sqrt(shape[1]) for shape in shapes]
    vectors = [rng.standard_normal(s[0]) if has else None for s, has in zip(shapes, biases, strict=True)]
    inputs = rng.standard_normal((N_SAMPLES, widths[0])) * (np.arange(widths[0]) != 1)
    if loss == "cross-entropy":
        targets = rng.integers(0, widths[-1], N_SAMPLES)
    elif loss == "binary-cross-entropy":
        targets = rng.random((N_SAMPLES, widths[-1])).round(1)
    else:
        targets = rng.standard_normal((N_SAMPLES, widths[-1]))
    return Network(weights, vectors, activation, loss, output), inputs, targets


def classifier(widths=(5, 6, 4, 3), n=25):
    """(network, inputs, targets): tanh, biases, cross-entropy, which `tests.reference.gauss_newton` knows; input 1 is 0 in all samples."""
    rng = np.random.default_rng(5)
    weights = [rng.standard_normal((b, a)) / np.sqrt(a) for a, b in zip(widths[:-1], widths[1:], strict=True)]
    network = Network(weights, [rng.standard_normal(len(W)) / 4 for W in weights], "tanh", "cross-entropy")
    return network, rng.standard_normal((n, widths[0])) * (np.arange(widths[0]) != 1), rng.integers(0, widths[-1], n)
