"""What the peak is made of: one stacked bar per node, at the point where most nodes are right."""

from collections.abc import Mapping

from revsnn_bench.case import Case
from revsnn_bench.records import Record, Run
from revsnn_bench.render import units
from revsnn_bench.render.figures.canvas import Figure, label_room, legend, legend_rows, panel, plain, to_svg
from revsnn_bench.render.figures.choice import MOST_POINTS, points_by_setting
from revsnn_bench.render.figures.kinds import binary_unit, kind_style, kinds_in_order
from revsnn_bench.render.figures.series import Look, in_order
from revsnn_bench.render.sweeps import fixed_part

_BAR_IN = 0.33


def breakdown_figures(run: Run, known: Mapping[str, Look]) -> list[Figure]:
    """Draws one figure per workload, dtype and device."""
    settings = [(point, found) for point, records in points_by_setting(run) if (found := _split(records))]
    return [
        _draw(f"breakdown-{number}", point, found, known)
        for number, (point, found) in enumerate(settings[:MOST_POINTS], start=1)
    ]


def _split(records: Mapping[str, Record]) -> dict[str, dict[str, int]]:
    found = {}
    for variant, record in records.items():
        if record.memory is not None and record.memory.peak_by_category_bytes:
            found[variant] = record.memory.peak_by_category_bytes
    return found


def _draw(name: str, point: Case, found: Mapping[str, dict[str, int]], known: Mapping[str, Look]) -> Figure:
    from matplotlib.patches import Patch

    shown = in_order(dict(known), found)
    kinds = kinds_in_order(kind for parts in found.values() for kind, size in parts.items() if size)
    largest = max((sum(parts.values()) for parts in found.values()), default=0)
    scale, unit = binary_unit(largest)
    rows = legend_rows(len(kinds), columns=3)
    with panel(
        rows, plot_height=_BAR_IN * len(shown) + 0.15, left=label_room(known[variant].label for variant in shown)
    ) as axes:
        axes.grid(visible=False, axis="y")
        for row, variant in enumerate(shown):
            start = 0.0
            for kind in kinds:
                width = found[variant].get(kind, 0) / scale
                if width:
                    axes.barh(row, width, left=start, height=0.66, **kind_style(kind))
                    start += width
            total = units.scaled(sum(found[variant].values()), 1024, units.BINARY)
            axes.annotate(total, (start, row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
        axes.set_yticks(range(len(shown)), [known[variant].label for variant in shown])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.set_xlim(0, 1.2 * largest / scale or 1)
        axes.set_xlabel(f"live bytes at the peak ({unit})")
        legend(axes, [Patch(label=plain(kind), **kind_style(kind)) for kind in kinds], columns=3)
        svg = to_svg(axes)
    caption = "Live tensor bytes at the moment of the peak, by kind. Only nodes whose gradient is right take part."
    return Figure(name, f"What the peak is made of: {fixed_part(point)}", caption, svg)
