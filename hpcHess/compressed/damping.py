"""Damping λ as users give it, and the warning when it does not cover the compression error."""

import argparse
import re
from numbers import Real

from hpcHess.runtime.errors import InputError

DIGITS_LOST = 1e-6  # backward error of factors above which it is told
COUNTS_LOST = 1e-3  # and above which inertia is doubtful: random probes see 1/√N of a direction that is lost

_RELATIVE = re.compile(r"(?P<factor>[^*]+)\*\s*lmax|lmax", re.IGNORECASE)


def parse_damping(text):
    """"1e-3" → (1e-3, False); "0.01*lmax" → (0.01, True), relative to λ_max(H̃). For argparse."""
    text = text.strip()
    relative = _RELATIVE.fullmatch(text)
    factor = text if relative is None else relative["factor"] or "1"
    try:
        value = float(factor)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor like 0.01*lmax") from None
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"the damping must be a number ≥ 0, not {text}")
    return value, relative is not None


def damping_of(given, matrix):
    """λ for a parsed damping and a matrix that knows its λ_max."""
    value, relative = given
    if relative and "lambda_max" not in matrix.report:
        raise InputError("λ_max is not known for this matrix: give the damping as a number")
    return value * matrix.report["lambda_max"] if relative else value


def check_damping(damping):
    """InputError unless λ is a finite number ≥ 0."""
    if not isinstance(damping, Real):
        raise InputError(f"the damping must be a number, not {damping!r}; for 0.01·λ_max: 0.01 * H.report['lambda_max']")
    if not 0 <= damping < float("inf"):
        raise InputError(f"the damping must be a number ≥ 0, not {damping}")


def uncovered(matrix, damping):
    """A line where λ (and l2 with it) ≤ ‖H̃ − H‖₂, by the matrix's own report."""
    error, shift = matrix.report.get("error_spectral", 0.0), damping + matrix.l2
    if 0 < error and shift <= error:
        what = f"damping {damping:.3g}" + (f" + l2 = {shift:.3g}" if matrix.l2 else "")
        yield (
            f"{what} is not larger than the compression error ‖H̃ − H‖₂ ≈ {error:.3g}: the approximate inverse is not "
            f"trustworthy; use a damping above {2 * error:.2g}, compress with a smaller rtol, or refine with the exact operator "
            "(--refine exact)"
        )


def doubts(factors):
    """What makes direct factors untrustworthy, a line each: λ ≤ ‖H̃ − H‖₂, H̃ + λI not definite, digits lost."""
    damping = factors.damping
    yield from uncovered(factors.matrix, damping)
    if factors.negative:
        yield f"H̃ + λI has {factors.negative} negative eigenvalues at damping {damping:.3g}: it is not positive definite"
    yield from digits_lost(factors)


def digits_lost(factors):
    """A line where factors do not solve with their own matrix."""
    if factors.backward_error > DIGITS_LOST:
        advice = "use a larger damping, or refine (--refine exact)"
        if factors.solver == "woodbury" and "elimination" in factors.matrix.solvers:
            advice = "the plain Woodbury formula loses digits like 1/λ, use the solver elimination"
        counted = ", log-determinant and inertia are not trustworthy" if factors.backward_error > COUNTS_LOST else ""
        yield (
            f"the {factors.solver} factors leave a residual of {factors.backward_error:.1e} against H̃ + λI at damping "
            f"{factors.damping:.3g}{counted}: {advice}"
        )
