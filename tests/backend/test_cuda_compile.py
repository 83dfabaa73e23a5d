"""Every CUDA source compiles to machine code of two GPUs, without one."""

import itertools

import pytest
from mpi4py import MPI

from hpcHess.backend.cuda_source import OPTIONS, names, source
from tests.backend import nvrtc

pytestmark = [
    pytest.mark.skipif(nvrtc.library() is None, reason="no NVRTC: pip install nvidia-cuda-nvrtc-cu12 (HPCHESS_WITH_NVRTC=1)"),
    pytest.mark.skipif(MPI.COMM_WORLD.size > 1, reason="the same on every rank"),
]

TYPES = ("float32", "float64")
PAIRS = ["_".join(pair) for pair in itertools.product(TYPES, TYPES)]
KERNELS = {
    "multiply": [f"multiply_{kind}_{pair}" for kind in ("tile", "narrow") for pair in PAIRS],
    "symmetric": [f"symmetric_parts_{pair}" for pair in PAIRS] + [f"add_rows_{kind}" for kind in TYPES],
    "entries": [f"gram_entries_{pair}" for pair in PAIRS],
    "sweep": [f"{name}_{kind}" for name in ("scale_samples", "softmax_hessian") for kind in TYPES],
    "place": [f"place_{pair}" for pair in PAIRS],
    "interpolate": [f"{name}_{kind}" for name in ("pivoted_qr", "interpolation") for kind in TYPES],
    "eliminate": ["column_squares", *(f"eliminate_definite_{kind}" for kind in TYPES)],
}


def test_every_source_is_known():
    assert set(names()) == set(KERNELS)


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("name", names())
def test_every_source_compiles(name, architecture):
    """The machine code holds every instance that the backend asks for by name."""
    cubin = nvrtc.compile(source(name), architecture, OPTIONS)
    for kernel in KERNELS[name]:
        assert f".text.{kernel}\0".encode() in cubin, kernel


def test_a_broken_source_is_found():
    for broken in ("__global__ void more() { undeclared(); }", "template <class T", "#error more", "__global__ int more() { return 1; }"):
        with pytest.raises(ValueError, match="error"):
            nvrtc.compile(source("place") + broken, "sm_80", OPTIONS)
