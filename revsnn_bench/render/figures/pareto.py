"""Time against memory: one point per node, the front joined, what another node beats on both counts faded."""

from collections.abc import Mapping
from typing import Any

from revsnn_bench.case import Case
from revsnn_bench.metric_readers import Number
from revsnn_bench.metrics import BY_NAME
from revsnn_bench.records import Record, Run
from revsnn_bench.render.figures.canvas import MUTED, Figure, legend, legend_rows, panel, to_svg
from revsnn_bench.render.figures.choice import MOST_POINTS, points_by_setting
from revsnn_bench.render.figures.scales import BYTES, LogRange, from_zero
from revsnn_bench.render.figures.series import Look, in_order
from revsnn_bench.render.sweeps import fixed_part

_COSTS = {"step_time_s": "Time", "step_flops": "Operations"}


def pareto_figures(run: Run, known: Mapping[str, Look], index: Mapping[Case, int]) -> list[Figure]:
    """Draws one front per workload, dtype and device; operations stand in where times were not taken."""
    settings = points_by_setting(run)
    figures = []
    for number, (point, records) in enumerate(settings[:MOST_POINTS], start=1):
        cost = next((name for name in _COSTS if len(_read(records, name)) > 1), None)
        if cost is not None:
            figures.append(_draw(f"pareto-{number}", point, _read(records, cost), cost, known, index))
    return figures


def front(points: Mapping[str, tuple[Number, Number]]) -> list[str]:
    """Returns the names that no other beats: less memory at most the same cost, or the reverse.

    Args:
        points: memory and cost by name.
    Returns:
        By increasing memory; of equal points all.
    """

    def beaten(name: str) -> bool:
        memory, cost = points[name]
        return any(
            m <= memory and c <= cost and (m, c) != (memory, cost) for other, (m, c) in points.items() if other != name
        )

    return sorted((name for name in points if not beaten(name)), key=lambda name: points[name])


def _read(records: Mapping[str, Record], cost: str) -> dict[str, tuple[Number, Number, Record]]:
    found = {}
    for variant, record in records.items():
        peak, spent = BY_NAME["peak_bytes"].read(record), BY_NAME[cost].read(record)
        if peak is not None and spent is not None:
            found[variant] = (peak, spent, record)
    return found


def _draw(
    name: str,
    point: Case,
    found: Mapping[str, tuple[Number, Number, Record]],
    cost: str,
    known: Mapping[str, Look],
    index: Mapping[Case, int],
) -> Figure:
    best = front({variant: (peak, spent) for variant, (peak, spent, _) in found.items()})
    across = LogRange((peak for peak, _, _ in found.values()), base=2)
    shown = in_order(dict(known), found)
    with panel(legend_rows(len(shown))) as axes:
        across.apply(axes, axes.xaxis, "0 B", "", BYTES)
        scale, unit = from_zero(axes, [spent for _, spent, _ in found.values()], BY_NAME[cost].unit)
        steps = [(across.place(found[variant][0]), found[variant][1] / scale) for variant in best]
        axes.step(*zip(*steps, strict=True), where="post", color=MUTED, linewidth=1, zorder=1)
        handles: list[Any] = []
        for variant in shown:
            peak, spent, record = found[variant]
            style: dict[str, Any] = known[variant].point() | {"markersize": 8.5}
            fade = 1.0 if variant in best else 0.35
            place = [across.place(peak)], [spent / scale]
            axes.plot(*place, alpha=fade, url=f"case:{index[record.case]}", **style)
            handle = known[variant].handle(known[variant].label + ("" if variant in best else " (beaten)"), line=False)
            handle.set_alpha(fade)
            handles.append(handle)
        axes.set_xlabel("peak bytes")
        axes.set_ylabel(f"{BY_NAME[cost].label} ({unit})")
        legend(axes, handles)
        svg = to_svg(axes)
    return Figure(
        name,
        f"{_COSTS[cost]} against memory: {fixed_part(point)}",
        "Lower left is better. The line joins the nodes that no other beats on both counts; the others are "
        "faded. Only nodes whose gradient is right take part.",
        svg,
    )
