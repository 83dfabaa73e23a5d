"""What the machine reaches now: matrix products, memory and file rates, for one rank alone and for all ranks at once.

    sgemm, dgemm    C = A B, square, by the BLAS that NumPy uses: 2 m³ operations
    triad           a ← a + s·b by BLAS axpy: 2 reads and 1 write of 8 bytes an element. STREAM (McCalpin 1995) counts as many bytes for
                    a ← b + s·c, but there the processor also reads a before it writes it; in place, the bytes counted are the bytes moved.
    file            plain sequential write of a file, flushed to the disk, and reading it back (from the page cache)

The triad is measured for several sizes of its two arrays together, of one rank: a working set that stays in a cache has another
ceiling than one that does not. `Ceilings.memory` chooses by the working set.
"""

import os
import tempfile
import time
from dataclasses import dataclass, field

import numpy as np
from scipy.linalg import get_blas_funcs

from benchmarks.timing import idle_barrier, once

ORDER = 1024  # of the matrices
WORKING_SETS = tuple(size << 20 for size in (1, 8, 64, 256))  # bytes of a triad's two arrays
MOVED = 1 << 28  # bytes of the arrays that one sample of a triad passes over, small arrays again and again


@dataclass
class Ceilings:
    """Medians of the rates. `alone`: of rank 0 while the others sleep; `together`: sums over all ranks at work at once.

    Both are {"sgemm": flop/s, "dgemm": flop/s, "triad": {bytes: byte/s}}; `samples` counts what a median is of.
    """

    ranks: int
    alone: dict = field(default_factory=dict)
    together: dict = field(default_factory=dict)
    samples: int = 0

    def gemm(self, dtype):
        """(name, flop/s of all ranks) for float32 or float64."""
        name = "sgemm" if np.dtype(dtype) == np.float32 else "dgemm"
        return name, self.together[name]

    def memory(self, working_set):
        """(name, byte/s of all ranks) of the smallest triad whose arrays hold `working_set` bytes a rank (else the largest)."""
        sizes = sorted(self.together["triad"])
        size = next((each for each in sizes if each >= working_set), sizes[-1])
        return f"triad {size >> 20} MiB", self.together["triad"][size]

    def as_dict(self):
        """Plain values in GFLOP/s and GB/s."""
        plain = lambda rates: {  # noqa: E731
            "sgemm_gflops": rates["sgemm"] / 1e9,
            "dgemm_gflops": rates["dgemm"] / 1e9,
            "triad_gbytes": {f"{size >> 20} MiB": rate / 1e9 for size, rate in rates["triad"].items()},
        }
        return {"ranks": self.ranks, "samples": self.samples, "alone": plain(self.alone), "together": plain(self.together)}


class CeilingMeter:
    """Collects samples of the rates over a run; `ceilings()` are their medians. All methods are collective."""

    def __init__(self, comm, order=ORDER, working_sets=WORKING_SETS):
        self.comm, self.order, self.working_sets = comm, order, working_sets
        self._samples = {"alone": {}, "together": {}}

    def sample(self, count=3):
        """Measure everything `count` times more."""
        for dtype, name in ((np.float32, "sgemm"), (np.float64, "dgemm")):
            multiply = gemm(self.order, dtype)
            self._measure(name, multiply, 2.0 * self.order**3, count)
        for size in self.working_sets:
            self._measure(size, *triad(size), count)

    def _measure(self, name, work, amount, count):
        work()  # touches the memory, starts the threads
        for _ in range(count):
            rate = amount / _seconds(work) if self.comm.rank == 0 else 0.0
            idle_barrier(self.comm)
            self._samples["alone"].setdefault(name, []).append(self.comm.bcast(rate))
            seconds, _ = once(self.comm, work)
            self._samples["together"].setdefault(name, []).append(self.comm.size * amount / seconds.median)

    def ceilings(self):
        """`Ceilings` from all samples so far."""
        found = Ceilings(self.comm.size)
        for mode, rates in self._samples.items():
            medians = {name: float(np.median(values)) for name, values in rates.items()}
            target = {name: medians.pop(name) for name in ("sgemm", "dgemm")}
            setattr(found, mode, {**target, "triad": medians})
            found.samples = len(rates["sgemm"])
        return found


def _seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def gemm(order, dtype):
    """A function that multiplies two fixed square matrices."""
    rng = np.random.default_rng(0)
    A, B = (rng.standard_normal((order, order)).astype(dtype) for _ in range(2))
    C = np.empty_like(A)
    return lambda: np.matmul(A, B, out=C)


def triad(size):
    """(a function that runs the triad over two arrays of `size` bytes together, `MOVED` bytes of them in all; bytes it moves)."""
    a, b = np.ones(size // 16), np.ones(size // 16)
    axpy = get_blas_funcs("axpy", (a, b))
    times = max(1, MOVED // size)

    def run():
        for _ in range(times):
            axpy(b, a, a=1e-9)

    return run, 24.0 * len(a) * times


def file_rates(comm, folder, n_bytes, samples=3):
    """(write, read) in byte/s of a plain file of n_bytes in `folder`, by rank 0, flushed to the disk; medians. Collective."""
    rates = []
    if comm.rank == 0:
        content = np.random.default_rng(0).bytes(n_bytes)
        for _ in range(samples):
            with tempfile.NamedTemporaryFile(dir=folder) as file:
                write = _seconds(lambda: (file.write(content), file.flush(), os.fsync(file.fileno())))  # noqa: B023
                file.seek(0)
                read = _seconds(file.read)
            rates.append((n_bytes / write, n_bytes / read))
    return tuple(comm.bcast(np.median(rates, axis=0).tolist() if comm.rank == 0 else None))
