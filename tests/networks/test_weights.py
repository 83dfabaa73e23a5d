"""Weights from .npz, .safetensors and .h5, and what is wrong with files."""

import numpy as np
import pytest

from hpcHess.networks.network import Network
from hpcHess.networks.weights import read_network
from hpcHess.runtime.errors import InputError


def arrays():
    rng = np.random.default_rng(1)
    shapes = {"0.weight": (4, 3), "0.bias": (4,), "2.weight": (2, 4)}
    return {key: rng.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}


def write(path, content):
    if path.suffix == ".npz":
        np.savez(path, **content)
    elif path.suffix == ".safetensors":
        pytest.importorskip("safetensors")
        from safetensors.numpy import save_file

        save_file(content, path)
    else:
        import h5py

        with h5py.File(path, "w") as file:
            for key, array in content.items():
                file[key] = array
    return path


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".h5"])
def test_same_network_from_every_format(tmp_path, suffix):
    network = read_network(write(tmp_path / f"net{suffix}", arrays()), "tanh", "squared-error")
    assert network.digest() == Network.from_arrays(arrays(), "tanh", "squared-error").digest()
    assert network.widths == [3, 4, 2] and network.biases[1] is None


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".h5"])
def test_file_and_key_are_named(tmp_path, suffix):
    content = arrays()
    content["2.weight"][1, 3] = np.nan
    path = write(tmp_path / f"nan{suffix}", content)
    with pytest.raises(InputError, match=rf"nan{suffix}: 2.weight is not finite: nan at \[1, 3\]"):
        read_network(path, "relu", "cross-entropy")
    path = write(tmp_path / f"gap{suffix}", {"0.weight": np.ones((2, 2)), "4.weight": np.ones((2, 2))})
    with pytest.raises(InputError, match=rf"gap{suffix}: key 2.weight is missing"):
        read_network(path, "relu", "cross-entropy")
    path = write(tmp_path / f"chain{suffix}", {"0.weight": np.ones((2, 2)), "2.weight": np.ones((2, 3))})
    with pytest.raises(InputError, match=rf"chain{suffix}: shapes do not chain"):
        read_network(path, "relu", "cross-entropy")


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".h5"])
def test_damaged_files(tmp_path, suffix):
    whole = write(tmp_path / f"net{suffix}", arrays()).read_bytes()
    path = tmp_path / f"damaged{suffix}"
    for content in (b"", b"rubbish" * 100, whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=f"damaged{suffix}"):
            read_network(path, "relu", "cross-entropy")


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".h5"])
def test_missing_files(tmp_path, suffix):
    with pytest.raises(InputError, match=f"cannot read .*none{suffix}: there is no such file"):
        read_network(tmp_path / f"none{suffix}", "relu", "cross-entropy")


def test_pickles_are_refused(tmp_path):
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("a file was unpickled",)

    path = tmp_path / "trap.npz"
    np.savez(path, **{"0.weight": np.array([Trap()], dtype=object)})
    with pytest.raises(InputError, match="trap.npz: it holds Python objects"):
        read_network(path, "relu", "cross-entropy")


def test_npy_under_the_name_of_npz_is_refused(tmp_path):
    with open(tmp_path / "net.npz", "wb") as file:
        np.save(file, np.ones((2, 2)))
    with pytest.raises(InputError, match="cannot read .*net.npz"):
        read_network(tmp_path / "net.npz", "relu", "cross-entropy")


def test_group_in_hdf5_is_an_odd_key(tmp_path):
    path = write(tmp_path / "group.h5", {"0/weight": np.ones((2, 2))})
    with pytest.raises(InputError, match="group.h5: odd key '0/weight'"):
        read_network(path, "relu", "cross-entropy")


def test_unknown_suffix(tmp_path):
    (tmp_path / "net.pt").write_bytes(b"")
    with pytest.raises(InputError, match=r"net.pt: weights are read from .npz, .safetensors, .h5"):
        read_network(tmp_path / "net.pt", "relu", "cross-entropy")


def test_unknown_dtype_of_safetensors(tmp_path):
    header = b'{"0.weight":{"dtype":"BF16","shape":[1,1],"data_offsets":[0,2]}}'
    path = tmp_path / "half.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    with pytest.raises(InputError, match="half.safetensors"):
        read_network(path, "relu", "cross-entropy")
