"""NVIDIA's runtime compiler through ctypes: the wheel nvidia-cuda-nvrtc-cu12 (extra `cuda-check`) is enough, no driver and no GPU."""

import ctypes
import importlib.util
from functools import cache
from pathlib import Path


@cache
def library():
    """libnvrtc, or None where no wheel has it."""
    spec = importlib.util.find_spec("nvidia")
    found = [path for root in (spec.submodule_search_locations if spec else ()) for path in sorted(Path(root).glob("*/lib/libnvrtc.so.*"))]
    if not found:
        return None
    for builtins in sorted(found[-1].parent.glob("libnvrtc-builtins.so.*")):
        ctypes.CDLL(str(builtins), ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(found[-1]))


@cache
def fast():
    """Options of NVRTC 12.8 and newer for code that nobody will run."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    assert library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)) == 0
    return ("--Ofast-compile=max",) if (major.value, minor.value) >= (12, 8) else ()


def compile(code, architecture, options=()):
    """The cubin of a source for e.g. "sm_90"; ValueError with the compiler's log where it does not compile."""
    nvrtc, program = library(), ctypes.c_void_p()

    def call(name, *arguments):
        return getattr(nvrtc, "nvrtc" + name)(*arguments)

    assert call("CreateProgram", ctypes.byref(program), code.encode(), b"kernels.cu", 0, None, None) == 0
    try:
        words = [word.encode() for word in (f"--gpu-architecture={architecture}", *fast(), *options)]
        status = call("CompileProgram", program, len(words), (ctypes.c_char_p * len(words))(*words))
        if status:
            raise ValueError(_text(call, program, "ProgramLog").decode())
        return _text(call, program, "CUBIN")
    finally:
        call("DestroyProgram", ctypes.byref(program))


def _text(call, program, what):
    size = ctypes.c_size_t()
    assert call(f"Get{what}Size", program, ctypes.byref(size)) == 0
    buffer = ctypes.create_string_buffer(size.value)
    assert call(f"Get{what}", program, buffer) == 0
    return buffer.raw
