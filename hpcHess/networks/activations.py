"""Activations s and their derivatives s', elementwise."""

import numpy as np


def relu(a):
    """s = max(a, 0), s' = 1 where a > 0 (0 at 0, as PyTorch)."""
    positive = a > 0
    return np.where(positive, a, 0), positive.astype(a.dtype)


def tanh(a):
    """s = tanh a, s' = 1 − s²."""
    s = np.tanh(a)
    return s, 1 - s * s


def sigmoid(a):
    """s = 1 / (1 + e^−a), s' = s (1 − s)."""
    s = 0.5 * (1 + np.tanh(0.5 * a))
    return s, s * (1 - s)


ACTIVATIONS = {"relu": relu, "tanh": tanh, "sigmoid": sigmoid}
