"""Digests of tensors and modules."""

import hashlib
import re

import torch

_PIECE = 1 << 22  # numbers hashed at a time


def tensors_digest(tensors, text=""):
    """sha256 (hex) of names, shapes and numbers (floating ones as float64, others as int64) of {name: tensor}, and of `text`. Not collective."""
    result = hashlib.sha256(text.encode())
    for name, tensor in tensors.items():
        floating = tensor.is_floating_point()
        result.update(repr((name, tuple(tensor.shape), floating)).encode())
        flat = tensor.detach().reshape(-1)
        for at in range(0, len(flat), _PIECE):
            result.update(flat[at : at + _PIECE].to("cpu", torch.float64 if floating else torch.int64).numpy().data)
    return result.hexdigest()


def module_digest(model, loss):
    """sha256 (hex) of a module's parameters and buffers, its layers as it prints them, and the loss (a name, or what is called). Not collective."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    said = loss if isinstance(loss, str) else f"{getattr(loss, '__module__', '')}.{getattr(loss, '__qualname__', loss)}"
    return tensors_digest(named, re.sub(r" at 0x[0-9a-fA-F]+", "", f"{model!r} {said}"))
