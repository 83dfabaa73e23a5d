"""The CUDA sources compiled for the host (emulation.hpp) and launched through ctypes, with the checks that a real launch does not make."""

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

HEADER = Path(__file__).with_name("emulation.hpp")
FOLDER = Path(__file__).parents[2] / "build" / "emulated"
TYPES = {"float": np.dtype(np.float32), "double": np.dtype(np.float64), "i64": np.dtype(np.int64), "longlong": np.dtype(np.int64)}
NAMES = {np.dtype(np.float32): "float", np.dtype(np.float64): "double", np.dtype(np.int64): "i64"}
SIGNATURE = re.compile(r'extern\s+"C"\s+void\s+(\w+)\s*\(([^)]*)\)')
FLAGS = ["-std=c++17", "-O2", "-fPIC", "-shared", "-U_FORTIFY_SOURCE", "-fno-stack-protector", "-fcf-protection=none", "-w"]


def no_compiler():
    """Why nothing can be emulated here, or None."""
    return None if shutil.which("g++") else "no g++"


def parameters(text):
    """[(type, is pointer, may be written)] of a C parameter list."""
    found = []
    for each in text.split(","):
        words = each.replace("*", " * ").split()
        kind = "".join(word for word in words[:-1] if word not in ("const", "*"))
        found.append((TYPES[kind], "*" in words, "const" not in words))
    return found


@cache
def module(code):
    """The `Module` of a source, one a process."""
    return Module(code)


STRIDED = ("scale_samples", "softmax_hessian")  # kernels that are told the strides of their arrays


class Module:
    """Compiled kernels of one source; `kernels`: name → parameters."""

    def __init__(self, code):
        text = HEADER.read_text() + code
        expanded = subprocess.run(["g++", "-std=c++17", "-E", "-P", "-x", "c++", "-"], input=text, capture_output=True, text=True, check=True).stdout
        self.kernels = {name: parameters(given) for name, given in SIGNATURE.findall(expanded)}
        launchers = []
        for name, given in self.kernels.items():
            values = ", ".join(
                f"*({'const ' * (not writes)}{NAMES[kind]}{'*' * pointer}*)arguments[{i}]"
                for i, (kind, pointer, writes) in enumerate(given)
            )
            launchers.append(
                f'extern "C" int launch_{name}(const long long* grid, long long threads, int descending, void** arguments)'
                f" {{ return emulation::run(grid, threads, descending, [&] {{ {name}({values}); }}); }}"
            )
        self._library = ctypes.CDLL(str(self._compiled(text + "\n".join(launchers))))

    @staticmethod
    def _compiled(text):
        """Path of the shared library of a source, compiled once a machine: the ranks of a run may race for it."""
        key = hashlib.sha256((" ".join(FLAGS) + text).encode()).hexdigest()[:20]
        target = FOLDER / f"{key}.so"
        if not target.exists():
            FOLDER.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
                made = Path(folder) / "kernels.so"
                subprocess.run(["g++", *FLAGS, "-x", "c++", "-", "-o", str(made)], input=text, text=True, check=True, capture_output=True)
                os.replace(made, target)
        return target

    def launch(self, name, grid, threads, arguments, descending=False):
        """Run a kernel; `arguments`: ndarrays for pointers (None: null), NumPy scalars of exactly the parameter's type for the rest.

        TypeError where CUDA would read garbage: a wrong number of arguments, another type, an array that is not C-contiguous, an array not
        writable; RuntimeError where threads wait at different barriers.
        """
        given = self.kernels[name]
        if len(arguments) != len(given):
            raise TypeError(f"{name}: {len(arguments)} arguments for {len(given)} parameters")
        cells = []
        for position, (value, (kind, pointer, writes)) in enumerate(zip(arguments, given, strict=True)):
            where = f"{name}: argument {position}"
            if pointer:
                if value is None:
                    cells.append(ctypes.c_void_p(0))
                    continue
                if not isinstance(value, np.ndarray) or value.dtype != kind:
                    raise TypeError(f"{where} is {getattr(value, 'dtype', type(value))} for {kind}*")
                together = value.flags.c_contiguous or (name.startswith(STRIDED) and value.strides[-1] == value.itemsize)
                if not together or (writes and not value.flags.writeable):
                    raise TypeError(f"{where} is not contiguous or not writable")
                cells.append(ctypes.c_void_p(value.ctypes.data))
            else:
                if not isinstance(value, np.generic) or value.dtype != kind:
                    raise TypeError(f"{where} is {type(value)} for {kind}")
                cells.append(ctypes.c_longlong(int(value)) if kind == np.int64 else ctypes.c_double(float(value)))
        grid = (*grid, 1, 1)[:3]
        if not (0 < grid[0] < 1 << 31 and all(0 < side < 1 << 16 for side in grid[1:])):
            raise ValueError(f"{name}: no grid: {grid}")
        addresses = (ctypes.c_void_p * len(cells))(*(ctypes.addressof(cell) for cell in cells))
        status = getattr(self._library, f"launch_{name}")((ctypes.c_longlong * 3)(*grid), ctypes.c_longlong(threads), int(descending), addresses)
        if status:
            raise RuntimeError(f"{name}: threads of a block wait at different barriers" if status == 1 else f"{name}: {threads} threads")
