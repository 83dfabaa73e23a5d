"""The direct solvers by name."""

from hpcHess.hierarchical.elimination import InterpolativeElimination
from hpcHess.hierarchical.ulv import ULV
from hpcHess.hierarchical.woodbury import Woodbury
from hpcHess.runtime.errors import InputError

DIRECT = {form.solver: form for form in (InterpolativeElimination, ULV, Woodbury)}


def direct_solver(name):
    """The `Factors` class called elimination, ulv or woodbury. InputError for another name."""
    if name not in DIRECT:
        raise InputError(f"the solver must be {' or '.join(DIRECT)}, not {name!r}")
    return DIRECT[name]
