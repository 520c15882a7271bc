"""The shares of the memory bandwidth, drawn: a point per node and phase against the line of a copy."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from revsnn_bench.case import Case
from revsnn_bench.records import Record, Run
from revsnn_bench.render.bandwidth import LEAST_COPIES, Shares, compared_nodes, shares
from revsnn_bench.render.figures.canvas import INK, MUTED, PAPER, Figure, label_room, legend, legend_rows, panel, to_svg
from revsnn_bench.render.figures.choice import weight
from revsnn_bench.render.figures.series import Look, in_order
from revsnn_bench.render.sweeps import fixed_part

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_FIGURES = 3
_ROW_IN = 0.27
_STYLES = {
    "forward": {"marker": "o", "markerfacecolor": INK},
    "backward": {"marker": "s", "markerfacecolor": PAPER},
}


def roofline_figures(run: Run, known: Mapping[str, Look], index: Mapping[Case, int]) -> list[Figure]:
    """Draws one figure per size of `compared_nodes`, largest sizes first."""
    groups = compared_nodes(run)
    compared = sorted(groups, key=weight, reverse=True)
    return [
        _draw(f"roofline-{number}", place, groups[place], known, index)
        for number, place in enumerate(compared[:_MOST_FIGURES], start=1)
    ]


def _draw(
    name: str, place: Case, found: Mapping[str, Record], known: Mapping[str, Look], index: Mapping[Case, int]
) -> Figure:
    from matplotlib.lines import Line2D

    shown = in_order(dict(known), found)
    room = label_room(known[variant].label for variant in shown)
    with panel(legend_rows(1), _ROW_IN * len(shown) + 0.15, room) as axes:
        axes.grid(visible=False, axis="y")
        axes.axvline(100, color=INK, linewidth=1, linestyle=(0, (6, 3)))
        for row, variant in enumerate(shown):
            _row(axes, row, shares(found[variant]), f"case:{index[found[variant].case]}")
        _scale(axes, [100 * share for variant in shown for share in shares(found[variant]).values()])
        axes.set_yticks(range(len(shown)), [known[variant].label for variant in shown])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.set_xlabel("share of the copy's bandwidth (%)")
        legend(axes, [Line2D([], [], label=phase, **_marker(phase)) for phase in LEAST_COPIES])
        svg = to_svg(axes)
    caption = (
        "100 % is the time in which the input could be copied: once for forward, one and a half times for backward, "
        "the least that a node which keeps nothing can do with. Beyond it data came from a cache, or other work slowed "
        "the copy. Small sizes are bound by calls, not by memory."
    )
    return Figure(name, f"Share of the memory bandwidth: {fixed_part(place)}", caption, svg)


def _marker(phase: str) -> dict[str, Any]:
    return {"linestyle": "none", "markersize": 7, "markeredgecolor": INK, "markeredgewidth": 1.2, **_STYLES[phase]}


def _row(axes: "Axes", row: int, found: Shares, url: str) -> None:
    """Both phases of one node on a line, with their numbers at the right."""
    places = [100 * share for share in found.values()]
    axes.plot(places, [row] * len(places), color=MUTED, linewidth=0.8, zorder=1)
    for phase, share in found.items():
        axes.plot([100 * share], [row], url=url, **_marker(phase))
    words = " and ".join(f"{place:.2g}" if place < 100 else f"{place:.0f}" for place in places)
    axes.annotate(f"{words} %", (1, row), xycoords=axes.get_yaxis_transform(), ha="right", va="center", fontsize=8)


def _scale(axes: "Axes", percents: list[float]) -> None:
    """A logarithmic axis from a power of ten below the least share to some room beyond 100 %."""
    low = 1.0
    while low > min(percents):
        low /= 10
    axes.set_xscale("log")
    ticks = [tick for tick in (0.001, 0.01, 0.1, 1, 10, 100, 1000) if low <= tick <= max(100, *percents)]
    axes.xaxis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_ticks([], minor=True)
    axes.set_xlim(0.8 * low, 25 * max(100, *percents))
