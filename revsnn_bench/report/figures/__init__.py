"""Figures from records: matplotlib, SVG, byte-stable, one panel each so that a phone shows them too."""

from revsnn_bench.records import Run
from revsnn_bench.report.canvas import Figure, looks
from revsnn_bench.report.figures.growth import fidelity_figures, method_figures, scaling_figures
from revsnn_bench.report.figures.memory import breakdown_figures, step_figures
from revsnn_bench.report.figures.tradeoff import pareto_figures, roofline_figures


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
