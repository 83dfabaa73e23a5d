"""The array backend on a CUDA device: the same code as NumPy in CuPy's namespace."""

import os

from hpcHess.backend.array_backend import ArrayBackend

LOCAL_RANK = ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID", "PALS_LOCAL_RANKID")


class CupyBackend(ArrayBackend):
    """CuPy arrays on device (local rank mod devices). Raises ImportError where CuPy, its driver or a device is missing."""

    def __init__(self):
        import cupy

        try:
            devices = cupy.cuda.runtime.getDeviceCount()
        except Exception as error:  # without a driver CuPy raises errors of its own
            raise ImportError(f"no CUDA device: {error}") from error
        if devices == 0:
            raise ImportError("no CUDA device")
        local_rank = next((int(os.environ[name]) for name in LOCAL_RANK if name in os.environ), 0)
        cupy.cuda.Device(local_rank % devices).use()
        super().__init__("cupy", cupy)

    def to_host(self, a):
        return self.xp.asnumpy(a)

    def synchronize(self):
        self.xp.cuda.get_current_stream().synchronize()
