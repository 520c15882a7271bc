"""Gradient error against T, one figure per dtype, with the largest error that counts as right."""

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from revsnn_bench.case import Case
from revsnn_bench.records import Record, Run
from revsnn_bench.render import units
from revsnn_bench.render.figures.canvas import INK, Figure, legend, legend_rows, panel, to_svg
from revsnn_bench.render.figures.scales import PLAIN, LogRange, positions
from revsnn_bench.render.figures.series import Look, in_order

_LIMIT = 100

Worst = dict[int, tuple[float, int, bool]]
"""By T: the worst error, the index of its record, and whether it is within tolerance."""


def fidelity_figures(run: Run, known: Mapping[str, Look], index: Mapping[Case, int]) -> list[Figure]:
    """Draws one figure per dtype in which a gradient was compared, in order of appearance."""
    by_dtype: dict[str, list[Record]] = defaultdict(list)
    for record in run:
        if record.fidelity is not None:
            by_dtype[record.case.dtype].append(record)
    return [_draw(dtype, records, known, index) for dtype, records in by_dtype.items()]


def _draw(dtype: str, records: list[Record], known: Mapping[str, Look], index: Mapping[Case, int]) -> Figure:
    lines = _worst(records, index)
    tolerances = sorted({record.fidelity.tolerance for record in records if record.fidelity is not None})
    errors = [_shown(error) for points in lines.values() for error, _, _ in points.values()]
    places = LogRange([*errors, *tolerances], base=10)
    shown = in_order(dict(known), lines)
    with panel(legend_rows(len(shown))) as axes:
        places.apply(axes, axes.yaxis, "exact", f"> {_LIMIT}", PLAIN)
        for tolerance in tolerances:
            axes.axhline(places.place(tolerance), color=INK, linewidth=1, linestyle=(0, (6, 3)))
            label = f"tolerance {tolerance:.0e}"
            spot: dict[str, Any] = {"xy": (1, places.place(tolerance)), "xycoords": axes.get_yaxis_transform()}
            axes.annotate(label, **spot, xytext=(0, 3), textcoords="offset points", ha="right", fontsize=8)
        for variant in shown:
            look, points = known[variant], sorted(lines[variant].items())
            heights = [places.place(_shown(error)) for _, (error, _, _) in points]
            axes.plot([t for t, _ in points], heights, **look.line())
            for (t, (_, i, right)), height in zip(points, heights, strict=True):
                axes.plot([t], [height], url=f"case:{i}", **look.point(filled=right))
        positions(axes, [t for points in lines.values() for t in points])
        axes.set_xlabel("time steps T")
        axes.set_ylabel("gradient error (relative L2)")
        legend(axes, [known[variant].handle(known[variant].label) for variant in shown])
        svg = to_svg(axes)
    caption = (
        "Against float64 backpropagation of the same forward; the worst over all workloads and sizes at each T. "
        f"Hollow: above the tolerance, so the gradient is wrong. Errors above {_LIMIT}, and those that are not "
        "finite, stand at the top."
    )
    return Figure(f"gradient-{units.one_line(dtype)}", f"Gradient error against T, {dtype}", caption, svg)


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
