"""The claims about accuracy, over several seeds."""

import math
from collections import defaultdict
from statistics import mean, stdev

from revsnn_bench.claims.finding import Verdict, by, label, listed
from revsnn_bench.records import AccuracyRecord, Record
from revsnn_bench.render import units

PARITY = 0.005
"""Half a point: how far below the standard LIF a mean accuracy may lie and still count as maintained."""

Judged = tuple[str, str, Verdict, str]
Scores = dict[str, list[AccuracyRecord]]


def accuracy_maintained(records: list[Record]) -> Judged:
    """Mean accuracy of each node against the standard LIF, network by network."""
    parts, kept = [], []
    for workload in dict.fromkeys(record.case.workload for record in records):
        scores = _scores(by(records, workload=workload))
        lif = _mean(next(each for variant, each in scores.items() if variant.partition("[")[0] == "lif"))
        parts.append(f"{workload}: {listed(f'{variant} {_shown(each)}' for variant, each in scores.items())}")
        kept += [lif - _mean(each) <= PARITY for variant, each in scores.items() if variant.startswith("revlif")]
    measured = "; ".join(parts)
    if all(kept):
        return _conditions(records), measured, Verdict.REPRODUCED, "Every coupled node is within 0.5 points of lif."
    if any(kept):
        return _conditions(records), measured, Verdict.CONDITIONS, "Some coupled nodes are within 0.5 points of lif."
    return _conditions(records), measured, Verdict.NOT, "No coupled node comes within 0.5 points of lif."


def rises_with_groups(records: list[Record]) -> Judged:
    """The slope of accuracy over the logarithm of the number of groups, against its standard error."""
    points = [(math.log2(int(r.case.options["groups"] or 2)), r.accuracy.accuracy) for r in records if r.accuracy]
    slope, spread = _slope(points)
    scores = _scores(records)
    shown = listed(
        f"{variant.partition('groups=')[2].rstrip(']')} groups {_shown(each)}" for variant, each in scores.items()
    )
    measured = f"{shown}; {100 * slope:+.2f} points per doubling, standard error {100 * spread:.2f}"
    if slope > 2 * spread:
        return _conditions(records), measured, Verdict.REPRODUCED, "It rises by more than two standard errors."
    return _conditions(records), measured, Verdict.NOT, "It does not rise by two standard errors."


def one_node_swapped(records: list[Record]) -> Judged:
    """Bytes and accuracy of a network in which one layer's node is another."""
    scores = _scores(records)
    (lif,) = (variant for variant in scores if variant.partition("[")[0] == "lif")
    parts, held = [], []
    sizes = {label(record.case): record.memory.retained_bytes for record in records if record.memory is not None}
    for variant, each in scores.items():
        kept = units.scaled(sizes[variant], 1024, units.BINARY)
        parts.append(
            f"{variant} retains {kept} ({units.times(sizes[lif] / sizes[variant])} times less), {_shown(each)}"
        )
        if variant.startswith("revlif"):
            held.append(sizes[variant] < sizes[lif] and _mean(scores[lif]) - _mean(each) <= PARITY)
    verdict = Verdict.REPRODUCED if all(held) else Verdict.NOT
    why = "It retains less, within 0.5 points of lif." if all(held) else "It retains no less, or loses over 0.5 points."
    return _conditions(records), "; ".join(parts), verdict, why


def _scores(records: list[Record]) -> Scores:
    """Accuracies by variant, one per seed."""
    found: Scores = defaultdict(list)
    for record in records:
        if record.accuracy is not None:
            found[label(record.case)].append(record.accuracy)
    return dict(found)


def _mean(scores: list[AccuracyRecord]) -> float:
    return mean(each.accuracy for each in scores)


def _shown(scores: list[AccuracyRecord]) -> str:
    text = _spread([each.accuracy for each in scores])
    stripped = [each.stripped_accuracy for each in scores if each.stripped_accuracy is not None]
    return f"{text} (stripped {_spread(stripped)})" if stripped else text


def _spread(values: list[float]) -> str:
    deviation = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.1f}{deviation} %"


def _slope(points: list[tuple[float, float]]) -> tuple[float, float]:
    """Least-squares slope and its standard error; infinite where too few points tell."""
    x, y = [point[0] for point in points], [point[1] for point in points]
    width = sum((each - mean(x)) ** 2 for each in x)
    slope = sum((a - mean(x)) * (b - mean(y)) for a, b in points) / width
    left = sum((b - mean(y) - slope * (a - mean(x))) ** 2 for a, b in points)
    return slope, math.sqrt(left / (len(points) - 2) / width) if len(points) > 2 else math.inf


def _conditions(records: list[Record]) -> str:
    case, seeds = records[0].case, sorted({record.case.seed for record in records})
    networks = listed(dict.fromkeys(record.case.workload for record in records))
    return f"{networks} on digits, T = {case.timesteps}, {case.epochs} epochs, {len(seeds)} seeds, mean and deviation"
