"""Keras models, in files made by hand as Keras 2.21 and 3.15 write them (their models' outputs were compared with ours to 1e-7, float32)."""

import io
import json
import zipfile

import h5py
import numpy as np
import pytest

from hpcHess.networks.activations import activation
from hpcHess.networks.losses import softmax
from hpcHess.networks.weights import read_network
from hpcHess.runtime.errors import InputError


def layer(kind, name, **config):
    return {"module": "keras.layers", "class_name": kind, "config": {"name": name, "trainable": True, **config}, "registered_name": None}


def dense(name, units, act="linear", **more):
    return layer("Dense", name, units=units, activation=act, use_bias=more.pop("use_bias", True), **more)


LEAKY = {"module": "keras.layers", "class_name": "LeakyReLU", "config": {"name": "leaky_re_lu", "negative_slope": 0.3}, "registered_name": None}
MODEL = [
    layer("InputLayer", "input_layer", batch_shape=[None, 4, 3]),
    layer("Flatten", "flatten", data_format="channels_last"),
    dense("first", 8, "tanh"),
    layer("Dropout", "dropout", rate=0.5),
    dense("dense_7", 7),
    layer("LeakyReLU", "leaky_re_lu_1", negative_slope=0.20000000298023224),
    dense("odd name", 6, "gelu", use_bias=False),
    dense("b", 6, LEAKY),
    dense("a", 5, "swish"),
    dense("dense_9", 5),
    dense("dense_8", 4, "relu"),
    layer("ReLU", "unused", max_value=None, negative_slope=0.0, threshold=0.0),
]
del MODEL[-1]
ACTIVATIONS = ["tanh", "leaky-relu(0.2)", "gelu", "leaky-relu(0.3)", "silu", "identity"]


def weights(layers, width=12, seed=0):
    """{name: [kernel [in, out], bias]}."""
    rng, result = np.random.default_rng(seed), {}
    for each in layers:
        if each["class_name"] == "Dense":
            units = each["config"]["units"]
            result[each["config"]["name"]] = [rng.standard_normal((width, units))] + [rng.standard_normal(units)] * each["config"]["use_bias"]
            width = units
    return result


def sequential(layers):
    return {"module": "keras", "class_name": "Sequential", "config": {"name": "sequential", "layers": layers}}


def functional(layers, version, before=None):
    """A chain by the functional API; before {name: names of the layers before it} where it is none."""
    result, previous = [], []
    for each in layers:
        name = each["config"]["name"]
        sources = (before or {}).get(name, previous)
        if version == 2:
            nodes = [[[source, 0, 0, {}] for source in sources]] if sources else []
        else:
            history = [{"class_name": "__keras_tensor__", "config": {"shape": [None, 3], "keras_history": [source, 0, 0]}} for source in sources]
            nodes = [{"args": history if len(history) == 1 else [history], "kwargs": {"mask": None}}] if sources else []
        result.append({**each, "name": name, "inbound_nodes": nodes})
        previous = [name]
    ends = ([result[0]["name"], 0, 0], [result[-1]["name"], 0, 0])
    inputs, outputs = ([end] for end in ends) if version == 2 else ends
    return {"class_name": "Functional", "config": {"name": "model", "layers": result, "input_layers": inputs, "output_layers": outputs}}


def write_h5(path, model, arrays, suffix=":0", config=None):
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(model) if config is None else config
        file.attrs["keras_version"] = "2.21.0"
        for name, (kernel, *bias) in arrays.items():
            file[f"model_weights/{name}/sequential/{name}/kernel{suffix}"] = kernel
            if bias:
                file[f"model_weights/{name}/sequential/{name}/bias{suffix}"] = bias[0]
        file.require_group("model_weights/dropout").attrs["weight_names"] = np.empty(0)
        file["optimizer_weights/adam/iteration:0"] = 3
    return path


def write_keras(path, model, arrays, root="layers/", config=None):
    content, counts = io.BytesIO(), 0
    with h5py.File(content, "w") as file:
        for pair in arrays.values():
            place = "dense" if counts == 0 else f"dense_{counts}"
            counts += 1
            for at, each in enumerate(pair):
                file[f"{root}{place}/vars/{at}"] = each
        file["optimizer/vars/0"] = 3
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", json.dumps(model) if config is None else config)
        archive.writestr("model.weights.h5", content.getvalue())
    return path


WRITERS = {
    "h5": lambda folder, *given: write_h5(folder / "net.h5", *given),
    "h5 of Keras 3": lambda folder, *given: write_h5(folder / "net.h5", *given, suffix=""),
    "keras": lambda folder, *given: write_keras(folder / "net.keras", *given),
    "keras of 2.12": lambda folder, *given: write_keras(folder / "net.keras", *given, root="_layer_checkpoint_dependencies/"),
}
writer = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


def outputs(layers, arrays, x):
    """What Keras computes, layer by layer."""
    functions = {"linear": "identity", "swish": "silu"}
    for each in layers:
        config, kind = each["config"], each["class_name"]
        act = config.get("activation") if kind in ("Dense", "Activation") else None
        if kind == "Dense":
            kernel, *bias = arrays[config["name"]]
            x = x @ kernel + sum(bias)
        if kind == "LeakyReLU" or isinstance(act, dict):
            x = np.where(x > 0, x, (config if kind == "LeakyReLU" else act["config"])["negative_slope"] * x)
        elif act == "softmax" or kind == "Softmax":
            x = softmax(x.T)[0].T
        elif act:
            x = activation(functions.get(act, act))(x)[0]
    return x


def forward(network, x):
    for W, b, name in zip(network.weights, network.biases, [*network.activations, network.output], strict=True):
        x = activation(name)(x @ W.T + (0 if b is None else b))[0]
    return x


@writer
@pytest.mark.parametrize("api", ["sequential", "functional 2", "functional 3"])
def test_outputs(tmp_path, write, api):
    x, arrays = np.random.default_rng(1).standard_normal((9, 12)), weights(MODEL)
    model = sequential(MODEL) if api == "sequential" else functional(MODEL, int(api[-1]))
    network = read_network(write(tmp_path, model, arrays), loss="squared-error")
    assert network.activations == ACTIVATIONS and network.output == "relu" and network.widths == [12, 8, 7, 6, 6, 5, 5, 4]
    np.testing.assert_allclose(forward(network, x), outputs(MODEL, arrays, x), rtol=1e-6, atol=1e-7)  # the slope 0.2 went through float32


ENDS = {
    "in Dense": lambda act: [dense("last", 4, act)],
    "Activation": lambda act: [dense("last", 4), layer("Activation", "activation", activation=act)],
    "Softmax": lambda act: [dense("last", 4), layer("Softmax", "softmax", axis=-1) if act == "softmax" else layer("Activation", "s", activation=act)],
}


@writer
@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_logits(tmp_path, write, end):
    """Softmax with cross-entropy and sigmoid with binary cross-entropy leave the logits; a sigmoid is an output of squared error."""
    x = np.random.default_rng(1).standard_normal((9, 6))
    for act, loss, of_logits in (
        ("softmax", "cross-entropy", lambda z: softmax(z.T)[0].T),
        ("sigmoid", "binary-cross-entropy", lambda z: activation("sigmoid")(z)[0]),
        ("sigmoid", "squared-error", lambda z: z),
        ("tanh", "squared-error", lambda z: z),
    ):
        layers = [layer("InputLayer", "in", batch_input_shape=[None, 6]), dense("first", 5, "softplus"), *end(act)]
        arrays = weights(layers, 6)
        network = read_network(write(tmp_path, sequential(layers), arrays), loss=loss)
        assert network.output == ("identity" if "entropy" in loss else act)
        np.testing.assert_allclose(of_logits(forward(network, x)), outputs(layers, arrays, x), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "act, loss, message",
    [
        ("softmax", "squared-error", "ends with softmax, which does not fit the loss squared-error: its loss is cross-entropy"),
        ("softmax", "binary-cross-entropy", "ends with softmax, which does not fit the loss binary-cross-entropy"),
        (
            "sigmoid",
            "cross-entropy",
            "ends with sigmoid, which does not fit the loss cross-entropy: its loss is binary-cross-entropy or squared-error",
        ),
        ("relu", "cross-entropy", "ends with relu, which does not fit the loss cross-entropy, of logits"),
    ],
)
def test_losses_that_do_not_fit(tmp_path, act, loss, message):
    layers = [dense("only", 3, act)]
    path = write_keras(tmp_path / "net.keras", sequential(layers), weights(layers))
    with pytest.raises(InputError, match=f"net.keras: the network {message}"):
        read_network(path, loss=loss)


def test_the_job_may_repeat_what_the_file_says_but_not_contradict_it(tmp_path):
    layers = [dense("first", 3, "tanh"), dense("second", 4, "leaky_relu"), dense("third", 2, "sigmoid")]
    path = write_h5(tmp_path / "net.h5", sequential(layers), weights(layers))
    assert read_network(path, ["tanh", "leaky-relu(0.2)"], "squared-error", "sigmoid").output == "sigmoid"
    with pytest.raises(InputError, match=r"the activation relu is asked for, but the file says tanh, leaky-relu\(0.2\)"):
        read_network(path, "relu", "squared-error")
    with pytest.raises(InputError, match="the output activation tanh is asked for, but the file says sigmoid"):
        read_network(path, None, "squared-error", "tanh")
    with pytest.raises(InputError, match="the activation tanh is asked for"):
        read_network(path, ["tanh"], "squared-error")


BAD = {
    "Conv2D": ([layer("Conv2D", "conv2d_1", filters=3), layer("Flatten", "f"), dense("d", 2)], "unsupported layer Conv2D 'conv2d_1'"),
    "nested": ([layer("Sequential", "inner", layers=[]), dense("d", 2)], "unsupported layer Sequential 'inner'"),
    "BatchNormalization": ([dense("d", 2), layer("BatchNormalization", "bn")], "unsupported layer BatchNormalization 'bn'"),
    "Rescaling": ([layer("Rescaling", "r", scale=0.1), dense("d", 2)], "unsupported layer Rescaling 'r'"),
    "elu": ([dense("d", 2, "elu")], "unsupported activation 'elu' of layer Dense 'd'"),
    "own": ([dense("d", 2, {"class_name": "function", "config": "mine"})], "unsupported activation 'mine' of layer Dense 'd'"),
    "relu6": ([dense("d", 2), layer("ReLU", "r", max_value=6.0)], "unsupported layer ReLU 'r' with max_value"),
    "axis": ([dense("d", 2), layer("Softmax", "s", axis=0)], "unsupported layer Softmax 's': its axis is 0"),
    "twice": ([dense("d", 2, "tanh"), layer("ReLU", "r"), dense("e", 2)], "two activations without weights"),
    "early": ([layer("ReLU", "r"), dense("d", 2)], "ReLU 'r' stands before the first layer of weights"),
    "inside": ([dense("d", 2, "softmax"), dense("e", 2)], "the activation of Dense 'd' before the last layer"),
    "no Flatten": (
        [layer("InputLayer", "i", batch_shape=[None, 4, 3]), dense("d", 2)],
        "unsupported layer Dense 'd' on inputs of 3 dimensions.*Flatten",
    ),
    "channels": (
        [layer("InputLayer", "i", batch_shape=[None, 4, 3, 1]), layer("Flatten", "f", data_format="channels_first"), dense("d", 2)],
        "channels_first",
    ),
    "nothing": ([layer("InputLayer", "i", batch_shape=[None, 4])], "it holds no layer of weights"),
}


@pytest.mark.parametrize("write", [WRITERS["h5"], WRITERS["keras"]], ids=["h5", "keras"])
@pytest.mark.parametrize("layers, message", BAD.values(), ids=BAD)
def test_unsupported_layers_are_named(tmp_path, write, layers, message):
    with pytest.raises(InputError, match=rf"net.*: .*{message}"):
        read_network(write(tmp_path, sequential(layers), weights(layers)))


@pytest.mark.parametrize("write", [WRITERS["h5"], WRITERS["keras"]], ids=["h5", "keras"])
def test_inputs_that_were_not_declared(tmp_path, write):
    """Sequential models built by their first samples."""
    layers = [dense("d", 2)]
    model = sequential(layers)
    model["config"]["build_input_shape"] = [None, 12]
    assert read_network(write(tmp_path, model, weights(layers))).widths == [12, 2]
    model["config"]["build_input_shape"] = [None, 4, 12]
    with pytest.raises(InputError, match="unsupported layer Dense 'd' on inputs of 3 dimensions"):
        read_network(write(tmp_path, model, weights(layers)))


@pytest.mark.parametrize("version", [2, 3])
def test_no_chains(tmp_path, version):
    layers = [layer("InputLayer", "i", batch_shape=[None, 12]), dense("d", 12), layer("Add", "sum"), dense("e", 2)]
    arrays = weights(layers)
    for before, message in (({"sum": ["d", "i"]}, "unsupported layer Add 'sum': it takes 2 inputs"), ({"d": ["e"]}, "layer 'e' is in a loop")):
        with pytest.raises(InputError, match=message):
            read_network(write_keras(tmp_path / "net.keras", functional(layers, version, before), arrays))
    model = functional([layers[0], layers[1], layers[3]], version)
    model["config"]["layers"][1]["inbound_nodes"] *= 2
    with pytest.raises(InputError, match="layer Dense 'd' is used 2 times"):
        read_network(write_keras(tmp_path / "net.keras", model, arrays))
    model["config"]["output_layers"] = [["e", 0, 0], ["d", 0, 0]]
    with pytest.raises(InputError, match="a model of 1 inputs and 2 outputs"):
        read_network(write_keras(tmp_path / "net.keras", model, arrays))


@pytest.mark.parametrize("write", [WRITERS["h5"], WRITERS["keras"]], ids=["h5", "keras"])
def test_weights_that_do_not_fit(tmp_path, write):
    layers = [dense("first", 3, "tanh"), dense("second", 2)]
    right = weights(layers, 4)
    for wrong, message in (
        ({"first": right["first"][:1], "second": right["second"]}, "weights of layer Dense 'first' are missing"),
        ({"first": right["first"]}, "weights of layer Dense 'second' are missing"),
        (
            {"first": [right["first"][0][:, :2], *right["first"][1:]], "second": right["second"]},
            r"kernel of layer Dense 'first' is \[4, 2\], its units are 3",
        ),
        (
            {"first": right["first"], "second": [right["second"][0][:2], right["second"][1]]},
            r"do not chain: second/kernel \(transposed\) is \[2, 2\]",
        ),
        ({"first": right["first"], "second": [right["second"][0] * np.nan, right["second"][1]]}, "second/kernel .transposed. is not finite"),
    ):
        with pytest.raises(InputError, match=message):
            read_network(write(tmp_path, sequential(layers), wrong))


@pytest.mark.parametrize(
    "config",
    ["", "{", "3", "[]", "{}", '{"class_name": "Sequential", "config": {"layers": [3]}}', "[" * 100_000, '{"class_name": "Mine", "config": {}}'],
)
def test_other_descriptions(tmp_path, config):
    layers = [dense("d", 2)]
    for path in (
        write_keras(tmp_path / "net.keras", None, weights(layers), config=config),
        write_h5(tmp_path / "net.h5", None, weights(layers), config=config[:50_000]),
    ):
        with pytest.raises(InputError, match="net.(keras|h5)") as caught:
            read_network(path)
        assert "\n" not in str(caught.value)


def test_damaged_files(tmp_path):
    layers = [dense("d", 2)]
    for path in (
        write_keras(tmp_path / "net.keras", sequential(layers), weights(layers)),
        write_h5(tmp_path / "net.h5", sequential(layers), weights(layers)),
    ):
        whole = path.read_bytes()
        for content in (b"", b"rubbish" * 100, whole[: len(whole) // 2], whole[:-50]):
            path.write_bytes(content)
            with pytest.raises(InputError, match=path.name):
                read_network(path)
    with zipfile.ZipFile(tmp_path / "other.keras", "w") as archive:
        archive.writestr("config.json", json.dumps(sequential(layers)))
    with pytest.raises(InputError, match="other.keras: it is no Keras model, model.weights.h5 is missing"):
        read_network(tmp_path / "other.keras")
    with zipfile.ZipFile(tmp_path / "other.keras", "a") as archive:
        archive.writestr("model.weights.h5", b"no HDF5")
    with pytest.raises(InputError, match="other.keras cannot be read"):
        read_network(tmp_path / "other.keras")


def test_weights_without_the_model(tmp_path):
    for name in ("layers/dense/vars/0", "dense/dense/kernel:0"):
        with h5py.File(tmp_path / "net.h5", "w") as file:
            file[name] = np.ones((2, 2))
        with pytest.raises(InputError, match="holds Keras weights without the model: save the whole model"):
            read_network(tmp_path / "net.h5")
