"""Activations s with s' and s'', elementwise. A derivative is zero only where it is zero in floating point, not by cancellation."""

import numpy as np
from scipy.special import ndtr

from hpcHess.runtime.schema import LEAK

_FAR = 40.0  # beyond, the derivatives of the gelus and of silu are those of their limits in float64


def relu(a):
    """s = max(a, 0), s' = 1 where a > 0 (0 at 0, as PyTorch), s'' = 0."""
    return leaky_relu(a, 0)


def leaky_relu(a, leak=LEAK):
    """s = a where a > 0, else leak·a; s' = 1 or leak (at 0, as PyTorch), s'' = 0."""
    positive, zero = a > 0, np.zeros_like(a)
    return np.where(positive, a, leak * a if leak else zero), np.where(positive, 1, leak).astype(a.dtype), zero


def tanh(a):
    """s = tanh a, s' = 1/cosh² a = 4e/(1 + e)² with e = exp(−2|a|), accurate in the tails where 1 − s² cancels, s'' = −2 s s'."""
    s, e = np.tanh(a), np.exp(-2 * np.abs(a))
    slope = 4 * e / np.square(1 + e)
    return s, slope, -2 * s * slope


def sigmoid(a):
    """s = 1/(1 + exp(−a)), s' = e/(1 + e)² with e = exp(−|a|), s'' = s' (1 − 2s) = −s' tanh(a/2)."""
    e = np.exp(-np.abs(a))
    slope = e / np.square(1 + e)
    return np.where(a >= 0, 1, e) / (1 + e), slope, -slope * np.tanh(a / 2)


def softplus(a):
    """s = log(1 + exp a), s' = sigmoid, s'' = sigmoid'."""
    s, slope, _ = sigmoid(a)
    return np.maximum(a, 0) + np.log1p(np.exp(-np.abs(a))), s, slope


def gelu(a):
    """s = a Φ(a), s' = Φ + aφ, s'' = φ (2 − a²), with the standard normal Φ and φ (Hendrycks & Gimpel 2016)."""
    near = np.clip(a, -_FAR, _FAR)
    density, below = np.exp(-np.square(near) / 2) / np.sqrt(2 * np.pi), ndtr(a)
    return a * below, below + near * density, density * (2 - np.square(near))


def gelu_tanh(a):
    """s = ½ a (1 + tanh u), u = √(2/π) (a + 0.044715 a³): PyTorch's approximate="tanh", TensorFlow's approximate=True."""
    c, cubic = np.sqrt(2 / np.pi), 0.044715
    near = np.clip(a, -_FAR, _FAR)
    t, sech2, _ = tanh(c * (near + cubic * near**3))
    du, ddu = c * (1 + 3 * cubic * near**2), 6 * c * cubic * near
    slope = (1 + t) / 2 + near * sech2 * du / 2
    return a * (1 + t) / 2, slope, sech2 * du + near * sech2 * (ddu / 2 - t * du**2)


def silu(a):
    """s = a σ(a), s' = σ + aσ', s'' = σ' (2 + a (1 − 2σ))."""
    s, slope, _ = sigmoid(a)
    near = np.clip(a, -20 * _FAR, 20 * _FAR)
    return a * s, s + near * slope, slope * (2 - near * np.tanh(near / 2))


def identity(a):
    """s = a, s' = 1, s'' = 0."""
    return a, np.ones_like(a), np.zeros_like(a)


ACTIVATIONS = {
    "relu": relu,
    "leaky-relu": leaky_relu,
    "tanh": tanh,
    "sigmoid": sigmoid,
    "softplus": softplus,
    "gelu": gelu,
    "gelu-tanh": gelu_tanh,
    "silu": silu,
    "identity": identity,
}
PIECEWISE_LINEAR = ("relu", "leaky-relu", "identity")  # s'' = 0


def activation(name):
    """The function a → (s, s', s'') of a name as `runtime.jobfile.checked_activation` gives it, "leaky-relu(0.2)" included."""
    base, _, parameter = name.partition("(")
    if not parameter:
        return ACTIVATIONS[name]
    leak = float(parameter.rstrip(")"))
    return lambda a: ACTIVATIONS[base](a, leak)


def curved(name):
    """Whether s'' is not zero."""
    return name.partition("(")[0] not in PIECEWISE_LINEAR
