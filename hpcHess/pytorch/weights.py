"""Weights from the files that torch.save writes. Nothing is ever unpickled but tensors."""

import pickle
import re
import warnings

from hpcHess.runtime.errors import InputError
from hpcHess.storage.archive import check_archive

_INSIDE = ("state_dict", "model_state_dict", "model")
_SAVE = "save model.state_dict()"


def read_state_dict(path):
    """{name: ndarray} of a state_dict in a .pt or .pth file, in its order; of a checkpoint, what is under one of `_INSIDE`. Not collective.

    float64 comes as float64, other real types as float32. InputError: PyTorch is not installed, damaged, a pickled module, no tensors.
    """
    try:
        import torch
    except ImportError:
        raise InputError(f"cannot read {path}: PyTorch is not installed: pip install hpcHess[torch], or save the weights as .safetensors") from None
    with open(path, "rb") as file:
        if file.read(2) == b"PK":
            check_archive(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)|[Uu]nsupported (?:global|class) (\S+)", str(error))
        what = f"Python objects ({found[1] or found[2]})" if found else "Python objects, or is damaged, or no file of torch.save"
        raise InputError(f"cannot read {path}: it holds {what}; nothing is ever unpickled: {_SAVE}") from None
    except Exception as error:  # a damaged file fails anywhere in PyTorch's readers
        if "TorchScript" in str(error):
            raise InputError(f"cannot read {path}: it is a TorchScript archive: {_SAVE}") from None
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"cannot read {path}: it is damaged, or no file of torch.save ({said[0][:200]}): {_SAVE} again") from None
    return {name: _array(path, name, each) for name, each in _state_dict(path, content).items()}


def _state_dict(path, content):
    """The dictionary of tensors in what torch.load gave."""
    for name in _INSIDE:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
            break
    if not isinstance(content, dict) or not content:
        raise InputError(f"cannot read {path}: it holds {type(content).__name__}, no dictionary of tensors: {_SAVE}")
    wrong = next((name for name in content if not isinstance(name, str)), None)
    if wrong is not None:
        raise InputError(f"cannot read {path}: odd key {wrong!r:.50}: {_SAVE}")
    return content


def _array(path, name, tensor):
    import torch

    if not isinstance(tensor, torch.Tensor):
        raise InputError(f"cannot read {path}: {name} is {type(tensor).__name__}, no tensor: {_SAVE}")
    plain = tensor.layout == torch.strided and not tensor.is_quantized and tensor.device.type == "cpu"
    if not plain or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise InputError(f"cannot read {path}: {name} is no plain dense tensor ({tensor.layout}, {tensor.dtype}, {tensor.device})")
    tensor = tensor.detach()
    return (tensor.float() if tensor.is_floating_point() and tensor.dtype != torch.float64 else tensor).numpy()
