"""The multilayer perceptron: weights, biases, and the order of its parameters."""

import copy
import hashlib
import re

import numpy as np

from hpcHess.runtime.errors import InputError
from hpcHess.runtime.schema import LOSSES, checked_activation

_KEY = re.compile(r"(0|[1-9]\d*)\.(weight|bias)")


class Network:
    """x^ℓ = s_ℓ(a^ℓ), a^ℓ = W_ℓ x^{ℓ−1} + b_ℓ for ℓ = 1 … L; the outputs are z = s_L(a^L), s_L = identity unless `output` says otherwise.

    weights      list of L arrays [out, in]
    biases       list of L arrays [out], or None where a layer has none; None: no layer has one
    activation   the hidden layers' s: a name (`networks.activations`), "leaky-relu(0.2)" with its slope, or a list of L − 1 names
    loss         "cross-entropy" (on logits z, integer labels), "binary-cross-entropy" (on logits z, targets in [0, 1], summed over the outputs) or
                 "squared-error" (‖z − y‖²); all are means over the samples
    output       s_L, of squared-error only: logits have none

    Everything is held in float64, row-major. Parameters are numbered as PyTorch's `parameters_to_vector` numbers them: layer by
    layer, weight row-major, then bias; those of layers that are not `chosen` (`restricted`) are constants, and not counted.
    InputError: shapes that do not chain, NaN or Inf (the layer is named), unknown names, an output that does not fit the loss.
    """

    def __init__(self, weights, biases=None, activation="relu", loss="cross-entropy", output="identity"):
        if loss not in LOSSES:
            raise InputError(f"the loss must be {' or '.join(LOSSES)}, not {loss!r}")
        if len(weights) == 0:
            raise InputError("a network needs at least one layer")
        biases = [None] * len(weights) if biases is None else biases
        if len(biases) != len(weights):
            raise InputError(f"{len(weights)} weights but {len(biases)} biases: use None where a layer has no bias")
        self.weights = [checked_parameter(_key(layer, "weight"), each, 2) for layer, each in enumerate(weights)]
        self.biases = [None if each is None else checked_parameter(_key(layer, "bias"), each, 1) for layer, each in enumerate(biases)]
        self.activations, self.loss = _activations(activation, len(weights) - 1), str(loss)
        self.output = checked_activation(output, "the output's activation")
        if self.output != "identity" and loss != "squared-error":
            raise InputError(f"the loss {loss} takes logits, the last layer's outputs as they are: it has no output activation {self.output}")
        self.chosen = tuple(range(len(weights)))
        self._check_chain()

    @property
    def activation(self):
        """The hidden layers' one activation, or the list of them where they differ."""
        different = list(dict.fromkeys(self.activations)) or ["relu"]
        return different[0] if len(different) == 1 else list(self.activations)

    def restricted(self, layers):
        """The same function with the parameters of these layers alone (numbered from 0); those of the others are constants. InputError: no
        such layers, or none.
        """
        layers = [int(each) for each in layers]
        wrong = next((each for each in layers if not 0 <= each < self.n_layers), None)
        if wrong is not None or not layers or len(set(layers)) < len(layers):
            raise InputError(f"layers must be different ones of 0 … {self.n_layers - 1} (counted from 0), at least one, not {layers}")
        result = copy.copy(self)
        result.chosen = tuple(sorted(layers))
        return result

    def _check_chain(self):
        for layer, (W, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            if 0 in W.shape:
                raise InputError(f"{_key(layer, 'weight')} is empty: {list(W.shape)}")
            if layer and W.shape[1] != len(self.weights[layer - 1]):
                before = f"{_key(layer - 1, 'weight')} has {len(self.weights[layer - 1])} outputs"
                raise InputError(f"shapes do not chain: {_key(layer, 'weight')} is {list(W.shape)}, but {before}")
            if b is not None and len(b) != len(W):
                raise InputError(f"{_key(layer, 'bias')} is {list(b.shape)}, but {_key(layer, 'weight')} is {list(W.shape)}")

    def __repr__(self):
        widths = "-".join(map(str, self.widths))
        activation = self.activation if isinstance(self.activation, str) else "/".join(self.activation)
        chosen = "" if len(self.chosen) == self.n_layers else f" of layers {', '.join(str(each + 1) for each in self.chosen)}"
        return f"Network({widths} {activation}, {self.loss}, {self.n_params} parameters{chosen})"

    @property
    def widths(self):
        """Numbers of units, inputs first, [L + 1]."""
        return [self.n_inputs, *(len(W) for W in self.weights)]

    @property
    def n_layers(self):
        """L, the number of weight matrices."""
        return len(self.weights)

    @property
    def n_inputs(self):
        """Width of a sample."""
        return self.weights[0].shape[1]

    @property
    def n_outputs(self):
        """d, the width of z."""
        return len(self.weights[-1])

    @property
    def n_params(self):
        """N, dead parameters included: of the chosen layers."""
        return sum(each.size for each in self._in_order())

    @property
    def has_bias(self):
        """Whether a layer has biases that are parameters, a list."""
        return [b is not None and layer in self.chosen for layer, b in enumerate(self.biases)]

    @property
    def inner(self):
        """Inputs of a layer that meet parameters, the bias' 1 not counted, a list: d_{ℓ−1}, or 0 of a layer that is not chosen."""
        return [W.shape[1] if layer in self.chosen else 0 for layer, W in enumerate(self.weights)]

    @property
    def layer_offsets(self):
        """(first index of the weight, first index of the bias or None) of every layer, in parameter order; `inner` says whether there are weights."""
        offsets, at = [], 0
        for W, inner, has_bias in zip(self.weights, self.inner, self.has_bias, strict=True):
            bias = at + len(W) * inner
            offsets.append((at, bias if has_bias else None))
            at = bias + len(W) * has_bias
        return offsets

    def parameters(self):
        """The parameters as one vector, [N] float64, in parameter order."""
        return np.concatenate([each.ravel() for each in self._in_order()])

    def _in_order(self):
        layers = list(zip(self.weights, self.biases, strict=True))
        return [each for layer in self.chosen for each in layers[layer] if each is not None]

    def digest(self):
        """sha256 (hex) over shapes, float64 values, activations, loss and what is chosen: the same for the same network in any file or dtype."""
        shapes = [(W.shape, b is not None) for W, b in zip(self.weights, self.biases, strict=True)]
        more = () if self.output == "identity" else (self.output,)
        more += () if len(self.chosen) == self.n_layers else (self.chosen,)
        result = hashlib.sha256(repr((shapes, self.activation, self.loss, *more)).encode())
        for each in (each for pair in zip(self.weights, self.biases, strict=True) for each in pair if each is not None):
            result.update(each.astype("<f8", copy=False).tobytes())
        return result.hexdigest()

    def to_arrays(self):
        """{"0.weight": [out, in], "0.bias": [out], "2.weight": …}, as PyTorch's `nn.Sequential` names them."""
        arrays = {}
        for layer, (W, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            arrays[_key(layer, "weight")] = W
            if b is not None:
                arrays[_key(layer, "bias")] = b
        return arrays

    @classmethod
    def from_arrays(cls, arrays, activation, loss, output="identity"):
        """The network of `to_arrays`. InputError: odd or missing keys, and as the constructor."""
        odd = next((key for key in arrays if not _KEY.fullmatch(key)), None)
        if odd is not None:
            raise InputError(f"odd key {odd!r}: the keys must be 0.weight, 0.bias, 2.weight, 2.bias, … as nn.Sequential writes them")
        indices = sorted({int(key.partition(".")[0]) for key in arrays})
        n_layers = indices[-1] // 2 + 1 if indices else 1
        missing = next((at for at in range(n_layers) if _key(at, "weight") not in arrays), None)
        if missing is not None:
            found = ", ".join(list(arrays)[:8]) or "nothing"
            raise InputError(f"key {_key(missing, 'weight')} is missing (found {found})")
        between = next((index for index in indices if index % 2), None)
        if between is not None:
            raise InputError(f"odd key {between}.*: layers are 0, 2, 4, …, with an activation after each but the last")
        layers = range(n_layers)
        weights = [arrays[_key(layer, "weight")] for layer in layers]
        return cls(weights, [arrays.get(_key(layer, "bias")) for layer in layers], activation, loss, output)


def _activations(given, count):
    """The names of `count` hidden layers; InputError for unknown ones or another number of them."""
    if isinstance(given, str):
        name = checked_activation(given, "the activation")
        return [name] * count
    given = list(given)
    if len(given) != count:
        raise InputError(f"{len(given)} activations for {count} hidden layers: give one name, or one for each hidden layer")
    return [checked_activation(each, "the activation") for each in given]


def _key(layer, name):
    """What nn.Sequential calls a layer's parameter: an activation stands between two layers."""
    return f"{2 * layer}.{name}"


def checked_parameter(name, array, ndim):
    """A finite float64 array of `ndim` dimensions, in row-major order and of our own; InputError, naming it, for anything else."""
    try:
        array = np.asarray(array)
    except ValueError as error:
        raise InputError(f"{name} is no array: {error}") from None
    if array.dtype == object:  # ragged, before numpy 1.24
        raise InputError(f"{name} is no array: its rows are of different lengths or hold objects")
    if array.dtype.kind not in "fiu":
        raise InputError(f"{name} holds {array.dtype}, not real numbers")
    if array.ndim != ndim:
        raise InputError(f"{name} must have {ndim} dimension{'s' if ndim > 1 else ''}, not the shape {list(array.shape)}")
    array = np.array(array, np.float64, order="C")
    finite = np.isfinite(array)
    if not finite.all():
        at = [int(i) for i in np.unravel_index(np.argmin(finite), array.shape)]
        raise InputError(f"{name} is not finite: {array[tuple(at)]} at {at}")
    return array
