"""All formats by name: the one place where a format is registered."""

from hpcHess.blockwise.format import BLOCK_DIAGONAL, DENSE
from hpcHess.hierarchical.format import FMM, HSS
from hpcHess.kronecker.format import KRONECKER_SUM
from hpcHess.lowrank.format import LOW_RANK
from hpcHess.runtime.errors import InputError

FORMATS = {each.name: each for each in (HSS, FMM, BLOCK_DIAGONAL, DENSE, KRONECKER_SUM, LOW_RANK)}


def format_of(name):
    """The `Format` of that name. InputError for another."""
    if name not in FORMATS:
        raise InputError(f"format must be {' or '.join(FORMATS)}, not {name!r}")
    return FORMATS[name]
