"""ONNX graphs made by hand in the forms that exporters write (PyTorch 2.13's two, skl2onnx 1.20), against NumPy's evaluation of the nodes."""

import numpy as np
import pytest

from hpcHess.networks.activations import activation
from hpcHess.networks.weights import read_network
from hpcHess.runtime.errors import InputError

onnx = pytest.importorskip("onnx", reason="the package onnx is not installed")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

RNG = np.random.default_rng(0)
W1, b1, W2, b2, W3, b3 = (RNG.standard_normal(shape) for shape in ((5, 6), 5, (4, 5), 4, (3, 4), 3))
X = RNG.standard_normal((7, 6))
RESULT = ((np.maximum(X @ W1.T + b1, 0) @ W2.T + b2) * 1.0, W2)  # of the two layers with relu, before anything more


def node(kind, inputs, output, **attributes):
    return helper.make_node(kind, inputs.split(), [output], name=f"/{output}", **attributes)


def save(path, nodes, constants=(), inputs=(None, 6), output="y", opset=17, more_inputs=(), more_outputs=(), **model):
    """A model whose constants are {name: array} or TensorProtos."""
    tensors = [each if isinstance(each, TensorProto) else numpy_helper.from_array(np.asarray(each), name) for name, each in dict(constants).items()]
    value = lambda name, shape, kind=TensorProto.DOUBLE: helper.make_tensor_value_info(name, kind, shape)  # noqa: E731
    outputs = [value(output, None), *(value(name, None, kind) for name, kind in more_outputs)]
    shape = None if inputs is None else [each or "batch" for each in inputs]
    graph = helper.make_graph(nodes, "g", [value("x", shape), *(value(name, [1]) for name in more_inputs)], outputs, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 1)], **model), path)
    return path


def forward(network, x):
    for W, b, name in zip(network.weights, network.biases, [*network.activations, network.output], strict=True):
        x = activation(name)(x @ W.T + (0 if b is None else b))[0]
    return x


GEMM = dict(transB=1, alpha=1.0, beta=1.0)
SHAPES = {"W1": W1, "b1": b1, "W2": W2, "b2": b2}


def middle(nodes, **constants):
    """Gemm, `nodes` from a to h, Gemm."""
    first, last = node("Gemm", "x W1 b1", "a", **GEMM), node("Gemm", "h W2 b2", "y", **GEMM)
    return [first, *nodes, last], {**SHAPES, **constants}


ACTIVATIONS = {
    "relu": ([node("Relu", "a", "h")], {}, "relu"),
    "tanh": ([node("Tanh", "a", "h")], {}, "tanh"),
    "sigmoid": ([node("Sigmoid", "a", "h")], {}, "sigmoid"),
    "softplus": ([node("Softplus", "a", "h")], {}, "softplus"),
    "softplus of PyTorch": (
        [node("Softplus", "a", "s"), node("Greater", "a twenty", "g"), node("Where", "g a s", "h")],
        {"twenty": np.array(20.0)},
        "softplus",
    ),
    "leaky relu": ([node("LeakyRelu", "a", "h")], {}, "leaky-relu"),
    "leaky relu 0.2": ([node("LeakyRelu", "a", "h", alpha=0.2)], {}, "leaky-relu(0.2)"),
    "gelu": ([node("Gelu", "a", "h")], {}, "gelu"),
    "gelu tanh": ([node("Gelu", "a", "h", approximate="tanh")], {}, "gelu-tanh"),
    "silu": ([node("Sigmoid", "a", "s"), node("Mul", "a s", "h")], {}, "silu"),
    "silu the other way": ([node("Sigmoid", "a", "s"), node("Mul", "s a", "h")], {}, "silu"),
    "swish": ([node("Swish", "a", "h")], {}, "silu"),
    "identity": ([node("Identity", "a", "i"), node("Dropout", "i", "d"), node("Cast", "d", "h", to=TensorProto.DOUBLE)], {}, "identity"),
}


@pytest.mark.parametrize("nodes, constants, name", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_activations(tmp_path, nodes, constants, name):
    network = read_network(save(tmp_path / "net.onnx", *middle(nodes, **constants)), loss="squared-error")
    assert network.activations == [name] and network.output == "identity"
    expected = activation(name)(X @ W1.T + b1)[0] @ W2.T + b2
    np.testing.assert_allclose(forward(network, X), expected, rtol=1e-14)


def linear_forms():
    """{name: (nodes from x to a, constants, W, b, shape of x)}: ways to write one layer."""
    C = {"W": W1, "b": b1}
    matmul, add = node("MatMul", "x Wt", "m"), node("Add", "m b", "a")
    constant = lambda name, array: node("Constant", "", name, value=numpy_helper.from_array(array, name))  # noqa: E731
    return {
        "gemm": ([node("Gemm", "x W b", "a", **GEMM)], C),
        "gemm untransposed": ([node("Gemm", "x Wt b", "a")], {"Wt": W1.T, "b": b1}),
        "gemm scaled": ([node("Gemm", "x W b", "a", transB=1, alpha=0.5, beta=-2.0)], {"W": 2 * W1, "b": -b1 / 2}),
        "gemm and add": ([node("Gemm", "x W", "m", transB=1), add], C),
        "matmul, add": ([matmul, add], {"Wt": W1.T, "b": b1}),
        "bias left": ([matmul, node("Add", "b m", "a")], {"Wt": W1.T, "b": b1[None]}),
        "constants": ([constant("Wt", W1.T), constant("b", b1), matmul, add], {}),
        "transposed": ([node("Transpose", "W", "Wt", perm=[1, 0]), matmul, node("Identity", "b", "b0"), node("Add", "m b0", "a")], C),
        "flattened": ([node("Flatten", "x", "f"), node("Gemm", "f W b", "a", **GEMM)], C, (None, 2, 3)),
        "reshaped": ([node("Reshape", "x s", "f"), node("Gemm", "f W b", "a", **GEMM)], {**C, "s": np.array([-1, 6])}, (None, 2, 3)),
        "reshaped, batch": ([node("Reshape", "x s", "f"), node("Gemm", "f W b", "a", **GEMM)], {**C, "s": np.array([7, -1])}, (7, 2, 3)),
        "reshaped as it is": (
            [node("Reshape", "x s", "f", allowzero=0), node("Gemm", "f W b", "a", **GEMM)],
            {**C, "s": np.array([0, -1])},
            (None, 2, 3),
        ),
        "x.view(len(x), -1)": (
            [
                node("Shape", "x", "sh"),
                constant("zero", np.array(0)),
                node("Gather", "sh zero", "n", axis=0),
                constant("axes", np.array([0])),
                node("Unsqueeze", "n axes", "nn"),
                constant("rest", np.array([-1])),
                node("Concat", "nn rest", "s", axis=0),
                node("Reshape", "x s", "f"),
                node("Gemm", "f W b", "a", **GEMM),
            ],
            C,
            (None, 2, 3),
        ),
        "unknown shape": ([node("Gemm", "x W b", "a", **GEMM)], C, None),
        "bfloat16": (
            [node("Gemm", "x W b", "a", **GEMM)],
            {"W": helper.make_tensor("W", TensorProto.BFLOAT16, [5, 6], np.round(W1 * 16).ravel() / 16), "b": b1},
            (None, 6),
            np.round(W1 * 16) / 16,
        ),
    }


@pytest.mark.parametrize("name", linear_forms())
def test_linear_layers(tmp_path, name):
    nodes, constants, *rest = linear_forms()[name]
    shape, W = (*rest, *((None, 6), W1)[len(rest) :])
    nodes += [node("Relu", "a", "h"), node("Gemm", "h W2 b2", "y", **GEMM)]
    network = read_network(save(tmp_path / "net.onnx", nodes, {**constants, "W2": W2, "b2": b2}, shape), loss="squared-error")
    expected = np.maximum(X @ W.T + b1, 0) @ W2.T + b2
    np.testing.assert_allclose(forward(network, X), expected, rtol=1e-13)


def test_samples_in_columns(tmp_path):
    """W x + b with b [out, 1], by Gemm and by MatMul; the softmax over the rows."""
    nodes = [
        node("MatMul", "W1 x", "m"),
        node("Add", "c1 m", "a"),
        node("Tanh", "a", "h"),
        node("Gemm", "W2 h c2", "z"),
        node("Softmax", "z", "y", axis=0),
    ]
    path = save(tmp_path / "net.onnx", nodes, {"W1": W1, "c1": b1[:, None], "W2": W2, "c2": b2[:, None]}, (6, None))
    np.testing.assert_allclose(forward(read_network(path), X), np.tanh(X @ W1.T + b1) @ W2.T + b2, rtol=1e-13)
    nodes[3] = node("Gemm", "h W2 b2", "z", **GEMM)
    with pytest.raises(InputError, match="unsupported node Gemm '/z': its samples are rows, those of the layers before are not"):
        read_network(save(tmp_path / "mixed.onnx", nodes, {"W1": W1, "c1": b1[:, None], "W2": W2, "b2": b2}, (6, None)))


ENDS = [
    ("Softmax", "cross-entropy", {"axis": 1}),
    ("Softmax", "cross-entropy", {}),
    ("LogSoftmax", "cross-entropy", {"axis": -1}),
    ("Sigmoid", "binary-cross-entropy", {}),
]


@pytest.mark.parametrize("kind, loss, attributes", ENDS)
def test_logits(tmp_path, kind, loss, attributes):
    nodes = [node("Gemm", "x W1 b1", "a", **GEMM), node("Relu", "a", "h"), node("Gemm", "h W2 b2", "z", **GEMM), node(kind, "z", "y", **attributes)]
    path = save(tmp_path / "net.onnx", nodes, SHAPES)
    network = read_network(path, "relu", loss)
    assert network.output == "identity"
    np.testing.assert_allclose(forward(network, X), RESULT[0], rtol=1e-13)
    if kind == "Sigmoid":
        assert read_network(path, loss="squared-error").output == "sigmoid"
    other = "squared-error" if "Softmax" in kind else "cross-entropy"
    with pytest.raises(InputError, match=f"does not fit the loss {other}"):
        read_network(path, "relu", other)
    with pytest.raises(InputError, match="the activation tanh is asked for, but the file says relu"):
        read_network(path, "tanh", loss)


def test_classifier_of_scikit_learn(tmp_path):
    """Labels beside the probabilities, biases [1, out], a Cast in front."""
    nodes = [
        node("Cast", "x", "c", to=TensorProto.FLOAT),
        node("MatMul", "c V1", "m1"),
        node("Add", "m1 c1", "a1"),
        node("Relu", "a1", "h"),
        node("MatMul", "h V2", "m2"),
        node("Add", "m2 c2", "a2"),
        node("Softmax", "a2", "p"),
        node("ArgMax", "p", "label", axis=1),
        helper.make_node("ZipMap", ["p"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2, 3]),
    ]
    constants = {"V1": W1.T, "c1": b1[None], "V2": W2.T, "c2": b2[None]}
    path = save(tmp_path / "net.onnx", nodes, constants, opset=11, more_outputs=[("label", TensorProto.INT64)])
    np.testing.assert_allclose(forward(read_network(path), X), RESULT[0], rtol=1e-13)


def test_numbers_in_a_file_beside(tmp_path):
    """PyTorch's exporter writes them so."""
    path = tmp_path / "net.onnx"
    save(path, *middle([node("Relu", "a", "h")]))
    expected = read_network(path).digest()
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="net.onnx.data", size_threshold=0)
    assert read_network(path).digest() == expected
    data = (tmp_path / "net.onnx.data").read_bytes()
    (tmp_path / "net.onnx.data").write_bytes(data[:100])
    with pytest.raises(InputError, match="net.onnx: the constant 'W.' (lies beyond the end of|is damaged)"):
        read_network(path)
    (tmp_path / "net.onnx.data").unlink()
    with pytest.raises(InputError, match="net.onnx: .*'net.onnx.data' beside the model, which is missing"):
        read_network(path)
    (tmp_path / "elsewhere").write_bytes(data)
    (tmp_path / "net.onnx.data").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="'net.onnx.data', which is no file beside the model"):
        read_network(path)


@pytest.mark.parametrize("place", ["../secret", "/etc/passwd", "", "..", "a/../../secret"])
def test_numbers_elsewhere_are_refused(tmp_path, place):
    (tmp_path / "inner").mkdir()
    (tmp_path / "secret").write_bytes(W1.tobytes())
    stolen = TensorProto(name="W1", dims=[5, 6], data_type=TensorProto.DOUBLE, data_location=TensorProto.EXTERNAL)
    stolen.external_data.add(key="location", value=place)
    nodes, constants = middle([node("Relu", "a", "h")])
    with pytest.raises(InputError, match="the constant 'W1' lies in .*, which is no file beside the model"):
        read_network(save(tmp_path / "inner" / "net.onnx", nodes, {**constants, "W1": stolen}))


def bad():
    """{name: (nodes, constants, options of save, message)}."""
    gemm, last = node("Gemm", "x W1 b1", "a", **GEMM), node("Gemm", "h W2 b2", "y", **GEMM)
    square = {**SHAPES, "W1": np.eye(6), "b1": np.ones(6), "W2": np.ones((4, 6))}
    between = lambda *nodes: [gemm, *nodes, last]  # noqa: E731
    return {
        "HardSwish": (between(node("HardSwish", "a", "h")), SHAPES, {}, "unsupported node HardSwish '/h'"),
        "Erf": (between(node("Erf", "a", "h")), SHAPES, {}, "unsupported node Erf '/h'"),
        "BatchNormalization": (between(node("BatchNormalization", "a b1 b1 b1 b1", "h")), SHAPES, {}, "unsupported node BatchNormalization '/h'"),
        "Conv": ([node("Conv", "x W1", "y")], {"W1": np.ones((1, 1, 3, 3))}, {"inputs": (None, 1, 8, 8)}, "unsupported node Conv '/y'"),
        "residual": (between(node("Relu", "a", "r"), node("Add", "x r", "h")), square, {}, "node Add '/h' of two computed values: branches"),
        "gated": (between(node("Tanh", "a", "t"), node("Mul", "a t", "h")), SHAPES, {}, "unsupported node Mul '/h'"),
        "gate of another": (between(node("Sigmoid", "x", "t"), node("Mul", "a t", "h")), square, {}, "unsupported node Mul '/h'"),
        "scaled": (between(node("Mul", "a b1", "h")), SHAPES, {}, "unsupported node Mul '/h'"),
        "centred": (
            [node("Add", "x m", "c"), node("Gemm", "c W1 b1", "y", **GEMM)],
            {**SHAPES, "m": np.ones(6)},
            {},
            "node Add '/c': a bias stands directly after",
        ),
        "two biases": (between(node("Add", "a b1", "h")), SHAPES, {}, "node Add '/h': a bias stands directly after its weights, once"),
        "bias of samples": (
            between(node("Relu", "a", "h"))[:-1] + [node("Gemm", "h W2 c", "y", **GEMM)],
            {**SHAPES, "c": np.ones((7, 4))},
            {},
            r"the bias \[7, 4\] of 4",
        ),
        "transposed data": ([node("Gemm", "x W1 b1", "y", transA=1, transB=1)], SHAPES, {}, "it transposes the data"),
        "computed weight": ([node("MatMul", "x w", "y")], {}, {"more_inputs": ["w"]}, "a graph of 2 inputs"),
        "data and data": ([node("MatMul", "x x", "y")], {}, {}, "node MatMul '/y' of two computed values"),
        "three dimensions": (
            [node("MatMul", "x W1", "y")],
            {"W1": np.ones((6, 2))},
            {"inputs": (None, 5, 6)},
            "node MatMul '/y' on inputs of 3 dimensions",
        ),
        "batched weight": ([node("MatMul", "x W1", "y")], {"W1": np.ones((2, 6, 2))}, {}, r"its weight W1 is \[2, 6, 2\]"),
        "wrong reshape": (
            [node("Reshape", "x s", "f"), node("Gemm", "f V", "y")],
            {"s": np.array([-1, 3]), "V": np.ones((3, 2))},
            {},
            "does not flatten samples",
        ),
        "reshape to one": (
            [node("Reshape", "x s", "f"), node("Gemm", "f W1", "y", transB=1)],
            {"s": np.array([1, -1]), "W1": W1},
            {},
            "does not flatten samples",
        ),
        "reshape to 3": (
            [node("Reshape", "x s", "f"), node("Gemm", "f W1", "y", transB=1)],
            {"s": np.array([-1, 2, 3]), "W1": W1},
            {},
            "does not flatten",
        ),
        "chain": (
            between(node("Relu", "a", "h")),
            {**SHAPES, "W2": np.ones((4, 3))},
            {},
            "do not chain: W2 of node Gemm '/y' takes 3 numbers, not 5",
        ),
        "width": ([gemm], SHAPES, {"inputs": (None, 9), "output": "a"}, "do not chain: W1 of node Gemm '/a' takes 6 numbers, not 9"),
        "axis": ([gemm, node("Softmax", "a", "y", axis=0)], SHAPES, {}, "node Softmax '/y': its axis is 0"),
        "two activations": (between(node("Relu", "a", "r"), node("Tanh", "r", "h")), SHAPES, {}, "node Tanh '/h' directly after node Relu '/r'"),
        "softmax inside": (between(node("Softmax", "a", "h")), SHAPES, {}, "node Softmax '/h' before the last layer"),
        "two outputs": ([gemm], SHAPES, {"output": "a", "more_outputs": [("x", TensorProto.DOUBLE)]}, r"a graph of 2 outputs \(a, x\)"),
        "own operators": ([helper.make_node("Gemm", ["x", "W1"], ["y"], name="n", domain="mine")], SHAPES, {}, "unsupported node Gemm 'n' of mine"),
        "from nowhere": ([node("Relu", "z", "h"), last], SHAPES, {}, "the value 'z' comes from nowhere"),
        "loop": ([node("Relu", "h", "r"), node("Relu", "r", "h"), last], SHAPES, {}, "is in a loop"),
        "no weights": ([node("Relu", "x", "y")], {}, {}, "stands before the first layer|no layer of weights"),
        "NaN": (between(node("Relu", "a", "h")), {**SHAPES, "W2": W2 * np.nan}, {}, r"W2 is not finite: nan at \[0, 0\]"),
        "too short": (
            between(node("Relu", "a", "h")),
            {**SHAPES, "W2": TensorProto(name="W2", dims=[1 << 30, 1 << 30], data_type=11, raw_data=b"12345678")},
            {},
            "'W2' is damaged",
        ),
        "no type": (between(node("Relu", "a", "h")), {**SHAPES, "W2": TensorProto(name="W2", dims=[4, 5], data_type=99)}, {}, "'W2' is damaged"),
    }


@pytest.mark.parametrize("name", bad())
def test_what_is_no_chain_is_named(tmp_path, name):
    nodes, constants, options, message = bad()[name]
    with pytest.raises(InputError, match=f"net.onnx: .*{message}|net.onnx: {message}") as caught:
        read_network(save(tmp_path / "net.onnx", nodes, constants, **options), loss="squared-error")
    assert "\n" not in str(caught.value)


def test_damaged_files(tmp_path):
    path = save(tmp_path / "net.onnx", *middle([node("Relu", "a", "h")]))
    whole = path.read_bytes()
    for content in (b"", b"rubbish" * 100, whole[: len(whole) // 2], whole[:-9], bytes(100)):
        path.write_bytes(content)
        with pytest.raises(InputError, match="net.onnx") as caught:
            read_network(path)
        assert "\n" not in str(caught.value)


def test_without_onnx(tmp_path, monkeypatch):
    (tmp_path / "net.onnx").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(InputError, match=r"net.onnx: the package onnx is not installed: pip install hpcHess\[onnx\]"):
        read_network(tmp_path / "net.onnx")
