"""Figures from records: matplotlib, SVG, byte-stable, one panel each so that a phone shows them too."""

from pathlib import Path

from revsnn_bench.records import Run
from revsnn_bench.report.canvas import Figure, dark_rules, looks
from revsnn_bench.report.figures.growth import fidelity_figures, method_figures, scaling_figures
from revsnn_bench.report.figures.memory import breakdown_figures, step_figures
from revsnn_bench.report.figures.tradeoff import pareto_figures, roofline_figures

__all__ = ["Figure", "dark_rules", "draw_figures", "write_figures"]


def draw_figures(run: Run) -> list[Figure]:
    """Draws every figure for which the run has data; none for an empty run.

    Returns:
        The front of time against memory first, then methods over time, gradient errors, growth of memory, what the peak
        is made of, memory over one step, and shares of the memory bandwidth. The same run gives the same bytes.
    """
    known = looks(run)
    index = {record.case: number for number, record in enumerate(run)}
    return [
        *pareto_figures(run, known, index),
        *method_figures(run, known, index),
        *fidelity_figures(run, known, index),
        *scaling_figures(run, known, index),
        *breakdown_figures(run, known),
        *step_figures(run, known),
        *roofline_figures(run, known, index),
    ]


def write_figures(run: Run, folder: Path, figures: list[Figure] | None = None) -> list[Path]:
    """Writes each figure to `<folder>/<run id>-<figure name>.svg`; the folder must exist.

    Args:
        run: gives the file names.
        folder: where to write.
        figures: what `draw_figures` returned, where that was called already.
    """
    written = []
    for figure in draw_figures(run) if figures is None else figures:
        path = folder / file_name(run, figure)
        path.write_text(figure.standalone(), encoding="utf-8", newline="\n")
        written.append(path)
    return written


def file_name(run: Run, figure: Figure) -> str:
    """Returns the name of a figure's file, beside the reports."""
    return f"{run.header.run_id}-{figure.name}.svg"
