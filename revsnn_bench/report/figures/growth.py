"""Lines of a run over a sweep: gradient error against T, and retained and peak bytes against T, batch and depth.

Where approximate methods were measured, one more figure holds their peak against T, beside the exact ones and apart.

Gradient errors have one figure per dtype, with the largest error that counts as right. Bytes are drawn log-log, and
beside the name of every node stands its slope.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from statistics import linear_regression
from typing import TYPE_CHECKING, Any

from revsnn_bench.case import Case
from revsnn_bench.metrics import BY_NAME, Number
from revsnn_bench.records import Record, Run, Status
from revsnn_bench.report import canvas, units
from revsnn_bench.report.canvas import INK, Figure, Look
from revsnn_bench.report.labels import name_lines, names_room
from revsnn_bench.report.points import Axis, Sweep, exact, fixed_part, naming, position, setting, sweeps

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LIMIT = 100
AXIS_LABELS: dict[Axis, str] = {"timesteps": "time steps T", "batch": "batch B (samples)", "depth": "depth D (blocks)"}
_MOST_SWEEPS: dict[Axis, int] = {"timesteps": 3, "batch": 1, "depth": 1}
_METRICS = ("retained_bytes", "peak_bytes")
_SLOPES = "Beside the name: the slope on these two logarithmic scales; 1 is in proportion, 0 independent."

Worst = dict[int, tuple[float, int, bool]]
"""By T: the worst error, the index of its record, and whether it is within tolerance."""

Line = list[tuple[int, Number, int]]
"""Position on the axis, value, and index of the record, in order of position."""


def fidelity_figures(run: Run, known: Mapping[str, Look], index: Mapping[Case, int]) -> list[Figure]:
    """Draws one figure per dtype in which a gradient was compared, in order of appearance."""
    by_dtype: dict[str, list[Record]] = defaultdict(list)
    for record in exact(run):
        if record.fidelity is not None:
            by_dtype[record.case.dtype].append(record)
    return [_draw_errors(dtype, _over_time(records), known, index) for dtype, records in by_dtype.items()]


def _over_time(records: list[Record]) -> list[Record]:
    """The records of nodes that were compared at several T, where there are any: points of others are no lines."""
    steps: dict[str, set[int]] = defaultdict(set)
    for record in records:
        steps[record.case.variant].add(record.case.timesteps)
    return [record for record in records if len(steps[record.case.variant]) > 1] or records


def _draw_errors(dtype: str, records: list[Record], known: Mapping[str, Look], index: Mapping[Case, int]) -> Figure:
    lines = _worst(records, index)
    tolerances = sorted({record.fidelity.tolerance for record in records if record.fidelity is not None})
    errors = [_shown(error) for points in lines.values() for error, _, _ in points.values()]
    places = canvas.LogRange([*errors, *tolerances], base=10)
    names, cases = naming(records), _cases(records)
    labels = {variant: canvas.plain(names(cases[variant])) for variant in canvas.in_order(known, lines)}
    height, right = names_room(labels.values())
    with canvas.panel(plot_height=height, right=right) as axes:
        places.apply(axes, axes.yaxis, "exact", f"> {_LIMIT}", canvas.PLAIN)
        for tolerance in tolerances:
            axes.axhline(places.place(tolerance), color=INK, linewidth=1, linestyle=(0, (6, 3)))
            label = f"tolerance {tolerance:.0e}"
            spot: dict[str, Any] = {"xy": (1, places.place(tolerance)), "xycoords": axes.get_yaxis_transform()}
            axes.annotate(label, **spot, xytext=(0, 3), textcoords="offset points", ha="right", fontsize=8)
        drawn = {
            variant: [(t, places.place(_shown(e)), i, right) for t, (e, i, right) in sorted(lines[variant].items())]
            for variant in labels
        }
        _draw_lines(axes, drawn, labels, known)
        axes.set_xlabel("time steps T")
        axes.set_ylabel("gradient error (relative L2)")
        svg = canvas.to_svg(axes)
    caption = (
        "Against float64 backpropagation of the same forward; the worst over all workloads and sizes at each T, of "
        "nodes that were compared at several. "
        f"Hollow: above the tolerance, so the gradient is wrong. Errors above {_LIMIT}, and those that are not "
        "finite, stand at the top."
    )
    caption = " ".join([caption, names.note]).strip()
    return Figure(f"gradient-{units.one_line(dtype)}", f"Gradient error against T, {dtype}", caption, svg)


Drawn = Mapping[str, Sequence[tuple[int, float, int, bool]]]
"""Points by variant: place, height, index of the record, and whether its gradient is right."""


def _draw_lines(axes: "Axes", drawn: Drawn, labels: Mapping[str, str], known: Mapping[str, Look]) -> None:
    """Lines over the positions that were measured, with their names at the right."""
    known = canvas.dashed(known, drawn)
    for variant, points in drawn.items():
        canvas.draw_line(axes, known[variant], points)
    canvas.positions(axes, [x for points in drawn.values() for x, *_ in points])
    ends = [(*points[-1][:2], labels[variant], known[variant]) for variant, points in drawn.items()]
    name_lines(axes, ends)


def _cases(records: Sequence[Record]) -> dict[str, Case]:
    """A case of each variant."""
    return {record.case.variant: record.case for record in records}


def _worst(records: list[Record], index: Mapping[Case, int]) -> dict[str, Worst]:
    found: dict[str, Worst] = defaultdict(dict)
    for record in records:
        fidelity = record.fidelity
        if fidelity is None:
            continue
        error, points = fidelity.gradient_error, found[record.case.variant]
        if record.case.timesteps not in points or _badness(error) > _badness(points[record.case.timesteps][0]):
            points[record.case.timesteps] = (error, index[record.case], error <= fidelity.tolerance)
    return dict(found)


def _shown(error: float) -> float:
    """Beyond the limit an error says nothing more, and would take the room of those that do."""
    return error if error <= _LIMIT else math.inf


def _badness(error: float) -> float:
    return math.inf if math.isnan(error) else error


def scaling_figures(run: Run, known: Mapping[str, Look], index: Mapping[Case, int]) -> list[Figure]:
    """Draws the sweeps with most records, one workload after the other; captions count the others."""
    figures = []
    for axis, limit in _MOST_SWEEPS.items():
        found = sweeps(run, axis)
        for number, sweep in enumerate(_chosen(found)[:limit], start=1):
            for metric in _METRICS:
                left_out = len(found) - min(limit, len(found))
                figure = _draw_sweep(sweep, metric, known, index, f"{metric}-{axis}-{number}", left_out)
                figures += [figure] if figure else []
    return figures


def method_figures(run: Run, known: Mapping[str, Look], index: Mapping[Case, int]) -> list[Figure]:
    """Draws the peak against T of each place where a method is approximate, with its bias; exact methods for scale."""
    places: dict[Case, list[Record]] = defaultdict(list)
    for record in run:
        if record.status in (Status.OK, Status.APPROXIMATE) and record.memory is not None:
            places[record.case.point.model_copy(update={"timesteps": 1})].append(record)
    shown = [found for found in places.values() if any(r.status is Status.APPROXIMATE for r in found)]
    return [_draw_methods(found, known, index, number) for number, found in enumerate(shown, start=1)]


def _draw_methods(records: list[Record], known: Mapping[str, Look], index: Mapping[Case, int], number: int) -> Figure:
    lines: dict[str, list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda r: r.case.timesteps):
        lines[record.case.variant].append(record)
    names = naming(records)
    labels = {
        v: f"{canvas.plain(names(lines[v][0].case))} · {_bias(lines[v][-1])}" for v in canvas.in_order(known, lines)
    }
    peaks = {record.case: BY_NAME["peak_bytes"].read(record) or 0 for record in records}
    places = canvas.LogRange(peaks.values(), base=2)
    height, right = names_room(labels.values())
    with canvas.panel(plot_height=height, right=right) as axes:
        places.apply(axes, axes.yaxis, "0 B", "", canvas.BYTES)
        drawn = {
            variant: [
                (r.case.timesteps, places.place(peaks[r.case]), index[r.case], r.status is Status.OK)
                for r in lines[variant]
            ]
            for variant in labels
        }
        _draw_lines(axes, drawn, labels, known)
        axes.set_xlabel(AXIS_LABELS["timesteps"])
        axes.set_ylabel("peak bytes")
        svg = canvas.to_svg(axes)
    title = f"Methods over time: {fixed_part(records[0].case, without='timesteps')}"
    caption = (
        "Hollow: an approximate gradient, ranked nowhere. Beside the name: the bias at the largest T, which is the "
        "distance to the gradient of backpropagation in relative L2, all parameters taken as one vector."
    )
    caption = " ".join([caption, names.note]).strip()
    return Figure(f"methods-{number}", title, caption, svg)


def _bias(record: Record) -> str:
    bias = None if record.fidelity is None else record.fidelity.gradient_bias
    return "exact" if bias is None else units.fraction(bias.relative)


def _chosen(found: Sequence[Sweep]) -> list[Sweep]:
    """Largest first, but every setting before any comes a second time."""
    ranked = sorted(found, key=lambda sweep: -len(sweep.records))
    turns: Counter[tuple[str, str, str]] = Counter()
    order = []
    for sweep in ranked:
        order.append(turns[setting(sweep.fixed)])
        turns[setting(sweep.fixed)] += 1
    return [sweep for _, sweep in sorted(zip(order, ranked, strict=True), key=lambda pair: pair[0])]


def _draw_sweep(
    sweep: Sweep, metric: str, known: Mapping[str, Look], index: Mapping[Case, int], name: str, left_out: int
) -> Figure | None:
    lines = _lines(sweep, metric, index)
    if not lines:
        return None
    wrong = {index[record.case] for record in sweep.records if record.status is Status.WRONG}
    names, cases = naming(sweep.records), _cases(sweep.records)
    labels = {v: f"{canvas.plain(names(cases[v]))} · {_slope(lines[v])}" for v in canvas.in_order(known, lines)}
    places = canvas.LogRange((value for points in lines.values() for _, value, _ in points), base=2)
    height, right = names_room(labels.values())
    with canvas.panel(plot_height=height, right=right) as axes:
        places.apply(axes, axes.yaxis, "0 B", "", canvas.BYTES)
        drawn = {v: [(x, places.place(y), i, i not in wrong) for x, y, i in lines[v]] for v in labels}
        _draw_lines(axes, drawn, labels, known)
        axes.set_xlabel(AXIS_LABELS[sweep.axis])
        axes.set_ylabel(f"{BY_NAME[metric].label} bytes")
        svg = canvas.to_svg(axes)
    caption = BY_NAME[metric].meaning
    if wrong:
        caption += " Hollow: the gradient there is wrong."
    caption = " ".join([caption, _SLOPES, names.note]).strip()
    if left_out:
        caption += f" {left_out} more sweeps along this axis are in the table of cases."
    title = f"{BY_NAME[metric].label.capitalize()} memory against {AXIS_LABELS[sweep.axis]}: {sweep.title}"
    return Figure(name, title, caption, svg)


def _lines(sweep: Sweep, metric: str, index: Mapping[Case, int]) -> dict[str, Line]:
    """Bytes do not depend on the gradient, so wrong cases take part; failed ones have no number."""
    found: dict[str, dict[int, tuple[int, Number, int]]] = {}
    for record in sweep.records:
        value = BY_NAME[metric].read(record) if record.status in (Status.OK, Status.WRONG) else None
        if value is not None:
            at = position(record, sweep.axis)
            found.setdefault(record.case.variant, {})[at] = (at, value, index[record.case])
    return {variant: list(points.values()) for variant, points in found.items()}


def _slope(points: Line) -> str:
    """The least-squares slope of the logarithms: 1 means in proportion, 0 independent."""
    usable = [(math.log(x), math.log(y)) for x, y, _ in points if y > 0 and math.isfinite(y)]
    if not usable:
        return "always 0"
    if len(usable) < 2:
        return "–"
    slope = round(linear_regression(*zip(*usable, strict=True)).slope, 2)
    return f"{slope + 0.0:.2f}"
