"""Files of this package: the factor file and vectors. The only home of h5py.

Debian's h5py picks its parallel build only when it believes to run under mpiexec (not under srun, not in one process), hence the
first variable; file systems without locks (some Lustre mounts) would refuse every HDF5 file, hence the second. Both are read when
h5py is first imported, so this stands before any import of it; a user's own setting wins.
"""

import os

os.environ.setdefault("H5PY_ALWAYS_USE_MPI", "1")
os.environ.setdefault("HDF5_USE_FILE_LOCKING", "BEST_EFFORT")
