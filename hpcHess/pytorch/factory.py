"""Modules that a job names by package.module:factory."""

import importlib
import os
import sys
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from hpcHess.runtime.errors import InputError


def call_factory(name, folder):
    """(module, inputs, targets, loss) of what `package.module:factory` returns: a module, (module, inputs, targets) or (module, inputs, targets, loss);
    what it does not return is None. Modules are looked for in `folder` and the working directory first. Not collective.

    This runs the factory's code. InputError: no such module or function, whatever it raises, and results of another form.
    """
    place, _, function = name.partition(":")
    if not place or not function or ":" in function:
        raise InputError(f"network.torch must be package.module:factory, not {name!r}")
    with _searched(folder):
        try:
            factory = getattr(importlib.import_module(place), function)
        except (Exception, SystemExit) as error:  # a script's exit would end the job as if all were done
            raise InputError(f"network.torch: cannot import {name}: {_said(error)}") from error
        if not callable(factory):
            raise InputError(f"network.torch: {name} is no function")
        try:
            made = factory()
        except (Exception, SystemExit) as error:
            raise InputError(f"network.torch: {name}() failed: {_said(error)}") from error
    parts = made if isinstance(made, tuple) else (made,)
    if len(parts) not in (1, 3, 4) or not isinstance(parts[0], nn.Module):
        found = f"a tuple of {len(parts)}" if isinstance(made, tuple) else type(made).__name__
        raise InputError(f"network.torch: {name}() must return a module, (module, inputs, targets) or (module, inputs, targets, loss), not {found}")
    model, inputs, targets, loss = (*parts, None, None, None)[:4]
    return model, _array(inputs), _array(targets), loss


def _array(each):
    """A NumPy array of a tensor or an array, None for None."""
    return each.detach().cpu().numpy() if isinstance(each, torch.Tensor) else None if each is None else np.asarray(each)


def _said(error):
    lines = f"{error}".strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextmanager
def _searched(folder):
    """`folder` and the working directory before all others where Python looks for modules."""
    more = [str(folder), os.getcwd()]
    sys.path[:0] = more
    importlib.invalidate_caches()
    try:
        yield
    finally:
        for each in more:
            if each in sys.path:
                sys.path.remove(each)
