"""The phases of a case, each measured on all ranks (benchmarks.timing) beside the work it needs (benchmarks.models)."""

import os
import shutil
import tempfile
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import models, rows
from benchmarks.ceilings import file_rates
from benchmarks.gram import gram_blocks
from benchmarks.meter import Meter
from benchmarks.models import Work
from benchmarks.timing import Seconds, mean_shares, once, repeated
from hpcHess import backend as backends
from hpcHess.compress import SINGLE_PRECISION_RTOL
from hpcHess.curvature.gauss_newton import GaussNewton
from hpcHess.hierarchical.compress import compress
from hpcHess.compressed.file import save
from hpcHess.formats.file import load
from hpcHess.hierarchical.elimination import InterpolativeElimination
from hpcHess.krylov.solve import solve
from hpcHess.networks.problem import load_problem
from hpcHess.parallel.agree import on_root
from hpcHess.parallel.random import gaussian_rows
from hpcHess.runtime.errors import InputError
from hpcHess.skeleton.levels import to_parents
from hpcHess.skeleton.sketch import Sketch

COLUMNS = (1, 64)  # vectors and right-hand sides
GRAM_BLOCKS = 4  # leaf blocks of a rank by the Gram route
REFINE_RTOL, REFINE_ITERATIONS = 1e-8, 20
DAMPING = 1e-2  # of λ_max
OTHER = "other: Python, exchange, waiting"


class CaseRun:
    """Measures one case: `measured` [(phase, inside, seconds, Work)] for `result`, `sizes` what came of it. All methods are collective.

    repeats     runs of every phase of which the median counts; fewer where they take more than `budget` seconds together
    folder      where the factor file is written for a while
    """

    def __init__(self, comm, case, repeats, budget, folder):
        self.comm, self.case, self.repeats, self.budget, self.folder = comm, case, repeats, budget, folder
        self.measured, self.files, self.sizes = [], [], {}

    def run(self):
        """All phases, in the order of their names in README.md."""
        self.load()
        self.products()
        self.compress()
        self.entries()
        self.truncated_qr()
        self.matrix_products()
        self.woodbury()
        self.file()
        self.refine()

    def result(self, ceilings):
        """Plain values: sizes and rows, rated against `ceilings`."""
        found = [rows.row(phase, seconds, work, ceilings, inside) for phase, inside, seconds, work in self.measured]
        found += [rows.file_row(*each) for each in self.files]
        return {"case": self.case.name, "sizes": self.sizes, "rows": found, "lost": rows.lost(found, "compression")}

    def _measure(self, phase, work, needs=None, warm=True):
        """Time `work()` and keep a row; `needs`: this rank's share of the Work, or a function of the result. Returns the last result."""
        seconds, result = repeated(self.comm, work, self.repeats, self.budget, warm)
        needs = needs(result) if callable(needs) else needs
        self.measured.append((phase, None, seconds.as_dict(), needs and needs.summed(self.comm)))
        return result

    def load(self):
        """Network, data, operators in the compression's type and in float64."""
        self.job = on_root(self.comm, self.case.job)
        options = self.job["compress"]
        single = options["rtol"] >= SINGLE_PRECISION_RTOL and options["dtype"] != "float64"
        problem = self._once("network and data (fit)", lambda: load_problem(self.job, self.comm))
        make = lambda dtype: GaussNewton(problem.network, problem.inputs, problem.targets, comm=self.comm, dtype=dtype)  # noqa: E731
        self.operator = op = self._once("operator: activations, kernel", lambda: make(np.float32 if single else np.float64))
        self.exact = make(np.float64) if single else op
        self.sizes |= {"n_params": op.n_params, "n_alive": len(op.alive), "n_samples": op.n_samples, "n_outputs": op.n_outputs}
        self.sizes |= {"layers": op.samples.widths, "loss": op.network.loss, "dtype": op.dtype.name, "rtol": options["rtol"]}

    def _once(self, phase, work):
        seconds, result = once(self.comm, work)
        self.measured.append((phase, None, seconds.as_dict(), None))
        return result

    def _vectors(self, k, dtype, stream):
        """Own parameter rows of a fixed Gaussian matrix, [n_local, k]."""
        lo, hi = self.operator.parameter_starts[self.comm.rank : self.comm.rank + 2]
        return np.ascontiguousarray(gaussian_rows(0, stream, int(lo), int(hi), range(k), dtype))

    def products(self):
        """HV by `matmat_rows`, exchange of V and of HV included."""
        runs = [(self.operator, k) for k in COLUMNS] + [(self.exact, COLUMNS[-1])] * (self.exact is not self.operator)
        for operator, k in runs:
            needs = models.product(operator.network, operator.mine.stop - operator.mine.start, k, operator.dtype)
            work = partial(operator.matmat_rows, self._vectors(k, operator.dtype, "product"))
            self._measure(f"exact product, {_vectors(k)}, {operator.dtype}", work, needs)

    def compress(self):
        """The whole compression, its phases and the kernels inside them, counted where they happen (`meter.Meter`)."""
        options, kernels = self.job["compress"], backends.get()
        names = ("rtol", "leaf_size", "max_rank", "distance", "seed", "dtype", "probes")
        meters = []

        def work():
            meters.append(Meter())
            with meters[-1].watch(self.operator, kernels):
                return compress(self.operator, **{name: options[name] for name in names}, progress=meters[-1])

        self.matrix = self._measure("compression", work, warm=False)
        self._inside(meters, "compression")
        self.sizes["compressed"] = {key: value for key, value in self.matrix.report.items() if key != "timings"}

    def _inside(self, meters, whole):
        """Rows of the phases of `meters` (one a repeat) with their kernels, and the Work of the whole."""
        mine = [(meter.phases, {phase: dict(kernels) for phase, kernels in meter.counts.items()}) for meter in meters]
        gathered = list(zip(*self.comm.allgather(mine), strict=True))  # [repeat][rank] of ({phase: clocks}, {phase: {kernel: Count}})
        total = Work()
        for phase in dict.fromkeys([*gathered[-1][0][0], *(phase for _, counts in gathered[-1] for phase in counts)]):
            counts = [[rank[1].get(phase, {}) for rank in each] for each in gathered]
            works = {}
            for rank in counts[-1]:
                for kernel, count in rank.items():
                    works[kernel] = works.get(kernel, Work()) + count.work
            total += sum(works.values(), Work())
            if phase:
                clocked = [[rank[0][phase] for rank in each] for each in gathered]
                slowest = [float(max(wall for wall, *_ in each)) for each in clocked]
                seconds = Seconds(slowest, [mean_shares(each) for each in clocked])
                self.measured.append((phase, whole, seconds.as_dict(), sum(works.values(), Work())))
            for kernel, work in works.items():
                every = np.array([[rank[kernel].seconds if kernel in rank else 0.0 for rank in each] for each in counts])
                flops = [rank[kernel].work.flops if kernel in rank else 0.0 for rank in counts[-1]]
                seconds = {**Seconds(every.max(axis=1).tolist()).as_dict(), "balance": float(np.mean(flops) / max(flops))}
                self.measured.append((kernel, phase or whole, seconds, work))
            if phase and works:
                spent = lambda rank: float(rank[0][phase][0]) - sum(count.seconds for count in rank[1].get(phase, {}).values())  # noqa: B023, E731
                self.measured.append((OTHER, phase, Seconds([max(map(spent, each)) for each in gathered]).as_dict(), None))
        at = next(i for i, each in enumerate(self.measured) if each[0] == whole)
        self.measured[at] = (*self.measured[at][:3], total)

    def entries(self):
        """Leaf blocks H_αα of the own leaves, and some of them by both routes, which must agree."""
        op, tree, near = self.operator, self.matrix.tree, self.matrix.near
        leaves = near.own[near.own[:, 0] == near.own[:, 1], 0]
        sets = [tree.permutation[tree.leaf_starts[leaf] : tree.leaf_starts[leaf + 1]] for leaf in leaves]
        some = sets[:: max(1, len(sets) // GRAM_BLOCKS)][:GRAM_BLOCKS]
        for name, chosen in (("leaf blocks", sets), (f"{GRAM_BLOCKS} leaf blocks a rank", some)):
            I, starts = np.concatenate([*chosen, np.zeros(0, np.int64)]), np.cumsum([0, *map(len, chosen)])
            needs = models.entries(sum(len(each) ** 2 for each in chosen), op.n_samples, op.dtype)
            blocks = self._measure(f"entries of {name}, grouped", partial(op.entries_batch, I, starts, I, starts), needs)
        seconds, by_gram = zip(*(self._gram(some) for _ in range(min(self.repeats, 3))), strict=True)
        phase = f"entries of {GRAM_BLOCKS} leaf blocks a rank, Gram route"
        self.measured.append((phase, None, Seconds(list(seconds)).as_dict(), needs.summed(self.comm)))
        differences = [float(np.abs(blocks[i] - H).max() / max(np.abs(H).max(), 1e-300)) for i, H in enumerate(by_gram[0])]
        self.sizes["entries_difference"] = max(self.comm.allgather(max(differences, default=0.0)))

    def _gram(self, sets):
        self.comm.Barrier()
        found, seconds = gram_blocks(self.operator, sets)
        return max(self.comm.allgather(seconds)), found

    def truncated_qr(self):
        """The level with the most work, with the sketch of the compression, every node to the level's mean rank."""
        matrix, backend = self.matrix, self.matrix.backend
        if matrix.tree.depth == 0:
            return
        k, dtype = matrix.report["sketch_columns"], self.operator.dtype
        level = max(matrix.levels[1:], key=lambda level: models.truncated_qr(level.columns, level.ranks, k, dtype).flops)
        R, rank, starts = self._level_sample(level.level, k), max(1, round(float(level.ranks.mean()))), level.column_starts
        needs = models.truncated_qr(np.diff(starts), np.minimum(np.diff(starts), rank), k, dtype)
        phase = f"truncated QR, level {level.level}, {len(level.ranks)} nodes to rank {rank}"
        self._measure(phase, partial(backend.interpolate, R, starts, 0.0, rank), needs)

    def _level_sample(self, number, k):
        """R of a level's own nodes [Σ columns, k], as `skeleton.skeletonize` makes it from finished levels below."""
        matrix, backend = self.matrix, self.matrix.backend
        sketch = Sketch(self.operator, matrix.tree.permutation, matrix.leaf_rows, matrix.report["seed"])
        omega, Y = (backend.asarray(each) for each in sketch.fresh(k, "sketch"))
        R = backend.xp.array(Y, order="C")
        matrix.near.multiply(backend, omega, R, alpha=-1.0)
        for at in range(matrix.tree.depth, number, -1):
            level, above = matrix.levels[at], matrix.levels[at - 1]
            kept, omega = R[level.skeleton_rows], level.compress_rows(backend, omega)
            level.far.multiply(backend, omega, kept, alpha=-1.0)
            R, omega = (to_parents(self.comm, backend, each, level, above) for each in (kept, omega))
        return R

    def matrix_products(self):
        """H̃V by `matmat_rows`, vectors of the stored type."""
        matrix = self.matrix
        for k in COLUMNS:
            V = self._vectors(k, matrix.dtype, "product")
            self._measure(f"H̃V, {_vectors(k)}, {matrix.dtype}", partial(matrix.matmat_rows, V), models.matrix_product(matrix, k, V.dtype))

    def woodbury(self):
        """Factors of H̃ + λI with λ = `DAMPING`·λ_max, and solves."""
        self.damping = DAMPING * self.matrix.report["lambda_max"]
        factors = self._measure("Woodbury factors", partial(InterpolativeElimination.factorize, self.matrix, self.damping), models.factorization)
        self.factors = factors
        for k in COLUMNS:
            B = self._vectors(k, np.float64, "rhs")
            phase = f"Woodbury solve, {k} right-hand side{'s' * (k > 1)}"
            X = self._measure(phase, partial(factors.solve_rows, B), models.factor_solve(factors, k))
        remainder = B - self.matrix.matmat_rows(X) - self.damping * X
        squares = self.comm.allreduce(np.stack([(remainder**2).sum(axis=0), (B**2).sum(axis=0)]))
        self.sizes["damping"], self.sizes["woodbury_residual"] = self.damping, float(np.sqrt((squares[0] / squares[1]).max()))

    def file(self):
        """Writing and reading the factor file (checksums included) beside a plain file of its size in the same folder."""
        folder = on_root(self.comm, tempfile.mkdtemp, ".factors", "", self.folder)
        path = Path(folder, "F.h5")
        try:
            for name, factors in (("matrix", None), ("matrix and Woodbury factors", self.factors)):
                writing, _ = repeated(self.comm, partial(save, self.matrix, path, factors=factors), self.repeats, self.budget)
                n_bytes = on_root(self.comm, os.path.getsize, path)
                reading, _ = repeated(self.comm, partial(load, path, self.comm), self.repeats, self.budget)
                write_rate, read_rate = file_rates(self.comm, folder, n_bytes)
                self.files.append((f"write {name}", writing.as_dict(), n_bytes, write_rate))
                self.files.append((f"read {name}", reading.as_dict(), n_bytes, read_rate))
                self.sizes[f"file_bytes, {name}"] = n_bytes
        finally:
            self.comm.Barrier()
            if self.comm.rank == 0:
                shutil.rmtree(folder, ignore_errors=True)

    def refine(self):
        """(H + λI)X = B by `krylov.solve` with the exact operator in float64 and the factors as preconditioner."""
        B, meters = self._vectors(COLUMNS[-1], np.float64, "rhs"), []

        def work():
            meters.append(Meter())
            with meters[-1].watch(self.exact, None, self.factors):
                return solve(
                    self.exact, B, self.damping, preconditioner=self.factors, rtol=REFINE_RTOL,
                    max_iterations=REFINE_ITERATIONS, definite=self.factors.negative == 0,
                )  # fmt: skip

        phase = f"refine exact, {COLUMNS[-1]} right-hand sides"
        try:
            found = self._measure(phase, work, warm=False)
        except InputError as error:
            self.sizes["refine"] = {"skipped": str(error)}
            return
        self._inside(meters, phase)
        self.sizes["refine"] = {"iterations": found.iterations, "converged": found.converged, "residual": float(found.residuals.max())}


def _vectors(k):
    return "1 vector" if k == 1 else f"{k} vectors"

