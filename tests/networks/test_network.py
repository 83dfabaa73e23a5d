"""The network: shapes, the order of parameters, digests, bad weights."""

import numpy as np
import pytest

from hpcHess.networks.network import Network
from hpcHess.runtime.errors import InputError


def counting_network():
    """3 – 2 – 1 – 2 with a bias in the first and last layer, holding 0, 1, 2, … in PyTorch's parameters_to_vector order."""
    weights = [np.array([[0, 1, 2], [3, 4, 5]]), np.array([[8, 9]]), np.array([[10], [11]])]
    return Network(weights, [np.array([6, 7]), None, np.array([12, 13])], "tanh", "squared-error")


def test_parameters_are_numbered_layer_by_layer_weight_row_major_then_bias():
    network = counting_network()
    np.testing.assert_array_equal(network.parameters(), np.arange(14))
    assert network.layer_offsets == [(0, 6), (8, None), (10, 12)]
    for (weight, bias), W, b in zip(network.layer_offsets, network.weights, network.biases, strict=True):
        assert network.parameters()[weight] == W[0, 0] and (b is None or network.parameters()[bias] == b[0])


def test_shape():
    network = counting_network()
    assert network.widths == [3, 2, 1, 2]
    assert (network.n_layers, network.n_inputs, network.n_outputs, network.n_params) == (3, 3, 2, 14)
    assert all(each.dtype == np.float64 and each.flags.c_contiguous for each in network.weights)


def test_order_does_not_depend_on_memory_layout():
    weights = [np.asfortranarray(np.arange(6.0).reshape(2, 3))]
    np.testing.assert_array_equal(Network(weights).parameters(), np.arange(6))


def test_arrays_are_copies():
    W = np.ones((2, 2))
    network = Network([W])
    W[0, 0] = np.nan
    assert np.isfinite(network.parameters()).all()


def test_arrays_have_the_names_of_sequential_and_come_back():
    network = counting_network()
    arrays = network.to_arrays()
    assert list(arrays) == ["0.weight", "0.bias", "2.weight", "4.weight", "4.bias"]
    again = Network.from_arrays(dict(reversed(arrays.items())), "tanh", "squared-error")
    assert again.digest() == network.digest()
    np.testing.assert_array_equal(again.parameters(), network.parameters())


def test_digest_depends_on_everything_but_dtype():
    rng = np.random.default_rng(0)
    W, b = rng.standard_normal((2, 3)).astype(np.float32), rng.standard_normal(2).astype(np.float32)
    first = Network([W], [b]).digest()
    assert len(first) == 64 and first == Network([W.astype(np.float64)], [b.astype(">f8")]).digest()
    moved = W.copy()
    moved[1, 2] = np.nextafter(moved[1, 2], np.float32(1))
    others = [
        Network([moved], [b]),
        Network([W], None),
        Network([W], [b], "relu", "squared-error", "tanh"),
        Network([W], [b], "relu", "squared-error"),
        Network([np.append(W.ravel(), b).reshape(4, 2)]),  # the same eight numbers
    ]
    assert len({first, *(other.digest() for other in others)}) == 6


@pytest.mark.parametrize(
    "weights, biases, message",
    [
        ([], None, "at least one layer"),
        ([np.ones((3, 2)), np.ones((2, 4))], None, r"do not chain: 2.weight is \[2, 4\], but 0.weight has 3 outputs"),
        ([np.ones((3, 2))], [np.ones(2)], r"0.bias is \[2\], but 0.weight is \[3, 2\]"),
        ([np.ones((3, 2))], [np.ones((3, 1))], r"0.bias must have 1 dimension, not the shape \[3, 1\]"),
        ([np.ones(3)], None, "0.weight must have 2 dimensions"),
        ([np.ones((0, 3))], None, "0.weight is empty"),
        ([np.ones((3, 2))], [None, None], "1 weights but 2 biases"),
        ([np.ones((3, 2)), np.array([[1, 2, np.nan]])], None, r"2.weight is not finite: nan at \[0, 2\]"),
        ([np.ones((3, 2))], [np.array([0, -np.inf, 0])], r"0.bias is not finite: -inf at \[1\]"),
        ([np.ones((3, 2), complex)], None, "0.weight holds complex128, not real"),
        ([np.array([["a"]])], None, "not real numbers"),
        ([np.array([[True]])], None, "not real numbers"),
        ([[[1.0], [1.0, 2.0]]], None, "0.weight is no array"),
    ],
)
def test_bad_weights(weights, biases, message):
    with pytest.raises(InputError, match=message):
        Network(weights, biases)


def test_unknown_names():
    with pytest.raises(InputError, match="activation must be relu or leaky-relu or .* or identity, not 'gelo' .did you mean gelu"):
        Network([np.ones((1, 1))], activation="gelo")
    with pytest.raises(InputError, match="loss must be"):
        Network([np.ones((1, 1))], loss="hinge")


@pytest.mark.parametrize(
    "keys, message",
    [
        ([], r"0.weight is missing \(found nothing\)"),
        (["0.weight", "layer.weight"], "odd key 'layer.weight'"),
        (["0.weight", "0.scale"], "odd key '0.scale'"),
        (["00.weight"], "odd key '00.weight'"),
        (["0.weight", "-2.weight"], "odd key '-2.weight'"),
        (["0.weight", "1.weight"], r"odd key 1\.\*"),
        (["0.weight", "4.weight"], "2.weight is missing"),
        (["2.weight"], r"0.weight is missing \(found 2.weight\)"),
        (["0.weight", "2.bias"], "2.weight is missing"),
        (["0.weight", "999999999999998.weight"], "2.weight is missing"),
    ],
)
def test_bad_keys(keys, message):
    with pytest.raises(InputError, match=message):
        Network.from_arrays({key: np.ones((2, 2) if key.endswith("weight") else 2) for key in keys}, "relu", "cross-entropy")
