"""The page of the formats, docs/FORMATS.md, from the results of `benchmarks.formats`."""

import numpy as np

from benchmarks import formats_figures as figures
from benchmarks.formats_cases import EXACT, RHS_COUNTS, STORAGE, TIME
from benchmarks.formats_regret import at, chosen, met, storage_regret, time_regret, worst
from benchmarks.tables_page import milliseconds, origin, seconds, table

HEAD = """# The formats, measured

Made by `python -m benchmarks.formats --write`: not written by hand. Every format of the program on the same matrices at the same tolerances; what
was refused, left out, or took longer than a run may is a row that says so.
"""

READ = """## How to read it

* asked: `rtol`; — where a format has none: it is made once, and met or did not meet every tolerance. error: certified ‖H̃ − H‖_F/‖H‖_F, the 95 %
  interval, or "exact" where it is computed. Storage counts numbers, symmetric ones once.
* compression: median wall seconds, planning and certificate included, from an operator that is new each time. products: H̃V with 1 and with all
  vectors.
* solve: (H̃ + λI)X = B in float64 with λ = 1e-3 λ_max(H), B standard normal, the same for all rows of a case: direct factors ("direct"; their
  seconds under "factors"), else PETSc's Krylov methods to residuals of 1e-6 with the format's preconditioner (its seconds under "factors"); at most 250
  iterations, fewer where they would take more than 40 s, and then the residual is told.
* refined: (H + λI)X = B with the exact operator in float64, to 1e-6, preconditioned by the format: what the format is worth as a
  preconditioner. The row "exact" is the operator itself: CG without a preconditioner.
* regret: of auto with objective = "storage", numbers stored over those of the smallest single approximating format that met rtol (not none,
  dense, data-woodbury); of auto with objective = "time", seconds of compression, factors and the solves over the fastest of all single formats
  that met rtol. 1 is the best; a little below 1 is the noise of the clock. Planning: its seconds, their part of the compression or of all of these.
* auto's rows have no refined solves, with objective = "storage" no solves: they are those of the format that it chose.
* K-FAC and hss + a structured part stand beside: they are in no regret.
"""

SUMMARY = ("case", "asked", "least storage: format, % of N²", "auto chose, % of N²", "regret", "planning, s (of the compression)")
SUMMARY += tuple(cell for n in RHS_COUNTS for cell in (f"fastest for {n:,}: format, s", "auto chose, s", "regret", "planning, s (of the whole)"))
COLUMNS = ("format", "asked", "storage, % of N²", "MB", "error (95 %)", "compression, s", "product 1 / {}, ms", "factors, s")
COLUMNS += ("solve of {}, s", "iterations", "refined, {} columns, s", "iterations", "")
PLANNED = ("asked", "format", "storage, % of N²: predicted (± factor)", "was", "was / predicted", "compression, s: predicted", "was")
PLANNED += ("solve of one, ms: predicted", "was", "memory: predicted", "was, beyond the operator's")
EMPTY = "—"


def page(cases, results, folder=None):
    """The text of the page for `formats_cases.Case`s and {name: result}; the figures go to `folder` (None: they are not drawn)."""
    runs = {case.name: [run for run in results.values() if run["case"] == case.name] for case in cases}
    parts = [HEAD, _origin(results), "## Summary\n", table(SUMMARY, [row for case in cases for row in _summary(case, runs[case.name])])]
    parts += [_worst(runs, cases), READ]
    for case in cases:
        parts += _section(case, runs[case.name], folder)
    return "\n".join(parts)


def _origin(results):
    done = [run for run in results.values() if "machine" in run]
    if not done:
        return "Nothing was measured.\n"
    spent = sum(run["seconds"] for run in results.values())
    started = sum("machine" in run for run in results.values())
    told = sorted({run["failed"] for run in results.values() if (run.get("failed") or "").startswith("not run")})
    lines = [f"{origin(done)}. {started} runs, {spent / 60:.0f} minutes. One of them:", "", f"    {done[0]['command']}", ""]
    for reason in told:
        count = sum(run.get("failed") == reason for run in results.values())
        lines += [f"**{count} of {len(results)} runs: {reason}**; the tables show which.", ""]
    return "\n".join(lines)


def _summary(case, runs):
    """A row for each rtol."""
    for rtol in case.rtols:
        storage, auto = storage_regret(runs, rtol), at(runs, rtol).get(STORAGE, {})
        percent = lambda entries: None if entries is None else f"{100 * entries / float(case.n_params) ** 2:.3g}"  # noqa: E731
        missed = "" if "report" not in auto or met(auto, rtol) else " **rtol not met**"
        cells = [case.name, f"{rtol:g}", _pair(storage.best, percent(storage.cost)), _pair(storage.chosen, percent(storage.chosen_cost)) + missed]
        cells += [_factor(storage.factor), _planning(auto, auto.get("compress_seconds"))]
        for count in RHS_COUNTS:
            regret = time_regret(runs, rtol, count)
            cost, taken = (None if each is None else seconds(each) for each in (regret.cost, regret.chosen_cost))
            auto = at(runs, rtol).get(f"{TIME} {count}", {})
            cells += [_pair(regret.best, cost), _pair(regret.chosen, taken), _factor(regret.factor), _planning(auto, regret.chosen_cost)]
        yield cells


def _pair(name, value):
    return EMPTY if name is None or value is None else f"{name}, {value}"


def _factor(value):
    return EMPTY if value is None else f"{value:.2f}"


def _planning(run, whole):
    """Seconds, and their part of the `whole`."""
    plan = run.get("report", {}).get("plan")
    return EMPTY if plan is None else _short(plan["seconds"]) + (f" ({100 * plan['seconds'] / whole:.0f} %)" if whole else "")


def _worst(runs, cases):
    """The largest regrets, and what auto missed."""
    lines = [f"* largest regret, {name}: {factor:.2f} ({case}, {rtol:g})" for name, (factor, case, rtol) in worst(runs, cases).items()]
    autos = [run for case in cases for run in runs[case.name] if run.get("kind") == "auto"]
    made = [run for run in autos if "report" in run]
    missed = [f"{run['case']}, {run['row']}, {run['rtol']:g}" for run in made if not met(run, run["rtol"])]
    lines.append(f"* auto met rtol in {len(made) - len(missed)} of {len(made)} runs" + (f"; not in: {'; '.join(missed)}" if missed else ""))
    if len(autos) > len(made) > 0:
        lines.append(f"* {len(autos) - len(made)} further runs of auto have no result: the tables say why")
    return "\n".join(lines) + "\n"


def _section(case, runs, folder):
    """Heading, the operator, the figure, the table of all runs, the planner's predictions."""
    exact = next((run for run in runs if run["row"] == EXACT), {})
    known = f"N = {exact.get('n_params', case.n_params):,}" + (f", λ = {exact['damping']:.3g} = 1e-3 λ_max" if "damping" in exact else "")
    parts = [f"## {case.name}\n", f"{case.title}: {known}.\n"]
    if folder is not None:
        parts += [_figure(case, runs, folder)]
    columns = [cell.format(case.exact_columns if "refined" in cell else case.columns) for cell in COLUMNS]
    rows = [_exact_row(exact)] + [_row(case, run) for run in sorted((run for run in runs if run["row"] != EXACT), key=lambda run: _order(case, run))]
    parts += [table(columns, rows)]
    predicted = [row for rtol in case.rtols for row in _predicted(case, runs, rtol)]
    if predicted:
        parts += ["What the planner predicted, beside what the formats then were:\n", table(PLANNED, predicted)]
    return parts


def _figure(case, runs, folder):
    if not figures.installed():
        return figures.MISSING + "\n"
    name = figures.draw(case, runs, folder)
    return f"![storage against error]({folder.name}/{name})\n" if name else ""


def _order(case, run):
    """Formats by name as they came, each by falling rtol; auto last."""
    kinds = ("format", "reference", "auto")
    return kinds.index(run["kind"]), run["format"] if run["kind"] != "auto" else run["row"], run["row"], -run["rtol"]


def _exact_row(run):
    """The operator itself."""
    cells = [EXACT, "", "", "", "0", ""]
    return _padded([*cells, _products(run), "", "", "", *_refined(run)], run)


def _row(case, run):
    asked = f"{run['rtol']:g}" if run["steered"] else EMPTY
    if run["kind"] == "auto" and chosen(run):
        cells = [f"**{run['row']}**: {chosen(run)}", asked]
    else:
        cells = [f"**{run['row']}**" if run["kind"] == "auto" else run["row"], asked]
    if "report" not in run:
        return _padded(cells, run)
    report, error = run["report"], run["report"]["error_estimate"]
    told = "exact" if error.get("exact") else f"{error['low']:.1e} … {error['high']:.1e}"
    told = f"{error['value']:.2e} ({told})" if error["value"] else "0"
    cells += [f"{report['storage_percent']:.3g}", f"{report['storage_bytes'] / 1e6:,.1f}"]
    told += "" if met(run, run["rtol"]) or not run["steered"] else " **not met**"
    cells += [told, _short(run["compress_seconds"]), _products(run)]
    return _padded([*cells, *_solved(run), *_refined(run)], run)


def _padded(cells, run):
    """All cells, the reason of what is missing in the last."""
    reason = run.get("failed") or _reasons(run)
    return [*cells, *[""] * (len(COLUMNS) - 1 - len(cells)), reason.replace("|", "¦").replace("\n", " ")]


def _reasons(run):
    """What the solves have to tell."""
    told = []
    for name in ("solve", "refined"):
        found = run.get(name) or {}
        if "failed" in found:
            told.append(f"{name}: {found['failed']}")
        elif found and not found.get("converged"):
            told.append(f"{name}: residual {found['residual']:.1e} when it stopped")
        if found.get("negative"):
            told.append(f"H̃ + λI has {found['negative']} negative eigenvalues")
    return "; ".join(told)


def _products(run):
    return " / ".join(map(milliseconds, run["products"].values())) if "products" in run else ""


def _solved(run):
    """Factors, seconds, iterations."""
    found = run.get("solve") or {}
    if "seconds" not in found:
        return ["", "", ""]
    how = "direct" if "iterations" not in found else f"{found['iterations']} {found['method'].upper()}"
    return [_short(found["factor_seconds"]), _short(found["seconds"]), how]


def _refined(run):
    found = run.get("refined") or {}
    return [_short(found["seconds"]), f"{found['iterations']} {found['method'].upper()}"] if "seconds" in found else ["", ""]


def _short(value):
    return seconds(value) if value >= 0.1 else f"{value:.2g}"


def _predicted(case, runs, rtol):
    """Rows of predictions: those of the runs of auto, the storage's first."""
    there = at(runs, rtol)
    autos = (STORAGE, *(f"{TIME} {n}" for n in RHS_COUNTS))
    plan = next((there[name]["report"]["plan"] for name in autos if "plan" in there.get(name, {}).get("report", {})), None)
    for name, each in (plan or {"predictions": {}})["predictions"].items():
        run = there.get(name, {})
        if each["refused"]:
            yield [f"{rtol:g}", name, f"refused: {each['refused']}".replace("|", "¦"), *[""] * (len(PLANNED) - 3)]
        else:
            yield [f"{rtol:g}", name, *_expected(each, run if "report" in run else {}, float(case.n_params) ** 2)]


def _expected(each, run, square):
    """Predicted and true, cell by cell."""
    report, solve, peak = run.get("report"), run.get("solve") or {}, run.get("peak_memory")
    cells = [f"{100 * each['entries'] / square:.3g} (× {each['spread']:.3g})", f"{report['storage_percent']:.3g}" if report else EMPTY]
    cells += [f"{report['storage_entries'] / each['entries']:.2f}" if report and each["entries"] else EMPTY]
    cells += [_short(each["compress"]), _short(run["compress_seconds"]) if report else EMPTY]
    cells += [milliseconds(each["solve"]), milliseconds(solve["seconds"] / solve["columns"]) if solve.get("converged") else EMPTY]
    return [*cells, _bytes(each["memory"]), EMPTY if peak is None else _bytes(peak)]


def _bytes(count):
    return f"{count / 1e9:.3g} GB" if np.isfinite(count) and count >= 1e8 else f"{count / 1e6:.3g} MB"
