"""A file appears whole under its name or not at all: write under a temporary name beside it, flush, rename."""

import os
import resource
import tempfile
from contextlib import contextmanager, suppress

from hpcHess.parallel.agree import on_root
from hpcHess.runtime.errors import InputError


def check_writable(path, comm):
    """The absolute path a file `path` will be written to (symbolic links followed). Collective.

    Call it before the computation whose result goes there. Raises `InputError` when the directory is missing or not writable (tried
    by creating a file in it), or `path` is a directory, a device or a write-protected file.
    """
    return on_root(comm, writable_target, path)


def writable_target(path):
    """`check_writable` of one process; not collective."""
    target = os.path.realpath(path)
    directory = os.path.dirname(target)
    if os.path.isdir(target):
        raise InputError(f"cannot write {path!s}: it is a directory")
    if os.path.exists(target) and not os.path.isfile(target):
        raise InputError(f"cannot write {path!s}: it is not a regular file")
    if os.path.exists(target) and not os.access(target, os.W_OK):
        raise InputError(f"cannot write {path!s}: the file that is there is write-protected")
    if not os.path.isdir(directory):
        raise InputError(f"cannot write {path!s}: {directory} is not a directory; make it first")
    try:
        with tempfile.NamedTemporaryFile(prefix=f"{os.path.basename(target)}.partial-", dir=directory):
            pass
    except OSError as error:
        raise InputError(f"cannot write {path!s}: {error.strerror}") from error
    return target


def check_room(target, n_bytes):
    """InputError where the disk, or the limit on a file's size, has no room for `n_bytes` more at `target`. Not collective.

    Asked before writing because a disk that fills up under HDF5 leaves the library unusable, and some MPI libraries say nothing.
    """
    disk, limit = os.statvfs(os.path.dirname(target)), resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    free = disk.f_bavail * disk.f_frsize
    if disk.f_blocks and free < n_bytes:
        raise InputError(f"cannot write {target}: it needs {n_bytes / 1e6:.1f} MB, and {free / 1e6:.1f} MB are free there")
    if limit not in (resource.RLIM_INFINITY, -1) and limit < n_bytes:
        raise InputError(f"cannot write {target}: it needs {n_bytes / 1e6:.1f} MB, and files may have {limit / 1e6:.1f} MB (ulimit -f)")


def partial_name(target, comm):
    """The temporary name beside `target`, the same on all ranks. Collective."""
    return f"{target}.partial-{comm.bcast(os.getpid())}"


def publish(temporary, target):
    """Flush `temporary` to the disk and give it the name `target`, replacing what was there. One rank only."""
    _synchronize(temporary)
    os.replace(temporary, target)
    _synchronize(os.path.dirname(target))


def _synchronize(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def discard(temporary):
    """Remove `temporary` if it is there; never fails, may be called by any rank."""
    with suppress(OSError):
        os.unlink(temporary)


@contextmanager
def replacing(target):
    """`with replacing(target) as temporary: …` on one rank: published at the end, removed when anything passes through."""
    temporary = f"{target}.partial-{os.getpid()}"
    try:
        yield temporary
        publish(temporary, target)
    except BaseException:
        discard(temporary)
        raise
