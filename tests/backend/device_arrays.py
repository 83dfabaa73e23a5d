"""A stand-in for a device: arrays that never become NumPy arrays unless asked by name, and the namespace that makes them.

It proves that the generic code path keeps host and device apart as CuPy demands: implicit conversion, NumPy functions on
device arrays and host arrays as operands all raise.
"""

from types import SimpleNamespace

import numpy as np

from hpcHess.backend import ArrayBackend


ATTRIBUTES = {"shape", "dtype", "size", "ndim", "T", "nbytes", "flags", "strides"}
METHODS = set(
    ("all any argmax argmin argsort astype copy cumsum diagonal dot fill max mean min prod ravel repeat "
     "reshape sum swapaxes take trace transpose").split()
)


class DeviceArray:
    """Wraps an ndarray; takes part in operations with other DeviceArrays and Python or NumPy scalars only."""

    __array_ufunc__ = None  # a host array on the left raises too

    def __init__(self, host):
        self.host = host

    def __array__(self, *_, **__):
        raise TypeError("implicit conversion of a device array to NumPy")

    def __getattr__(self, name):
        if name not in ATTRIBUTES and name not in METHODS:
            raise AttributeError(name)
        value = getattr(self.host, name)
        if name in METHODS:
            return lambda *args, **kwargs: self._call(value, args, kwargs)
        return wrap(value)

    @staticmethod
    def _call(method, args, kwargs):
        if "out" in kwargs:
            raise TypeError("a NumPy function on a device array")  # they look for a method of their name
        return wrap(method(*(unwrap(each) for each in args), **{key: unwrap(each) for key, each in kwargs.items()}))

    @property
    def data(self):
        return SimpleNamespace(ptr=self.host.ctypes.data)

    @property
    def __cuda_array_interface__(self):
        """What CUDA-aware libraries read; the pointer is one of the host, so that any MPI sends it."""
        return self.host.__array_interface__ | {"version": 2}

    def __getitem__(self, index):
        return wrap(self.host[unwrap_index(index)])

    def __setitem__(self, index, value):
        self.host[unwrap_index(index)] = unwrap(value)

    def __len__(self):
        return len(self.host)

    def __float__(self):
        return float(self.host)

    def __int__(self):
        return int(self.host)

    def __bool__(self):
        return bool(self.host)


def _operator(name):
    def method(self, *others):
        result = getattr(self.host, name)(*(unwrap(other) for other in others))
        return self if name.startswith("__i") and name != "__invert__" else wrap(result)

    return method


for _name in "add sub mul truediv matmul pow and or".split():
    for _prefix in ("", "r", "i"):
        if hasattr(np.ndarray, f"__{_prefix}{_name}__"):
            setattr(DeviceArray, f"__{_prefix}{_name}__", _operator(f"__{_prefix}{_name}__"))
for _name in "neg abs invert lt le gt ge eq ne".split():
    setattr(DeviceArray, f"__{_name}__", _operator(f"__{_name}__"))


def wrap(value):
    """ndarrays and NumPy's reductions to a scalar both live on the device."""
    return DeviceArray(np.asarray(value)) if isinstance(value, np.ndarray | np.generic) else value


def unwrap(value):
    if isinstance(value, DeviceArray):
        return value.host
    if isinstance(value, np.ndarray) and value.ndim:
        raise TypeError("a host array as operand of a device array")
    if isinstance(value, tuple | list):
        return type(value)(unwrap(item) for item in value)
    return value


def unwrap_index(index):
    if isinstance(index, tuple):
        return tuple(unwrap_index(item) for item in index)
    return unwrap(index)


class DeviceNamespace:
    """NumPy's functions on DeviceArrays; `asarray` and `array` are the way in."""

    def __init__(self, module):
        self._module = module

    def __getattr__(self, name):
        member = getattr(self._module, name)
        if name == "linalg":
            return DeviceNamespace(member)
        if not callable(member) or isinstance(member, type):
            return member

        def function(*args, **kwargs):
            bring = (lambda a: a.host if isinstance(a, DeviceArray) else a) if name in {"asarray", "array"} else unwrap
            result = member(*(bring(a) for a in args), **{key: unwrap(value) for key, value in kwargs.items()})
            return tuple(wrap(item) for item in result) if isinstance(result, tuple) else wrap(result)

        return function


class DeviceBackend(ArrayBackend):
    """The generic array code on the stand-in device."""

    def __init__(self):
        super().__init__("device", DeviceNamespace(np))

    def to_host(self, a):
        return a.host if isinstance(a, DeviceArray) else np.asarray(a)
