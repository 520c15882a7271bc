"""Figures from records: matplotlib, SVG, byte-stable, one panel each so that a phone shows them too.

Costs: time against memory, where nodes that another beats in both are faded, and those whose time is not decided are
grey and not ranked (a time is its ratio to the reference of the same rounds: seconds of two processes are never
compared); and the share of the memory bandwidth, where each node has a dot per phase against the line of a copy of the
input.

Lines over a sweep: gradient errors against T, a figure per dtype with the largest error that counts as right; retained
and peak bytes against T, batch and depth, log-log, with the slope beside the name of every node; those of approximate
methods apart.

Live bytes by kind are in `revsnn_bench.report.memory_figures`.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import linear_regression
from typing import TYPE_CHECKING, Any

from revsnn_bench.case import Case
from revsnn_bench.metrics import BY_NAME, Number
from revsnn_bench.records import Record, Run, Status
from revsnn_bench.report import canvas, points, tables, units
from revsnn_bench.report.canvas import INK, MUTED, PAPER, Figure, Looks
from revsnn_bench.report.labels import name_lines, name_points, names_room
from revsnn_bench.report.memory_figures import breakdown_figures, step_figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_figures(run: Run) -> list[Figure]:
    """Draws every figure for which the run has data, none for an empty run; the same run gives the same bytes."""
    looks = Looks(run)
    return [
        *pareto_figures(run, looks),
        *method_figures(run, looks),
        *fidelity_figures(run, looks),
        *scaling_figures(run, looks),
        *breakdown_figures(run, looks),
        *step_figures(run, looks),
        *roofline_figures(run, looks),
    ]


_COSTS = {"step_time_s": "Time", "step_flops": "Operations"}
_MOST_FIGURES = 3
_LEFT_IN, _BESIDE_IN = 0.65, 0.55
"""Room to the left of the plot, and to its right for names of points at its edge."""

_ROW_IN = 0.27
_STYLES = {"forward": {"marker": "o", "markerfacecolor": INK}, "backward": {"marker": "s", "markerfacecolor": PAPER}}


Costs = dict[str, tuple[Number, Number]]
"""Peak and cost, by variant."""


def pareto_figures(run: Run, looks: Looks) -> list[Figure]:
    """Draws one front per workload, dtype and device; operations stand in where times were not taken on one host."""
    settings = list(points.points_by_setting(run).items())
    figures = []
    for number, (point, records) in enumerate(settings[: canvas.MOST_POINTS], start=1):
        fit = [name for name in _COSTS if BY_NAME[name].family != "time" or points.one_host(*records.values())]
        cost = next((name for name in fit if len(_ranked(records, name)) > 1), None)
        if cost is not None:
            figures.append(_draw_front(f"pareto-{number}", point, records, cost, looks))
    return figures


def _costs(records: Mapping[str, Record], cost: str) -> Costs:
    found = {variant: (BY_NAME["peak_bytes"].read(r), _spent(r, cost)) for variant, r in records.items()}
    return {v: (peak, spent) for v, (peak, spent) in found.items() if peak is not None and spent is not None}


def _spent(record: Record, cost: str) -> Number | None:
    if cost != "step_time_s":
        return BY_NAME[cost].read(record)
    ratio = points.ratio_of(cost, record)
    return None if ratio is None else ratio.value


def _ranked(records: Mapping[str, Record], cost: str) -> Costs:
    """Without those whose time is not decided."""
    found = _costs(records, cost)
    return {v: both for v, both in found.items() if cost != "step_time_s" or points.decided_ratio(cost, records[v])}


def _draw_front(name: str, point: Case, records: Mapping[str, Record], cost: str, looks: Looks) -> Figure:
    found, sure = _costs(records, cost), _ranked(records, cost)
    best = points.pareto_front(sure)
    across = canvas.LogRange((peak for peak, _ in found.values()), base=2)
    labels, note = looks.labels([records[variant] for variant in found])
    with canvas.panels(left=_LEFT_IN, right=_BESIDE_IN) as (axes,):
        across.apply(axes, axes.xaxis)
        unit, least = (f"× {point.reference}", [1.0]) if cost == "step_time_s" else (BY_NAME[cost].unit, [])
        scale, unit = canvas.from_zero(axes, [*least, *(spent for _, spent in found.values())], unit)
        steps = [(across.place(found[variant][0]), found[variant][1] / scale) for variant in best]
        corners = [steps[0]] + [corner for (_, y), after in pairwise(steps) for corner in ((after[0], y), after)]
        axes.plot(*zip(*corners, strict=True), color=MUTED, linewidth=1, zorder=1)
        dots = []
        for variant, label in labels.items():
            peak, spent = found[variant]
            style: dict[str, Any] = looks[variant].point() | {"markersize": 8.5}
            if variant not in sure:
                style |= {"markerfacecolor": PAPER, "markeredgecolor": MUTED}
            x, y = across.place(peak), spent / scale
            fade = 1.0 if variant in best else 0.45
            axes.plot([x], [y], alpha=fade, url=looks.url(records[variant]), **style)
            dots.append((x, y, label, INK if variant in best else MUTED))
        axes.set_xlabel("peak bytes")
        axes.set_ylabel(f"{BY_NAME[cost].label} ({unit})")
        name_points(axes, dots, _BESIDE_IN, corners)
        caption = (
            "Lower left is better. The line joins the nodes that no other beats on both counts; the others are "
            f"faded. Only nodes whose gradient {points.ranked_gradient(records.values())} take part."
        )
        grey = "Grey and hollow: the time is not decided, so not ranked." if len(sure) < len(found) else ""
        return canvas.finish(
            axes, name, f"{_COSTS[cost]} against memory: {points.fixed_part(point)}", caption, grey, note
        )


def roofline_figures(run: Run, looks: Looks) -> list[Figure]:
    """Draws one figure per size of `compared_nodes`, largest sizes first."""
    compared = sorted(tables.compared_nodes(run).items(), key=lambda group: points.work(group[0]), reverse=True)
    numbered = enumerate(compared[:_MOST_FIGURES], start=1)
    return [_draw_roofline(f"roofline-{number}", *group, looks) for number, group in numbered]


def _draw_roofline(name: str, place: Case, found: Mapping[str, Record], looks: Looks) -> Figure:
    shown, note = looks.labels(found.values())
    phases = [canvas.entry(phase, **_marker(phase)) for phase in tables.LEAST_COPIES]
    with canvas.named_rows([*shown.values()], _ROW_IN * len(shown) + 0.15, phases) as axes:
        axes.axvline(100, color=INK, linewidth=1, linestyle=(0, (6, 3)))
        for row, variant in enumerate(shown):
            _draw_row(axes, row, tables.bandwidth_shares(found[variant]), looks.url(found[variant]))
        _scale_percents(
            axes, [100 * share for variant in shown for share in tables.bandwidth_shares(found[variant]).values()]
        )
        axes.set_xlabel("share of the copy's bandwidth (%)")
        caption = (
            "100 % is the time in which the input could be copied: once for forward, one and a half times for "
            "backward, the least that a node which keeps nothing can do with. Beyond it data came from a cache, or "
            "other work slowed the copy. Small sizes are bound by calls, not by memory."
        )
        return canvas.finish(axes, name, f"Share of the memory bandwidth: {points.fixed_part(place)}", caption, note)


def _marker(phase: str) -> dict[str, Any]:
    return {"linestyle": "none", "markersize": 7, "markeredgecolor": INK, "markeredgewidth": 1.2, **_STYLES[phase]}


def _draw_row(axes: "Axes", row: int, found: Mapping[str, float], url: str) -> None:
    """Both phases of one node on a line, with their numbers at the right."""
    places = [100 * share for share in found.values()]
    axes.plot(places, [row] * len(places), color=MUTED, linewidth=0.8, zorder=1)
    for phase, share in found.items():
        axes.plot([100 * share], [row], url=url, **_marker(phase))
    words = " and ".join(f"{place:.2g}" if place < 100 else f"{place:.0f}" for place in places)
    axes.annotate(f"{words} %", (1, row), xycoords=axes.get_yaxis_transform(), ha="right", va="center", fontsize=8)


def _scale_percents(axes: "Axes", percents: list[float]) -> None:
    """A logarithmic axis from a power of ten below the least share to some room beyond 100 %."""
    low = 1.0
    while low > min(percents):
        low /= 10
    axes.set_xscale("log")
    ticks = [tick for tick in (0.001, 0.01, 0.1, 1, 10, 100, 1000) if low <= tick <= max(100, *percents)]
    axes.xaxis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_ticks([], minor=True)
    axes.set_xlim(0.8 * low, 25 * max(100, *percents))


_LIMIT = 100
_AXIS_LABELS: dict[points.Axis, str] = {
    "timesteps": "time steps T",
    "batch": "batch B (samples)",
    "depth": "depth D (blocks)",
}
_MOST_SWEEPS: dict[points.Axis, int] = {"timesteps": 3, "batch": 1, "depth": 1}
_METRICS = ("retained_bytes", "peak_bytes")
_SLOPES = "Beside the name: the slope on these two logarithmic scales; 1 is in proportion, 0 independent."

Point = tuple[int, Number, str, bool]
"""Position on the axis, value, link to the record, and whether its gradient is right."""

Lines = Mapping[str, Sequence[Point]]
"""The points of each variant, in order of position."""


Words = tuple[str, ...]
"""Name, title and the sentences of the caption of a figure, see `canvas.finish`."""


def _drawn(
    words: Words,
    lines: Lines,
    labels: Mapping[str, str],
    looks: Looks,
    across: str,
    up: str,
    tolerances: Sequence[float] | None = None,
) -> Figure:
    """Lines over the positions that were measured, with their labels at the right: of bytes, or of errors below
    tolerances."""
    is_bytes, limits = tolerances is None, tolerances or ()
    values = [value for line in lines.values() for _, value, *_ in line]
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
            dots = [(x, places.place(y)) for x, y, *_ in lines[variant]]
            axes.plot(*zip(*dots, strict=True), **look.line())
            for (x, y), (_, _, url, is_right) in zip(dots, lines[variant], strict=True):
                axes.plot([x], [y], url=url, **look.point(filled=is_right))
            ends.append((*dots[-1], labels[variant], look))
        canvas.positions(axes, [x for line in lines.values() for x, *_ in line])
        name_lines(axes, ends)
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        return canvas.finish(axes, *words)


def fidelity_figures(run: Run, looks: Looks) -> list[Figure]:
    """Draws one figure per dtype in which the gradient of a node was compared at several T, in order of appearance."""
    compared = (record for record in points.exact(run) if record.fidelity is not None)
    by_dtype = points.grouped(compared, lambda record: record.case.dtype)
    figures = [_draw_errors(dtype, records, looks) for dtype, records in by_dtype.items()]
    return [figure for figure in figures if figure is not None]


def _draw_errors(dtype: str, compared: list[Record], looks: Looks) -> Figure | None:
    worst: dict[str, dict[int, Record]] = defaultdict(dict)
    for record in compared:
        found, t = worst[record.case.variant], record.case.timesteps
        if t not in found or _error(record) > _error(found[t]):
            found[t] = record
    # A node that was compared at one T is no line.
    over_time = {variant: found for variant, found in worst.items() if len(found) > 1}
    if not over_time:
        return None
    lines = {v: [_error_point(found[t], looks) for t in sorted(found)] for v, found in over_time.items()}
    records = [record for record in compared if record.case.variant in lines]
    tolerances = sorted({record.fidelity.tolerance for record in records if record.fidelity is not None})
    labels, note = looks.labels(records)
    caption = (
        "Against float64 backpropagation of the same forward; the worst over all workloads and sizes at each T, of "
        "nodes that were compared at several. "
        f"Hollow: above the tolerance, so the gradient is wrong. Errors above {_LIMIT}, and those that are not "
        "finite, stand at the top."
    )
    words = f"gradient-{units.one_line(dtype)}", f"Gradient error against T, {dtype}", caption, note
    return _drawn(words, lines, labels, looks, "time steps T", "gradient error (relative L2)", tolerances)


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
        found = points.sweeps(run, axis)
        left_out = max(0, len(found) - limit)
        for number, sweep in enumerate(_chosen(found)[:limit], start=1):
            for metric in _METRICS:
                figures.append(_draw_sweep(sweep, metric, looks, f"{metric}-{axis}-{number}", left_out))
    return [figure for figure in figures if figure is not None]


def method_figures(run: Run, looks: Looks) -> list[Figure]:
    """Draws the peak against T of each place where a method is approximate at several, with its bias; exact methods for
    scale."""
    measured = (r for r in run if r.status in (Status.OK, Status.APPROXIMATE) and r.memory is not None)
    places = points.grouped(measured, lambda record: record.case.point.model_copy(update={"timesteps": 1}))
    steps = [{r.case.timesteps for r in found if r.status is Status.APPROXIMATE} for found in places.values()]
    shown = [found for found, several in zip(places.values(), steps, strict=True) if len(several) > 1]
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
    title = f"Methods over time: {points.fixed_part(records[0].case, without='timesteps')}"
    caption = (
        "Hollow: an approximate gradient, ranked nowhere. Beside the name: the bias at the largest T, which is the "
        "distance to the gradient of backpropagation in relative L2, all parameters taken as one vector."
    )
    words = f"methods-{number}", title, caption, note
    return _drawn(words, lines, labels, looks, _AXIS_LABELS["timesteps"], "peak bytes")


def _bias(record: Record) -> str:
    bias = None if record.fidelity is None else record.fidelity.gradient_bias
    return "exact" if bias is None else units.fraction(bias.relative)


def _chosen(found: Sequence[points.Sweep]) -> list[points.Sweep]:
    """Largest first, but every setting before any comes a second time."""
    largest_first = sorted(found, key=lambda sweep: -len(sweep.records))
    places = points.grouped(largest_first, lambda sweep: points.setting(sweep.records[0].case))
    turn = {id(sweep): number for own in places.values() for number, sweep in enumerate(own)}
    return sorted(largest_first, key=lambda sweep: turn[id(sweep)])


def _draw_sweep(sweep: points.Sweep, metric: str, looks: Looks, name: str, left_out: int) -> Figure | None:
    lines = _lines(sweep, metric, looks)
    if not lines:
        return None
    shown, note = looks.labels(sweep.records, lines)
    labels = {variant: f"{label} · {_slope(lines[variant])}" for variant, label in shown.items()}
    is_wrong = any(record.status is Status.WRONG for record in sweep.records)
    hollow = "Hollow: the gradient there is wrong." if is_wrong else ""
    more = f"{left_out} more sweeps along this axis are in the table of cases." if left_out else ""
    title = f"{BY_NAME[metric].label.capitalize()} memory against {_AXIS_LABELS[sweep.axis]}: {sweep.title}"
    words = name, title, BY_NAME[metric].meaning, hollow, _SLOPES, note, more
    return _drawn(words, lines, labels, looks, _AXIS_LABELS[sweep.axis], f"{BY_NAME[metric].label} bytes")


def _lines(sweep: points.Sweep, metric: str, looks: Looks) -> Lines:
    """Bytes do not depend on the gradient, so wrong cases take part; failed ones have no number."""
    found: dict[str, dict[int, Point]] = defaultdict(dict)
    for record in sweep.records:
        value = BY_NAME[metric].read(record) if record.status in (Status.OK, Status.WRONG) else None
        if value is not None:
            at = points.position(record, sweep.axis)
            found[record.case.variant][at] = (at, value, looks.url(record), record.status is Status.OK)
    return {variant: list(line.values()) for variant, line in found.items()}


def _slope(line: Sequence[Point]) -> str:
    """The least-squares slope of the logarithms: 1 means in proportion, 0 independent."""
    usable = [(math.log(x), math.log(y)) for x, y, *_ in line if y > 0 and math.isfinite(y)]
    if not usable:
        return "always 0"
    if len(usable) < 2:
        return "–"
    slope = round(linear_regression(*zip(*usable, strict=True)).slope, 2)
    return f"{slope + 0.0:.2f}"
