"""`format = "auto"`: what each format would cost, the choice, and the reasons (docs/MATHEMATICS.md, "The choice of the format")."""

import math
import time
from dataclasses import dataclass, replace

from hpcHess.compressed.facts import Facts
from hpcHess.compressed.options import stored_dtype
from hpcHess.formats.registry import FORMATS
from hpcHess.parallel import memory as host_memory
from hpcHess.runtime.errors import InputError


@dataclass(frozen=True)
class Plan:
    """The formats that can serve, best first, and the table of all predictions {name: Prediction}.

    `first` is what would be made; with objective = "storage" those of `rivals` whose predictions overlap with it are tried as well, and the
    smallest result is kept.
    """

    objective: str
    order: tuple
    predictions: dict
    seconds: float
    memory: int

    @property
    def first(self):
        """Name of the best format by prediction."""
        return self.order[0]

    @property
    def rivals(self):
        """Names of the formats that may store less than the first, as far as the predictions can tell, best first."""
        if self.objective != "storage":
            return ()
        best = self.predictions[self.first]
        bound = best.entries * best.spread
        return tuple(name for name in self.order[1:] if self.predictions[name].entries / self.predictions[name].spread < bound)

    def as_dict(self):
        """For the report: plain values."""
        left_out = ("made", "refine", "effort")
        finite = lambda value: None if isinstance(value, float) and not math.isfinite(value) else value  # noqa: E731  JSON has no infinities
        table = {name: {key: finite(value) for key, value in vars(each).items() if key not in left_out} for name, each in self.predictions.items()}
        return {"objective": self.objective, "order": list(self.order), "predictions": table, "memory": self.memory, "seconds": self.seconds}


def cost_of(prediction, facts, objective):
    """Numbers stored, or seconds: compression + rhs_count × (apply or solve)."""
    if objective == "storage":
        return prediction.entries
    return prediction.compress + facts.rhs_count * (prediction.solve if facts.workload == "solve" else prediction.apply)


def available_memory(comm, asked=0):
    """Bytes that all ranks may hold together: `asked`, or what their hosts have free. Collective."""
    return int(asked) if asked else int(host_memory.fair_share(comm) * comm.size)


def predictions_of(facts):
    """{name: Prediction} of all formats that have one. Collective."""
    return {each.name: _agreed(facts.comm, each.predict(facts)) for each in FORMATS.values() if each.predict is not None}


def _agreed(comm, prediction):
    """Rank 0's numbers on all ranks: they decide what is made, and ranks whose BLAS differ may differ in the last digit. Collective."""
    own = ("refine", "made")  # of each rank
    return replace(prediction, **comm.bcast({key: value for key, value in vars(prediction).items() if key not in own}))


def plan(facts, objective):
    """The `Plan` for these `Facts`. Collective. InputError where no format fits the memory or can serve, with the numbers."""
    start = time.perf_counter()
    predicted = predictions_of(facts)
    _refine(predicted, facts, objective)
    seconds = facts.seconds + facts.comm.bcast(time.perf_counter() - start)
    chosen = {name: each for name, each in predicted.items() if not _why_not(name, each, facts, objective)}
    if not chosen:
        reasons = "; ".join(f"{name}: {_why_not(name, each, facts, objective)}" for name, each in predicted.items())
        raise InputError(f"no format can serve with {_gigabytes(facts.memory)} of memory: {reasons}")
    order = tuple(sorted(chosen, key=lambda name: (chosen[name].bound, cost_of(chosen[name], facts, objective))))
    return Plan(objective, order, predicted, seconds, facts.memory)


def _refine(predicted, facts, objective):
    """Better predictions, in place, where what there is leaves it open which format is best, and, of seconds, where more is at stake than
    finding out takes. The one that may be best first. Collective: all of it follows from numbers that all ranks have.
    """
    while True:
        able = [name for name, each in predicted.items() if not _why_not(name, each, facts, objective)]
        costs = {name: cost_of(predicted[name], facts, objective) for name in able}
        high = min((costs[name] * predicted[name].spread for name in able if not predicted[name].bound), default=math.inf)
        low = {name: costs[name] / predicted[name].spread for name in able}
        rivals = [name for name in able if low[name] <= high]
        worth = lambda name: objective == "storage" or predicted[name].bound and math.isinf(high) or high - low[name] > predicted[name].effort  # noqa: E731
        coarse = sorted((name for name in rivals if predicted[name].refine is not None and worth(name)), key=costs.get)
        if not coarse or (len(rivals) < 2 and not predicted[coarse[0]].bound):
            return
        predicted[coarse[0]] = _agreed(facts.comm, predicted[coarse[0]].refine())


def _why_not(name, prediction, facts, objective):
    """Why a format is no candidate, or ""."""
    if prediction.refused:
        return prediction.refused
    if objective == "storage" and not FORMATS[name].approximates:
        return "exact: not judged by storage"
    if prediction.error > facts.rtol:
        return f"error {prediction.error:.2g} expected, asked {facts.rtol:g}"
    if prediction.memory > facts.memory:
        return f"needs {_gigabytes(prediction.memory)}"
    return ""


def check_memory(name, facts):
    """InputError, with the numbers, where the format asked for is predicted not to fit the memory. Collective."""
    entry = FORMATS[name]
    prediction = None if entry.predict is None else _agreed(facts.comm, entry.predict(facts))
    while prediction is not None and prediction.refine is not None:
        prediction = _agreed(facts.comm, prediction.refine())
    if prediction is not None and prediction.memory > facts.memory:
        raise InputError(
            f"{name} needs about {_gigabytes(prediction.memory)} ({prediction.note or 'predicted'}), but {_gigabytes(facts.memory)} may be "
            'used: raise --memory, use more hosts, raise rtol, or use format = "auto"'
        )
    return prediction


def explained(plan, facts):
    """The table for people: a line for every format, the best first."""
    unit = "solve" if facts.workload == "solve" else "product"
    yield (
        f"auto: least {plan.objective} for rtol {facts.rtol:g}, {facts.rhs_count:,} right-hand side{'s' if facts.rhs_count != 1 else ''} "
        f"to {'solve for' if unit == 'solve' else 'multiply'}, {_gigabytes(plan.memory)} of memory (planned in {plan.seconds:.2f} s)"
    )
    yield f"{'format':>16} {'% of N²':>9} {'×÷':>5} {'error':>8} {'memory':>9} {'compress':>9} {unit:>9} {'total':>9}  (seconds; a {unit} is of one vector)"
    rest = [name for name in plan.predictions if name not in plan.order]
    for name in (*plan.order, *rest):
        each = plan.predictions[name]
        reason = "" if name in plan.order else f"  no: {_why_not(name, each, facts, plan.objective)}"
        if each.refused:
            yield f"{name:>16}{reason}"
            continue
        one = each.solve if unit == "solve" else each.apply
        yield (
            f"{name:>16} {100 * each.entries / float(facts.n_params) ** 2:>9.4g} {'≥' if each.bound else f'{each.spread:.3g}':>5} {each.error:>8.1e} "
            f"{_gigabytes(each.memory):>9} {each.compress:>9.3g} {one:>9.2e} {each.compress + facts.rhs_count * one:>9.3g}{reason or '  ' + each.note}"
        )


def _gigabytes(count):
    return f"{count / 1e9:.3g} GB" if count >= 1e8 else f"{count / 1e6:.3g} MB"


def facts_of(operator, rtol, dtype, rhs_count=64, workload="solve", memory=0, options=None, seed=0):
    """`Facts` for options as users give them. Collective."""
    itemsize = stored_dtype(dtype, rtol).itemsize
    return Facts(operator, rtol, itemsize, rhs_count, workload, available_memory(operator.comm, memory), options, seed)
