"""Rows of results: seconds, operations, bytes, rates, and the part of the ceiling that binds."""

import math

COLUMNS = (
    ("median s", 9), ("min", 9), ("max", 9), ("CPU", 5), ("system", 6), ("balance", 7), ("GFLOP", 9), ("GFLOP/s", 8), ("MB", 9), ("GB/s", 7)
)  # fmt: skip


def row(phase, seconds, work, ceilings, inside=None):
    """One row, plain values.

    phase       name; `inside` the row it is a part of, or None
    seconds     {median, min, max, repeats, cpu_share, system_share} of the slowest rank; of kernels also balance: the operations
                of the mean rank over those of the rank that has most
    work        `models.Work` over all ranks, or None where nothing is counted
    ceilings    `ceilings.Ceilings`

    `bound` names the ceiling that would be reached last, `least_seconds` the time at that ceiling, `fraction` least / median.
    """
    found = {"phase": phase, "inside": inside, "seconds": seconds, "flops": None, "bytes": None, "gflops": None, "gbytes": None}
    found |= {"bound": None, "least_seconds": None, "fraction": None}
    if work is None or not (work.flops or work.bytes):
        return found
    median = seconds["median"]
    bound, least = binding(work, ceilings)
    found |= {"flops": work.flops, "bytes": work.bytes, "bound": bound, "least_seconds": least}
    if median > 0:
        found |= {"gflops": work.flops / median / 1e9, "gbytes": work.bytes / median / 1e9, "fraction": least / median}
    return found


def binding(work, ceilings):
    """(name, seconds) of the ceiling that binds: operations at gemm's rate, or bytes at the memory's for this working set."""
    single, double = ceilings.gemm("float32"), ceilings.gemm("float64")
    name, rate = ceilings.memory(work.bytes / ceilings.ranks)
    computing, moving = work.flops32 / single[1] + work.flops64 / double[1], work.bytes / rate
    if moving > computing:
        return name, moving
    return (single if work.flops32 / single[1] >= work.flops64 / double[1] else double)[0], computing


def file_row(phase, seconds, n_bytes, rate):
    """A row of writing or reading n_bytes where a plain file of that size goes at `rate` byte/s."""
    least = n_bytes / rate
    return {
        **row(phase, seconds, None, None),
        "bytes": float(n_bytes),
        "gbytes": n_bytes / seconds["median"] / 1e9,
        "bound": "plain file",
        "least_seconds": least,
        "fraction": least / seconds["median"],
    }


def lost(rows, whole, count=6):
    """Where a whole loses most against the ceilings: its smallest parts by median − least seconds, [{phase, seconds, fraction of the
    whole}]; parts of one name are added up. Parts with nothing to count (Python, exchange, waiting) are lost altogether.
    """
    parents = {each["inside"] for each in rows}
    inside = {each["phase"]: each["inside"] for each in rows}
    total = next(each["seconds"]["median"] for each in rows if each["phase"] == whole)
    seconds = {}
    for each in rows:
        top = each["inside"]
        while top is not None and top != whole:
            top = inside[top]
        if top == whole and each["phase"] not in parents:
            seconds[each["phase"]] = seconds.get(each["phase"], 0.0) + each["seconds"]["median"] - (each["least_seconds"] or 0.0)
    worst = sorted(seconds, key=seconds.get, reverse=True)[:count]
    return [{"phase": phase, "seconds": seconds[phase], "fraction": seconds[phase] / total if total else 0.0} for phase in worst]


def table(rows):
    """The rows as lines of text; parts are indented below their row."""
    inside = {each["phase"]: each["inside"] for each in rows}
    lines = [f"{'phase':<48} {' '.join(f'{name:>{width}}' for name, width in COLUMNS)} of bound  bound"]
    for each in rows:
        depth, whole = 0, each["inside"]
        while whole is not None:
            depth, whole = depth + 1, inside[whole]
        lines.append(_line(each, "  " * depth + each["phase"]))
    return lines


def _line(each, name):
    seconds = " ".join(_number(each["seconds"][key], 9) for key in ("median", "min", "max"))
    for share, width in ((each["seconds"].get(key), width) for key, width in (("cpu_share", 4), ("system_share", 5), ("balance", 6))):
        seconds += " " * (width + 2) if share is None else f" {100 * share:{width}.0f}%"
    flops, size = (_number(value and value / unit, 9) for value, unit in ((each["flops"], 1e9), (each["bytes"], 1e6)))
    part = f"{100 * each['fraction']:.1f} %" if each["fraction"] is not None else ""
    rates = f"{flops} {_number(each['gflops'], 8)} {size} {_number(each['gbytes'], 7)} {part:>8}"
    return f"{name:<48} {seconds} {rates}  {each['bound'] or ''}".rstrip()


def _number(value, width):
    """Three digits or more, blank for None."""
    if value is None:
        return " " * width
    digits = max(0, min(6, 2 - math.floor(math.log10(abs(value))))) if value else 0
    return f"{value:>{width}.{digits}f}"

