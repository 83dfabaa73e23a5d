"""Loading PETSc on first use, and the options it is given."""

import atexit
import gc
import sys
from contextlib import contextmanager

from mpi4py import MPI

from hpcHess.runtime.errors import InputError

_ends = []  # what is registered for the end of the process, once
_PROCESS_WIDE = ("-log", "-info", "-malloc", "-options", "-help", "-history")  # read at PetscInitialize only


def petsc(comm, options=()):
    """The module petsc4py.PETSc, initialized if it was not. Collective over `comm` (an mpi4py communicator).

    The first communicator becomes PETSC_COMM_WORLD; ranks that join ranks already initialized get their own, because
    PetscInitialize is collective over it. Python keeps its signal handlers.

    options: list of str, of which those that PETSc reads at its start only (-log_view, -info, …) are used here.
    Raises InputError where petsc4py is missing.
    """
    try:
        import petsc4py
    except ImportError:
        raise InputError("PETSc is needed here: install petsc4py (Debian: python3-petsc4py-real, conda-forge: petsc4py)") from None
    started = "petsc4py.PETSc" in sys.modules
    any_started = any(comm.allgather(started))
    if not started:
        process_wide = [word for name, value in pairs(options) if name.startswith(_PROCESS_WIDE) for word in (name, value) if word]
        world = MPI.COMM_SELF if any_started else comm.Dup()  # lives as long as PETSc
        petsc4py.init(["hpcHess", "-no_signal_handler", *process_wide], comm=world)
    from petsc4py import PETSc

    if not _ends:
        _ends.append(atexit.register(_end))
    return PETSc


def _end():
    """End SLEPc and PETSc while Python still runs: objects of type python that live longer than the interpreter would crash it."""
    gc.collect()
    for name in ("slepc4py.SLEPc", "petsc4py.PETSc"):
        if name in sys.modules:
            sys.modules[name]._finalize()


def slepc(comm):
    """The module slepc4py.SLEPc, initialized after PETSc. Collective over `comm`. Raises InputError where it is missing."""
    petsc(comm)
    try:
        import slepc4py
    except ImportError:
        raise InputError("SLEPc is needed here: install slepc4py (Debian: python3-slepc4py-real, conda-forge: slepc4py)") from None
    slepc4py.init(["hpcHess"])
    from slepc4py import SLEPc

    return SLEPc


def pairs(options):
    """[(name, value or None)] of a list of words such as ["-ksp_type", "cg", "-ksp_monitor"]. InputError: a word with no name before it."""
    found = []
    for word in options:
        if word.startswith("-") and word[1:2].isalpha():
            found.append((word, None))
        elif found and found[-1][1] is None:
            found[-1] = (found[-1][0], word)
        else:
            raise InputError(f"not a PETSc option: {word} (write -name or -name value)")
    return found


@contextmanager
def option_database(PETSc, options):
    """PETSc's option database with `options` added, put back at the end."""
    database = PETSc.Options()
    before = database.getAll()
    added = pairs(options)
    for name, value in added:
        database.setValue(name, value)
    try:
        yield database
    finally:
        for name, _ in added:
            bare = name.lstrip("-")
            if bare in before:
                database.setValue(bare, before[bare] or None)
            else:
                database.delValue(bare)


def own_options(PETSc, configure, options):
    """What `configure()` returns, with PETSc's complaint about an option as an InputError of one line."""
    try:
        return configure()
    except PETSc.Error as error:
        reason = str(error).strip().rpartition("\n")[2].rpartition("] ")[2]
        given = f"; given: {' '.join(options)}" if options else ""
        raise InputError(f"PETSc refuses its options: {reason}{given}") from error
