"""Dense matrices in files: what is mapped, and what is refused in one line."""

import h5py
import numpy as np
import pytest

from hpcHess.parallel.agree import on_root
from hpcHess.runtime.errors import InputError
from hpcHess.storage.dense import check_dense_output, open_dense, write_dense


def symmetric(n=7, dtype=np.float32):
    A = np.random.default_rng(0).standard_normal((n, n))
    return (A + A.T).astype(dtype)


@pytest.fixture
def made(comm, shared_tmp):
    """made(name, content): path of a file that rank 0 writes by `content(path)`. Collective."""

    def write(name, content):
        on_root(comm, lambda: content(shared_tmp / name) and None)
        return shared_tmp / name

    return write


def refused(comm, spec, n, *words):
    with pytest.raises(InputError) as caught:
        open_dense(spec, n, comm)
    said = str(caught.value)
    assert "\n" not in said and all(word in said for word in words), said


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", ">f8"])
@pytest.mark.parametrize("order", "CF")
def test_npy_is_mapped_in_its_own_type(made, comm, dtype, order):
    K = symmetric().astype(dtype)
    found = open_dense(made("K.npy", lambda path: np.save(path, np.asarray(K, order=order))), None, comm)
    assert found.dtype == np.dtype(dtype) and not found.flags.owndata and not found.flags.writeable
    np.testing.assert_array_equal(found, K)


def test_raw_is_little_endian_float32(made, comm):
    K = symmetric()
    spec = made("K.bin", lambda path: K.astype("<f4").tofile(path))
    np.testing.assert_array_equal(open_dense(spec, 7, comm), K)


@pytest.mark.parametrize("userblock", [0, 512])
def test_hdf5_datasets_are_mapped(made, comm, userblock):
    K = symmetric(dtype=np.float64)

    def content(path):
        with h5py.File(path, "w", userblock_size=userblock) as file:
            file["x"] = np.arange(5)
            file["in/K"] = K

    path = made("K.h5", content)
    found = open_dense(f"{path}:/in/K", 7, comm)
    assert not found.flags.owndata
    np.testing.assert_array_equal(found, K)


def test_lengths(made, comm):
    raw = made("K.f32", lambda path: symmetric().tofile(path))
    refused(comm, raw, None, "needs n", "n = 7")
    refused(comm, raw, 8, "wrong length", "256 bytes", "196")
    refused(comm, made("D.f32", lambda path: symmetric(dtype=np.float64).tofile(path)), 7, "float64")
    refused(comm, raw, 0, "at least 1")

    def cut(path):
        np.save(path, symmetric())
        path.write_bytes(path.read_bytes()[:-1])

    refused(comm, made("cut.npy", cut), None, "too short", "324", "323")


def test_npy_that_is_none(made, comm):
    np_save = lambda array: lambda path: np.save(path, array)  # noqa: E731
    refused(comm, made("a.npy", np_save(np.ones((3, 4)))), None, "not square", "[3, 4]")
    refused(comm, made("b.npy", np_save(np.ones(9))), None, "not square")
    refused(comm, made("c.npy", np_save(np.ones((3, 3), int))), None, "int64", "astype")
    refused(comm, made("d.npy", np_save(np.ones((3, 3), complex))), None, "complex128")
    refused(comm, made("e.npy", np_save(np.array([[None]]))), None, "Python objects")
    refused(comm, made("f.npy", np_save(np.ones((0, 0)))), None, "empty")
    refused(comm, made("g.npy", np_save(symmetric())), 8, "7 × 7", "contradicts n = 8")
    refused(comm, made("h.npy", lambda path: path.write_bytes(b"no array")), None, "no .npy file")
    refused(comm, made("i.npy", lambda path: path.mkdir()), None, "not a file")
    refused(comm, made("j.npy", np_save(np.ones((3, 3), np.float16))), None, "float16")
    refused(comm, "/nowhere/K.npy", None, "does not exist")


def test_hdf5_that_cannot_be_mapped(made, comm):
    def content(path):
        with h5py.File(path, "w") as file:
            file.create_dataset("chunked", data=np.ones((4, 4)), chunks=(2, 2))
            file.create_dataset("packed", data=np.ones((4, 4)), compression="gzip")
            file.create_dataset("unwritten", (4, 4), "f8")
            file.create_dataset("words", data="text")
            file.create_group("group")

    path = made("K.h5", content)
    for name in ("chunked", "packed", "unwritten"):
        refused(comm, f"{path}:/{name}", None, "one piece", "h5repack")
    refused(comm, f"{path}:/words", None, "not float32 or float64")
    for name in ("group", "absent"):
        refused(comm, f"{path}:/{name}", None, f"no dataset /{name}")
    refused(comm, path, None, "name the dataset")
    refused(comm, f"{made('L.h5', lambda path: path.write_text('text'))}:/K", None, "not an HDF5 file")


@pytest.mark.parametrize("name", ["K.npy", "K.h5:/a/K", "K.f32"])
def test_what_is_written_is_read(comm, shared_tmp, name):
    K, spec = symmetric(), f"{shared_tmp}/{name}"
    on_root(comm, write_dense, spec, K)
    np.testing.assert_array_equal(open_dense(spec, 7, comm), K)
    assert on_root(comm, lambda: [each.name for each in shared_tmp.iterdir()]) == [name.partition(":")[0]]


def test_outputs_are_checked_before(comm, shared_tmp):
    def wrong(spec, dtype):
        with pytest.raises(InputError) as caught:
            on_root(comm, check_dense_output, spec, dtype)
        return str(caught.value)

    assert "name it .npy" in wrong(shared_tmp / "K.bin", np.float64)
    assert "not a directory" in wrong(shared_tmp / "none" / "K.npy", np.float32)
    on_root(comm, write_dense, f"{shared_tmp}/K.h5:/K", symmetric())
    assert "exists" in wrong(f"{shared_tmp}/K.h5:/L", np.float32)
