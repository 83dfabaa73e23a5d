"""Small computations that all ranks need bit for bit alike: done by rank 0, told to the others.

Ranks whose BLAS differs (types of processors, numbers of threads) get factors of the same small matrix that differ by far more than rounding: signs of
eigenvectors, bases of their clusters, orders of pivots. Rows that every rank turns by its own factors are rows of different matrices, and ranks that
decide by their own numbers whether a loop goes on wait for each other for ever.
"""

import numpy as np

from hpcHess.parallel.agree import on_root

_MESSAGE = 1 << 30  # bytes of one message at most


def replicated(comm, function, *arguments):
    """`function(…)`, an array or a tuple of arrays, as rank 0 computes it from its own arguments, on every rank. Collective.

    Errors are those of `agree.on_root`; nothing is sent where there is one rank. Numbers come as arrays without dimensions.
    """
    if comm.size == 1:
        return function(*arguments)
    held = []

    def described():
        result = function(*arguments)
        single = isinstance(result, np.ndarray)
        held.extend(np.array(each, order="C") for each in ((result,) if single else result))
        return single, [(each.shape, each.dtype) for each in held]

    single, shapes = on_root(comm, described)
    if comm.rank:
        held = [np.empty(shape, dtype) for shape, dtype in shapes]
    for each in held:
        memory = each.reshape(-1).view(np.uint8)
        for at in range(0, memory.size, _MESSAGE):
            comm.Bcast(memory[at : at + _MESSAGE])
    return held[0] if single else tuple(held)
