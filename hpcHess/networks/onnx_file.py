"""Multilayer perceptrons from ONNX graphs: chains of Gemm, or MatMul and Add, with activations.

Read backwards, from the output to the input: every node on the way has one computed input, what else it takes is constant. So a branch
shows itself as a node with two. Samples are rows (x W + b) or columns (W x + b) of the data, all layers alike.
"""

import os

import numpy as np

from hpcHess.networks.layers import Chain, Dense, leaky
from hpcHess.runtime.errors import InputError

_FLOATS = (1, 10, 11, 16)  # TensorProto's FLOAT, FLOAT16, DOUBLE, BFLOAT16
_ACTIVATIONS = {"Relu": "relu", "Tanh": "tanh", "Sigmoid": "sigmoid", "Softplus": "softplus"}
_SOFTMAX = {"Softmax": "softmax", "LogSoftmax": "log-softmax"}
_KNOWN = "known are Gemm, MatMul, Add, Flatten, Reshape, Dropout, Cast, Identity, Softmax, LogSoftmax, LeakyRelu, Gelu, Swish"


def read_onnx(path):
    """The `Layers` of an .onnx file. InputError: damaged, unsupported nodes by name and type, branches, weights that are not constants."""
    try:
        import onnx
    except ImportError:
        raise InputError(f"cannot read {path}: the package onnx is not installed: pip install hpcHess[onnx]") from None
    from google.protobuf.message import DecodeError

    try:
        with open(path, "rb") as file:
            model = onnx.load_model_from_string(file.read())
    except (DecodeError, OSError, ValueError, MemoryError) as error:
        raise InputError(f"cannot read {path}: it is no ONNX model: {error}") from None
    if not model.graph.node:
        raise InputError(f"cannot read {path}: it is no ONNX model, or one without nodes")
    try:
        return _Graph(model, os.path.dirname(path)).layers()
    except InputError:
        raise
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError) as error:  # attributes of other types than ONNX says
        raise InputError(f"cannot read {path}: its graph is damaged: {type(error).__name__}: {error}") from None


class _Graph:
    """A graph, walked backwards once and then forwards."""

    def __init__(self, model, folder):
        self._graph, self._folder = model.graph, folder
        self._opset = next((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), 1)
        self._producers = {name: node for node in self._graph.node for name in node.output}
        self._initializers = {each.name: each for each in self._graph.initializer}
        inputs = [each for each in self._graph.input if each.name not in self._initializers]
        if len(inputs) != 1:
            raise InputError(f"unsupported: a graph of {len(inputs)} inputs ({', '.join(each.name for each in inputs[:6])})")
        self._input, shape = inputs[0].name, inputs[0].type.tensor_type.shape.dim
        self._sizes = [each.dim_value or None for each in shape] or [None, None]  # samples first

    def layers(self):
        """The `Layers`."""
        steps, name = [], self._output()
        while name in self._producers:
            node = self._producers[name]
            if len(steps) > len(self._graph.node):
                raise InputError(f"unsupported: {_what(node)} is in a loop")
            name, step = self._step(node)
            steps.append((node, *step))
        if name != self._input:
            raise InputError(f"the value {name!r} comes from nowhere")
        return self._forwards(steps[::-1])

    def _output(self):
        """The one output that holds real numbers: scikit-learn's classifiers have labels beside it."""
        real = [each.name for each in self._graph.output if each.type.tensor_type.elem_type in (0, *_FLOATS)]
        if len(real) != 1:
            raise InputError(f"unsupported: a graph of {len(real)} outputs ({', '.join(real[:6])})")
        return real[0]

    def _step(self, node):
        """(the value that `node` computes from, (kind, what is constant about it))."""
        kind, attributes = node.op_type, _attributes(node)
        if node.domain == "ai.onnx.ml" and kind == "ZipMap":
            return node.input[0], ("nothing",)
        if node.domain not in ("", "ai.onnx"):
            raise InputError(f"unsupported {_what(node)} of {node.domain}")
        if kind in ("Gemm", "MatMul", "Add"):
            return self._linear(node, attributes)
        if kind in ("Mul", "Where"):
            return self._composed(node)
        if kind in _ACTIVATIONS:
            return node.input[0], ("activation", _ACTIVATIONS[kind])
        if kind == "LeakyRelu":
            return node.input[0], ("activation", leaky(float(attributes.get("alpha", 0.01))))
        if kind == "Gelu":
            return node.input[0], ("activation", "gelu-tanh" if attributes.get("approximate") == b"tanh" else "gelu")
        if kind == "Swish" and attributes.get("alpha", 1.0) == 1.0:
            return node.input[0], ("activation", "silu")
        if kind in _SOFTMAX:
            return node.input[0], ("softmax", _SOFTMAX[kind], attributes.get("axis", -1 if self._opset >= 13 else 1))
        if kind in ("Identity", "Dropout") or kind == "Cast" and attributes.get("to") in _FLOATS:
            return node.input[0], ("nothing",)
        if kind == "Flatten" and attributes.get("axis", 1) == 1:
            return node.input[0], ("flat", None)
        if kind == "Reshape":
            return node.input[0], ("flat", self._width(node))
        raise InputError(f"unsupported {_what(node)}: {_KNOWN} and {', '.join(_ACTIVATIONS)}")

    def _linear(self, node, attributes):
        """Gemm: Y = α A' B' + β C; MatMul: Y = A B; Add: Y = A + b. One of A, B is constant, C and b are."""
        inputs = [name for name in node.input if name]
        if len(inputs) < 2:
            raise InputError(f"{_what(node)} has {len(inputs)} inputs")
        constants = [self._constant(name) for name in inputs]
        known = [each is not None for each in constants[:2]]
        if all(known) or not any(known):
            reason = "nothing but constants" if all(known) else "two computed values: branches and products of activations are not read"
            raise InputError(f"unsupported {_what(node)} of {reason}")
        left = known[0]  # the constant is
        data, constant = (inputs[1], constants[0]) if left else (inputs[0], constants[1])
        if node.op_type == "Add":
            return data, ("bias", constant, inputs[0 if left else 1])
        if constant.ndim != 2:
            raise InputError(f"unsupported {_what(node)}: its weight {inputs[0 if left else 1]} is {list(constant.shape)}")
        bias = None
        if node.op_type == "Gemm":
            if attributes.get("transA" if not left else "transB", 0):
                raise InputError(f"unsupported {_what(node)}: it transposes the data")
            transposed = attributes.get("transA" if left else "transB", 0)
            constant = attributes.get("alpha", 1.0) * (constant.T if transposed else constant)
            if len(inputs) > 2:
                if constants[2] is None:
                    raise InputError(f"unsupported {_what(node)}: its bias is computed")
                bias = attributes.get("beta", 1.0) * constants[2]
        weight = constant if left else constant.T
        return data, ("dense", left, weight, inputs[0 if left else 1], bias, inputs[2] if len(inputs) > 2 else "")

    def _composed(self, node):
        """x σ(x) (SiLU), and PyTorch's softplus, which is x where x is large."""
        makers = [self._producers.get(name) for name in node.input]
        kinds = [None if each is None else each.op_type for each in makers]
        if node.op_type == "Mul":
            for x, maker, kind in zip(node.input, makers[::-1], kinds[::-1]):
                if kind == "Sigmoid" and maker.input[0] == x:
                    return x, ("activation", "silu")
        elif len(makers) == 3 and kinds[0] == "Greater" and kinds[2] == "Softplus":
            x, limit = makers[0].input[0], self._constant(makers[0].input[1])
            if makers[2].input[0] == x == node.input[1] and limit is not None and limit.size == 1 and limit.item() >= 20:
                return x, ("activation", "softplus")
        raise InputError(f"unsupported {_what(node)}: {_KNOWN} and {', '.join(_ACTIVATIONS)}")

    def _width(self, node):
        """b of a Reshape to [number of samples, b], None for −1: all that a sample has."""
        attributes = _attributes(node)
        shape = self._constant(node.input[1]) if len(node.input) > 1 else np.asarray(attributes.get("shape", []))
        if shape is None:
            maker = self._producers.get(node.input[1])
            parts = [(name, self._constant(name)) for name in maker.input] if maker is not None and maker.op_type == "Concat" else []
            fits = len(parts) == 2 and self._counts_samples(parts[0][0]) and parts[1][1] is not None and parts[1][1].size == 1
            shape = [0, parts[1][1].item()] if fits else []
        shape = [int(each) for each in np.ravel(shape)]
        keeps = len(shape) == 2 and (
            shape[1] > 0 or shape[1] == -1 and (shape[0] == 0 and not attributes.get("allowzero") or shape[0] == self._sizes[0])
        )
        if not keeps:
            raise InputError(f"unsupported {_what(node)}: it does not flatten samples to rows")
        return shape[1] if shape[1] > 0 else None

    def _counts_samples(self, name):
        """Whether a value is the input's first size, in the ways of exporters: Shape, Gather, Slice, Unsqueeze …"""
        for _ in range(8):
            node = self._producers.get(name)
            if node is None or node.op_type not in ("Shape", "Gather", "Slice", "Unsqueeze", "Squeeze", "Cast"):
                return False
            if node.op_type in ("Gather", "Slice") and (self._constant(node.input[1]) is None or np.any(self._constant(node.input[1]))):
                return False
            if node.op_type == "Shape":
                return True
            name = node.input[0]
        return False

    def _constant(self, name, depth=0):
        """The array of an initializer or of what a few nodes make of constants; None for a computed value."""
        if name in self._initializers:
            return self._tensor(self._initializers[name])
        node = self._producers.get(name)
        if node is None or depth > 8 or node.domain not in ("", "ai.onnx"):
            return None
        attributes = _attributes(node)
        if node.op_type == "Constant":
            value = next(iter(attributes.values()), None)
            return self._tensor(value) if hasattr(value, "dims") else None if value is None else np.asarray(value)
        if node.op_type in ("Identity", "Transpose", "Cast"):
            value = self._constant(node.input[0], depth + 1)
            return np.transpose(value, attributes.get("perm")) if value is not None and node.op_type == "Transpose" else value
        return None

    def _tensor(self, tensor):
        """A TensorProto as an array; its numbers may lie in a file beside the model's, nowhere else."""
        from onnx import TensorProto, numpy_helper

        try:
            if tensor.data_location == TensorProto.EXTERNAL:
                tensor = self._from_beside(tensor)
            array = numpy_helper.to_array(tensor)
        except InputError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, OSError, OverflowError, MemoryError, RuntimeError) as error:
            raise InputError(f"the constant {tensor.name!r} is damaged: {error}") from None
        return array if array.dtype.kind in "fiub" else array.astype(np.float32)

    def _from_beside(self, tensor):
        from onnx import TensorProto

        entries = {each.key: each.value for each in tensor.external_data}
        name = entries.get("location", "")
        path = os.path.join(self._folder, name)
        if not name or name != os.path.basename(name) or name in (".", "..") or os.path.islink(path):
            raise InputError(f"the constant {tensor.name!r} lies in {name!r}, which is no file beside the model")
        if not os.path.isfile(path):
            raise InputError(f"the constant {tensor.name!r} lies in {name!r} beside the model, which is missing")
        offset, size = int(entries.get("offset", 0)), os.path.getsize(path)
        length = int(entries.get("length", size - offset))
        if not (0 <= offset and 0 <= length <= size - offset):
            raise InputError(f"the constant {tensor.name!r} lies beyond the end of {name!r}")
        with open(path, "rb") as file:
            file.seek(offset)
            return TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type, raw_data=file.read(length))

    def _forwards(self, steps):
        """The layers of (node, kind, what is constant) from the input to the output."""
        chain, columns, rank = Chain(), None, len(self._sizes)
        width = None if rank == 1 or None in self._sizes[1:] else int(np.prod(self._sizes[1:]))
        first = next((step for step in steps if step[1] in ("dense", "flat")), None)
        if first and first[1] == "dense" and rank != 2:
            raise InputError(f"unsupported {_what(first[0])} on inputs of {rank} dimensions, samples included: they must be flattened to 2")
        for at, (node, kind, *given) in enumerate(steps):
            if kind == "dense":
                left, weight, name, bias, bias_name = given
                if columns not in (None, left):
                    raise InputError(
                        f"unsupported {_what(node)}: its samples are {'columns' if left else 'rows'}, those of the layers before are not"
                    )
                columns = left
                if width not in (None, weight.shape[1]) and (chain.dense or not left):  # columns: the first width is the other size
                    raise InputError(f"shapes do not chain: {name} of {_what(node)} takes {weight.shape[1]} numbers, not {width}")
                width = len(weight)
                chain.add(Dense(name, bias_name, weight, None if bias is None else _bias(node, bias, width, columns)))
            elif kind == "bias":
                if not chain.dense or steps[at - 1][1] != "dense" or chain.dense[-1].bias is not None:
                    raise InputError(f"unsupported {_what(node)}: a bias stands directly after its weights, once")
                chain.dense[-1].bias, chain.dense[-1].bias_name = _bias(node, given[0], width, columns), given[1]
            elif kind == "softmax":
                if given[1] not in ((0, -2) if columns else (1, -1)):
                    raise InputError(f"unsupported {_what(node)}: its axis is {given[1]}, that of the samples")
                chain.activate(_what(node), given[0])
            elif kind == "activation":
                chain.activate(_what(node), given[0])
            elif kind == "flat":
                if columns or given[0] is not None and width not in (None, given[0]):
                    raise InputError(f"unsupported {_what(node)}: it does not flatten samples to rows")
                width = given[0] or width
        return chain.layers()


def _attributes(node):
    from onnx import helper

    try:
        return {each.name: helper.get_attribute_value(each) for each in node.attribute}
    except ValueError as error:
        raise InputError(f"{_what(node)} is damaged: {error}") from None


def _bias(node, bias, width, columns):
    """b [width] of the shapes that broadcast to it: one number, [width], [1, width], or [width, 1] for samples in columns."""
    allowed = [(), (1,), (1, 1), *([(width, 1)] if columns else [(width,), (1, width)])]
    if bias.shape not in allowed:
        raise InputError(f"unsupported {_what(node)}: the bias {list(bias.shape)} of {width} outputs")
    return np.broadcast_to(bias.ravel(), width)


def _what(node):
    return f"node {node.op_type} {node.name or node.output[0]!r}" if node.output else f"node {node.op_type}"
