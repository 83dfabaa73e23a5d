"""The table of results in docs/PERFORMANCE.md: rows of a figure are replaced, those of the others stay."""

from benchmarks.figures.table import FIGURES
from benchmarks.machine import ROOT

PAGE = ROOT / "docs" / "PERFORMANCE.md"
BEGIN, END = "<!-- results: written by `python -m benchmarks.figures --write` -->", "<!-- results end -->"
HEAD = "| figure | asked | measured | | held against | what holds it | when |"
TEXT = """
Rows are medians of runs taken by turns with their ceilings, in one process each; `python -m benchmarks.figures NAME --write` measures a figure again and
replaces its rows. Shares are of a ceiling of the same minute; `when` says date, commit (+: files changed), threads, load of the machine before it.
"""
UNITS = {"share": lambda x: f"{100 * x:.0f} %", "times": lambda x: f"{x:.3g} ×", "seconds": lambda x: f"{x:.1f} s", "GB": lambda x: f"{x:.1f} GB"}
UNITS["growth"] = UNITS["times"]


def lines(found):
    """Table lines of one figure's results."""
    return [f"| `{found['figure']}` {each['what']} | {' | '.join(_cells(each, found))} |" for each in found["rows"]]


def _cells(row, found):
    if row["verdict"] == "not run":
        return ["", "", "not run", "", row["holds"], _when(found)]
    unit = UNITS[row["kind"]]
    asked = "–" if row["asked"] is None else f"{'≤' if row['kind'] in ('seconds', 'GB', 'growth') else '≥'} {unit(row['asked'])}"
    return [asked, unit(row["measured"]), row["verdict"], row["ceiling"], row["holds"], _when(found)]


def _when(found):
    machine = found["machine"]
    threads = machine["threads"].get("OMP_NUM_THREADS") or machine["cores"]
    clock = ", processor seconds" if found.get("clock") == "cpu" else ""
    return f"{machine['date'][:10]}, {(machine['commit'] or '?')[:7]}{machine['commit'][-1:].strip('0123456789abcdef') if machine['commit'] else ''}, " + (
        f"{threads} threads, load {machine['load_average'][0]:.1f}{clock}"
    )


def merged(text, documents):
    """The page with the rows of those results; other figures keep theirs. The markers are put under the heading Results where they are missing."""
    if BEGIN not in text:
        text = text.replace("## Results\n", f"## Results\n\n{BEGIN}\n{END}\n", 1)
    before, _, rest = text.partition(BEGIN)
    inside, _, after = rest.partition(END)
    known = {name: [line for line in inside.splitlines() if line.startswith(f"| `{name}` ")] for name in FIGURES}
    known |= {found["figure"]: lines(found) for found in documents}
    rows = [line for name in FIGURES for line in known[name]]
    origin = _origin(documents, inside)
    return f"{before}{BEGIN}\n{TEXT}{origin}\n{HEAD}\n|{'---|' * (HEAD.count('|') - 1)}\n" + "\n".join(rows) + f"\n\n{END}{after}"


def _origin(documents, inside):
    """The line that says which machine: of the newest results, else the former one."""
    if documents:
        machine = documents[-1]["machine"]
        return f"Machine: {machine['cpu']}, {machine['cores']} cores, numpy {machine['versions']['numpy']}, {machine['versions']['mpi']}.\n"
    return next((f"{line}\n" for line in inside.splitlines() if line.startswith("Machine: ")), "")
