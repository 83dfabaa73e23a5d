"""Networks from files: weights alone (.npz, .safetensors, .h5, .pt, .pth) or whole models (Keras' .h5 and .keras, .onnx). docs/NETWORKS.md.

Nothing is ever unpickled.
"""

import os
import re

import numpy as np

from hpcHess.networks.keras_file import read_keras_archive, read_keras_hdf5
from hpcHess.networks.onnx_file import read_onnx
from hpcHess.networks.state_dict import from_state_dict
from hpcHess.runtime.errors import InputError
from hpcHess.storage.archive import DAMAGED, check_archive
from hpcHess.storage.arrays import read_arrays, read_text_attribute

_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")


def read_network(path, activation=None, loss="cross-entropy", output=None):
    """The network of a file of weights or of a model; biases are optional. Not collective.

    activation, output: as `Network` takes them, or None: what the file says, else relu and identity; InputError where both say something
    else. Of a model that ends with softmax (cross-entropy) or sigmoid (binary-cross-entropy) the logits before it are the outputs.

    InputError: missing or unreadable file, other layers than dense ones, shapes that do not chain, NaN or Inf; names file and key or layer.
    """
    path = os.fspath(path)
    read = _READERS.get(os.path.splitext(path)[1].lower())
    if read is None:
        raise InputError(f"{path}: networks are read from {', '.join(_READERS)} files")
    if not os.path.isfile(path):
        raise InputError(f"cannot read {path}: there is no such file")
    if not os.access(path, os.R_OK):
        raise InputError(f"cannot read {path}: permission denied")
    try:
        return read(path).network(activation, loss, output)
    except InputError as error:
        message = _CONTROL.sub(" ", str(error))  # keys of damaged files hold anything
        raise InputError(message if path in message else f"{path}: {message}") from None


def _read_npz(path):
    check_archive(path)  # np.load would also take other formats
    try:
        with np.load(path, allow_pickle=False) as file:
            return from_state_dict({key: file[key] for key in file.files}, ordered=True)
    except InputError:
        raise
    except DAMAGED as error:
        reason = "it holds Python objects" if "pickle" in str(error) else error
        raise InputError(f"cannot read {path}: {reason}") from None


def _read_safetensors(path):
    try:
        from safetensors import SafetensorError, deserialize, safe_open
    except ImportError:
        raise InputError(f"cannot read {path}: the package safetensors is not installed") from None
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
        with open(path, "rb") as file:
            tensors = deserialize(file.read())
        arrays = {name: _tensor(name, each) for name, each in tensors}
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"cannot read {path}: {type(error).__name__}: {error}") from None
    return from_state_dict(arrays, False, metadata)


def _tensor(name, tensor):
    """The ndarray of one of safetensors' tensors; bfloat16, the upper half of a float32, as float32."""
    dtype, shape, data = tensor["dtype"], tensor["shape"], tensor["data"]
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4").reshape(shape)
    kinds = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?"}
    if dtype not in kinds:
        raise ValueError(f"{name} holds {dtype}, which is not read")
    return np.frombuffer(data, kinds[dtype]).reshape(shape)


def _read_hdf5(path):
    model = read_text_attribute(path, "model_config", "weights")
    if model is not None:
        return read_keras_hdf5(path, model)
    arrays = read_arrays(path, "weights")
    if any("/vars/" in name or name.endswith(("kernel:0", "/kernel")) for name in arrays):
        raise InputError(f'{path} holds Keras weights without the model: save the whole model, model.save("….keras")')
    return from_state_dict(arrays, ordered=False)


def _read_torch(path):
    from hpcHess.pytorch.weights import read_state_dict

    return from_state_dict(read_state_dict(path), ordered=True)


_READERS = {
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
    ".h5": _read_hdf5,
    ".hdf5": _read_hdf5,
    ".pt": _read_torch,
    ".pth": _read_torch,
    ".keras": read_keras_archive,
    ".onnx": read_onnx,
}
