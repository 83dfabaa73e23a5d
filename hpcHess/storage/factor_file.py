"""The factor file: attributes and large one-dimensional datasets in parallel HDF5, atomic and checksummed (docs/FORMAT.md).

Nothing here knows what the datasets mean. Writing uses HDF5's MPI driver when there are several ranks; reading opens the file on
every rank by itself, so any number of ranks, and a serial h5py, reads what any other wrote.
"""

import hashlib
import json
import os
import zlib
from contextlib import suppress

import h5py
import numpy as np
from mpi4py import MPI

from hpcHess.parallel.agree import agree, on_root, together
from hpcHess.parallel.ownership import row_starts
from hpcHess.runtime.errors import InputError
from hpcHess.storage.atomic import check_room, check_writable, discard, partial_name, publish
from hpcHess.storage.hdf5 import closing, disk_errors, open_hdf5

__all__ = ["FORMAT", "FORMAT_VERSION", "FactorFile", "check_writable", "write"]

FORMAT = "hpcHess factor file"
FORMAT_VERSION = 1
CHECKED_BYTES = 4 << 20  # of one checksum; a multiple of every item size
METADATA_BYTES = 1 << 20  # room for headers, checksums and attributes
ROUND_BYTES = 128 << 20  # of one collective write of a rank, and of one read: far from MPI's and HDF5's 2 GiB
ROUND_RUNS = 1024  # separate pieces in one collective write: HDF5 joins selections one by one
INTEGRITY = ("attributes_sha256", "datasets")  # root attributes that `FactorFile.attributes` leaves out


def write(path, comm, attributes, pieces, totals):
    """Write a factor file. Collective; every rank gives its own pieces.

    attributes  dict of str, bool, int and float; rank 0's count. `format`, `format_version` and `complete` are added.
    pieces      {dataset: [(start, array), …]}: this rank's share, any number of pieces, converted to the dataset's type
                (same kind only); names may hold slashes, a dataset without pieces here may be missing.
    totals      {dataset: (length, dtype)}: the same on every rank. All ranks' pieces cover each dataset exactly once.

    The file is written as `path`.partial-<pid>, read back for its checksums, marked complete, flushed and renamed. Whatever goes
    wrong, the temporary file is removed and a file that was there before stays as it was. Equal input gives equal bytes.
    Raises InputError where the file cannot be written, ValueError where the pieces do not cover a dataset.
    """
    target = check_writable(path, comm)
    if comm.size > 1 and not h5py.get_config().mpi:
        raise InputError(f"cannot write {path!s} on {comm.size} ranks: h5py was built without MPI; install a parallel h5py or use one rank")
    totals = {name: (int(total), np.dtype(dtype).newbyteorder("<")) for name, (total, dtype) in totals.items()}
    with together(comm):
        pieces = {name: _runs(pieces.get(name, []), total, dtype) for name, (total, dtype) in totals.items()}
    _check_cover(comm, pieces, totals)
    on_root(comm, check_room, target, METADATA_BYTES + sum(total * dtype.itemsize for total, dtype in totals.values()))
    temporary = partial_name(target, comm)
    try:
        _write_datasets(temporary, comm, pieces, totals)
        checksums = _checksums_on_root(temporary, comm, pieces, totals)
        on_root(comm, _complete, temporary, target, attributes, totals, checksums)
    except BaseException:
        discard(temporary)
        raise


def _runs(given, total, dtype):
    """[(start, flat array), …] sorted, without empty ones, none beyond `ROUND_BYTES`."""
    step = ROUND_BYTES // dtype.itemsize
    runs = []
    for start, values in given:
        values = np.asarray(values).reshape(-1)
        if not np.can_cast(values.dtype, dtype, "same_kind"):
            raise TypeError(f"{values.dtype} values for a dataset of {dtype}")
        if start < 0 or start + values.size > total:
            raise ValueError(f"piece [{start}, {start + values.size}) outside of a dataset of length {total}")
        runs += [(int(start) + at, values[at : at + step]) for at in range(0, values.size, step)]
    return sorted(runs, key=lambda run: run[0])


def _check_cover(comm, pieces, totals):
    """ValueError everywhere unless the ranks' pieces cover every dataset exactly once, and `totals` agree. Collective."""
    intervals = {name: _joined([(start, start + values.size) for start, values in runs]) for name, runs in pieces.items()}
    gathered = comm.gather((totals, intervals))
    error = None
    if comm.rank == 0:
        if any(theirs != totals or list(theirs) != list(totals) for theirs, _ in gathered):
            error = ValueError("the ranks disagree on the datasets")
        for name, (total, _) in totals.items() if error is None else ():
            covered = _joined(sorted(interval for _, theirs in gathered for interval in theirs[name]))
            if covered != ([(0, total)] if total else []):
                error = ValueError(f"the pieces of {name} cover {covered[:4]} instead of [0, {total})")
    agree(comm, error)


def _joined(intervals):
    """Sorted intervals with neighbours that touch joined; overlapping ones stay apart."""
    joined = []
    for low, high in intervals:
        if joined and joined[-1][1] == low:
            joined[-1] = (joined[-1][0], high)
        else:
            joined.append((low, high))
    return joined


def _write_datasets(temporary, comm, pieces, totals):
    parallel = comm.size > 1
    file = None
    with together(comm), disk_errors(temporary):
        file = h5py.File(temporary, "w", driver="mpio", comm=comm) if parallel else h5py.File(temporary, "w")
    try:
        for name, (total, dtype) in totals.items():
            with together(comm), disk_errors(temporary):
                dataset = file.create_dataset(name, (total,), dtype, track_times=False)
            rounds = _rounds(pieces[name])
            for number in range(comm.allreduce(len(rounds), MPI.MAX)):
                with together(comm):  # whoever cannot prepare must not leave the others in the collective write
                    arguments = _prepare_round(dataset, rounds[number] if number < len(rounds) else [], parallel)
                with together(comm), disk_errors(temporary):
                    dataset.id.write(*arguments)
    except BaseException as error:
        # an Exception is agreed, so every rank is here; any other may be one rank's, and closing is collective
        if isinstance(error, Exception) or not parallel:
            with suppress(OSError, RuntimeError):
                file.close()
        raise
    with together(comm), disk_errors(temporary):
        file.close()


def _rounds(runs):
    """Sorted runs in groups of at most `ROUND_BYTES` and `ROUND_RUNS`."""
    rounds, room = [], 0
    for run in runs:
        if not rounds or room < run[1].nbytes or len(rounds[-1]) == ROUND_RUNS:
            rounds.append([])
            room = ROUND_BYTES
        rounds[-1].append(run)
        room -= run[1].nbytes
    return rounds


def _prepare_round(dataset, runs, parallel):
    """Arguments of one write of the union of `runs`; with `parallel` a collective one, and `runs` may be empty."""
    # The buffer has the dataset's own type: HDF5 silently makes a converting collective write independent.
    buffer = np.concatenate([values for _, values in runs] or [np.empty(0)]).astype(dataset.dtype)
    chosen = dataset.id.get_space()
    chosen.select_none()
    for low, high in _joined([(start, start + values.size) for start, values in runs]):
        chosen.select_hyperslab((low,), (high - low,), op=h5py.h5s.SELECT_OR)
    transfer = h5py.h5p.create(h5py.h5p.DATASET_XFER)
    if parallel:
        transfer.set_dxpl_mpio(h5py.h5fd.MPIO_COLLECTIVE)
    return h5py.h5s.create_simple((buffer.size,)), chosen, buffer, None, transfer


def _complete(temporary, target, attributes, totals, checksums):
    """Checksums and attributes, `complete` last; then the file gets its name. One rank."""
    described = {name: [total, dtype.str] for name, (total, dtype) in totals.items()}
    attributes = {**attributes, "format": FORMAT, "format_version": FORMAT_VERSION, "complete": True, "datasets": json.dumps(described)}
    attributes = {name: _plain(attributes[name], name) for name in sorted(attributes)}
    with disk_errors(temporary), closing(h5py.File(temporary, "r+")) as file:
        for name, values in checksums.items():
            file.create_dataset(f"checksums/{name}", data=values, dtype="<u4", track_times=False)
        for name, value in attributes.items():
            file.attrs[name] = value if name != "complete" else False
        file.attrs["attributes_sha256"] = _attributes_hash(attributes)
        file.flush()
        file.attrs.modify("complete", np.bool_(True))
    with disk_errors(temporary):
        publish(temporary, target)


def _plain(value, name):
    value = value.item() if isinstance(value, np.generic) else value
    if not isinstance(value, (str, bool, int, float)):
        raise TypeError(f"attribute {name}: {type(value).__name__} instead of str, bool, int or float")
    return value


def _attributes_hash(attributes):
    """sha256 of the canonical JSON of all root attributes but `attributes_sha256`."""
    covered = {name: value for name, value in attributes.items() if name != "attributes_sha256"}
    return hashlib.sha256(json.dumps(covered, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _checked_pieces(totals):
    """[(dataset, low, high), …]: the pieces of `CHECKED_BYTES` that have a checksum each, dataset by dataset."""
    found = []
    for name, (total, dtype) in totals.items():
        step = CHECKED_BYTES // dtype.itemsize
        found += [(name, low, min(total, low + step)) for low in range(0, total, step)]
    return found


def _checksum(dataset, low, high, dtype):
    return zlib.crc32(np.ascontiguousarray(dataset[low:high], dtype=dtype))


def _my_share(items, comm):
    low, high = row_starts(len(items), comm.size)[comm.rank : comm.rank + 2]
    return items[low:high]


def _checksums_on_root(temporary, comm, pieces, totals):
    """{dataset: uint32 […]} of what is on the disk, on rank 0; every rank reads its share. Collective.

    Every rank first compares what it wrote with what is there: not every MPI library tells that a write failed, and a checksum
    of wrong data would hold.
    """
    checked = _checked_pieces(totals)
    with together(comm), disk_errors(temporary), h5py.File(temporary, "r") as file:
        for name, runs in pieces.items():
            for start, values in runs:
                if not np.array_equal(file[name][start : start + values.size], values.astype(totals[name][1]), equal_nan=True):
                    raise InputError(f"cannot write {temporary}: {name} does not read back as it was written (is the disk full?)")
        mine = [_checksum(file[name], low, high, totals[name][1]) for name, low, high in _my_share(checked, comm)]
    shares = comm.gather(mine)
    if comm.rank != 0:
        return None
    found = {name: [] for name in totals}
    for (name, _, _), value in zip(checked, (value for share in shares for value in share), strict=True):
        found[name].append(value)
    return {name: np.array(values, dtype=np.uint32) for name, values in found.items()}


class FactorFile:
    """A factor file opened for reading; a context manager. Opening is collective, `read` is not.

    verify: whether every checksum is tried at opening (the ranks share the reading). The attributes' own checksum, the format, its
    version, completeness, and the datasets' lengths and types are always tried. Every failure is the same InputError on all ranks.

    attributes  dict of the root attributes (str, bool, int, float), without the integrity attributes
    names       list of the datasets, in the order they were written
    """

    def __init__(self, path, comm, verify=True):
        self.path, self.comm = os.fspath(path), comm
        self._file = None
        try:
            with together(comm):
                self._open()
            if verify:
                self.verify()
        except BaseException:
            self.close()
            raise

    def _open(self):
        self._file = open_hdf5(self.path, "factor file")
        try:
            attributes = {name: _plain(value, name) for name, value in self._file.attrs.items()}
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"{self.path}: the attributes cannot be read; this is no factor file, or it is damaged") from error
        if attributes.get("format") != FORMAT:
            raise InputError(f"{self.path} is an HDF5 file, but not a factor file written by hpcHess.compress")
        version = attributes.get("format_version")
        if version != FORMAT_VERSION:
            raise InputError(f"{self.path} has format version {version}; this program reads version {FORMAT_VERSION}")
        if attributes.get("complete") is not True:
            raise InputError(f"{self.path} is incomplete: its writing was interrupted; compress again")
        if attributes.get("attributes_sha256") != _attributes_hash(attributes):
            raise self._damaged("the checksum of the attributes fails")
        self.attributes = {name: value for name, value in attributes.items() if name not in INTEGRITY}
        self._totals = {name: (total, np.dtype(dtype)) for name, (total, dtype) in json.loads(attributes["datasets"]).items()}
        for name, (total, dtype) in self._totals.items():
            found = self._dataset(name)
            if found.shape != (total,) or found.dtype != dtype:
                raise self._damaged(f"{name} has shape {found.shape} and type {found.dtype} instead of ({total},) and {dtype}")

    def _damaged(self, what):
        return InputError(f"{self.path} is damaged: {what}; compress again or restore it from a copy")

    def _dataset(self, name):
        try:
            found = self._file[name]
        except (KeyError, OSError, RuntimeError) as error:
            raise self._damaged(f"the dataset {name} is missing") from error
        if not isinstance(found, h5py.Dataset):
            raise self._damaged(f"{name} is not a dataset")
        return found

    @property
    def names(self):
        return list(self._totals)

    def size(self, name):
        """Length of a dataset. Raises InputError where the file has none of that name."""
        if name not in self._totals:
            raise InputError(f"{self.path} has no dataset {name}")
        return self._totals[name][0]

    def read(self, name, low, high):
        """Elements low … high − 1 of a dataset in native byte order, [high − low]. Not collective; raises InputError, IndexError."""
        if not 0 <= low <= high <= self.size(name):
            raise IndexError(f"[{low}, {high}) of {name}, which has {self.size(name)} elements")
        found = np.empty(high - low, self._totals[name][1].newbyteorder("="))
        step = ROUND_BYTES // found.itemsize
        try:
            for at in range(low, high, step):
                stop = min(high, at + step)
                found[at - low : stop - low] = self._file[name][at:stop]
        except (KeyError, OSError, RuntimeError) as error:
            raise self._damaged(f"{name} cannot be read") from error
        return found

    def read_all(self, name):
        """A whole dataset. Not collective."""
        return self.read(name, 0, self.size(name))

    def verify(self):
        """Compare the checksums of all datasets with the data; the ranks share the reading. Collective; raises InputError."""
        with together(self.comm):
            for name, low, high in _my_share(_checked_pieces(self._totals), self.comm):
                piece = low * self._totals[name][1].itemsize // CHECKED_BYTES
                try:
                    stored = self._dataset(f"checksums/{name}")[piece]
                    computed = _checksum(self._dataset(name), low, high, self._totals[name][1])
                except (OSError, RuntimeError, ValueError, TypeError) as error:
                    raise error if isinstance(error, InputError) else self._damaged(f"{name} cannot be read") from error
                if stored != computed:
                    raise self._damaged(f"the checksum of {name} fails (elements {low} to {high - 1})")

    def close(self):
        """Close the file; reading ends. Not collective."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
