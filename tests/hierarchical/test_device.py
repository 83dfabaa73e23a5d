"""The whole way on arrays that refuse implicit conversion, as a GPU's do: host and device stay apart, and the numbers are NumPy's."""

import numpy as np

from hpcHess import backend as backends
from hpcHess.hierarchical.compress import compress
from hpcHess.formats.file import load
from tests.backend.device_arrays import DeviceBackend
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
