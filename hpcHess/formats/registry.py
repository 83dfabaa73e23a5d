"""All formats by name: the one place where a format is registered."""

from hpcHess.blockwise.format import BLOCK_DIAGONAL, DENSE
from hpcHess.factored.format import DATA_WOODBURY, NONE
from hpcHess.formats.sum import sum_format
from hpcHess.hierarchical.format import FMM, HSS
from hpcHess.kronecker.format import KRONECKER_SUM
from hpcHess.lowrank.format import LOW_RANK
from hpcHess.runtime.errors import InputError

FORMATS = {each.name: each for each in (HSS, FMM, BLOCK_DIAGONAL, DENSE, DATA_WOODBURY, NONE, KRONECKER_SUM, LOW_RANK)}
FORMATS["sum"] = sum_format(FORMATS)  # parts of the others


def format_of(name):
    """The `Format` of that name. InputError for another."""
    if name not in FORMATS:
        offered = [each.name for each in FORMATS.values() if each.compress is not None]
        raise InputError(f"format must be {', '.join(offered)} or auto, not {name!r}")
    return FORMATS[name]
