"""The columns of a sweep table, shared by Markdown and terminal."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from revsnn_bench.case import Case
from revsnn_bench.metrics import BY_NAME
from revsnn_bench.records import Record, Run, Status
from revsnn_bench.render import units
from revsnn_bench.render.ratios import ratio_to_lif, standard_lifs
from revsnn_bench.render.sweeps import AXES, Axis, position


@dataclass(frozen=True)
class Column:
    """A heading and what to show of a record; numbers are aligned to the right."""

    heading: str
    cell: Callable[[Record], str]
    is_number: bool = True


SHOWN_ALWAYS = ("fidelity",)
"""Families that a wrong case shows too: they say how wrong it is."""


def value_cell(name: str, record: Record) -> str:
    """Returns a value for people; memory, FLOPs and time of a case that is not `ok` are withheld."""
    metric = BY_NAME[name]
    if record.status is not Status.OK and metric.family not in SHOWN_ALWAYS:
        return units.ABSENT
    return units.number(metric, metric.read(record))


def columns(run: Run, axis: Axis | None, *, compact: bool) -> list[Column]:
    """Returns the columns of a sweep table.

    Args:
        run: gives the standard LIFs that ratios are taken against.
        axis: the axis of the sweep; None for cases outside of all sweeps, which show their whole point.
        compact: at most 100 characters wide, for a terminal.
    """
    lifs = standard_lifs(run)

    def value(name: str) -> Column:
        return Column(BY_NAME[name].label, lambda record: value_cell(name, record))

    def ratio(name: str, heading: str) -> Column:
        return Column(heading, lambda record: units.ratio(ratio_to_lif(BY_NAME[name], record, lifs)))

    if axis is None:
        place = Column("point", _point, is_number=False)
    else:
        place = Column(AXES[axis], lambda record: str(position(record, axis)))
    shown = [
        place,
        Column("node", lambda record: record.case.variant, is_number=False),
        Column("status", lambda record: record.status.value, is_number=False),
        value("retained_bytes"),
        ratio("retained_bytes", "× lif"),
        value("peak_bytes"),
        ratio("peak_bytes", "× lif"),
    ]
    if compact:
        time = Column("time × lif", lambda record: _bare_ratio("step_time_s", record, lifs))
        error = Column("error", lambda record: value_cell("gradient_error", record))
        return [*shown, time, error]
    return [
        *shown,
        value("state_bytes"),
        value("forward_flops"),
        value("backward_flops"),
        value("recompute_flops"),
        ratio("step_flops", "step FLOPs × lif"),
        value("step_time_s"),
        ratio("step_time_s", "step time × lif"),
        value("gradient_error"),
    ]


def _bare_ratio(name: str, record: Record, lifs: Mapping[Case, Record]) -> str:
    """A ratio without its interval, which a terminal has no room for."""
    found = ratio_to_lif(BY_NAME[name], record, lifs)
    return units.ABSENT if found is None else units.times(found.value)


def _point(record: Record) -> str:
    case = record.case
    seed = f" seed{case.seed}" if case.seed else ""
    return f"{case.workload} {case.size} {case.dtype} {case.device}{seed}"
