"""Zip archives from elsewhere, read with care."""

import zipfile
import zlib

from hpcHess.runtime.errors import InputError

DAMAGED = (OSError, ValueError, TypeError, OverflowError, EOFError, KeyError, NotImplementedError, RuntimeError, MemoryError)
DAMAGED += (zipfile.BadZipFile, zlib.error)
SMALL, RATIO = 1 << 28, 200  # bytes that are read whatever they are packed in; else how many times the file's size


def check_archive(path):
    """{member: bytes unpacked} of a zip file. Nothing is unpacked. Not collective.

    InputError, naming `path`: no zip file, damaged, or so small beside what it unpacks to that it must be a trap.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {each.filename: each.file_size for each in archive.infolist()}
            packed = sum(each.compress_size for each in archive.infolist())
    except DAMAGED as error:
        raise InputError(f"cannot read {path}: {error}") from None
    check_expansion(path, sum(sizes.values()), packed)
    return sizes


def check_expansion(path, expanded, packed):
    """InputError where `expanded` bytes come out of `packed` ones and no weights pack like that."""
    if expanded > max(SMALL, RATIO * packed):
        raise InputError(f"cannot read {path}: it unpacks from {packed} to {expanded} bytes, which no weights do")


def read_member(path, name):
    """The bytes of one member of a zip file, which `check_archive` has checked. InputError: damaged, no such member."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(name)
    except DAMAGED as error:
        raise InputError(f"cannot read {path}: {str(error) or type(error).__name__}") from None
