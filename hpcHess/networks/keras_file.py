"""Whole Keras models: .h5 (attribute model_config, group model_weights) and .keras (a zip of config.json and model.weights.h5).

Read are Sequential models and chains of the functional API. A Dense layer computes s(x K + b) with K [in, out], the transpose of our W.
"""

import json
import re

import numpy as np

from hpcHess.networks.layers import Chain, Dense, leaky
from hpcHess.runtime.errors import InputError
from hpcHess.storage.archive import check_archive, read_member
from hpcHess.storage.arrays import read_arrays

ACTIVATIONS = {
    "linear": "identity",
    "relu": "relu",
    "leaky_relu": "leaky-relu(0.2)",  # Keras' default slope of the function, not of the layer
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "softplus": "softplus",
    "gelu": "gelu",
    "silu": "silu",
    "swish": "silu",
    "softmax": "softmax",
    "log_softmax": "log-softmax",
}
_NOTHING = ("Dropout", "AlphaDropout", "GaussianDropout", "GaussianNoise", "ActivityRegularization")  # what a trained model does not do
_LAYERS = ("LeakyReLU", "ReLU", "Softmax", "Activation")


def read_keras_hdf5(path, model):
    """The `Layers` of a whole-model HDF5 file and its model_config. InputError: unsupported layers by name, damaged, weights missing."""
    arrays = read_arrays(path, "Keras model", "model_weights")

    def weights(layer, _):
        own = {key.rpartition("/")[2].partition(":")[0]: each for key, each in arrays.items() if key.startswith(f"{layer}/")}
        return own.get("kernel"), own.get("bias"), len(own)

    return _layers(path, model, weights)


def read_keras_archive(path):
    """The `Layers` of a .keras file. InputError: unsupported layers by name, damaged, weights missing."""
    members = check_archive(path)
    missing = next((name for name in ("config.json", "model.weights.h5") if name not in members), None)
    if missing is not None:
        raise InputError(f"cannot read {path}: it is no Keras model, {missing} is missing in it")
    arrays = read_arrays(path, "Keras model", content=read_member(path, "model.weights.h5"))

    def weights(_, place):
        folders = [f"{root}{place}/vars/" for root in ("layers/", "_layer_checkpoint_dependencies/", "_layer_checkpoint_dependencies\\")]
        own = next((found for found in ([arrays.get(f"{folder}{at}") for at in range(3)] for folder in folders) if found[0] is not None), [None] * 3)
        return own[0], own[1], sum(each is not None for each in own)

    return _layers(path, read_member(path, "config.json"), weights)


def _layers(path, model, weights):
    try:
        model = json.loads(model)
        kind, config = model["class_name"], model["config"]
        if kind not in ("Sequential", "Functional", "Model"):
            raise InputError(f"unsupported model {kind} {config.get('name')!r}: Sequential ones and functional chains are read")
        layers = config["layers"] if isinstance(config, dict) else config  # a list before Keras 2.2.3
        places = _places(layers)
        built = config.get("build_input_shape") if isinstance(config, dict) else None
        chain = _Chain(weights, places, len(built) if built else None)
        for layer in layers if kind == "Sequential" else _functional(config):
            chain.take(layer["class_name"], layer["config"])
        return chain.layers()
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise InputError(f"cannot read {path}: its model is not described as Keras does: {type(error).__name__}: {error}") from None


def _places(layers):
    """{name of a layer: its place among a .keras file's weights}: the class in snake case, counted."""
    places, counts = {}, {}
    for layer in layers:
        kind = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", layer["class_name"]))
        kind = re.sub(r"([a-z])([A-Z])", r"\1_\2", kind).lower()
        counts[kind] = counts.get(kind, -1) + 1
        places[layer["config"]["name"]] = kind if counts[kind] == 0 else f"{kind}_{counts[kind]}"
    return places


def _functional(config):
    """The layers of a functional model from its input to its output; InputError for anything but a chain."""
    named = {layer["name"]: layer for layer in config["layers"]}
    outputs, inputs = (_tensors(config[f"{end}_layers"]) for end in ("output", "input"))
    if len(outputs) != 1 or len(inputs) != 1:
        raise InputError(f"unsupported: a model of {len(inputs)} inputs and {len(outputs)} outputs")
    order, name = [], outputs[0]
    while True:
        layer = named[name]
        if layer in order:
            raise InputError(f"unsupported: layer {name!r} is in a loop")
        order.append(layer)
        before = [_tensors(node) for node in layer["inbound_nodes"]]
        if not before:
            return order[::-1]
        if len(before) > 1:
            raise InputError(f"unsupported: layer {layer['class_name']} {name!r} is used {len(before)} times")
        if len(before[0]) != 1:
            raise InputError(f"unsupported layer {layer['class_name']} {name!r}: it takes {len(before[0])} inputs")
        name = before[0][0]


def _tensors(node):
    """Names of the layers that a node takes tensors from, in the ways of Keras 2 ([name, 0, 0, {}]) and 3 (keras_history)."""
    if isinstance(node, dict):
        history = node.get("config", {}).get("keras_history") if node.get("class_name") == "__keras_tensor__" else None
        return [history[0]] if history else [name for each in node.values() for name in _tensors(each)]
    if isinstance(node, list):
        if len(node) >= 3 and isinstance(node[0], str) and isinstance(node[1], int):
            return [node[0], *(name for each in node[3:] for name in _tensors(each))]
        return [name for each in node for name in _tensors(each)]
    return []


class _Chain(Chain):
    """Takes Keras' layers."""

    def __init__(self, weights, places, rank):
        super().__init__()
        self._weights, self._places, self._rank = weights, places, rank

    def take(self, kind, config):
        """One layer by its class and config."""
        name = config["name"]
        what = f"{kind} {name!r}"
        shape = config.get("batch_shape") or config.get("batch_input_shape")
        if shape is not None and self._rank is None:
            self._rank = len(shape)
        if kind == "Flatten":
            if config.get("data_format") == "channels_first" and (self._rank or 3) > 2:
                raise InputError(f"unsupported layer {what}: channels_first reorders the inputs")
            self._rank = 2
        elif kind == "Dense":
            self._take_dense(what, name, config)
        elif kind in _LAYERS:
            self.activate(what, _activation(what, kind, config))
        elif kind not in ("InputLayer", *_NOTHING):
            raise InputError(f"unsupported layer {what}: Keras models are read with Dense, Flatten, Dropout and activations alone")

    def _take_dense(self, what, name, config):
        if (self._rank or 2) != 2:
            raise InputError(f"unsupported layer {what} on inputs of {self._rank} dimensions, samples included: put Flatten before it")
        kernel, bias, count = self._weights(name, self._places[name])
        if kernel is None or (bias is None) == bool(config.get("use_bias", True)) or count != 1 + (bias is not None):
            raise InputError(f"the weights of layer {what} are missing or not as a Dense layer's")
        if np.ndim(kernel) != 2 or kernel.shape[1] != config["units"]:
            raise InputError(f"the kernel of layer {what} is {list(np.shape(kernel))}, its units are {config['units']}")
        self.add(Dense(f"{name}/kernel (transposed)", f"{name}/bias", kernel.T, bias))
        self.activate(f"the activation of {what}", _function(what, config.get("activation")))


def _activation(what, kind, config):
    """The name of an activation layer."""
    if kind == "Activation":
        return _function(what, config.get("activation"))
    if kind == "Softmax":
        if config.get("axis", -1) not in (-1, 1, [-1], [1]):
            raise InputError(f"unsupported layer {what}: its axis is {config['axis']}")
        return "softmax"
    if kind == "LeakyReLU":
        return leaky(float(config.get("negative_slope", config.get("alpha", 0.3))))
    if config.get("max_value") is not None or config.get("threshold"):
        raise InputError(f"unsupported layer {what} with max_value or threshold")
    return leaky(float(config.get("negative_slope") or 0))


def _function(what, given):
    """The name of the activation in a layer's config: a name, a layer or a registered function."""
    if given is None:
        return "identity"
    if isinstance(given, dict):
        kind, config = given.get("class_name"), given.get("config")
        if kind in _LAYERS:
            return _activation(what, kind, config)
        given = config if kind == "function" and isinstance(config, str) else kind
    if given not in ACTIVATIONS:
        raise InputError(f"unsupported activation {given!r} of layer {what}: known are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[given]
