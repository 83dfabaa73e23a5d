"""The whole way on arrays that refuse implicit conversion, as a GPU's do: host and device stay apart, and the numbers are NumPy's."""

import numpy as np
import pytest

from hpcHess import backend as backends
from hpcHess.hierarchical.compress import compress
from hpcHess.formats.file import load
from tests.backend.device_arrays import DeviceBackend
from tests.backend.fake_cupy import DEVICES, install
from tests.reference.dense_operator import DenseOperator, exponential_kernel


def test_compress_multiply_solve_and_files(comm, shared_tmp, monkeypatch):
    K = exponential_kernel(200)
    K[::13], K[:, ::13] = 0, 0
    operator, V = DenseOperator(K, comm), np.random.default_rng(0).standard_normal((200, 3))
    host = compress(operator, rtol=1e-4, leaf_size=20, distance="angle", backend="numpy", dtype="float64")
    with monkeypatch.context() as patch:
        patch.setattr(backends, "get", lambda name="auto": DeviceBackend())
        device = compress(operator, rtol=1e-4, leaf_size=20, distance="angle", dtype="float64")
        device.save(shared_tmp / "device.h5", factors=device.factorize(0.1))
        again = load(shared_tmp / "device.h5", comm)
    assert device.near.blocks.data.__class__.__name__ == "DeviceArray"
    scale = np.linalg.norm(K)
    for H in (device, again):
        assert np.abs(H @ V - host @ V).max() <= 1e-13 * scale
        for solver in ("elimination", "ulv", "woodbury"):
            assert np.abs(H.solve(V, 0.1, solver) - host.solve(V, 0.1, solver)).max() <= 1e-11
            assert np.isclose(H.logdet(0.1, solver)[1], host.logdet(0.1, solver)[1])


@pytest.mark.parametrize("kind", DEVICES)
@pytest.mark.parametrize("dtype, format", [("float32", "hss"), ("float64", "hss"), ("float64", "fmm")])
def test_the_whole_way_of_the_cupy_backend(comm, shared_tmp, monkeypatch, dtype, format, kind):
    """The same through `backend="cupy"` on a stand-in for CuPy that runs its kernels on the host; float64 as if MPI took device arrays."""
    K = exponential_kernel(120)
    K[::13], K[:, ::13] = 0, 0
    operator, V, scale = DenseOperator(K, comm), np.random.default_rng(0).standard_normal((120, 3)), np.linalg.norm(K)
    options = dict(rtol=1e-3, leaf_size=16, distance="angle", dtype=dtype, format=format)
    near = 1e-13 if dtype == "float64" else 1e-5
    host = compress(operator, backend="numpy", **options)
    with monkeypatch.context() as patch:
        cupy = install(patch, kind)
        if kind == "stand-in":
            patch.setattr("hpcHess.backend.cupy_backend.cuda_aware", lambda comm: dtype == "float64")
        device = compress(operator, backend="cupy", **options)
        assert not isinstance(device.near.blocks.data, np.ndarray) and np.abs(device @ V - host @ V).max() <= near * scale
        if format == "hss":
            device.save(shared_tmp / "cupy.h5", factors=device.factorize(0.1))
            again = load(shared_tmp / "cupy.h5", comm, backend="cupy")
            for solver in ("elimination", "ulv", "woodbury"):
                assert np.abs(again.solve(V, 0.1, solver) - host.solve(V, 0.1, solver)).max() <= 1e3 * near * np.abs(V).max()
                assert np.isclose(again.logdet(0.1, solver)[1], host.logdet(0.1, solver)[1], rtol=1e2 * near)
    used = {name.removesuffix("_float32").removesuffix("_float64") for names in comm.allgather(cupy.launches) for name in names}
    expected = {"pivoted_qr", "interpolation", f"multiply_tile_{dtype}"} | ({"eliminate_definite"} if format == "hss" else set())
    assert kind == "device" or expected <= used
