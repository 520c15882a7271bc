"""Ratios to the standard LIF at the same point; only a case whose gradient is right has one."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from statistics import median
from typing import TYPE_CHECKING

from revsnn_bench.case import Case
from revsnn_bench.metrics import Metric
from revsnn_bench.records import Record, Run, Status

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_RESAMPLES = 999
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Ratio:
    """A case over the standard LIF; below 1 the case needs less. The 95 % interval exists for times only."""

    value: float
    low: float | None = None
    high: float | None = None


def standard_lifs(run: Run) -> dict[Case, Record]:
    """Returns every standard LIF that ended well, whatever its options; the latest record counts."""
    return {record.case: record for record in run if record.status is Status.OK and record.case.node == "lif"}


def lif_of(case: Case, lifs: Mapping[Case, Record]) -> Record | None:
    """Returns the standard LIF that a case is compared with, from `standard_lifs` of the same run.

    That is the one on the same backend, without other options; where it was not measured, the one that shares most
    options with the case and has no others, such as `lif[decay_input=False]` for a node with that option.
    """
    return next((lifs[lif] for lif in _standards(case) if lif in lifs), None)


def lif_name(case: Case) -> str:
    """Returns `lif` for the usual one of a point, and the name with its options for another."""
    return "lif" if case == case.point else case.variant


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
    lif = lif_of(record.case, lifs)
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

    own_draws, lif_draws = _draws(len(own), len(lif))
    ratios = _medians(np.array(own)[own_draws]) / _medians(np.array(lif)[lif_draws])
    low, high = np.quantile(ratios, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    return Ratio(value, float(low), float(high))


@lru_cache(maxsize=256)
def _draws(own: int, lif: int) -> "tuple[NDArray[np.int64], NDArray[np.int64]]":
    """Which samples each resampling takes; the same ones on both sides where there are as many."""
    import numpy as np

    random = np.random.default_rng(0)
    draws = random.integers(own, size=(_RESAMPLES, own))
    return draws, draws if own == lif else random.integers(lif, size=(_RESAMPLES, lif))


def _medians(samples: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """Medians of the rows; a few times faster than `numpy.median` where rows are short and many."""
    samples.sort(axis=1)
    width = samples.shape[1]
    middle: NDArray[np.float64] = (samples[:, (width - 1) // 2] + samples[:, width // 2]) / 2
    return middle


@lru_cache(maxsize=8192)
def _standards(case: Case) -> tuple[Case, ...]:
    """The standard LIFs that a case may be compared with, the first choice first; remembered, for it is asked often."""
    subsets = [kept for n in range(len(case.node_options), 0, -1) for kept in combinations(case.node_options, n)]
    return case.point, *(case.model_copy(update={"node": "lif", "node_options": kept}) for kept in subsets)
