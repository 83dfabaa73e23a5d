"""Wall seconds of named phases."""

import time
from contextlib import contextmanager


class Timings:
    """Wall seconds per phase on this rank. Phases nest: `sketch` inside `compress` is kept as "compress/sketch"; repeated phases add up."""

    def __init__(self):
        self._seconds = {}
        self._open = []

    @contextmanager
    def phase(self, name):
        """Time the body of a `with` statement under `name`. Not collective."""
        self._open.append(name)
        key = "/".join(self._open)
        self._seconds.setdefault(key, 0.0)  # a parent stands before its children
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[key] += time.perf_counter() - start
            self._open.pop()

    def as_dict(self):
        """{phase: seconds}, in the order of their first start."""
        return dict(self._seconds)
