"""Weights of any naming: which layers they are, in which order, and what is no linear layer."""

import itertools

import numpy as np
import pytest

from hpcHess.networks.network import Network
from hpcHess.networks.state_dict import from_state_dict
from hpcHess.runtime.errors import InputError

WIDTHS = (5, 4, 3, 2)


def arrays(names, widths=WIDTHS, biases=True, seed=0):
    """{name.weight, name.bias} of layers in this order."""
    rng, result = np.random.default_rng(seed), {}
    for name, before, after in zip(names, widths[:-1], widths[1:], strict=True):
        result[f"{name}.weight"] = rng.standard_normal((after, before))
        if biases:
            result[f"{name}.bias"] = rng.standard_normal(after)
    return result


def network(found, ordered=False, activation="tanh", **more):
    return from_state_dict(found, ordered, **more).network(activation, "squared-error", None)


def expected(found):
    """The same by position, the keys in the order given."""
    weights = [each for key, each in found.items() if key.endswith("weight")]
    biases = [found.get(key.removesuffix("weight") + "bias") for key in found if key.endswith("weight")]
    return Network(weights, biases, "tanh", "squared-error")


NAMINGS = [
    ("0", "2", "4"),
    ("0", "3", "6"),
    ("fc1", "fc2", "fc3"),
    ("fc1", "fc2", "out"),
    ("layers.0", "layers.1", "layers.2"),
    ("layers.8", "layers.9", "layers.10"),
    ("module.encoder.0", "module.encoder.2", "module.head"),
    ("_orig_mod.module.net.0.linear", "_orig_mod.module.net.1.linear", "_orig_mod.module.net.2.linear"),
    ("block1.b", "block1.a", "block2.a"),
    ("zeta", "alpha", "middle"),
    ("hidden/0", "hidden/1", "last"),
]


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("names", NAMINGS, ids=lambda names: names[-1])
def test_namings(names, ordered):
    """Whatever the file's order where it has none; shapes and numbers say the rest."""
    found = arrays(names)
    keys = list(found)
    for order in [keys] if ordered else [keys, keys[::-1], sorted(keys)]:
        assert network({key: found[key] for key in order}, ordered).digest() == expected(found).digest()


def test_weight_and_bias_alone():
    """Of a single nn.Linear."""
    found = {"weight": np.ones((2, 3)), "bias": np.zeros(2)}
    assert network(found).digest() == expected(found).digest()


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_numbers_count_more_than_the_files_order(order):
    """Square layers chain in every order."""
    found = arrays(("fc1", "fc2", "fc10"), (3, 3, 3, 3))
    keys = [f"fc{(1, 2, 10)[at]}.{part}" for at in order for part in ("weight", "bias")]
    assert network({key: found[key] for key in keys}, True).digest() == expected(found).digest()


def test_the_files_order_counts_where_names_do_not_say():
    """An autoencoder chains both ways."""
    found = arrays(("encoder", "decoder"), (6, 2, 6))
    assert network(found, ordered=True).widths == [6, 2, 6]
    with pytest.raises(InputError, match="order of the layers is not clear, .*encoder → decoder.* save it as .pt"):
        network(found, ordered=False)
    assert network(dict(sorted(arrays(("encoder", "decoder"), (6, 2, 5)).items()))).widths == [6, 2, 5]


def test_many_square_layers_without_order_end_soon():
    found = arrays([f"{chr(97 + at)}" for at in range(24)], (2,) * 25)
    with pytest.raises(InputError, match="not clear"):
        network(found)
    found["y.weight"] = np.ones((3, 3))  # now no order chains: the search must give up
    with pytest.raises(InputError, match="not clear|do not chain"):
        network(found)


def test_deep_networks_are_read():
    names = [f"net.{at}" for at in range(150)]
    assert network(arrays(names, (2,) * 151, biases=False)).n_layers == 150


def test_activation_where_names_leave_no_place():
    found = arrays(("0", "1", "2"))
    assert network(found, activation="tanh").activations == ["tanh", "tanh"]
    with pytest.raises(InputError, match="layers 0 and 1 are neighbours: give network.activation"):
        network(found, activation=None)
    assert network(arrays(("layers.0", "layers.1", "layers.2")), activation=None).activations == ["relu", "relu"]


@pytest.mark.parametrize(
    "more, message",
    [
        (
            {"conv1.weight": np.ones((8, 1, 3, 3)), "conv1.bias": np.ones(8)},
            r"unsupported layer conv1 \(a convolution, weight \[8, 1, 3, 3\]\): .* network.torch",
        ),
        ({"bn.weight": np.ones(4), "bn.bias": np.ones(4), "bn.running_mean": np.ones(4)}, r"unsupported layer bn \(batch normalization\)"),
        ({"bn.num_batches_tracked": np.array(3)}, r"unsupported layer bn \(batch normalization\)"),
        ({"norm.weight": np.ones(4), "norm.bias": np.ones(4)}, r"unsupported layer norm \(a normalization or a slope, weight \[4\]\)"),
        ({"prelu.weight": np.ones(1)}, r"unsupported layer prelu \(a normalization or a slope"),
        ({"attn.in_proj_weight": np.ones((9, 3)), "attn.out_proj.weight": np.ones((3, 3))}, r"unsupported layer attn \(attention\)"),
        ({"rnn.weight_ih_l0": np.ones((9, 3))}, r"unsupported layer rnn \(recurrent\)"),
        ({"fc9.weight_g": np.ones((9, 1)), "fc9.weight_v": np.ones((9, 3))}, r"unsupported layer fc9 \(parametrized"),
        ({"pos": np.ones((9, 3))}, r"unsupported layer pos \(neither a weight nor a bias\)"),
        ({"a.weight": np.ones(4), "b.weight": np.ones(4)}, r"unsupported layers a \(.*\), b \("),
        ({"fc4.bias": np.ones(4)}, "fc4.bias has no fc4.weight"),
        ({"fc4.weight": np.ones((4, 7))}, r"do not chain in any order that the names allow: fc1.weight \[4, 5\], .*, fc4.weight \[4, 7\]"),
    ],
)
def test_other_keys(more, message):
    with pytest.raises(InputError, match=message):
        network({**arrays(("fc1", "fc2", "fc3")), **more})


def test_keys_of_the_file_are_named():
    found = arrays(("fc1", "fc2", "fc3"))
    found["fc2.bias"] = np.ones(5)
    with pytest.raises(InputError, match=r"fc2.bias is \[5\], but fc2.weight is \[3, 4\]"):
        network(found)
    found["fc2.bias"] = np.ones((3, 1))
    with pytest.raises(InputError, match="fc2.bias must have 1 dimension"):
        network(found)
    found["fc3.weight"][0, 1] = np.inf
    found["fc2.bias"] = np.ones(3)
    with pytest.raises(InputError, match=r"fc3.weight is not finite: inf at \[0, 1\]"):
        network(found)
    with pytest.raises(InputError, match="no weights"):
        network({})
