"""The datasets of direct factors in a factor file (docs/FORMAT.md, "Solver factors"): every rank writes and reads its own nodes."""

import numpy as np

from hpcHess.backend.correction import Correction
from hpcHess.backend.elimination import Elimination
from hpcHess.backend.orthogonal import OrthogonalElimination
from hpcHess.hierarchical.factors import extended_order
from hpcHess.hierarchical.solvers import direct_solver
from hpcHess.parallel.exchange import ranges
from hpcHess.parallel.ownership import node_starts, starts_of
from hpcHess.skeleton.levels import pair_sums

# solver → its steps' class and, for each dataset, the numbers of nodes with s kept skeleton rows, r redundant ones, δ delayed
_STEPS = {
    "elimination": (
        Elimination,
        {"W": lambda s, r, d: r * (r - d), "K": lambda s, r, d: s * (r - d), "V": lambda s, r, d: r * d, "sign": lambda s, r, d: r - d},
    ),
    "ulv": (
        OrthogonalElimination,
        {
            "E": lambda s, r, d: (s + r) * (r - d),
            "F": lambda s, r, d: (s + r) * (s + d),
            "K": lambda s, r, d: s * (r - d),
            "sign": lambda s, r, d: r - d,
        },
    ),
    "woodbury": (Correction, {"G": lambda s, r, d: (s + r) ** 2, "E": lambda s, r, d: (s + r) * s}),
}
_SUMS = {"log_abs": np.float64, "negative": np.int64}  # one number a node


def _sizes(matrix, delayed, number):
    """(s, r, δ) of all nodes of a level: kept skeleton, redundant rows (children's delayed included), delayed."""
    children = np.zeros(1 << number, np.int64) if number == matrix.tree.depth else pair_sums(delayed[number + 1])
    if number == 0:
        columns = pair_sums(matrix.levels[1].ranks) if matrix.tree.depth else matrix.tree.leaf_sizes
        ranks = np.zeros(1, np.int64)
    else:
        columns, ranks = matrix.levels[number].columns, matrix.levels[number].ranks
    return ranks, columns + children - ranks, delayed[number]


def append_factors(out, factors, prefix=""):
    """`<prefix>woodbury/…` into the pieces `out` (`hierarchical.file`): all nodes, root first, in id order. Returns the attributes."""
    matrix = factors.matrix
    comm, depth, (_, parts) = matrix.comm, matrix.tree.depth, _STEPS[factors.solver]
    ranks = [np.zeros(1, np.int64), *(level.ranks for level in matrix.levels[1:])]
    delayed = [kept - rank for kept, rank in zip(factors.kept, ranks, strict=True)]
    out.whole(f"{prefix}woodbury/delayed", np.concatenate(delayed))
    for number in range(depth + 1):
        owned = node_starts(number, depth, comm.size)
        first, last = owned[comm.rank], owned[comm.rank + 1]
        arrays = factors.eliminations[number].arrays()
        sizes = _sizes(matrix, delayed, number)
        for name, count in parts.items():
            out.append(f"{prefix}woodbury/{name}", count(*sizes), first, last, arrays[name], np.float64)
        for name, dtype in _SUMS.items():
            out.append(f"{prefix}woodbury/{name}", np.ones(1 << number, np.int64), first, last, arrays[name], dtype)
    name = prefix.replace("/", "_") + "woodbury"
    return {
        f"{name}_damping": float(factors.damping),
        f"{name}_solver": factors.solver,
        f"{name}_backward_error": float(factors.backward_error),
    }


def factors_arguments(file, matrix, prefix=""):
    """(class, damping, eliminations, kept, backward error) of the factors in a file, or None. Not collective."""
    name = prefix.replace("/", "_") + "woodbury"
    if f"{name}_damping" not in file.attributes:
        return None
    solver = direct_solver(file.attributes.get(f"{name}_solver", "elimination"))
    steps = _read_steps(file, matrix, prefix, solver.solver)
    return solver, float(file.attributes[f"{name}_damping"]), *steps, file.attributes.get(f"{name}_backward_error")


def _read_steps(file, matrix, prefix, solver):
    """(eliminations, kept) by level."""
    comm, depth, (form, parts) = matrix.comm, matrix.tree.depth, _STEPS[solver]
    all_delayed = file.read_all(f"{prefix}woodbury/delayed")
    delayed = [all_delayed[(1 << number) - 1 : (2 << number) - 1] for number in range(depth + 1)]
    at, eliminations, kept = dict.fromkeys([*parts, *_SUMS], 0), [], []
    for number in range(depth + 1):
        owned = node_starts(number, depth, comm.size)
        own = slice(owned[comm.rank], owned[comm.rank + 1])
        s, r, d = sizes = _sizes(matrix, delayed, number)
        arrays = {"skeleton_sizes": s[own], "redundant_sizes": r[own], "delayed": d[own]}
        for name, count in ({name: count(*sizes) for name, count in parts.items()} | dict.fromkeys(_SUMS, np.ones_like(s))).items():
            starts = at[name] + starts_of(count)
            at[name] = int(starts[-1])
            arrays[name] = file.read(f"{prefix}woodbury/{name}", int(starts[own.start]), int(starts[own.stop]))
        if form is Elimination:
            arrays["order"], arrays["T"] = _order_and_interpolation(matrix, delayed, number, own, r[own])
        eliminations.append(form.from_arrays(matrix.backend, arrays))
        kept.append(s + d)
    return eliminations, kept


def _order_and_interpolation(matrix, delayed, number, own, redundant):
    """What eliminations take from the bases: order and T with the children's delayed rows; the root eliminates all its rows."""
    if not number:
        return ranges(np.zeros_like(redundant), redundant), np.zeros(0)
    depth = matrix.tree.depth
    children = np.zeros((own.stop - own.start, 2), np.int64) if number == depth else delayed[number + 1].reshape(-1, 2)[own]
    order, T = extended_order(matrix, matrix.levels[number], children)
    return order, matrix.backend.to_host(T.data)
