"""The page of a plan, What fits: budget in, plan out; live bytes before and after; the least time for every budget."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from revsnn_bench.report import canvas, units
from revsnn_bench.report.html import render_page

_MIB = 2**20
_LOOKS = ((canvas.MUTED, "--"), (canvas.INK, "-"))
"""Colour and dash without and with the plan."""


def plan_page(plan: Mapping[str, Any], title: str) -> str:
    """Returns what the planner's `as_dict` gives as one self-contained page, which needs no script."""
    frontier = [(peak, seconds, seconds / plan["plain_s"]) for peak, seconds in plan["frontier"]]
    kept = sum(row["kept_bytes"] for row in plan["blocks"]) or 1
    return render_page(
        "plan",
        title=f"What fits: {title}",
        plan=plan,
        subject=title,
        budgets=[(units.size(peak), units.seconds(s), units.times(ratio)) for peak, s, ratio in frontier],
        blocks=[
            (
                row["block"], row["option"], units.size(row["kept_bytes"]), units.percent(row["kept_bytes"] / kept),
                units.size(row["peak_bytes"]), units.seconds(row["extra_s"]),
            )
            for row in plan["blocks"]
        ],
        figures=[Markup(figure.inline([])) for figure in plan_figures(plan)],
    )  # fmt: skip


def plan_figures(plan: Mapping[str, Any]) -> list[canvas.Figure]:
    """The frontier, and the live bytes over a step; the latter only where the step was run."""
    points = [(peak / _MIB, seconds * 1e3) for peak, seconds in plan["frontier"]]
    figures = [_drawn("frontier", {"least time": points}, "peak (MiB)", "time of a step (ms)", plan["budget_bytes"])]
    lines = {}
    for name, rows in plan["timelines"].items():
        last = rows[-1][0] or 1
        lines[name] = [(100 * event / last, sum(live.values()) / _MIB) for event, live in rows]
    if lines:
        figures.append(_drawn("live", lines, "share of the step's events (%)", "live bytes (MiB)"))
    return figures


def _drawn(
    name: str, lines: Mapping[str, Sequence[tuple[float, float]]], x: str, y: str, budget: int | None = None
) -> canvas.Figure:
    drawn = list(zip(lines.items(), _LOOKS[-len(lines) :], strict=True))
    legend = [
        canvas.entry(label, color=colour, linestyle=dash, linewidth=1.6, drawstyle="steps-post")
        for (label, _), (colour, dash) in drawn
    ]
    if budget is not None:
        legend.append(canvas.entry("budget", color=_LOOKS[0][0], linestyle=":"))
    with canvas.panels(legend=legend) as (axes,):
        for (_, points), (colour, dash) in drawn:
            axes.step(*zip(*points, strict=True), dash, color=colour, where="post", linewidth=1.6)
        if budget is not None:
            axes.axvline(budget / _MIB, color=_LOOKS[0][0], linestyle=":")
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        return canvas.finish(axes, f"plan-{name}", name)
