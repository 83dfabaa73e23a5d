"""Pieces of work timed by turns, and rows that hold what came out against what was asked.

Ratios are medians of ratios of neighbouring runs: a machine that is slow for a minute is slow for both sides.
"""

import time
from dataclasses import dataclass

import numpy as np

ORDER = 2048  # of the matrices of sgemm and dgemm
AT_LEAST, AT_MOST = ("share", "times"), ("seconds", "GB", "growth")


@dataclass(frozen=True)
class Options:
    """How to measure: toy sizes (`tiny`), the clock (`wall`; `cpu`: this process's processor seconds, for one thread on a busy machine),
    threads a process has, seconds and repeats of one comparison."""

    tiny: bool = False
    clock: str = "wall"
    threads: int = 1
    seconds: float = 12.0
    repeats: int = 9


class Turns:
    """`seconds[name]` of every repeat of the works {name: callable}, run one after the other again and again after one run that is not counted
    (which touches new memory). A work that returns a float has timed itself. At least 2 rounds, at most `repeats`, no new one after `seconds`."""

    def __init__(self, works, options):
        clock = time.process_time if options.clock == "cpu" else time.perf_counter
        self.seconds = {name: [] for name in works}
        rounds = 2 if options.tiny else options.repeats
        for work in works.values():
            work()
        end = time.perf_counter() + options.seconds
        for at in range(rounds):
            if at >= 2 and time.perf_counter() > end:
                break
            for name, work in works.items():
                start = clock()
                result = work()
                self.seconds[name].append(result if isinstance(result, float) else clock() - start)

    def median(self, name):
        """Median seconds."""
        return float(np.median(self.seconds[name]))

    def ratio(self, one, other, amount=1.0, other_amount=1.0):
        """How many times faster one work is than the other: median over the rounds of its amount a second over the other's."""
        rates = [size / np.maximum(self.seconds[name], 1e-9) for name, size in ((one, amount), (other, other_amount))]
        return float(np.median(rates[0] / rates[1]))

    def spread(self):
        """{name: {median, min, max, repeats}} for the results."""
        return {name: {"median": self.median(name), "min": min(each), "max": max(each), "repeats": len(each)} for name, each in self.seconds.items()}


def row(what, asked, measured, kind, ceiling="", holds="", turns=None, **details):
    """One row, plain values. Not collective.

    kind      share (of a ceiling, at least), times (faster, at least), seconds, GB, growth (at most); asked None: reported, nothing is asked
    ceiling   what `measured` is a share of or held against, in words and numbers; holds: what keeps it below what is asked
    """
    assert kind in AT_LEAST + AT_MOST
    met = asked is None or (measured >= asked if kind in AT_LEAST else measured <= asked)
    found = {"what": what, "asked": asked, "measured": float(measured), "kind": kind, "ceiling": ceiling, "holds": "" if met else holds}
    found["verdict"] = "reported" if asked is None else "met" if met else "short"
    return found | {"seconds": turns.spread() if turns is not None else {}, "details": details}


def not_run(what, reason):
    """A row of what could not be measured here."""
    return {"what": what, "asked": None, "measured": None, "kind": "", "ceiling": "", "holds": reason, "verdict": "not run", "seconds": {}, "details": {}}


def gemm(dtype=np.float32, order=ORDER):
    """(a function that multiplies two matrices of that order, its operations)."""
    rng = np.random.default_rng(2)
    A, B = (rng.standard_normal((order, order)).astype(dtype) for _ in range(2))
    C = np.empty_like(A)
    return lambda: np.matmul(A, B, out=C), 2.0 * order**3


def last_level_cache():
    """Bytes of the largest cache that the system tells of, 0 where it tells none (Linux)."""
    from pathlib import Path

    sizes = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 1)
        sizes.append(int(text.rstrip("KMG") or 0) * unit)
    return max(sizes)
