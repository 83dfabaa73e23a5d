"""`hpcHess.compress`: one entry for all formats."""

from hpcHess.compressed.options import check_common
from hpcHess.formats.registry import FORMATS, format_of
from hpcHess.runtime.errors import InputError


def compress(operator, rtol=1e-2, format="hss", *, seed=0, dtype="auto", probes=32, backend="auto", progress=None, **options):
    """H̃ with ‖H̃ − H‖_F ≤ rtol ‖H‖_F in a format of `formats.registry`, for an operator (docs/ARCHITECTURE.md, "Operators"). Collective.

    rtol      relative to ‖H‖_F of the whole matrix; `report["error_estimate"]` says what was reached, `report["rtol_met"]` whether it was
    seed      of all random numbers
    dtype     of what is stored: auto (float64 where rtol < 1e-5), float32, float64
    probes    fresh products of the certificate, where the error is not known exactly
    options   keys of [compress] (docs/JOBS.md); those of other formats have no effect

    Raises InputError for what is unknown, out of range, or impossible for this operator.
    """
    check_common(rtol, seed, probes, dtype)
    chosen = format_of(format)
    known = {name for each in FORMATS.values() for name in each.options}
    unknown = sorted(set(options) - known)
    if unknown:
        raise InputError(f"unknown option {unknown[0]}: compress takes {', '.join(sorted(known))}")
    given = {name: value for name, value in options.items() if name in chosen.options and value is not None}
    return chosen.compress(operator, rtol=rtol, seed=seed, dtype=dtype, probes=probes, backend=backend, progress=progress, **given)
