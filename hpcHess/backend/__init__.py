"""Array backends: one namespace and the same batched kernels on NumPy, on the compiled module and on CuPy."""

import os

from hpcHess.backend.array_backend import ArrayBackend
from hpcHess.backend.blocks import Blocks
from hpcHess.backend.elimination import Elimination
from hpcHess.backend.interpolate import Interpolation
from hpcHess.runtime.errors import InputError

__all__ = ["ArrayBackend", "Blocks", "Elimination", "Interpolation", "available", "get"]

NAMES = ("numpy", "native", "cupy")
_made = {}


def _make(name):
    """A new backend, or ImportError where its module or device is missing."""
    if name == "native":
        from hpcHess.backend.native_backend import NativeBackend

        return NativeBackend()
    if name == "cupy":
        from hpcHess.backend.cupy_backend import CupyBackend

        return CupyBackend()
    import numpy

    return ArrayBackend("numpy", numpy)


def _load(name):
    if name not in _made:
        _made[name] = _make(name)
    return _made[name]


def available():
    """Names of the backends that work here: always `numpy`; `native` where the module is built; `cupy` with a device."""
    names = []
    for name in NAMES:
        try:
            _load(name)
        except ImportError:
            continue
        names.append(name)
    return names


def get(name="auto"):
    """The backend called `name`: numpy, native, cupy, or auto ($HPCHESS_BACKEND if set, else native where built, else numpy).

    Raises InputError when the name is unknown or the backend does not work here. Not collective.
    """
    if name == "auto":
        name = os.environ.get("HPCHESS_BACKEND") or "auto"
    if name == "auto":
        try:
            return _load("native")
        except ImportError:
            return _load("numpy")
    if name not in NAMES:
        raise InputError(f"unknown backend {name!r}: choose auto, {', '.join(NAMES)}")
    try:
        return _load(name)
    except ImportError as error:
        raise InputError(f"backend {name!r} is not available here ({error}): choose one of {', '.join(available())}") from error
