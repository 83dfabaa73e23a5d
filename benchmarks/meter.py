"""What happens inside a compression: operations, bytes and seconds of every kernel, counted where they happen.

`Meter.watch(operator, backend)` replaces the operator's and the backend's methods by ones that count and call them, for the time
of a `with` statement; `Meter` is also the `progress` that `hpcHess.compress` tells its phases. So the counts hold for the ranks and
columns that really came about, not for a model of them. The cost of counting is microseconds a call.
"""

import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field

from benchmarks import models
from benchmarks.models import Work
from benchmarks.timing import clocks
from hpcHess.runtime.timing import Timings


@dataclass
class Count:
    """One kernel inside one phase on this rank."""

    calls: int = 0
    seconds: float = 0.0
    work: Work = field(default_factory=Work)


class _Steps:
    """Steps that nobody watches."""

    def advance(self, steps=1):
        """Count nothing."""


class Meter:
    """`counts[phase][kernel]`: `Count`; `phases`: {phase: (wall, CPU, system) seconds} on this rank, in order. Not collective."""

    def __init__(self):
        self.timings = Timings()
        self.phases = {}
        self.counts = defaultdict(lambda: defaultdict(Count))
        self._phase = ""

    @contextmanager
    def phase(self, name, total=None):
        """As `runtime.progress.Silent.phase`; phases do not nest here."""
        before, self._phase, start = self._phase, name, clocks()
        try:
            with self.timings.phase(name):
                yield _Steps()
        finally:
            self._phase = before
            self.phases[name] = self.phases.get(name, 0.0) + clocks() - start

    def _count(self, owner, method, kernel, work):
        """Put a counting version of a bound method into its object; `work(result, *arguments)` says what was done."""
        call = getattr(owner, method)

        def counted(*args, **kwargs):
            start = time.perf_counter()
            result = call(*args, **kwargs)
            count = self.counts[self._phase][kernel]
            count.seconds += time.perf_counter() - start
            count.calls += 1
            count.work += work(result, *args, **kwargs)
            return result

        setattr(owner, method, counted)
        return owner, method

    @contextmanager
    def watch(self, operator=None, backend=None, factors=None):
        """Count the kernels of a Gauss–Newton operator, of a backend, and solves with Woodbury factors inside the `with` statement."""
        watched = []
        try:
            if operator is not None:
                watched += self._watch_operator(operator)
            if backend is not None:
                watched += self._watch_backend(backend)
            if factors is not None:
                solve = lambda _, B: models.factor_solve(factors, B.shape[1])  # noqa: E731
                watched.append(self._count(factors, "solve_rows", "Woodbury solve", solve))
            yield self
        finally:
            for owner, method in watched:
                delattr(owner, method)  # the class's own shows again

    def _watch_operator(self, op):
        n_mine = op.mine.stop - op.mine.start
        product = lambda _, V: models.product(op.network, n_mine, V.shape[1], op.dtype)  # noqa: E731
        probe = lambda _, k, seed: models.probe(op.network, n_mine, k, op.dtype)  # noqa: E731
        batch = lambda blocks, *_: models.entries(blocks.offsets[-1], op.n_samples, op.dtype)  # noqa: E731
        yield self._count(op, "partial_matmat", "exact product", product)
        yield self._count(op, "partial_probe", "probe", probe)
        yield self._count(op, "entries_batch", "entries", batch)

    def _watch_backend(self, backend):
        def multiply(_, A, X, x_starts, Y, y_starts, transpose=False, alpha=1.0):
            return models.block_products(A.rows, A.cols, X.shape[1], A.dtype, X.dtype, transpose)

        def interpolate(found, R, starts, *_):
            return models.truncated_qr(found.T.rows + found.T.cols, found.ranks, R.shape[1], R.dtype)

        def eliminate(found, A, order, T, delay=True):
            return models.elimination(T.rows, T.cols, T.dtype)

        yield self._count(backend, "multiply", "block products", multiply)
        yield self._count(backend, "interpolate", "truncated QR", interpolate)
        yield self._count(backend, "eliminate", "elimination", eliminate)

