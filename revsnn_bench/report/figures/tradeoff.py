"""What a node costs: time against memory with the front of nodes, and the share of the memory bandwidth it reaches.

In the first, nodes that another beats in both time and memory are faded, and those whose time was taken beside other
work are grey and not ranked. In the second, each node has a dot per phase against the line of a copy of the input.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from revsnn_bench.case import Case
from revsnn_bench.metrics import BY_NAME, Number
from revsnn_bench.records import Record, Run
from revsnn_bench.report import canvas
from revsnn_bench.report.canvas import INK, MUTED, PAPER, Figure, Looks
from revsnn_bench.report.labels import name_points
from revsnn_bench.report.points import (
    contended,
    fixed_part,
    one_host,
    pareto_front,
    points_by_setting,
    ranked_gradient,
    work,
)
from revsnn_bench.report.tables import LEAST_COPIES, bandwidth_shares, compared_nodes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
    settings = list(points_by_setting(run).items())
    figures = []
    for number, (point, records) in enumerate(settings[: canvas.MOST_POINTS], start=1):
        fit = [name for name in _COSTS if BY_NAME[name].family != "time" or one_host(*records.values())]
        cost = next((name for name in fit if len(_ranked(records, name)) > 1), None)
        if cost is not None:
            figures.append(_draw_front(f"pareto-{number}", point, records, cost, looks))
    return figures


def _costs(records: Mapping[str, Record], cost: str) -> Costs:
    found = {variant: (BY_NAME["peak_bytes"].read(r), BY_NAME[cost].read(r)) for variant, r in records.items()}
    return {v: (peak, spent) for v, (peak, spent) in found.items() if peak is not None and spent is not None}


def _ranked(records: Mapping[str, Record], cost: str) -> Costs:
    """Without those whose time was taken beside other work."""
    found = _costs(records, cost)
    return {v: both for v, both in found.items() if cost != "step_time_s" or not contended(records[v])}


def _draw_front(name: str, point: Case, records: Mapping[str, Record], cost: str, looks: Looks) -> Figure:
    found, sure = _costs(records, cost), _ranked(records, cost)
    best = pareto_front(sure)
    across = canvas.LogRange((peak for peak, _ in found.values()), base=2)
    labels, note = looks.labels([records[variant] for variant in found])
    with canvas.panels(left=_LEFT_IN, right=_BESIDE_IN) as (axes,):
        across.apply(axes, axes.xaxis)
        scale, unit = canvas.from_zero(axes, [spent for _, spent in found.values()], BY_NAME[cost].unit)
        steps = [(across.place(found[variant][0]), found[variant][1] / scale) for variant in best]
        corners = [steps[0]] + [corner for (_, y), after in pairwise(steps) for corner in ((after[0], y), after)]
        axes.plot(*zip(*corners, strict=True), color=MUTED, linewidth=1, zorder=1)
        points = []
        for variant, label in labels.items():
            peak, spent = found[variant]
            style: dict[str, Any] = looks[variant].point() | {"markersize": 8.5}
            if variant not in sure:
                style |= {"markerfacecolor": PAPER, "markeredgecolor": MUTED}
            x, y = across.place(peak), spent / scale
            fade = 1.0 if variant in best else 0.45
            axes.plot([x], [y], alpha=fade, url=looks.url(records[variant]), **style)
            points.append((x, y, label, INK if variant in best else MUTED))
        axes.set_xlabel("peak bytes")
        axes.set_ylabel(f"{BY_NAME[cost].label} ({unit})")
        name_points(axes, points, _BESIDE_IN, corners)
        caption = (
            "Lower left is better. The line joins the nodes that no other beats on both counts; the others are "
            f"faded. Only nodes whose gradient {ranked_gradient(records.values())} take part."
        )
        grey = "Grey and hollow: timed beside other work, so not ranked." if len(sure) < len(found) else ""
        return canvas.finish(axes, name, f"{_COSTS[cost]} against memory: {fixed_part(point)}", caption, grey, note)


def roofline_figures(run: Run, looks: Looks) -> list[Figure]:
    """Draws one figure per size of `compared_nodes`, largest sizes first."""
    compared = sorted(compared_nodes(run).items(), key=lambda group: work(group[0]), reverse=True)
    numbered = enumerate(compared[:_MOST_FIGURES], start=1)
    return [_draw_roofline(f"roofline-{number}", *group, looks) for number, group in numbered]


def _draw_roofline(name: str, place: Case, found: Mapping[str, Record], looks: Looks) -> Figure:
    shown, note = looks.labels(found.values())
    phases = [canvas.entry(phase, **_marker(phase)) for phase in LEAST_COPIES]
    with canvas.named_rows([*shown.values()], _ROW_IN * len(shown) + 0.15, phases) as axes:
        axes.axvline(100, color=INK, linewidth=1, linestyle=(0, (6, 3)))
        for row, variant in enumerate(shown):
            _draw_row(axes, row, bandwidth_shares(found[variant]), looks.url(found[variant]))
        _scale_percents(axes, [100 * share for variant in shown for share in bandwidth_shares(found[variant]).values()])
        axes.set_xlabel("share of the copy's bandwidth (%)")
        caption = (
            "100 % is the time in which the input could be copied: once for forward, one and a half times for "
            "backward, the least that a node which keeps nothing can do with. Beyond it data came from a cache, or "
            "other work slowed the copy. Small sizes are bound by calls, not by memory."
        )
        return canvas.finish(axes, name, f"Share of the memory bandwidth: {fixed_part(place)}", caption, note)


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
