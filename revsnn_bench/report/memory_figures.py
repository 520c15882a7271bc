"""Live bytes by kind: what the peak of each node is made of, and how memory runs over one training step.

A kind has the same colour in every figure, none of them that of a node. The peak is one stacked bar per node; a step is
one panel per node, over the events of the allocator, all on the same two scales.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from revsnn_bench.case import Case
from revsnn_bench.records import MemoryTimeline, Record, Run, Status
from revsnn_bench.report import canvas, points, units
from revsnn_bench.report.canvas import INK, MUTED, Figure, Looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Paul Tol's light colours: no node has one, and thin outlines tell them apart on white and on black.
_COLOURS = {
    "input": "#77AADD",
    "output": "#99DDFF",
    "state": "#44BB99",
    "parameter gradient": "#FFAABB",
    "input gradient": "#BBCC33",
    "output gradient": "#AAAA00",
    "retained": "#EE8866",
    "temporary": "#DDDDDD",
    "unattributed": "#EEDD88",
}
"""From the bottom of a stack to its top: what lasts longest first, what comes and goes last."""


_BAR_IN = 0.33
_FIRST = ("spikingjelly", "lif", "lif+remat", "lif-checkpoint", "revlif", "lif-carrier")
_MOST_PANELS, _MOST_FIGURES = 5, 2
_HEIGHT_IN, _BETWEEN_IN, _LEFT_IN = 0.92, 0.44, 0.75
_NARROW = 0.14
"""Share of a panel in which the word for a phase has no room."""


def kinds_in_order(found: Iterable[str]) -> list[str]:
    """Returns each kind once, known ones in the order of a stack, others after them."""
    order = {kind: rank for rank, kind in enumerate(_COLOURS)}
    return sorted(dict.fromkeys(found), key=lambda kind: order.get(kind, len(order)))


def kind_style(kind: str) -> dict[str, Any]:
    """Returns keywords of a patch."""
    return {"facecolor": _COLOURS.get(kind, "#BBBBBB"), "edgecolor": MUTED, "linewidth": 0.5}


def binary_unit(largest: int) -> tuple[int, str]:
    """Returns what to divide bytes by, and the name of the unit, so that the largest is at least 1."""
    index = min(max(largest.bit_length() - 1, 0) // 10, len(units.BINARY) - 1)
    return 1 << (10 * index), units.BINARY[index]


def breakdown_figures(run: Run, looks: Looks) -> list[Figure]:
    """Draws one figure per workload, dtype and device."""
    settings = [(point, records) for point, records in points.points_by_setting(run).items() if _peaks(records)]
    return [
        _draw_peak(f"breakdown-{number}", point, records, looks)
        for number, (point, records) in enumerate(settings[: canvas.MOST_POINTS], start=1)
    ]


def _peaks(records: Mapping[str, Record]) -> dict[str, dict[str, int]]:
    """The bytes at the peak by kind, of each node for which they are known."""
    known = {name: r.memory.peak_by_category_bytes for name, r in records.items() if r.memory is not None}
    return {name: parts for name, parts in known.items() if parts}


def _draw_peak(name: str, point: Case, records: Mapping[str, Record], looks: Looks) -> Figure:
    found = _peaks(records)
    shown, note = looks.labels(records.values(), found)
    kinds = kinds_in_order(kind for parts in found.values() for kind, size in parts.items() if size)
    largest = max((sum(parts.values()) for parts in found.values()), default=0)
    scale, unit = binary_unit(largest)
    with canvas.named_rows([*shown.values()], _BAR_IN * len(shown) + 0.15, _entries(kinds), columns=3) as axes:
        for row, variant in enumerate(shown):
            start = 0.0
            for kind in kinds:
                width = found[variant].get(kind, 0) / scale
                if width:
                    axes.barh(row, width, left=start, height=0.66, **kind_style(kind))
                    start += width
            total = units.size(sum(found[variant].values()))
            axes.annotate(total, (start, row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
        axes.set_xlim(0, 1.25 * largest / scale or 1)
        axes.set_xlabel(f"live bytes at the peak ({unit})")
        caption = (
            "Live tensor bytes at the moment of the peak, by kind. "
            f"Only nodes whose gradient {points.ranked_gradient(records.values())} take part."
        )
        return canvas.finish(axes, name, f"What the peak is made of: {points.fixed_part(point)}", caption, note)


def _entries(kinds: Sequence[str]) -> list[Any]:
    from matplotlib.patches import Patch

    return [Patch(label=canvas.plain(kind), **kind_style(kind)) for kind in kinds]


def step_figures(run: Run, looks: Looks) -> list[Figure]:
    """Draws one point of each setting whose records hold timelines, for the two settings with most nodes."""
    found = sorted(_points(run).items(), key=lambda pair: -len(pair[1]))[:_MOST_FIGURES]
    return [_draw_step(f"timeline-{i}", *each, looks) for i, each in enumerate(found, 1)]


def _points(run: Run) -> points.Points:
    """The point of each setting that has most of the nodes shown first, then the largest one; latest records."""
    places = points.by_point(
        record
        for record in run
        if record.status in (Status.OK, Status.WRONG)
        and record.memory is not None
        and record.memory.timeline is not None
        and record.memory.timeline.live_bytes
    )

    def rank(point: Case) -> tuple[int, int]:
        return len({record.case.node for record in places[point].values()} & {*_FIRST}), points.work(point)

    return points.best_points(places, rank)


def _draw_step(name: str, point: Case, found: Mapping[str, Record], looks: Looks) -> Figure:
    first = {node: rank for rank, node in enumerate(_FIRST)}
    chosen = sorted(looks.in_order(found), key=lambda variant: first.get(found[variant].case.node, len(first)))
    shown = [found[variant] for variant in chosen[:_MOST_PANELS]]
    timelines = [r.memory.timeline for r in shown if r.memory is not None and r.memory.timeline is not None]
    kinds = kinds_in_order(kind for timeline in timelines for kind in timeline.live_bytes)
    largest = max(timeline.peak_bytes for timeline in timelines)
    longest, names = max(timeline.events for timeline in timelines), points.naming(shown)
    scale, unit = binary_unit(largest)
    stacked = canvas.panels(
        _HEIGHT_IN, _LEFT_IN, legend=_entries(kinds), columns=3, count=len(shown), between=_BETWEEN_IN
    )
    with stacked as stack:
        for axes, record, timeline in zip(stack, shown, timelines, strict=True):
            _fill(axes, timeline, kinds, scale, longest)
            axes.set_title(_title(canvas.plain(names(record.case)), record), loc="left", fontsize=9, pad=3)
        stack[0].set_ylim(0, 1.25 * largest / scale)
        stack[-1].set_xlabel("allocation events (blocks allocated or freed so far)")
        stack[0].set_ylabel(f"live bytes ({unit})")
        caption = (
            "Live tensor bytes after each allocation event, on the same scales; the dashed line is where forward ends. "
            "The highest point of a panel is the node's peak, which does not depend on whether its gradient is right. "
            "Of a long step some hundred events are drawn, each the highest around it."
        )
        left_out = len(chosen) - len(shown)
        more = f"{left_out} more nodes were measured at this point." if left_out else ""
        title = f"Memory over one training step: {points.fixed_part(point)}"
        return canvas.finish(stack[0], name, title, caption, more, names.note)


def _title(label: str, record: Record) -> str:
    """The node, its peak, and what a reader must know of it."""
    memory = record.memory
    assert memory is not None
    text = f"{label}: peak {units.size(memory.peak_bytes)}"
    if unseen := memory.peak_by_category_bytes.get("unattributed", 0):
        text += f", {units.size(unseen)} of it unattributed and not drawn"
    return f"{text}; its gradient is wrong here" if record.status is Status.WRONG else text


def _fill(axes: "Axes", timeline: MemoryTimeline, kinds: Sequence[str], scale: int, longest: int) -> None:
    """Fills from 0 to each sum, the highest sum first, so that what lies below covers it."""
    rows, end = timeline.rows(), timeline.events + 1
    for count in range(len(kinds), 0, -1):
        sums = [(event, sum(live.get(kind, 0) for kind in kinds[:count]) / scale) for event, live in rows]
        if any(live.get(kinds[count - 1]) for _, live in rows):
            axes.fill(*zip(*_outline(sums, end), strict=True), **kind_style(kinds[count - 1]))
    border = timeline.forward_events + 1
    axes.axvline(border, color=INK, linewidth=1, linestyle=(0, (4, 2)))
    axes.set_xlim(1, longest + 1)
    axes.locator_params(axis="x", nbins=6, integer=True)
    axes.locator_params(axis="y", nbins=4)
    for word, share, gap, side in (
        ("forward", (border - 1) / longest, -4, "right"),
        ("backward", (longest + 1 - border) / longest, 4, "left"),
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
