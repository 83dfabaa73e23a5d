"""What the choice of `auto` costs beside the best of the formats that were measured: storage, and seconds for so many right-hand sides."""

from dataclasses import dataclass

from benchmarks.formats_cases import RHS_COUNTS, STORAGE, TIME


@dataclass(frozen=True)
class Regret:
    """best, its `cost`; what auto chose, its cost. None where there is none."""

    best: str | None
    cost: float | None
    chosen: str | None
    chosen_cost: float | None

    @property
    def factor(self):
        """auto's cost over the best."""
        return None if self.cost is None or self.chosen_cost is None else self.chosen_cost / self.cost


def met(run, rtol):
    """Whether the certified error of a run is within rtol, whatever it was asked for."""
    return "report" in run and run["report"]["error_estimate"]["high"] <= rtol


def at(runs, rtol):
    """{row: run} of what was run for that rtol, and of what is the same for every rtol."""
    return {run["row"]: run for run in runs if run.get("kind") in ("format", "reference", "auto") and (not run["steered"] or run["rtol"] == rtol)}


def chosen(run):
    """The format that an auto run chose, None where it is not known."""
    return None if "report" not in run else run["report"].get("plan", {}).get("chosen", run["report"]["format"])


def storage_regret(runs, rtol):
    """Numbers stored of auto with objective = "storage" over those of the smallest single approximating format that met rtol; `runs` of a case."""
    there = at(runs, rtol)
    candidates = {row: run for row, run in there.items() if run["kind"] == "format" and run["approximates"] and met(run, rtol)}
    costs = {row: run["report"]["storage_entries"] for row, run in candidates.items()}
    auto = there.get(STORAGE, {})
    return _against(costs, auto, auto["report"]["storage_entries"] if "report" in auto else None)


def time_regret(runs, rtol, count):
    """Seconds of compression and `count` solves of auto with objective = "time" over those of the fastest single format that met rtol."""
    there = at(runs, rtol)
    candidates = {row: seconds_for(run, count) for row, run in there.items() if run["kind"] == "format" and met(run, rtol)}
    auto = there.get(f"{TIME} {count}", {})
    return _against({row: cost for row, cost in candidates.items() if cost is not None}, auto, seconds_for(auto, count))


def _against(costs, auto, cost):
    best = min(costs, key=costs.get) if costs else None
    return Regret(best, costs.get(best), chosen(auto), cost)


def seconds_for(run, count):
    """Compression + what is made once for the solves + `count` solves; None where a solve did not come about or did not converge."""
    solve = run.get("solve") or {}
    if not solve.get("converged"):
        return None
    return run["compress_seconds"] + solve["factor_seconds"] + count * solve["seconds"] / solve["columns"]


def worst(runs_by_case, cases):
    """{objective: (factor, case, rtol)} of the largest regrets."""
    found = {}
    for case in cases:
        runs = runs_by_case.get(case.name, ())
        for rtol in case.rtols:
            regrets = {"storage": storage_regret(runs, rtol)} | {f"time, {n:,}": time_regret(runs, rtol, n) for n in RHS_COUNTS}
            for name, regret in regrets.items():
                if regret.factor is not None and regret.factor > found.get(name, (0.0,))[0]:
                    found[name] = regret.factor, case.name, rtol
    return found
