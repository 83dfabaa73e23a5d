"""The figures of docs/FORMATS.md: storage against the error reached, a curve for each format; the same bytes for the same results."""

from pathlib import Path

from benchmarks.formats_cases import EXACT, STORAGE

MISSING = (
    "The figures need matplotlib, which is not installed: `pip install matplotlib` (in the environment of `jobs/setup.sh`: "
    "`.venv/bin/python -m pip install -c .venv/constraints.txt matplotlib`, which keeps its numpy), then `python -m benchmarks.formats --page --write`."
)
_LEAST = 1e-8  # errors below are drawn there


def installed():
    """Whether matplotlib is there."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def name_of(case):
    """Of the figure's file."""
    return f"formats-{case.name}.svg"


def curves(runs):
    """{row: [(error, storage in % of N²), …]} of what approximates, by falling error."""
    found = {}
    for run in runs:
        if "report" in run and run["row"] != EXACT and (run["kind"] != "auto" or run["row"] == STORAGE):
            error, stored = run["report"]["error_estimate"]["value"], run["report"]["storage_percent"]
            found.setdefault(run["row"], []).append((max(error, _LEAST), stored))
    return {row: sorted(points, reverse=True) for row, points in found.items()}


def draw(case, runs, folder):
    """The SVG file of a case; its name, or None where nothing was measured."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    points = curves(runs)
    if not points:
        return None
    Path(folder).mkdir(parents=True, exist_ok=True)
    path = Path(folder) / name_of(case)
    with matplotlib.rc_context({"svg.hashsalt": "hpcHess", "svg.fonttype": "none", "font.size": 9}):
        figure, axes = pyplot.subplots(figsize=(6.4, 4.2))
        for number, row in enumerate(name for name in points if name != STORAGE):
            errors, stored = zip(*points[row], strict=True)
            axes.plot(errors, stored, marker="osv^D<>ph"[number % 9], markersize=4, linewidth=1.2, color=f"C{number % 10}", label=row)
        if STORAGE in points:
            errors, stored = zip(*points[STORAGE], strict=True)
            axes.plot(errors, stored, "*", markersize=13, markerfacecolor="none", markeredgecolor="black", linestyle="", label=STORAGE)
        axes.set(xscale="log", yscale="log", xlabel="error reached, relative to ‖H‖_F", ylabel="storage, % of N²")
        axes.set_title(f"{case.name}, N = {case.n_params:,}")
        axes.invert_xaxis()
        axes.grid(True, which="major", linewidth=0.3)
        axes.legend(fontsize=7, loc="best")
        figure.savefig(path, format="svg", metadata={"Date": None}, bbox_inches="tight")
        pyplot.close(figure)
    return path.name
