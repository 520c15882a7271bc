"""The judges of what is learned: accuracy held against the standard LIF's seed by seed, and its slope over groups.

Two trainings of one seed share initialisation and the order of samples, so a difference is taken seed by seed.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

from revsnn_bench.claims.claim import Judged, Verdict, by, known, label, listed, memory
from revsnn_bench.records import AccuracyRecord, Record
from revsnn_bench.report import units
from revsnn_bench.report.points import Interval, interval_of_mean, student

MARGIN = 0.005
"""Half a point: how far below the standard LIF an accuracy may lie and still count as maintained."""
ERROR = 0.05
"""Probability of either wrong decision: that of each of the two one-sided tests."""

Scores = dict[str, dict[int, AccuracyRecord]]
"""Accuracies by variant and seed."""


def accuracy_maintained(records: list[Record]) -> Judged:
    """Each coupled node against the standard LIF, network by network and seed by seed."""
    parts, verdicts = [], []
    for workload in dict.fromkeys(record.case.workload for record in records):
        shown, maintained = _against_lif(by(records, workload=workload), {})
        parts.append(f"{workload}: {listed(shown)}")
        verdicts += maintained
    return Judged(_trained(records), "; ".join(parts), *_verdict(verdicts))


def rises_with_groups(records: list[Record]) -> Judged:
    """The slope of accuracy over the logarithm of the number of groups, and its interval."""
    points = [(math.log2(int(r.case.options["groups"] or 2)), r.accuracy.accuracy) for r in records if r.accuracy]
    slope = _slope(points)
    shown = listed(
        f"{variant.partition('groups=')[2].rstrip(']')} groups {_shown(each)}"
        for variant, each in _scores(records).items()
    )
    verdict, why = Verdict.UNDECIDED, "Its interval holds zero."
    if slope.low > 0:
        verdict, why = Verdict.REPRODUCED, "Its interval lies above zero."
    elif slope.high <= 0:
        verdict, why = Verdict.NOT, "Its interval lies at or below zero."
    return Judged(_trained(records), f"{shown}; {slope.in_points()} per doubling", verdict, why)


def one_node_swapped(records: list[Record]) -> Judged:
    """Bytes and accuracy of a network in which one layer's node is another."""
    kept = {label(record.case): memory(record).retained_bytes for record in records}
    parts, verdicts = _against_lif(records, kept)
    return Judged(_trained(records), "; ".join(parts), *_verdict(verdicts))


def _against_lif(records: list[Record], kept: Mapping[str, int]) -> tuple[list[str], list[bool | None]]:
    """Each node in words, with its bytes where known; of each coupled one whether it maintains accuracy by fewer."""
    scores = _scores(records)
    lif = next(variant for variant in scores if variant.partition("[")[0] == "lif")
    parts, verdicts = [], list[bool | None]()
    for variant in sorted(scores, key=lambda variant: variant != lif):
        words, loss = _shown(scores[variant]), _difference(scores[lif], scores[variant])
        times = f" ({units.times(kept[lif] / kept[variant])} times less)" if kept and variant != lif else ""
        retains = f"retains {units.size(kept[variant])}{times}, " if kept else ""
        parts.append(f"{variant} {retains}{words}" + (f", {loss.in_points()} to lif" if variant != lif else ""))
        if variant.startswith("revlif"):
            verdicts.append(False if kept and kept[variant] >= kept[lif] else _maintained(loss))
    return parts, verdicts


def _maintained(difference: Interval) -> bool | None:
    """Whether an accuracy is no more than the margin below; None where the data cannot tell."""
    if difference.low >= -MARGIN:
        return True
    return False if difference.high < -MARGIN else None


def _verdict(maintained: list[bool | None]) -> tuple[Verdict, str]:
    margin = f"{100 * MARGIN:g} points"
    if all(each is True for each in maintained):
        return Verdict.REPRODUCED, f"Every interval lies above {margin} below lif."
    if any(each is False for each in maintained):
        if any(each is True for each in maintained):
            return Verdict.CONDITIONS, f"Some intervals lie above {margin} below lif, some below."
        if None not in maintained:
            return Verdict.NOT, f"Every interval lies more than {margin} below lif, or no memory is saved."
    return Verdict.UNDECIDED, f"An interval holds the margin of {margin} below lif: more seeds or images would tell."


def _difference(lif: dict[int, AccuracyRecord], other: dict[int, AccuracyRecord]) -> Interval:
    """Accuracy of `other` less that of `lif`, paired by seed."""
    pairs = [other[seed].accuracy - each.accuracy for seed, each in lif.items() if seed in other]
    return interval_of_mean(pairs, 1 - ERROR)


def _slope(points: Sequence[tuple[float, float]]) -> Interval:
    """Least-squares slope, with Student's interval from its standard error."""
    from scipy.stats import linregress  # not above: it takes longer to load than all that is judged without it

    found = linregress(*zip(*points, strict=True))
    slope = float(found.slope)
    if len(points) < 3:
        return Interval(slope, -math.inf, math.inf)
    half = student(len(points) - 2, 1 - ERROR) * float(found.stderr)
    return Interval(slope, slope - half, slope + half)


def _trained(records: list[Record]) -> str:
    case, seeds = records[0].case, sorted({record.case.seed for record in records})
    networks = listed(dict.fromkeys(record.case.workload for record in records))
    return f"{networks} on digits, T = {case.timesteps}, {case.epochs} epochs, {len(seeds)} seeds, mean and deviation"


def _scores(records: list[Record]) -> Scores:
    found: Scores = defaultdict(dict)
    for record in records:
        found[label(record.case)][record.case.seed] = known(record.accuracy)
    return found


def _shown(scores: dict[int, AccuracyRecord]) -> str:
    text = units.spread([each.accuracy for each in scores.values()])
    stripped = [each.stripped_accuracy for each in scores.values() if each.stripped_accuracy is not None]
    return f"{text} (stripped {units.spread(stripped)})" if stripped else text
