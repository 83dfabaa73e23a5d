"""Activations: values, first and second derivatives against PyTorch's, and in the tails."""

import numpy as np
import pytest

from hpcHess.networks.activations import ACTIVATIONS, activation, curved
from hpcHess.runtime.errors import InputError
from hpcHess.runtime.schema import checked_activation

NAMES = [*ACTIVATIONS, "leaky-relu(0.3)"]
POINTS = np.concatenate([np.linspace(-6, 6, 49) + 1e-3, [-30.0, 30.0, -8.0, 8.0, 1e-9, 0.0]])


@pytest.mark.parametrize("name", NAMES)
def test_values_and_derivatives(name):
    torch = pytest.importorskip("torch", reason="PyTorch, the oracle, is not installed")
    from tests.reference.autograd import activation as oracle

    s = oracle(name)
    points, one = torch.tensor(POINTS), torch.func.grad(lambda a: s(a))
    expected = s(points), torch.func.vmap(one)(points), torch.func.vmap(torch.func.grad(one))(points)
    for found, exact in zip(activation(name)(POINTS), expected, strict=True):
        np.testing.assert_allclose(found, exact.numpy(), rtol=1e-12, atol=1e-14)
    assert curved(name) == bool(np.any(expected[2].numpy() != 0))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("error")
def test_tails_are_finite(name):
    far = np.array([-1e300, -1e5, -750.0, 750.0, 1e5, 1e300])
    s, slope, curvature = activation(name)(far)
    assert np.isfinite(s).all() and np.isfinite(slope).all() and np.isfinite(curvature).all()
    assert np.abs(curvature).max() < 1e-30 and np.abs(slope).max() <= 1 + 1e-12


def test_slopes_do_not_cancel():
    for name in ("tanh", "sigmoid"):
        assert np.all(activation(name)(np.array([-30.0, 30.0, 100.0]))[1] > 0)


def test_names():
    assert checked_activation("Leaky_ReLU", "x") == "leaky-relu" == checked_activation("leaky-relu(0.01)", "x")
    assert checked_activation("leaky-relu(0)", "x") == "relu"
    for wrong, message in (("leaky-relu(a)", "slope of"), ("leakyrelu", "did you mean leaky-relu"), (3, "not 3")):
        with pytest.raises(InputError, match=message):
            checked_activation(wrong, "the activation")
