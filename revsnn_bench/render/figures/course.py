"""One training step seen by the allocator: live bytes over time by kind, a few nodes one above the other."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from revsnn_bench.case import Case
from revsnn_bench.memory_timeline import MemoryTimeline
from revsnn_bench.records import Record, Run, Status
from revsnn_bench.render import units
from revsnn_bench.render.figures.canvas import INK, MUTED, Figure, legend, legend_rows, panels, plain, to_svg
from revsnn_bench.render.figures.choice import weight
from revsnn_bench.render.figures.kinds import binary_unit, kind_style, kinds_in_order
from revsnn_bench.render.figures.series import Look, in_order
from revsnn_bench.render.sweeps import fixed_part

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FIRST = ("lif", "lif-checkpoint", "revlif", "lif-carrier")
_MOST_PANELS, _MOST_FIGURES = 5, 2
_HEIGHT_IN, _BETWEEN_IN, _LEFT_IN = 0.92, 0.44, 0.75
_NARROW = 0.14
"""Share of a panel in which the word for a phase has no room."""


def course_figures(run: Run, known: Mapping[str, Look]) -> list[Figure]:
    """Draws one point of each setting whose records hold timelines, for the two settings with most nodes."""
    found = sorted(_points(run).items(), key=lambda pair: -len(pair[1]))[:_MOST_FIGURES]
    return [_draw(f"timeline-{number}", point, records, known) for number, (point, records) in enumerate(found, 1)]


def _points(run: Run) -> dict[Case, dict[str, Record]]:
    """The point of each setting that has most of the nodes shown first, then the largest one; latest records."""
    points: dict[Case, dict[str, Record]] = defaultdict(dict)
    for record in run:
        timeline = record.memory.timeline if record.memory is not None else None
        if timeline is not None and timeline.live_bytes and record.status in (Status.OK, Status.WRONG):
            points[record.case.point][record.case.variant] = record
    best: dict[tuple[str, str, str], Case] = {}
    for point in sorted(points, key=lambda p: (_shown_first(points[p]), weight(p))):
        best[point.workload, point.dtype, point.device] = point
    return {point: points[point] for point in best.values() if len(points[point]) > 1}


def _shown_first(records: Mapping[str, Record]) -> int:
    return len({record.case.node for record in records.values()} & set(_FIRST))


def _draw(name: str, point: Case, found: Mapping[str, Record], known: Mapping[str, Look]) -> Figure:
    from matplotlib.patches import Patch

    chosen = sorted(in_order(dict(known), found), key=lambda variant: _rank(found[variant].case.node))
    shown = [found[variant] for variant in chosen[:_MOST_PANELS]]
    timelines = [r.memory.timeline for r in shown if r.memory is not None and r.memory.timeline is not None]
    kinds = kinds_in_order(kind for timeline in timelines for kind in timeline.live_bytes)
    largest = max(timeline.peak_bytes for timeline in timelines)
    scale, unit = binary_unit(largest)
    with panels(len(shown), legend_rows(len(kinds), 3), _HEIGHT_IN, _LEFT_IN, _BETWEEN_IN) as stack:
        for axes, record, timeline in zip(stack, shown, timelines, strict=True):
            _fill(axes, timeline, kinds, scale)
            axes.set_title(_title(known[record.case.variant].label, record), loc="left", fontsize=9, pad=3)
        stack[0].set_ylim(0, 1.25 * largest / scale)
        stack[-1].set_xlabel("allocation events (blocks allocated or freed so far)")
        stack[0].set_ylabel(f"live bytes ({unit})")
        legend(stack[-1], [Patch(label=plain(kind), **kind_style(kind)) for kind in kinds], columns=3)
        svg = to_svg(stack[0])
    return Figure(name, f"Memory over one training step: {fixed_part(point)}", _caption(len(chosen) - len(shown)), svg)


def _rank(node: str) -> int:
    return _FIRST.index(node) if node in _FIRST else len(_FIRST)


def _caption(left_out: int) -> str:
    text = (
        "Live tensor bytes after each allocation event, on one scale; the dashed line is where forward ends. The "
        "highest point of a panel is the node's peak, which does not depend on whether its gradient is right. Of a "
        "long step some hundred events are drawn, each the highest around it."
    )
    return f"{text} {left_out} more nodes were measured at this point." if left_out else text


def _title(label: str, record: Record) -> str:
    """The node, its peak, and what a reader must know of it."""
    memory = record.memory
    assert memory is not None
    text = f"{label}: peak {units.scaled(memory.peak_bytes, 1024, units.BINARY)}"
    if unseen := memory.peak_by_category_bytes.get("unattributed", 0):
        text += f", {units.scaled(unseen, 1024, units.BINARY)} of it unattributed and not drawn"
    return f"{text}; its gradient is wrong here" if record.status is Status.WRONG else text


def _fill(axes: "Axes", timeline: MemoryTimeline, kinds: Sequence[str], scale: int) -> None:
    """Fills from 0 to each sum, the highest sum first, so that what lies below covers it."""
    rows, end = timeline.rows(), timeline.events + 1
    for count in range(len(kinds), 0, -1):
        sums = [(event, sum(live.get(kind, 0) for kind in kinds[:count]) / scale) for event, live in rows]
        if any(live.get(kinds[count - 1]) for _, live in rows):
            axes.fill(*zip(*_outline(sums, end), strict=True), **(kind_style(kinds[count - 1]) | {"linewidth": 0.5}))
    border = timeline.forward_events + 1
    axes.axvline(border, color=INK, linewidth=1, linestyle=(0, (4, 2)))
    axes.set_xlim(1, end)
    axes.locator_params(axis="x", nbins=6, integer=True)
    axes.locator_params(axis="y", nbins=4)
    for word, share, gap, side in (
        ("forward", (border - 1) / (end - 1), -4, "right"),
        ("backward", (end - border) / (end - 1), 4, "left"),
    ):
        if share > _NARROW:
            place: dict[str, Any] = {"xycoords": axes.get_xaxis_transform(), "textcoords": "offset points"}
            axes.annotate(word, (border, 1), xytext=(gap, -8), ha=side, fontsize=8, color=MUTED, **place)


def _outline(sums: Sequence[tuple[int, float]], end: int) -> list[tuple[float, float]]:
    """The corners of a staircase down to 0, without those on a straight line."""
    corners: list[tuple[float, float]] = [(sums[0][0], 0.0)]
    height = 0.0
    for event, total in sums:
        if total != height:
            corners += [(event, height), (event, total)]
            height = total
    return [*corners, (end, height), (end, 0.0)]
