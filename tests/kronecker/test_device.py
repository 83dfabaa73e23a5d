"""Products and inverses on arrays that refuse implicit conversion, as a GPU's do."""

import numpy as np
import pytest

from hpcHess.curvature.gauss_newton import GaussNewton
from hpcHess.kronecker.compress import compress_kronecker
from hpcHess.kronecker.matrix import KroneckerSum
from tests.backend.device_arrays import DeviceBackend
from tests.curvature.test_gauss_newton import make, near


@pytest.mark.parametrize("name", ["relu classes", "tanh classes, some biases", "autoencoder", "deep autoencoder"])
def test_products_and_inverses(name, comm):
    network, inputs = make(name)
    host = compress_kronecker(GaussNewton(network, inputs, comm=comm), rtol=1e-2, dtype="float64", backend="numpy")
    device = KroneckerSum(comm, DeviceBackend(), host.n_params, host.dtype, host.layers, host.terms)
    V = np.random.default_rng(0).standard_normal((host.n_params, 3))
    near(device @ V, host @ V, 1e-13)
    near(device @ V, host @ V, 1e-13)  # by the arrays that stayed there
    near(device.diagonal(), host.diagonal(), 1e-14)
    damping = 1e-2 * host.report["lambda_max"]
    B = V[host.mine]
    near(device.inverse(damping).solve_rows(B), host.inverse(damping).solve_rows(B), 1e-12, B / damping)
