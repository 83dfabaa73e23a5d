"""Options that all formats take."""

from numbers import Integral, Real

import numpy as np

from hpcHess.runtime.errors import InputError
from hpcHess.runtime.schema import MIN_PROBES


def stored_dtype(dtype, rtol):
    """float64 or float32; `auto`: float64 where rtol < 1e-5."""
    if dtype == "auto":
        return np.dtype(np.float64 if rtol < 1e-5 else np.float32)
    return np.dtype(dtype)


def without_samples(operator):
    """Why an operator has no `samples` to make a format from, for an error."""
    return getattr(operator, "without_samples", "a matrix from a file, or known by products alone, has none")


def check_common(rtol, seed, probes, dtype):
    """InputError for a value out of range."""
    for name, value, kind in (("rtol", rtol, Real), ("seed", seed, Integral), ("probes", probes, Integral)):
        if not isinstance(value, kind):
            raise InputError(f"{name} must be {'a number' if kind is Real else 'an integer'}, not {value!r}")
    if not (np.isfinite(rtol) and 0 < rtol < 1):
        raise InputError(f"rtol must lie between 0 and 1, not {rtol}")
    if not 0 <= seed < 1 << 63:
        raise InputError(f"seed must lie between 0 and 2^63 − 1, not {seed}")
    if probes < MIN_PROBES:
        raise InputError(f"probes must be at least {MIN_PROBES}, not {probes}")
    if dtype not in ("auto", "float32", "float64"):
        raise InputError(f"dtype must be auto, float32 or float64, not {dtype!r}")
