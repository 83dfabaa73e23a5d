"""The factor file: whole or not there, and every kind of damage is found, with one line, on every rank."""

import os
import resource
import shutil
import subprocess
import time
import zlib

import h5py
import numpy as np
import pytest
from mpi4py import MPI

from hpcHess.runtime.errors import InputError
from hpcHess.storage import factor_file
from hpcHess.storage.factor_file import FactorFile, check_writable, write
from tests.storage.launch import FOR_MANY_RANKS, command, launch, outside_mpi

LENGTH = 3 * (factor_file.CHECKED_BYTES // 8) + 17  # four checksums
ATTRIBUTES = {"matrix_format": "hss", "n_params": 7, "report": '{"rtol": 1e-3}', "scale": 0.1, "good": True, "name": "H̃"}


def sample():
    rng = np.random.default_rng(3)
    return {
        "far/values": rng.standard_normal(LENGTH),
        "nodes/rank": rng.integers(0, 99, 1001),
        "near/values": rng.standard_normal(5003).astype(np.float32),
        "nothing": np.zeros(0),
    }


def write_sample(path, comm, seed=1, attributes=ATTRIBUTES):
    """Random pieces, dealt to the ranks in turn and shuffled."""
    arrays, rng = sample(), np.random.default_rng(seed)
    pieces = {}
    for name, array in arrays.items():
        cuts = np.unique(np.concatenate([[0, array.size], rng.integers(0, array.size + 1, 40)]))
        mine = list(zip(cuts[:-1], cuts[1:], strict=True))[comm.rank :: comm.size]
        np.random.default_rng(comm.rank).shuffle(mine)
        if mine:
            pieces[name] = [(low, array[low:high]) for low, high in mine]
    write(path, comm, attributes, pieces, {name: (array.size, array.dtype) for name, array in arrays.items()})


@pytest.fixture
def path(comm, shared_tmp):
    write_sample(shared_tmp / "F.h5", comm)
    return shared_tmp / "F.h5"


def on_root_only(comm, change):
    if comm.rank == 0:
        change()
    comm.Barrier()


def refused(comm, path, *words, verify=True):
    """Opening fails on every rank with the same single line that names the file and contains `words`."""
    with pytest.raises(InputError) as caught:
        FactorFile(path, comm, verify=verify)
    message = str(caught.value)
    assert set(comm.allgather(message)) == {message}
    assert "\n" not in message and path.name in message
    for word in words:
        assert word in message


def test_comes_back(comm, path):
    with FactorFile(path, comm) as file:
        assert file.names == list(sample())
        assert file.attributes == {**ATTRIBUTES, "format": "hpcHess factor file", "format_version": 1, "complete": True}
        assert [type(file.attributes[name]) for name in ("n_params", "scale", "good")] == [int, float, bool]
        for name, array in sample().items():
            assert file.size(name) == array.size
            found = file.read_all(name)
            assert np.array_equal(found, array) and found.dtype == array.dtype
            low = min(comm.rank * 7, array.size)  # every rank another slice, at its own pace
            assert np.array_equal(file.read(name, low, array.size), array[low:])
            assert file.read(name, low, low).shape == (0,)
        with pytest.raises(IndexError):
            file.read("nodes/rank", 0, 1002)
        with pytest.raises(InputError, match="has no dataset far/pairs"):
            file.size("far/pairs")


def test_checksums_are_those_of_the_specification(comm, path):
    """Computed here from the arrays in memory, in 4 MiB pieces of the little-endian bytes."""
    with h5py.File(path, "r") as file:
        for name, array in sample().items():
            content = array.astype(array.dtype.newbyteorder("<")).tobytes()
            expected = [zlib.crc32(content[at : at + (4 << 20)]) for at in range(0, len(content), 4 << 20)]
            assert file[f"checksums/{name}"][:].tolist() == expected
        assert len(file["checksums/far/values"]) == 4


def test_equal_input_gives_equal_bytes(comm, shared_tmp, monkeypatch):
    write_sample(shared_tmp / "A.h5", comm, seed=1)
    time.sleep(1.1)  # HDF5's time stamps have seconds
    monkeypatch.setattr(factor_file, "ROUND_BYTES", 1 << 20)  # many collective writes, of ranks with unequal numbers of pieces
    monkeypatch.setattr(factor_file, "ROUND_RUNS", 3)
    write_sample(shared_tmp / "B.h5", comm, seed=2)
    assert (shared_tmp / "A.h5").read_bytes() == (shared_tmp / "B.h5").read_bytes()


def test_values_are_cast_to_the_datasets_type(comm, shared_tmp):
    value = np.full(4, 1 / 3)
    pieces = {"x": [(4 * comm.rank, value)]}
    write(shared_tmp / "F.h5", comm, {}, pieces, {"x": (4 * comm.size, np.float32)})
    with FactorFile(shared_tmp / "F.h5", comm) as file:
        assert np.array_equal(file.read_all("x"), np.full(4 * comm.size, np.float32(1 / 3)))
    with pytest.raises((TypeError, RuntimeError), match="float64 values for a dataset of int64"):
        write(shared_tmp / "G.h5", comm, {}, pieces, {"x": (4 * comm.size, np.int64)})
    assert os.listdir(shared_tmp) == ["F.h5"]


@pytest.mark.parametrize("fault", ["gap", "overlap", "beyond"])
def test_pieces_that_do_not_cover_are_refused(comm, shared_tmp, fault):
    pieces = {"x": [(2 * comm.rank, np.ones(2))]}
    if comm.rank == comm.size - 1:
        pieces["x"] = {
            "gap": [(2 * comm.rank, np.ones(1))],
            "overlap": [*pieces["x"], (0, np.ones(1))],
            "beyond": [(2 * comm.rank, np.ones(3))],
        }[fault]
    with pytest.raises((ValueError, RuntimeError), match="cover|outside"):
        write(shared_tmp / "F.h5", comm, {}, pieces, {"x": (2 * comm.size, np.float64)})
    comm.Barrier()
    assert os.listdir(shared_tmp) == []


def test_every_flipped_bit_of_the_data_is_found(comm, path):
    """One bit in each of the checksummed pieces, flipped and restored."""
    with h5py.File(path, "r") as file:
        places = [(name, file[name].id.get_offset(), file[name].id.get_storage_size()) for name, array in sample().items() if array.size]
    rng = np.random.default_rng(0)
    for name, offset, length in places:
        for at in (offset, offset + length - 1, offset + int(rng.integers(length))):

            def flip(at=at):
                with open(path, "r+b") as file:
                    file.seek(at)
                    byte = file.read(1)[0]
                    file.seek(at)
                    file.write(bytes([byte ^ 16]))

            on_root_only(comm, flip)
            refused(comm, path, "damaged", "checksum", name)
            with FactorFile(path, comm, verify=False) as file, pytest.raises(InputError, match=name):
                file.verify()
            comm.Barrier()
            on_root_only(comm, flip)
    FactorFile(path, comm).close()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("n_params", 8, ("damaged", "attributes")),
        ("report", '{"rtol": 1e-4}', ("damaged", "attributes")),
        ("extra", "x", ("damaged", "attributes")),
        ("format", "something", ("not a factor file",)),
        ("format_version", 2, ("version 2", "reads version 1")),
        ("complete", False, ("incomplete",)),
        ("format", None, ("not a factor file",)),
        ("complete", None, ("incomplete",)),
        ("n_params", None, ("damaged", "attributes")),
    ],
)
def test_changed_attributes_are_found(comm, path, name, value, words):
    def change():
        with h5py.File(path, "r+") as file:
            if value is None:
                del file.attrs[name]
            else:
                file.attrs[name] = value

    on_root_only(comm, change)
    refused(comm, path, *words, verify=False)


@pytest.mark.parametrize("name", ["nodes/rank", "checksums/nodes/rank"])
def test_missing_dataset_is_found(comm, path, name):
    def remove():
        with h5py.File(path, "r+") as file:
            del file[name]

    on_root_only(comm, remove)
    refused(comm, path, "damaged", name)


@pytest.mark.parametrize("kept", [0, 1, 7, 100, 2000, 0.5, -1])
def test_truncated_file_is_refused(comm, path, kept):
    size = path.stat().st_size
    length = size + kept if kept < 0 else int(size * kept) if isinstance(kept, float) else kept
    comm.Barrier()
    on_root_only(comm, lambda: os.truncate(path, length))
    refused(comm, path, "not an HDF5 file" if length < 100 else "truncated", verify=False)


def test_other_files_are_refused(comm, shared_tmp):
    def make():
        (shared_tmp / "text.h5").write_text("not HDF5\n" * 100)
        with h5py.File(shared_tmp / "other.h5", "w") as file:
            file["x"] = np.ones(3)
            file.attrs["array"] = np.ones(3)

    on_root_only(comm, make)
    refused(comm, shared_tmp / "text.h5", "not an HDF5 file")
    refused(comm, shared_tmp / "other.h5", "no factor file")
    refused(comm, shared_tmp / "missing.h5", "does not exist")
    refused(comm, shared_tmp, "not a file")


def test_unwritable_places_are_refused(comm, shared_tmp):
    on_root_only(comm, lambda: (shared_tmp / "file").write_text("x"))
    bad = ("missing/F.h5", "file/F.h5", ".", "n" * 250 + ".h5")
    for name in bad:
        for attempt in (check_writable, lambda path, comm: write_sample(path, comm)):
            with pytest.raises(InputError, match="cannot write"):
                attempt(shared_tmp / name, comm)
    comm.Barrier()
    assert os.listdir(shared_tmp) == ["file"]
    assert check_writable(shared_tmp / "F.h5", comm) == os.path.realpath(shared_tmp / "F.h5")
    assert os.listdir(shared_tmp) == ["file"]


@pytest.mark.parametrize("step", ["_prepare_round", "_checksum", "_complete"])
@pytest.mark.parametrize("kind", [RuntimeError, OSError])
def test_error_on_one_rank_leaves_the_old_file(comm, path, monkeypatch, step, kind):
    """The last rank fails in the middle (rank 0 where only it works); an OSError is the disk's and becomes the user's."""
    before = path.read_bytes()
    original, calls = getattr(factor_file, step), []

    def failing(*arguments):
        calls.append(1)
        if comm.rank == (0 if step == "_complete" else comm.size - 1):
            if step == "_complete":
                original(arguments[0], arguments[0] + "2", *arguments[2:])  # nearly done
                os.rename(arguments[0] + "2", arguments[0])
            raise kind("disk is gone")
        return original(*arguments)

    monkeypatch.setattr(factor_file, step, failing)
    with pytest.raises((kind, RuntimeError, InputError), match="disk is gone"):
        write_sample(path, comm, attributes={"changed": 1})
    assert sum(comm.allgather(len(calls))) > 0
    comm.Barrier()
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["F.h5"]


def test_no_room_is_said_before_writing(comm, path):
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(InputError, match="cannot write .* needs .* MB"):
            write_sample(path, comm)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["F.h5"]


def test_lost_write_is_found(comm, shared_tmp, monkeypatch):
    """A write that reports success but does not reach the disk, on the last rank: the data read back differ."""
    original = factor_file._prepare_round

    def losing(dataset, runs, parallel):
        memory, chosen, buffer, *more = original(dataset, runs, parallel)
        return memory, chosen, buffer * (comm.rank < comm.size - 1), *more

    monkeypatch.setattr(factor_file, "_prepare_round", losing)
    with pytest.raises(InputError, match="does not read back"):
        write_sample(shared_tmp / "F.h5", comm)
    comm.Barrier()
    assert os.listdir(shared_tmp) == []


STOPPED = """
import sys, time
from mpi4py import MPI
import numpy as np
from hpcHess.runtime.session import run_driver
from hpcHess.storage import factor_file
import argparse

def main(session, args):
    comm, original = session.comm, factor_file._checksum
    def slow(*arguments):  # the data are on the disk, the checksums not yet
        if comm.rank == 0:
            print("writing", flush=True)
        time.sleep(30)
        return original(*arguments)
    factor_file._checksum = slow
    piece = np.ones(100000)
    factor_file.write(args.path, comm, {}, {"x": [(piece.size * comm.rank, piece)], "y": []}, {"x": (piece.size * comm.size, np.float64)})

def build_parser():
    parser = argparse.ArgumentParser()
    parser.add_argument("path")
    return parser

run_driver("stopped", build_parser, main)
"""


@pytest.mark.skipif(MPI.COMM_WORLD.size > 1, reason="starts its own mpiexec")
@pytest.mark.parametrize("ranks", [1, 2])
def test_terminated_write_leaves_the_old_file(comm, shared_tmp, ranks):
    path = shared_tmp / "out" / "F.h5"
    path.parent.mkdir()
    write_sample(path, comm)
    before = path.read_bytes()
    script = shared_tmp / "stopped.py"
    script.write_text(STOPPED)
    environment = {**FOR_MANY_RANKS, **outside_mpi()}
    arguments = command(ranks, script, path)
    with subprocess.Popen(arguments, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as job:
        assert job.stdout.readline() == b"writing\n"
        assert len(os.listdir(path.parent)) == 2
        job.terminate()  # mpiexec passes it on, and kills a second later
        try:
            assert job.wait(timeout=30) != 0
        finally:
            job.kill()
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["F.h5"]


def test_writes_and_reads_on_a_part_of_the_ranks(comm, shared_tmp):
    """Sub-communicators write their own files at the same time."""
    part = comm.Split(comm.rank % 2)
    write_sample(shared_tmp / f"F{comm.rank % 2}.h5", part)
    with FactorFile(shared_tmp / f"F{comm.rank % 2}.h5", part) as file:
        assert np.array_equal(file.read_all("nodes/rank"), sample()["nodes/rank"])
    part.Free()
    comm.Barrier()


def test_link_is_followed(comm, shared_tmp):
    on_root_only(comm, lambda: ((shared_tmp / "d").mkdir(), os.symlink(shared_tmp / "d" / "F.h5", shared_tmp / "link.h5")))
    write_sample(shared_tmp / "link.h5", comm)
    assert (shared_tmp / "link.h5").is_symlink() and os.listdir(shared_tmp / "d") == ["F.h5"]
    FactorFile(shared_tmp / "link.h5", comm).close()


def test_copy_is_as_good(comm, path):
    on_root_only(comm, lambda: shutil.copy(path, path.parent / "copy.h5"))
    FactorFile(path.parent / "copy.h5", comm).close()


SERIAL = """
import os, sys
from mpi4py import MPI

for name in ("OMPI_COMM_WORLD_SIZE", "H5PY_ALWAYS_USE_MPI"):  # Debian's h5py chooses its build by them
    os.environ.pop(name, None)
import h5py
import numpy as np
from hpcHess.runtime.errors import InputError
from hpcHess.storage.factor_file import FactorFile, write

comm, path = MPI.COMM_WORLD, sys.argv[1]
if h5py.get_config().mpi:
    print("parallel", flush=True)
elif comm.size == 1:
    write(path, comm, {}, {"x": [(0, np.arange(5))]}, {"x": (5, np.int64)})
else:
    with FactorFile(path, comm) as file:
        assert np.array_equal(file.read_all("x"), np.arange(5))
    try:
        write(path, comm, {}, {}, {"x": (0, np.int64)})
    except InputError as error:
        assert "without MPI" in str(error)
        print("refused", flush=True)
"""


@pytest.mark.skipif(MPI.COMM_WORLD.size > 1, reason="starts its own mpiexec")
def test_serial_hdf5_writes_on_one_rank_and_reads_on_many(shared_tmp):
    script = shared_tmp / "serial.py"
    script.write_text(SERIAL)
    written = launch(1, script, shared_tmp / "F.h5")
    assert written.returncode == 0, written.stderr
    if "parallel" in written.stdout:
        pytest.skip("this h5py has no serial build")
    done = launch(2, script, shared_tmp / "F.h5")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("refused") == 2
