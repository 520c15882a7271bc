"""The gated values of a run, for services that keep a history and have thresholds of their own."""

from collections.abc import Iterator
from typing import NamedTuple

from revsnn_bench.gate.findings import Verdict
from revsnn_bench.gate.times import TIMES, ratio_name
from revsnn_bench.metric_readers import Number
from revsnn_bench.metrics import BY_NAME
from revsnn_bench.records import Run
from revsnn_bench.render.ratios import ratio_to_lif

_UNITS = {"B": "bytes", "FLOP": "FLOP"}


class Measure(NamedTuple):
    """One value of one case; `low` and `high` bound it where it varies."""

    case: str
    metric: str
    value: Number
    unit: str
    status: str
    low: float | None = None
    high: float | None = None


def measures(verdict: Verdict, run: Run) -> Iterator[Measure]:
    """Every gated metric of every case, then time as a ratio to the standard LIF; smaller is better in all.

    What was not measured is left out, and so is a case that failed: neither is a number.
    """
    for record in {record.case.id: record for record in run}.values():
        for name in verdict.policy.metrics:
            value = BY_NAME[name].read(record)
            if value is not None:
                yield Measure(record.case.id, name, value, _UNITS[BY_NAME[name].unit], record.status.value)
        for name in TIMES:
            ratio = ratio_to_lif(BY_NAME[name], record, {})
            if ratio is not None:
                place = (record.case.id, ratio_name(name))
                yield Measure(*place, ratio.value, "x lif", record.status.value, ratio.low, ratio.high)
