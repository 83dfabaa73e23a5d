"""A module to stand in for cupy where no GPU is: strict arrays (device_arrays.py), kernels emulated on the host (emulated.py).

It executes `hpcHess.backend.cupy_backend` and whoever uses it, line by line: names that CuPy has not, implicit conversions, wrong types of
kernel arguments, missing barriers and memory used before it was written show up as errors or as wrong numbers.
"""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from hpcHess import backend as backends
from tests.backend.device_arrays import DeviceArray, DeviceNamespace, wrap
from tests.backend.emulated import module, no_compiler

# what the program may use of CuPy 13: every name was looked up there, with the arguments used here
NAMES = set(
    "abs add all any arange argmax argmin argsort array asarray ascontiguousarray bool_ broadcast_to clip concatenate copysign cumsum diag "
    "diagonal divide dot dtype einsum empty empty_like exp expand_dims eye float32 float64 full greater inf int32 int64 isfinite isnan "
    "linalg log matmul max maximum mean min minimum moveaxis multiply nan ndarray negative newaxis nonzero ones ones_like outer pi power prod "
    "repeat reshape searchsorted sign sort sqrt square stack subtract sum swapaxes take take_along_axis tanh tensordot tile trace transpose "
    "tril triu vstack where zeros zeros_like".split()
)
LINALG = {"cholesky", "eigh", "eigvalsh", "inv", "norm", "qr", "slogdet", "solve", "svd"}


class _Linalg(DeviceNamespace):
    def __getattr__(self, name):
        if name not in LINALG:
            raise AttributeError(f"cupy.linalg.{name}")
        found = super().__getattr__(name)
        return _never_raises(found) if name in ("cholesky", "inv", "solve") else found


def _never_raises(function):
    """CuPy's solvers return NaN where NumPy's raise LinAlgError (cupyx.errstate(linalg="ignore") is the default)."""

    def call(a, *rest):
        try:
            return function(a, *rest)
        except np.linalg.LinAlgError:
            return wrap(np.full((rest[0] if rest else a).shape, np.nan))

    return call


class FakeCupy(DeviceNamespace):
    """The module; `launches`: names of the kernels run, in order."""

    ndarray = DeviceArray

    def __init__(self, devices=1):
        super().__init__(np)
        self.launches, self.device, self.linalg = [], None, _Linalg(np.linalg)
        self.RawModule = lambda code, options=(): _RawModule(self, code, options)
        stream = SimpleNamespace(synchronize=lambda: None)
        self.cuda = SimpleNamespace(
            runtime=SimpleNamespace(getDeviceCount=lambda: devices),
            Device=lambda number: SimpleNamespace(use=lambda: setattr(self, "device", number)),
            get_current_stream=lambda: stream,
        )

    def __getattr__(self, name):
        if name not in NAMES:
            raise AttributeError(f"cupy.{name}: not among the names looked up in CuPy")
        return super().__getattr__(name)

    def empty(self, shape, dtype=float):
        """Memory never written is NaN, or far away."""
        dtype = np.dtype(dtype)
        return wrap(np.full(shape, np.nan if dtype.kind == "f" else np.iinfo(dtype).max, dtype))

    def empty_like(self, a):
        return self.empty(a.shape, a.dtype)

    @staticmethod
    def asnumpy(a):
        return a.host.copy() if isinstance(a, DeviceArray) else np.asarray(a)


class _RawModule:
    def __init__(self, cupy, code, options):
        assert isinstance(options, tuple) and all(option.startswith("-") for option in options)
        self._cupy, self._module = cupy, module(code)

    def get_function(self, name):
        assert name in self._module.kernels, f"no kernel {name}"

        def launch(grid, block, arguments):
            assert block == (256,) and isinstance(grid, tuple) and isinstance(arguments, tuple)
            host = [None if isinstance(each, np.uint64) and each == 0 else each.host if isinstance(each, DeviceArray) else each for each in arguments]
            if any(isinstance(each, np.ndarray) and not isinstance(given, DeviceArray) for each, given in zip(host, arguments)):
                raise TypeError(f"{name}: a host array as argument of a kernel")
            self._cupy.launches.append(name)
            self._module.launch(name, grid, block[0], host, descending=len(self._cupy.launches) % 2 == 0)

        return launch


# what tests of the backend run on
DEVICES = ["stand-in", pytest.param("device", marks=pytest.mark.gpu)]


def install(monkeypatch, kind="stand-in", devices=1):
    """Make `cupy` the stand-in and `backend.get("cupy")` a new backend on it, until the monkeypatch ends; kind "device": leave them the real ones.

    Returns the module; `launches` of the real one is empty, and None is its `device`.
    """
    if kind == "device":
        return SimpleNamespace(launches=[], device=None)
    if reason := no_compiler():
        pytest.skip(f"nothing to emulate kernels with: {reason}")
    fake = FakeCupy(devices)
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setattr(backends, "_made", {name: made for name, made in backends._made.items() if name != "cupy"})
    return fake
