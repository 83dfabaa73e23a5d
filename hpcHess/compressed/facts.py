"""What a choice between formats is made from: sizes, rates of this run, the spectrum of H, all at the cost of a few exact products."""

import time

import numpy as np
from mpi4py import MPI

from hpcHess.compressed.stochastic import eigenvalue_measure
from hpcHess.parallel.operator import check_products
from hpcHess.parallel.ownership import row_starts
from hpcHess.parallel.random import gaussian_rows

COLUMNS = 16  # vectors of the product that is timed
ROUGH, THOROUGH = (2, 16), (4, 48)  # probes and steps of the spectrum
BLOCK = 64  # right-hand sides at a time
GEMM_ORDER, STREAM_BYTES = 384, 1 << 24
ITERATIONS = 100  # of CG without a preconditioner, at λ = 1e-3 λ_max (docs/MATHEMATICS.md, "The choice of the format")


class Facts:
    """Measured once a choice, collective; everything the same on all ranks.

    n_params, n_alive, n_samples, n_outputs, widths   sizes; the last three None where H is no network's
    rtol, itemsize      what is asked for, and bytes of a stored number
    rhs_count, workload right-hand sides expected, and whether they are to be solved for ("solve") or multiplied with ("multiply")
    memory              bytes that all ranks of the job may hold together
    gemm, stream        flop/s and byte/s of all ranks at once, in the operator's type
    product_seconds     of an exact product with one vector in a block of `COLUMNS`
    seconds             that measuring these took
    """

    def __init__(self, operator, rtol, itemsize, rhs_count, workload, memory, options=None, seed=0):
        start = time.perf_counter()
        self.operator, self.comm, self.rtol, self.itemsize, self.seed = operator, operator.comm, float(rtol), int(itemsize), seed
        self.rhs_count, self.workload, self.memory, self.options = int(rhs_count), workload, int(memory), options or {}
        self._measures = {}
        self.n_params, self.n_alive = int(operator.shape[0]), int(len(operator.alive))
        self.n_samples, self.n_outputs = getattr(operator, "n_samples", None), getattr(operator, "n_outputs", None)
        network = getattr(operator, "network", None)
        self.network, self.widths = network, None if network is None else list(network.widths)
        self.gemm, self.stream = self._rates()
        self.product_seconds = self._product()
        self.seconds = self.comm.bcast(time.perf_counter() - start)

    def _rates(self):
        """A small matrix product and a copy, on all ranks at once; the best of three."""
        order, dtype = GEMM_ORDER, self.operator.dtype
        A, source = np.ones((order, order), dtype), np.ones(STREAM_BYTES // 8)
        target = np.empty_like(source)
        seconds = [np.inf, np.inf]
        for _ in range(3):
            self.comm.Barrier()
            for which, work in enumerate((lambda: A @ A, lambda: np.copyto(target, source))):
                start = time.perf_counter()
                work()
                seconds[which] = min(seconds[which], time.perf_counter() - start)
        seconds = [self.comm.allreduce(each, MPI.MAX) for each in seconds]
        return 2.0 * order**3 * self.comm.size / seconds[0], 2.0 * STREAM_BYTES * self.comm.size / seconds[1]

    def _product(self):
        operator, mine = self.operator, _own_rows(self.operator)
        G = np.ascontiguousarray(gaussian_rows(self.seed, "facts", mine.start, mine.stop, range(COLUMNS), operator.dtype))
        first = operator.matmat_rows(G[:, :1])  # the first product of a run pays for page faults and threads
        check_products(self.comm, first, "the operator")
        self.comm.Barrier()
        start = time.perf_counter()
        operator.matmat_rows(G)
        return self.comm.allreduce(time.perf_counter() - start, MPI.MAX) / COLUMNS

    def measure(self, probes, steps):
        """(θ, weight) of the spectrum of H by stochastic Lanczos: Σ weight f(θ) ≈ tr f(H); decreasing |θ|. Collective at the first use."""
        if (probes, steps) not in self._measures:
            theta, weight = eigenvalue_measure(self.operator, _own_rows(self.operator), probes, steps, self.seed)
            order = np.argsort(-np.abs(theta), kind="stable")
            self._measures[probes, steps] = theta[order], weight[order]
        return self._measures[probes, steps]

    def rank(self, rtol, amount=THOROUGH):
        """The least rank r with Σ_{k>r} λ_k² ≤ rtol² ‖H‖_F², estimated from `measure` (log-linear between its nodes)."""
        theta, weight = self.measure(*amount)
        energy = np.cumsum((weight * theta**2)[::-1])[::-1]
        counts, tails = np.append(0.0, np.cumsum(weight)), np.append(energy, 0.0) / max(energy[0], np.finfo(float).tiny)
        wanted = rtol**2
        at = int(np.argmax(tails <= wanted))
        if at == 0:
            return 0
        high, low = np.log(tails[at - 1]), np.log(max(tails[at], 1e-32))
        share = 1.0 if high == low else (high - np.log(wanted)) / (high - low)
        return int(min(self.n_alive, np.ceil(counts[at - 1] + share * (counts[at] - counts[at - 1]))))

    def seconds_of(self, flops, bytes_moved=0.0):
        """Of work that all ranks share: what is slower, arithmetic or memory."""
        return max(flops / self.gemm, bytes_moved / self.stream)

    def seconds_of_vector(self, entries):
        """Of a product with one vector in a block of `BLOCK`, by a matrix of so many symmetric numbers."""
        return self.seconds_of(4.0 * entries, self.itemsize * entries / BLOCK)

    def seconds_of_cg(self, vector, preconditioner=0.0, iterations=ITERATIONS):
        """Of one solve by iterations that cost a product and an apply of the preconditioner each, vector operations included."""
        return iterations * (vector + preconditioner + self.seconds_of(0, 10.0 * 8 * self.n_params))


def _own_rows(operator):
    """The slice of this rank's parameter rows."""
    starts = row_starts(operator.shape[0], operator.comm.size)
    return slice(int(starts[operator.comm.rank]), int(starts[operator.comm.rank + 1]))
