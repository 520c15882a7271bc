"""Lines of a run over a sweep: gradient error against T, and retained and peak bytes against T, batch and depth.

Gradient errors have one figure per dtype, with the largest error that counts as right. Bytes are drawn log-log, and
beside the name of every node stands its slope; those of approximate methods in a figure of their own.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import linear_regression
from typing import Any

from revsnn_bench.metrics import BY_NAME, Number
from revsnn_bench.records import Record, Run, Status
from revsnn_bench.report import canvas, units
from revsnn_bench.report.canvas import INK, Figure, Looks
from revsnn_bench.report.labels import name_lines, names_room
from revsnn_bench.report.points import Axis, Sweep, exact, fixed_part, grouped, position, setting, sweeps

_LIMIT = 100
AXIS_LABELS: dict[Axis, str] = {"timesteps": "time steps T", "batch": "batch B (samples)", "depth": "depth D (blocks)"}
_MOST_SWEEPS: dict[Axis, int] = {"timesteps": 3, "batch": 1, "depth": 1}
_METRICS = ("retained_bytes", "peak_bytes")
_SLOPES = "Beside the name: the slope on these two logarithmic scales; 1 is in proportion, 0 independent."

Point = tuple[int, Number, str, bool]
"""Position on the axis, value, link to the record, and whether its gradient is right."""

Lines = Mapping[str, Sequence[Point]]
"""The points of each variant, in order of position."""


def _drawn(
    lines: Lines,
    labels: Mapping[str, str],
    looks: Looks,
    across: str,
    up: str,
    tolerances: Sequence[float] | None = None,
) -> str:
    """Lines over the positions that were measured, with their labels at the right: of bytes, or of errors below
    tolerances."""
    is_bytes, limits = tolerances is None, tolerances or ()
    values = [value for points in lines.values() for _, value, *_ in points]
    places = canvas.LogRange([*values, *limits], base=2 if is_bytes else 10)
    height, right = names_room(labels.values())
    with canvas.panels(height, right=right) as (axes,):
        places.apply(axes, axes.yaxis, *(() if is_bytes else ("exact", f"> {_LIMIT}")))
        for limit in limits:
            axes.axhline(places.place(limit), color=INK, linewidth=1, linestyle=(0, (6, 3)))
            spot: dict[str, Any] = {"xy": (1, places.place(limit)), "xycoords": axes.get_yaxis_transform()}
            text = f"tolerance {limit:.0e}"
            axes.annotate(text, **spot, xytext=(0, 3), textcoords="offset points", ha="right", fontsize=8)
        ends = []
        for variant, look in looks.dashed(labels).items():
            points = [(x, places.place(y)) for x, y, *_ in lines[variant]]
            axes.plot(*zip(*points, strict=True), **look.line())
            for (x, y), (_, _, url, is_right) in zip(points, lines[variant], strict=True):
                axes.plot([x], [y], url=url, **look.point(filled=is_right))
            ends.append((*points[-1], labels[variant], look))
        canvas.positions(axes, [x for points in lines.values() for x, *_ in points])
        name_lines(axes, ends)
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        return canvas.to_svg(axes)


def fidelity_figures(run: Run, looks: Looks) -> list[Figure]:
    """Draws one figure per dtype in which a gradient was compared, in order of appearance."""
    compared = (record for record in exact(run) if record.fidelity is not None)
    by_dtype = grouped(compared, lambda record: record.case.dtype)
    return [_draw_errors(dtype, records, looks) for dtype, records in by_dtype.items()]


def _draw_errors(dtype: str, compared: list[Record], looks: Looks) -> Figure:
    worst: dict[str, dict[int, Record]] = defaultdict(dict)
    for record in compared:
        found, t = worst[record.case.variant], record.case.timesteps
        if t not in found or _error(record) > _error(found[t]):
            found[t] = record
    # A node that was compared at one T is no line, and left out where others are.
    over_time = {variant: found for variant, found in worst.items() if len(found) > 1} or worst
    lines = {v: [_error_point(found[t], looks) for t in sorted(found)] for v, found in over_time.items()}
    records = [record for record in compared if record.case.variant in lines]
    tolerances = sorted({record.fidelity.tolerance for record in records if record.fidelity is not None})
    labels, note = looks.labels(records)
    svg = _drawn(lines, labels, looks, "time steps T", "gradient error (relative L2)", tolerances)
    caption = (
        "Against float64 backpropagation of the same forward; the worst over all workloads and sizes at each T, of "
        "nodes that were compared at several. "
        f"Hollow: above the tolerance, so the gradient is wrong. Errors above {_LIMIT}, and those that are not "
        "finite, stand at the top."
    )
    title = f"Gradient error against T, {dtype}"
    return Figure(f"gradient-{units.one_line(dtype)}", title, f"{caption} {note}".strip(), svg)


def _error(record: Record) -> float:
    error = BY_NAME["gradient_error"].read(record)
    return math.inf if error is None or math.isnan(error) else error


def _error_point(record: Record, looks: Looks) -> Point:
    """Beyond the limit an error says nothing more, and would take the room of those that do."""
    assert record.fidelity is not None
    error = _error(record)
    shown = error if error <= _LIMIT else math.inf
    return record.case.timesteps, shown, looks.url(record), error <= record.fidelity.tolerance


def scaling_figures(run: Run, looks: Looks) -> list[Figure]:
    """Draws the sweeps with most records, one workload after the other; captions count the others."""
    figures = []
    for axis, limit in _MOST_SWEEPS.items():
        found = sweeps(run, axis)
        for number, sweep in enumerate(_chosen(found)[:limit], start=1):
            for metric in _METRICS:
                left_out = len(found) - min(limit, len(found))
                figure = _draw_sweep(sweep, metric, looks, f"{metric}-{axis}-{number}", left_out)
                figures += [figure] if figure else []
    return figures


def method_figures(run: Run, looks: Looks) -> list[Figure]:
    """Draws the peak against T of each place where a method is approximate, with its bias; exact methods for scale."""
    measured = (r for r in run if r.status in (Status.OK, Status.APPROXIMATE) and r.memory is not None)
    places = grouped(measured, lambda record: record.case.point.model_copy(update={"timesteps": 1}))
    shown = [found for found in places.values() if any(r.status is Status.APPROXIMATE for r in found)]
    return [_draw_methods(found, looks, number) for number, found in enumerate(shown, start=1)]


def _draw_methods(records: list[Record], looks: Looks, number: int) -> Figure:
    ordered = sorted(records, key=lambda record: record.case.timesteps)
    lines: dict[str, list[Point]] = defaultdict(list)
    for record in ordered:
        peak = BY_NAME["peak_bytes"].read(record) or 0
        point = (record.case.timesteps, peak, looks.url(record), record.status is Status.OK)
        lines[record.case.variant].append(point)
    biases = {record.case.variant: _bias(record) for record in ordered}
    shown, note = looks.labels(ordered)
    labels = {variant: f"{label} · {biases[variant]}" for variant, label in shown.items()}
    svg = _drawn(lines, labels, looks, AXIS_LABELS["timesteps"], "peak bytes")
    title = f"Methods over time: {fixed_part(records[0].case, without='timesteps')}"
    caption = (
        "Hollow: an approximate gradient, ranked nowhere. Beside the name: the bias at the largest T, which is the "
        "distance to the gradient of backpropagation in relative L2, all parameters taken as one vector."
    )
    return Figure(f"methods-{number}", title, f"{caption} {note}".strip(), svg)


def _bias(record: Record) -> str:
    bias = None if record.fidelity is None else record.fidelity.gradient_bias
    return "exact" if bias is None else units.fraction(bias.relative)


def _chosen(found: Sequence[Sweep]) -> list[Sweep]:
    """Largest first, but every setting before any comes a second time."""
    largest_first = sorted(found, key=lambda sweep: -len(sweep.records))
    places = grouped(largest_first, lambda sweep: setting(sweep.records[0].case))
    turn = {id(sweep): number for own in places.values() for number, sweep in enumerate(own)}
    return sorted(largest_first, key=lambda sweep: turn[id(sweep)])


def _draw_sweep(sweep: Sweep, metric: str, looks: Looks, name: str, left_out: int) -> Figure | None:
    lines = _lines(sweep, metric, looks)
    if not lines:
        return None
    shown, note = looks.labels(sweep.records, lines)
    labels = {variant: f"{label} · {_slope(lines[variant])}" for variant, label in shown.items()}
    svg = _drawn(lines, labels, looks, AXIS_LABELS[sweep.axis], f"{BY_NAME[metric].label} bytes")
    caption = BY_NAME[metric].meaning
    if any(record.status is Status.WRONG for record in sweep.records):
        caption += " Hollow: the gradient there is wrong."
    caption = " ".join([caption, _SLOPES, note]).strip()
    if left_out:
        caption += f" {left_out} more sweeps along this axis are in the table of cases."
    title = f"{BY_NAME[metric].label.capitalize()} memory against {AXIS_LABELS[sweep.axis]}: {sweep.title}"
    return Figure(name, title, caption, svg)


def _lines(sweep: Sweep, metric: str, looks: Looks) -> Lines:
    """Bytes do not depend on the gradient, so wrong cases take part; failed ones have no number."""
    found: dict[str, dict[int, Point]] = defaultdict(dict)
    for record in sweep.records:
        value = BY_NAME[metric].read(record) if record.status in (Status.OK, Status.WRONG) else None
        if value is not None:
            at = position(record, sweep.axis)
            found[record.case.variant][at] = (at, value, looks.url(record), record.status is Status.OK)
    return {variant: list(points.values()) for variant, points in found.items()}


def _slope(points: Sequence[Point]) -> str:
    """The least-squares slope of the logarithms: 1 means in proportion, 0 independent."""
    usable = [(math.log(x), math.log(y)) for x, y, *_ in points if y > 0 and math.isfinite(y)]
    if not usable:
        return "always 0"
    if len(usable) < 2:
        return "–"
    slope = round(linear_regression(*zip(*usable, strict=True)).slope, 2)
    return f"{slope + 0.0:.2f}"
