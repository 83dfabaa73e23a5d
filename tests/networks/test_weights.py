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
    path = write(tmp_path / f"gap{suffix}", {"0.weight": np.ones((2, 2)), "4.bias": np.ones(2), "4.weight": np.ones((2, 3))})
    with pytest.raises(InputError, match=rf"gap{suffix}: shapes do not chain .*: 0.weight \[2, 2\], 4.weight \[2, 3\]"):
        read_network(path, "relu", "cross-entropy")
    path = write(tmp_path / f"alone{suffix}", {"0.weight": np.ones((2, 2)), "2.bias": np.ones(2)})
    with pytest.raises(InputError, match=rf"alone{suffix}: 2.bias has no 2.weight"):
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


def test_groups_in_hdf5_are_dots(tmp_path):
    path = write(tmp_path / "group.h5", {key.replace(".", "/"): array for key, array in arrays().items()})
    assert read_network(path).digest() == Network.from_arrays(arrays(), "relu", "cross-entropy").digest()
    with pytest.raises(InputError, match="twice.h5: 0[./]weight is there twice"):
        read_network(write(tmp_path / "twice.h5", {"0/weight": np.ones((2, 2)), "0.weight": np.ones((2, 2))}))


def test_unknown_suffix(tmp_path):
    (tmp_path / "net.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"net.bin: networks are read from .npz, .safetensors, .h5, .hdf5, .pt, .pth, .keras, .onnx files"):
        read_network(tmp_path / "net.bin", "relu", "cross-entropy")


def safetensors(path, dtype, data):
    """A file of one tensor 0.weight [1, 2]."""
    header = b'{"0.weight":{"dtype":"%s","shape":[1,2],"data_offsets":[0,%d]}}' % (dtype.encode(), len(data))
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


def test_bfloat16_in_safetensors(tmp_path):
    """The upper half of a float32: 0x3fc0 is 1.5, 0xc020 is −2.5."""
    pytest.importorskip("safetensors")
    network = read_network(safetensors(tmp_path / "half.safetensors", "BF16", b"\xc0\x3f\x20\xc0"))
    np.testing.assert_array_equal(network.weights[0], [[1.5, -2.5]])


def test_unknown_dtype_of_safetensors(tmp_path):
    pytest.importorskip("safetensors")
    with pytest.raises(InputError, match="quarter.safetensors: .*0.weight holds F8_E5M2"):
        read_network(safetensors(tmp_path / "quarter.safetensors", "F8_E5M2", b"\0\0"))


def test_metadata_of_safetensors_say_the_activation(tmp_path):
    pytest.importorskip("safetensors")
    from safetensors.numpy import save_file

    path = tmp_path / "net.safetensors"
    save_file(arrays(), path, metadata={"activation": "tanh", "output": "sigmoid", "format": "pt"})
    network = read_network(path, loss="squared-error")
    assert network.activations == ["tanh"] and network.output == "sigmoid"
    assert read_network(path, "tanh", "binary-cross-entropy").output == "identity"
    with pytest.raises(InputError, match="the activation relu is asked for, but the file says tanh"):
        read_network(path, "relu", "squared-error")
    save_file(arrays(), path, metadata={"activation": "tanh, relu"})
    with pytest.raises(InputError, match="name 2 activations, it has 1 hidden layer"):
        read_network(path)


def test_archives_and_datasets_that_unpack_without_end(tmp_path, monkeypatch):
    """Zeros packed a thousandfold, and a dataset of a terabyte that was never written."""
    import zipfile

    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("0.weight.npy", "w") as member:
        member.write(bytes(1 << 22))
    monkeypatch.setattr("hpcHess.storage.archive.SMALL", 1 << 20)
    with pytest.raises(InputError, match="bomb.npz: it unpacks from"):
        read_network(tmp_path / "bomb.npz")
    import h5py

    with h5py.File(tmp_path / "bomb.h5", "w") as file:
        file.create_dataset("0.weight", (1 << 20, 1 << 18), "f4", chunks=(1 << 10, 1 << 10))
    with pytest.raises(InputError, match="bomb.h5: it unpacks from 0 to"):
        read_network(tmp_path / "bomb.h5")


@pytest.mark.parametrize("shape", [(10**9, 10**9), (10**30, 1), (4, 4), (-1, 2)])
def test_headers_that_promise_more_than_there_is(tmp_path, shape):
    import io
    import zipfile

    member = io.BytesIO()
    np.lib.format.write_array_header_1_0(member, {"descr": "<f8", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(tmp_path / "net.npz", "w") as archive:
        archive.writestr("0.weight.npy", member.getvalue() + b"1234")
    with pytest.raises(InputError, match="cannot read .*net.npz: "):
        read_network(tmp_path / "net.npz")


def test_values_in_other_files_are_refused(tmp_path):
    import h5py

    (tmp_path / "secret").write_bytes(bytes(32))
    with h5py.File(tmp_path / "net.h5", "w") as file:
        file.create_dataset("0.weight", (2, 2), "f8", external=[(str(tmp_path / "secret"), 0, 32)])
    with pytest.raises(InputError, match="net.h5 cannot be read: 0.weight lies in another file"):
        read_network(tmp_path / "net.h5")
