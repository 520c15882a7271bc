"""Retained and peak bytes against T, batch and depth, log-log, with the slope of every node."""

import math
from collections.abc import Mapping, Sequence
from statistics import linear_regression

from revsnn_bench.case import Case
from revsnn_bench.metric_readers import Number
from revsnn_bench.metrics import BY_NAME
from revsnn_bench.records import Record, Run, Status
from revsnn_bench.render.figures.canvas import Figure, legend, legend_rows, panel, to_svg
from revsnn_bench.render.figures.scales import BYTES, LogRange, positions
from revsnn_bench.render.figures.series import Look, in_order
from revsnn_bench.render.sweeps import Axis, Sweep, position, sweeps

AXIS_LABELS: dict[Axis, str] = {
    "timesteps": "time steps T",
    "batch": "batch B (samples)",
    "depth": "depth D (blocks)",
}
_SHOWN: dict[Axis, int] = {"timesteps": 3, "batch": 1, "depth": 1}
_METRICS = ("retained_bytes", "peak_bytes")

Points = list[tuple[int, Number, int]]
"""Position on the axis, value, and index of the record, in order of position."""


def scaling_figures(run: Run, known: Mapping[str, Look], index: Mapping[Case, int]) -> list[Figure]:
    """Draws the sweeps with most records, one workload after the other; captions count the others."""
    figures = []
    for axis, limit in _SHOWN.items():
        found = sweeps(run, axis)
        for number, sweep in enumerate(_chosen(found)[:limit], start=1):
            for metric in _METRICS:
                left_out = len(found) - min(limit, len(found))
                figure = _draw(sweep, metric, known, index, f"{metric}-{axis}-{number}", left_out)
                figures += [figure] if figure else []
    return figures


def _chosen(found: Sequence[Sweep]) -> list[Sweep]:
    """Largest first, but every workload and dtype before any comes a second time."""
    ranked = sorted(found, key=lambda sweep: -len(sweep.records))
    seen: dict[tuple[str, str, str], int] = {}
    turns = []
    for sweep in ranked:
        kind = (sweep.fixed.workload, sweep.fixed.dtype, sweep.fixed.device)
        turns.append(seen.get(kind, 0))
        seen[kind] = turns[-1] + 1
    return [sweep for _, sweep in sorted(zip(turns, ranked, strict=True), key=lambda pair: pair[0])]


def _draw(
    sweep: Sweep, metric: str, known: Mapping[str, Look], index: Mapping[Case, int], name: str, left_out: int
) -> Figure | None:
    lines = _lines(sweep, metric, index)
    if not lines:
        return None
    wrong = {index[record.case] for record in sweep.records if record.status is Status.WRONG}
    shown = in_order(dict(known), lines)
    places = LogRange((value for points in lines.values() for _, value, _ in points), base=2)
    with panel(legend_rows(len(shown), titled=True)) as axes:
        places.apply(axes, axes.yaxis, "0 B", "", BYTES)
        for variant in shown:
            look, points = known[variant], lines[variant]
            axes.plot([x for x, _, _ in points], [places.place(y) for _, y, _ in points], **look.line())
            for x, y, i in points:
                axes.plot([x], [places.place(y)], url=f"case:{i}", **look.point(filled=i not in wrong))
        positions(axes, [x for points in lines.values() for x, _, _ in points])
        axes.set_xlabel(AXIS_LABELS[sweep.axis])
        axes.set_ylabel(f"{BY_NAME[metric].label} bytes")
        entries = [known[v].handle(f"{known[v].label} · {_slope(lines[v])}") for v in shown]
        legend(axes, entries, title="node and slope in log-log")
        svg = to_svg(axes)
    caption = BY_NAME[metric].meaning
    if wrong:
        caption += " Hollow: the gradient there is wrong."
    if left_out:
        caption += f" {left_out} more sweeps along this axis are in the table of cases."
    title = f"{BY_NAME[metric].label.capitalize()} memory against {AXIS_LABELS[sweep.axis]}: {sweep.title}"
    return Figure(name, title, caption, svg)


def _lines(sweep: Sweep, metric: str, index: Mapping[Case, int]) -> dict[str, Points]:
    """Bytes do not depend on the gradient, so wrong cases take part; failed ones have no number."""
    found: dict[str, dict[int, tuple[int, Number, int]]] = {}
    for record in sweep.records:
        value = _usable(record, metric)
        if value is not None:
            at = position(record, sweep.axis)
            found.setdefault(record.case.variant, {})[at] = (at, value, index[record.case])
    return {variant: list(points.values()) for variant, points in found.items()}


def _usable(record: Record, metric: str) -> Number | None:
    return BY_NAME[metric].read(record) if record.status in (Status.OK, Status.WRONG) else None


def _slope(points: Points) -> str:
    """The least-squares slope of the logarithms: 1 means in proportion, 0 independent."""
    usable = [(math.log(x), math.log(y)) for x, y, _ in points if y > 0 and math.isfinite(y)]
    if not usable:
        return "always 0"
    if len(usable) < 2:
        return "–"
    slope = round(linear_regression(*zip(*usable, strict=True)).slope, 2)
    return f"{slope + 0.0:.2f}"
