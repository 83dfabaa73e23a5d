"""Whether MPI sends and receives arrays in a device's memory, found out once a communicator."""

import ctypes
import os

import numpy as np
from mpi4py import MPI

_KEY = MPI.Comm.Create_keyval()
_SWITCHES = {"MPICH_GPU_SUPPORT_ENABLED": "1", "MV2_USE_CUDA": "1", "MVP_USE_CUDA": "1"}  # of Cray MPICH and MVAPICH: off unless set


def cuda_aware(comm):
    """Whether device arrays may be given to MPI on all ranks of `comm`. Collective at the first call, which the communicator remembers.

    $HPCHESS_CUDA_AWARE_MPI (0 or 1) decides where it is set; else what the library says of itself.
    """
    known = comm.Get_attr(_KEY)
    if known is None:
        known = bool(comm.allreduce(library_is_cuda_aware(), MPI.LAND))
        comm.Set_attr(_KEY, known)
    return known


def library_is_cuda_aware(library=None, environment=os.environ):
    """What this process knows of its MPI `library` (a ctypes library; default the one of mpi4py): Open MPI's MPIX_Query_cuda_support, MPICH's
    MPIX_GPU_query_support, and the switches of the libraries that have such support but leave it off."""
    asked = environment.get("HPCHESS_CUDA_AWARE_MPI")
    if asked in ("0", "1"):
        return asked == "1"
    if any(environment.get(name) == value for name, value in _SWITCHES.items()):
        return True
    library = ctypes.CDLL(MPI.__file__) if library is None else library
    if hasattr(library, "MPIX_Query_cuda_support"):
        return library.MPIX_Query_cuda_support() == 1
    if hasattr(library, "MPIX_GPU_query_support"):
        found = ctypes.c_int(0)
        return library.MPIX_GPU_query_support(0, ctypes.byref(found)) == 0 and found.value != 0  # 0: CUDA
    return False


def finished(xp):
    """Wait for the device that holds arrays of `xp`: MPI knows nothing of its queues."""
    if xp is not np:
        xp.cuda.get_current_stream().synchronize()
