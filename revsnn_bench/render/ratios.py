"""Ratios to the standard LIF at the same point; only a case whose gradient is right has one."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from statistics import median

from revsnn_bench.case import Case
from revsnn_bench.metrics import Metric
from revsnn_bench.records import Record, Run, Status

_RESAMPLES = 999
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Ratio:
    """A case over the standard LIF; below 1 the case needs less. The 95 % interval exists for times only."""

    value: float
    low: float | None = None
    high: float | None = None


def standard_lifs(run: Run) -> dict[Case, Record]:
    """Returns the standard LIF of every point at which it ended well; the latest record counts."""
    return {record.case: record for record in run if record.status is Status.OK and record.case == record.case.point}


def ratio_to_lif(metric: Metric, record: Record, lifs: Mapping[Case, Record]) -> Ratio | None:
    """Compares one metric of a record with the standard LIF at the same point.

    Args:
        metric: what to compare.
        record: the case.
        lifs: from `standard_lifs` of the same run.
    Returns:
        The ratio; None where the metric has none, something was not measured, the standard LIF failed or
        kept 0 bytes, or the case did not end as `ok` (a wrong gradient makes no saving).
    """
    if record.status is not Status.OK or not metric.has_ratio:
        return None
    if metric.samples is not None:
        samples = metric.samples(record)
        return None if samples is None else ratio_of_medians(samples.own, samples.lif)
    lif = lifs.get(record.case.point)
    value, reference = metric.read(record), None if lif is None else metric.read(lif)
    return Ratio(value / reference) if value is not None and reference else None


@lru_cache(maxsize=4096)
def ratio_of_medians(own: tuple[float, ...], lif: tuple[float, ...]) -> Ratio | None:
    """Returns the ratio of two medians with a 95 % bootstrap interval, paired where rounds match.

    The resampling is seeded, so that the same samples always give the same interval.
    """
    if not own or not lif or min(lif) <= 0:
        return None
    value = median(own) / median(lif)
    if min(len(own), len(lif)) < 3:
        return Ratio(value)
    import numpy as np

    random = np.random.default_rng(0)
    own_draws = random.integers(len(own), size=(_RESAMPLES, len(own)))
    lif_draws = own_draws if len(own) == len(lif) else random.integers(len(lif), size=(_RESAMPLES, len(lif)))
    ratios = np.median(np.array(own)[own_draws], axis=1) / np.median(np.array(lif)[lif_draws], axis=1)
    low, high = np.quantile(ratios, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    return Ratio(value, float(low), float(high))
