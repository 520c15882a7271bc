"""A study of the tuner, read from its records: trials, the front, what was trained again, and what parameters change.

Trials have the study's seed; records of other seeds are of the best, trained again. The choice among many noisy numbers
favours those whose noise was lucky, so what was best is expected to lose when it is trained again: regression to the
mean. It is reported, and only fresh seeds compare.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any, NamedTuple

from revsnn_bench.case import Case, Option
from revsnn_bench.metrics import BY_NAME
from revsnn_bench.records import Record, Run, Status, TrialRecord
from revsnn_bench.report import units
from revsnn_bench.report.points import CONFIDENCE, Interval, interval_of_mean, pareto_front

LEAST_TRIALS = 6
"""Trials of a node below which nothing is said about its parameters."""

COSTS = {"accuracy": "accuracy", "peak": "peak_bytes", "time": "step_time_s"}
"""Metric by objective."""

_TREES = 5
"""Seeds of the importances, whose mean is shown."""


class Retrained(NamedTuple):
    """One of the best, trained again, with accuracy by seed.

    Fields:
        to_first: their mean less the accuracy of the trial: how far it came back to the mean.
        to_baseline: less the baseline, seed by seed; None of the baseline itself.
        judged: the record that holds bytes and gradient error.
    """

    first: Record
    fresh: dict[int, float]
    to_first: Interval
    to_baseline: Interval | None
    judged: Record


class Effect(NamedTuple):
    """What a parameter has to do with accuracy among the trials of a node: Spearman's rank correlation."""

    node: str
    name: str
    trials: int
    correlation: Interval


def known(record: Record) -> TrialRecord:
    """What the study knows of a record.

    Raises:
        ValueError: the record is of no study.
    """
    if record.trial is None:
        raise ValueError(f"{record.case.id} must be of a study; it was made otherwise. Pass a run of `tune`.")
    return record.trial


def is_study(run: Run) -> bool:
    """Whether a run was made by the tuner."""
    return "nodes" in run.header.settings and "objective" in run.header.settings


def trials(run: Run) -> list[Record]:
    """The records of trials, by number."""
    own = [record for record in run if record.trial is not None and record.case.seed == run.header.settings["seed"]]
    return sorted(own, key=lambda record: known(record).number)


def finished(run: Run) -> list[Record]:
    """Trials that were trained to their end."""
    return [r for r in trials(run) if r.accuracy is not None and r.status in (Status.OK, Status.APPROXIMATE)]


def values(record: Record, objective: Sequence[str]) -> tuple[float, ...]:
    """What was measured of a record, such that less is better."""
    found = []
    for name in objective:
        value = BY_NAME[COSTS[name]].read(record)
        found.append(math.inf if value is None else -value if name == "accuracy" else value)
    return tuple(found)


def front(run: Run) -> list[Record]:
    """Finished trials that no other beats in every objective, as measured; best accuracy first."""
    objective = run.header.settings["objective"]
    best = {*pareto_front({record.case: values(record, objective) for record in finished(run)})}
    found = [record for record in finished(run) if record.case in best]
    return sorted(found, key=lambda record: (-_score(record), known(record).number))


def baseline(run: Run) -> Record | None:
    """The defaults of the first node, where they were trained to their end."""
    return next((record for record in finished(run) if known(record).number == 0), None)


def to_retrain(run: Run) -> list[Record]:
    """The best of the front by accuracy, and the baseline; one of each setting."""
    chosen = front(run)[: run.header.settings["retrain"]]
    first = baseline(run)
    return [*([] if first is None or first in chosen or not chosen else [first]), *chosen]


def retrained(run: Run) -> list[Retrained]:
    """What was trained again on two seeds at least, by falling mean."""
    first = baseline(run)
    by_setting: dict[Case, dict[int, Record]] = {}
    for record in run:
        if record.trial is not None and record.case.seed != run.header.settings["seed"] and record.accuracy is not None:
            setting = record.case.model_copy(update={"seed": run.header.settings["seed"]})
            by_setting.setdefault(setting, {})[record.case.seed] = record
    scores = {case: {seed: _score(record) for seed, record in each.items()} for case, each in by_setting.items()}
    found = []
    for record in finished(run):
        fresh = scores.get(record.case, {})
        if len(fresh) < 2:
            continue
        against = {} if first is None or record is first else scores.get(first.case, {})
        back = interval_of_mean([score - _score(record) for score in fresh.values()])
        judged = by_setting[record.case][min(fresh)]
        found.append(Retrained(record, fresh, back, _less(fresh, against), judged))
    return sorted(found, key=lambda each: -mean(each.fresh.values()))


def _less(scores: Mapping[int, float], others: Mapping[int, float]) -> Interval | None:
    """The difference, seed by seed; None where no seed is the same."""
    pairs = [scores[seed] - others[seed] for seed in scores if seed in others]
    return interval_of_mean(pairs) if pairs else None


def chosen(run: Run) -> Record | None:
    """Of what fresh seeds cannot tell from the highest mean, the setting that takes the fewest bytes; before anything
    was trained again, the first of the front."""
    again = retrained(run)
    if not again:
        return next(iter(front(run)), None)
    even = [each for each in again if (less := _less(each.fresh, again[0].fresh)) is None or less.high >= 0]
    return min(even, key=lambda each: (BY_NAME["peak_bytes"].read(each.first) or 0, -mean(each.fresh.values()))).first


def command(record: Record) -> str:
    """The command that trains the setting of a record."""
    case = record.case

    def typed(value: Option) -> str:
        return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)

    options = " ".join(f"--option {name}={typed(value)}" for name, value in case.node_options)
    more = f"--shape {case.features}" + ("" if case.encoding == "direct" else f" --encoding {case.encoding}")
    return (
        f"revsnn-bench train --network {case.workload} --node {case.node} {options} --timesteps {case.timesteps} "
        f"--epochs {case.epochs} --batch {case.batch} --learning-rate {case.learning_rate:g} {more}"
    )


def _many(trials: int) -> str:
    return f"{trials} trial{'s' if trials != 1 else ''}"


def summary(run: Run) -> list[str]:
    """What came out, in sentences."""
    settings, tried, best = run.header.settings, trials(run), chosen(run)
    counts = {
        "trained to their end": len(finished(run)),
        "refused before training": sum(r.status is Status.SKIPPED and r.accuracy is None for r in tried),
        "stopped while training": sum(r.status is Status.SKIPPED and r.accuracy is not None for r in tried),
        "failed": sum(r.status in (Status.ERROR, Status.OOM, Status.TIMEOUT) for r in tried),
    }
    lines = [f"{_many(len(tried))}: {', '.join(f'{count} {what}' for what, count in counts.items() if count)}."]
    peaks = [r.memory.peak_bytes for r in tried if r.memory is not None and r.accuracy is not None]
    if settings["budget_bytes"] is not None and peaks:
        lines.append(
            f"The budget is {settings['budget_bytes'] / 2**20:g} MiB; the highest measured peak of a trial that was "
            f"trained is {max(peaks) / 2**20:.2f} MiB."
        )
    if best is None:
        return [*lines, "No trial was trained to its end."]
    top, again = front(run)[0], {each.first.case: each for each in retrained(run)}
    lines.append(f"The front has {_many(len(front(run)))}; the most accurate is trial {known(top).number}.")
    if top.case in again:
        lines.append(f"Trial {known(top).number} {_came_back(again[top.case])}")
    even = "of those that fresh seeds cannot tell from the best, it takes the fewest bytes"
    lines.append(
        f"Chosen: trial {known(best).number}, {best.case.variant}, T = {best.case.timesteps}, learning rate "
        f"{best.case.learning_rate:g}, peak {units.measured('peak_bytes', best)}{f'; {even}' if again else ''}."
    )
    if best.case in again:
        if best is not top:
            lines.append(f"It {_came_back(again[best.case])}")
        paired = again[best.case].to_baseline
        if paired is not None:
            lines.append(f"Less the defaults of {settings['nodes'][0]}, seed by seed: {paired.in_points()}.")
    return lines


def _came_back(each: Retrained) -> str:
    """How a setting did on fresh seeds."""
    found, fresh = units.percent(_score(each.first)), units.spread(each.fresh.values())
    back = f"regression to the mean: {each.to_first.in_points()}"
    return f"had {found} in the search and has {fresh} on {len(each.fresh)} fresh seeds; {back}."


def importances(run: Run) -> dict[str, float]:
    """Share of accuracy's variance by parameter that every node has, by Optuna's fANOVA; {} for too few trials."""
    records = finished(run)
    shared = [name for name in _names(records) if all(name in known(record).params for record in records)]
    varied = [name for name in shared if len({known(record).params[name] for record in records}) > 1]
    if len(records) < LEAST_TRIALS or not varied or len({_score(record) for record in records}) < 2:
        return {}
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space: dict[str, BaseDistribution] = {}
    for name in varied:
        own = [known(record).params[name] for record in records]
        numbers = [value for value in own if isinstance(value, float)]
        if len(numbers) == len(own):
            space[name] = FloatDistribution(min(numbers), max(numbers))
        else:
            space[name] = CategoricalDistribution(tuple(dict.fromkeys(own)))
    study = optuna.create_study(direction="maximize")
    for record in records:
        params: dict[str, Any] = {name: known(record).params[name] for name in varied}
        study.add_trial(optuna.trial.create_trial(value=_score(record), params=params, distributions=space))
    forests = [optuna.importance.FanovaImportanceEvaluator(seed=seed) for seed in range(_TREES)]
    found = [optuna.importance.get_param_importances(study, evaluator=forest) for forest in forests]
    means = {name: float(mean(each[name] for each in found)) for name in varied}
    return dict(sorted(means.items(), key=lambda item: -item[1]))


def effects(run: Run) -> list[Effect]:
    """Of each node with enough trials, what each number that it was given has to do with its accuracy."""
    from scipy.stats import ConstantInputWarning, spearmanr

    found = []
    for node in run.header.settings["nodes"]:
        records = [record for record in finished(run) if record.case.node == node]
        for name in _names(records) if len(records) >= LEAST_TRIALS else ():
            numbers = [known(record).params[name] for record in records]
            if not all(isinstance(value, int | float) for value in numbers) or len(set(numbers)) < 2:
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConstantInputWarning)
                rho = float(spearmanr(numbers, [_score(record) for record in records]).statistic)
            if math.isfinite(rho):
                found.append(Effect(node, name, len(records), _around(rho, len(records))))
    return found


def _around(rho: float, count: int) -> Interval:
    """Fisher's interval of a rank correlation, with the variance of Fieller, Hartley and Pearson (1957)."""
    from scipy.special import ndtri

    centre = math.atanh(max(-0.999, min(0.999, rho)))
    half = float(ndtri((1 + CONFIDENCE) / 2)) * math.sqrt(1.06 / (count - 3))
    return Interval(rho, math.tanh(centre - half), math.tanh(centre + half))


def _score(record: Record) -> float:
    return math.nan if record.accuracy is None else record.accuracy.accuracy


def _names(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(name for record in records for name in known(record).params))
