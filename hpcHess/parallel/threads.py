"""Threads of a rank for what NumPy does without holding the interpreter's lock: draws, gathers and copies of large arrays."""

import os
from concurrent.futures import ThreadPoolExecutor

PIECE = 1 << 18  # numbers of a piece: it stays in a core's cache from one pass over it to the next


def n_threads():
    """OMP_NUM_THREADS (of the outermost level), else the cores that this process may use."""
    try:
        return max(1, int(os.environ.get("OMP_NUM_THREADS", "").split(",")[0]))
    except ValueError:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_turn(items, run):
    """[run(item) for item in items], on the threads of this rank. Not collective."""
    items = list(items)
    if len(items) < 2 or n_threads() == 1:
        return [run(item) for item in items]
    with ThreadPoolExecutor(n_threads()) as pool:
        return list(pool.map(run, items))


def by_rows(n_rows, width, run):
    """[run(slice of rows) of all pieces of n_rows rows of `width` numbers], on the threads; the pieces do not depend on their number."""
    step = max(1, PIECE // max(1, width))
    return in_turn([slice(lo, min(n_rows, lo + step)) for lo in range(0, n_rows, step)], run)
