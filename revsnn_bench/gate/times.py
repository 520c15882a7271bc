"""Time, as the ratio to the standard LIF of the same rounds, tested on the raw samples.

Seconds of two runs are never compared: the machine was not the same, not even where it was. The standard LIF
was timed in the same process, round by round, so each round gives one ratio, and two runs give two samples of
ratios.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from revsnn_bench.gate.findings import Finding, Kind
from revsnn_bench.metrics import BY_NAME
from revsnn_bench.records import Record

TIMES = ("forward_time_s", "backward_time_s")
"""The phases that are tested; their sum follows."""

FALSE_DISCOVERY_RATE = 0.05
"""Expected share of false alarms among the slowdowns that are reported."""

_Pair = tuple[Record, Record]


@dataclass(frozen=True)
class _Test:
    case: str
    metric: str
    before: float
    after: float
    p_value: float


def time_findings(pairs: Iterable[_Pair], percent: float) -> list[Finding]:
    """Finds slowdowns beyond a percentage, in cases that ended as `ok` in both runs.

    One-sided Mann-Whitney U test on the logarithms of the per-round ratios, the baseline's raised by the
    percentage: what is tested is not whether the case is slower, but whether it is slower by more than that.
    Benjamini and Hochberg's procedure keeps the rate of false alarms over all cases and phases.

    Args:
        pairs: record before and after, of the same case.
        percent: growth of the ratio that is tolerated.
    Returns:
        Findings `slower` with the median ratios, `no longer measured`, and notes on what could not be judged.
    """
    findings: list[Finding] = []
    tests: list[_Test] = []
    for before, after in pairs:
        if before.case == before.case.point:
            continue
        judged = [_judge(before, after, name, percent) for name in TIMES]
        tests += [test for test in judged if isinstance(test, _Test)]
        findings += [finding for finding in judged if isinstance(finding, Finding)]
    return findings + _significant(tests, percent)


def ratio_name(metric: str) -> str:
    """What the ratio of a time is called: the name that comparisons of runs give it."""
    return f"{metric}_ratio_to_lif"


def _judge(before: Record, after: Record, name: str, percent: float) -> _Test | Finding | None:
    """The test of one phase; a finding where it cannot be made; None where neither run timed it."""
    old, new = _ratios(before, name), _ratios(after, name)
    case, metric = after.case.id, ratio_name(name)
    if not old:
        return Finding(Kind.NOTE, case, metric, None, median(new), "not measured in the baseline") if new else None
    if not new:
        return Finding(Kind.UNMEASURED, case, metric, median(old), None)
    contended = sum(record.time.rounds_contended for record in (before, after) if record.time)
    if contended:
        detail = f"not judged: {contended} rounds were timed while other work held the processor"
        return Finding(Kind.NOTE, case, metric, median(old), median(new), detail)
    from scipy.stats import mannwhitneyu

    raised = [math.log(ratio * (1 + percent / 100)) for ratio in old]
    p_value = mannwhitneyu([math.log(ratio) for ratio in new], raised, alternative="greater").pvalue
    return _Test(case, metric, median(old), median(new), float(p_value))


def _ratios(record: Record, name: str) -> list[float]:
    read = BY_NAME[name].samples
    samples = read(record) if read else None
    if samples is None or len(samples.own) != len(samples.lif) or min(samples.own + samples.lif) <= 0:
        return []
    return [own / lif for own, lif in zip(samples.own, samples.lif, strict=True)]


def _significant(tests: Sequence[_Test], percent: float) -> list[Finding]:
    if not tests:
        return []
    from scipy.stats import false_discovery_control

    adjusted = false_discovery_control([test.p_value for test in tests])
    return [
        Finding(
            Kind.SLOWER,
            test.case,
            test.metric,
            test.before,
            test.after,
            f"more than {percent:g} % slower than the baseline, p = {p_value:.2g}",
        )
        for test, p_value in zip(tests, adjusted, strict=True)
        if p_value <= FALSE_DISCOVERY_RATE
    ]
