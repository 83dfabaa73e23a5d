"""Vectors in .npy and HDF5 files, whole on one rank against pieces on many."""

import os

import h5py
import numpy as np
import pytest

from hpcHess.parallel.ownership import row_starts
from hpcHess.runtime.errors import InputError
from hpcHess.storage import vectors
from hpcHess.storage.vectors import check_output, read_rows, write_rows
from tests.reference.hss import ReferenceHSS, write_reference

N = 11


def on_root_only(comm, change):
    if comm.rank == 0:
        change()
    comm.Barrier()


def store(spec, array):
    path, mark, name = str(spec).rpartition(":/")
    if not mark:
        np.save(spec, array)
        return
    with h5py.File(path, "a") as file:
        file[name] = array


def mine(array, comm):
    low, high = row_starts(len(array), comm.size)[comm.rank : comm.rank + 2]
    return array[low:high].reshape(high - low, 1 if array.ndim == 1 else array.shape[1])


def values(shape, dtype):
    return (np.random.default_rng(5).standard_normal(shape) * 9).astype(dtype)


@pytest.mark.parametrize("where", ["V.npy", "V.h5:/V", "V.h5:/a/b"])
@pytest.mark.parametrize("shape", [(N,), (N, 1), (N, 3)])
@pytest.mark.parametrize(
    ("dtype", "becomes"),
    [("<f8", "f8"), (">f8", "f8"), ("f4", "f4"), ("f2", "f4"), ("i4", "f8"), ("u1", "f8")],
)
def test_read(comm, shared_tmp, where, shape, dtype, becomes):
    array = values(shape, dtype)
    on_root_only(comm, lambda: store(shared_tmp / where, array))
    rows, one_dimensional = read_rows(f"{shared_tmp / where}", comm, N)
    assert np.array_equal(rows, mine(array, comm)) and one_dimensional == (len(shape) == 1)
    assert rows.dtype == np.dtype(becomes) and rows.dtype.isnative and rows.flags.c_contiguous


def test_read_fortran_order_in_pieces(comm, shared_tmp, monkeypatch):
    monkeypatch.setattr(vectors, "MESSAGE_BYTES", 100)
    array = np.asfortranarray(values((97, 5), float))
    on_root_only(comm, lambda: np.save(shared_tmp / "V.npy", array))
    assert np.array_equal(read_rows(shared_tmp / "V.npy", comm, 97)[0], mine(array, comm))


@pytest.mark.parametrize("where", ["V.npy", "V.h5:/V"])
@pytest.mark.parametrize("n", [1, 2])
def test_fewer_rows_than_ranks(comm, shared_tmp, where, n):
    array = values((n, 2), float)
    write_rows(shared_tmp / where, comm, mine(array, comm), False, n)
    assert np.array_equal(read_rows(shared_tmp / where, comm, n)[0], mine(array, comm))


@pytest.mark.parametrize("where", ["U.npy", "U.h5:/U", "U.h5:/a/b/U"])
@pytest.mark.parametrize(("shape", "dtype"), [((101,), "f8"), ((101, 1), "f4"), ((101, 7), "f8"), ((101, 7), "f4")])
def test_write(comm, shared_tmp, monkeypatch, where, shape, dtype):
    monkeypatch.setattr(vectors, "MESSAGE_BYTES", 200)  # several messages of every rank
    array = values(shape, dtype)
    spec = shared_tmp / where
    check_output(spec, comm)
    assert os.listdir(shared_tmp) == []
    comm.Barrier()
    for _ in range(2):  # the second time over the first
        write_rows(spec, comm, mine(array, comm), len(shape) == 1, len(array))
        path, mark, name = str(spec).rpartition(":/")
        if mark:
            with h5py.File(path, "r") as file:
                found = file[name][()]
        else:
            found = np.load(spec, allow_pickle=False)
        assert np.array_equal(found, array) and found.shape == shape and found.dtype == array.dtype
        assert os.listdir(shared_tmp) == [os.path.basename(path or spec)]
        comm.Barrier()


def test_write_into_a_file_keeps_the_rest(comm, shared_tmp):
    path = shared_tmp / "results.h5"

    def make():
        with h5py.File(path, "w") as file:
            file["keep"], file["group/keep"], file["U"] = np.arange(5), np.arange(6), np.zeros(3)
            file.attrs["note"] = "kept"

    on_root_only(comm, make)
    array = values((N, 2), float)
    write_rows(f"{path}:/U", comm, mine(array, comm), False, N)  # another shape than what is there
    write_rows(f"{path}:/group/U", comm, mine(array[:, 0], comm), True, N)
    with h5py.File(path, "r") as file:
        assert np.array_equal(file["keep"], np.arange(5)) and np.array_equal(file["group/keep"], np.arange(6))
        assert np.array_equal(file["U"], array) and np.array_equal(file["group/U"], array[:, 0])
        assert file.attrs["note"] == "kept" and sorted(file) == ["U", "group", "keep"] and sorted(file["group"]) == ["U", "keep"]
    comm.Barrier()


@pytest.mark.parametrize("where", ["U.npy", "U.h5:/U", "old.h5:/U"])
def test_failed_write_leaves_what_was_there(comm, shared_tmp, monkeypatch, where):
    """The writer fails at the second message while the other ranks still send theirs."""
    monkeypatch.setattr(vectors, "MESSAGE_BYTES", 200)
    old, new = values(101, float), values((101, 5), float)
    write_rows(shared_tmp / where, comm, mine(old, comm), True, 101)
    original = vectors._destination

    def failing(*arguments):
        destination = original(*arguments)

        class Failing:
            def __enter__(self):
                self.put, self.calls = destination.__enter__(), 0
                return self.fail

            def fail(self, low, rows):
                self.calls += 1
                if self.calls == 2:
                    raise OSError(28, "No space left on device")
                self.put(low, rows)

            def __exit__(self, *error):
                return destination.__exit__(*error)

        return Failing()

    monkeypatch.setattr(vectors, "_destination", failing)
    with pytest.raises(InputError, match="cannot write .*No space left"):
        write_rows(shared_tmp / where, comm, mine(new, comm), False, 101)
    assert np.array_equal(read_rows(shared_tmp / where, comm, 101)[0], mine(old, comm))
    assert len(os.listdir(shared_tmp)) == 1
    if where.startswith("old"):
        with h5py.File(shared_tmp / "old.h5", "r") as file:
            assert list(file) == ["U"]
    comm.Barrier()


def bad(shape=(N,), at=(-1,), value=np.nan):
    array = np.ones(shape)
    array[at] = value
    return array


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.ones(N + 1), (f"{N + 1} rows", f"{N} parameters")),
        (np.ones((3, N)), ("3 rows", f"{N} parameters")),
        (np.ones((N, 2, 2)), ("shape", f"[{N}, k]")),
        (np.float64(3), ("shape", f"[{N}, k]")),
        (np.ones((N, 0)), ("",)),
        (np.ones(N, complex), ("complex128", "real numbers")),
        (np.ones(N, bool), ("bool", "real numbers")),
        (np.array([b"x"] * N), ("real numbers",)),
        (bad(), ("NaN or Inf", f"row {N - 1}")),
        (bad((N, 3), (0, 2), -np.inf), ("NaN or Inf", "row 0, column 2")),
    ],
)
@pytest.mark.parametrize("where", ["V.npy", "V.h5:/V"])
def test_bad_vectors_are_refused_on_every_rank(comm, shared_tmp, where, array, words):
    on_root_only(comm, lambda: store(shared_tmp / where, array))
    with pytest.raises(InputError) as caught:
        read_rows(str(shared_tmp / where), comm, N, what="input")
    message = str(caught.value)
    assert set(comm.allgather(message)) == {message} and "\n" not in message and message.startswith("input ")
    for word in words:
        assert word in message
    comm.Barrier()


def test_unreadable_vectors_are_refused(comm, shared_tmp):
    def make():
        np.save(shared_tmp / "pickled.npy", np.array([{}] * N, dtype=object), allow_pickle=True)
        np.save(shared_tmp / "cut.npy", np.ones(N))
        os.truncate(shared_tmp / "cut.npy", 150)
        (shared_tmp / "text.npy").write_text("1 2 3")
        (shared_tmp / "empty.npy").write_text("")
        (shared_tmp / "text.h5").write_text("1 2 3")
        np.savez(shared_tmp / "archive.npz", np.ones(N))
        os.rename(shared_tmp / "archive.npz", shared_tmp / "archive.npy")
        store(f"{shared_tmp}/V.h5:/g/V", np.ones(N))
        with h5py.File(shared_tmp / "V.h5", "a") as file:
            file["cut"] = np.ones(40000)
            file["null"] = h5py.Empty("f8")
            file["nowhere"] = h5py.SoftLink("/missing")

    on_root_only(comm, make)
    for spec, words in {
        "missing.npy": "does not exist",
        "pickled.npy": "Python objects",
        "cut.npy": "truncated",
        "text.npy": "no .npy file",
        "empty.npy": "no .npy file",
        "archive.npy": "no .npy file of one array",
        "V.txt": "ends in .npy",
        "V.h5": "ends in .npy, or a dataset as file.h5:/name",
        "V.h5:/": "ends in .npy",
        "V.h5:/missing": "no dataset /missing",
        "V.h5:/nowhere": "no dataset /nowhere",
        "V.h5:/g": "no dataset /g",
        "V.h5:/null": "shape",
        "missing.h5:/V": "does not exist",
        "text.h5:/V": "not an HDF5 file",
        ".": "ends in .npy",
    }.items():
        with pytest.raises(InputError, match=words) as caught:
            read_rows(f"{shared_tmp}/{spec}", comm, N)
        assert "\n" not in str(caught.value)


def test_unwritable_outputs_are_refused_before_and_when_writing(comm, shared_tmp):
    hss = ReferenceHSS()
    write_reference(hss, shared_tmp / "F.h5", comm)

    def make():
        (shared_tmp / "text.h5").write_text("1 2 3")
        store(f"{shared_tmp}/V.h5:/g/V", np.ones(N))

    on_root_only(comm, make)
    listing = sorted(os.listdir(shared_tmp))
    contents = {name: (shared_tmp / name).read_bytes() for name in listing}
    comm.Barrier()
    for spec, words in {
        "missing/U.npy": "not a directory",
        "V.h5/U.npy": "not a directory",
        "missing/U.h5:/U": "not a directory",
        "U.txt": "ends in .npy",
        "text.h5:/U": "not an HDF5 file",
        "V.h5:/g": "is a group",
        "V.h5:/g/V/U": "is a dataset",
        "F.h5:/U": "is a factor file",
    }.items():
        for attempt in (lambda s: check_output(s, comm), lambda s: write_rows(s, comm, mine(np.ones(N), comm), True, N)):
            with pytest.raises(InputError, match=words):
                attempt(f"{shared_tmp}/{spec}")
    comm.Barrier()
    assert sorted(os.listdir(shared_tmp)) == listing
    assert {name: (shared_tmp / name).read_bytes() for name in listing} == contents
    comm.Barrier()
