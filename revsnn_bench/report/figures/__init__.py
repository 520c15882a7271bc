"""Figures from records: matplotlib, SVG, byte-stable, one panel each so that a phone shows them too."""

from revsnn_bench.records import Run
from revsnn_bench.report.canvas import Figure, Looks
from revsnn_bench.report.figures.growth import fidelity_figures, method_figures, scaling_figures
from revsnn_bench.report.figures.memory import breakdown_figures, step_figures
from revsnn_bench.report.figures.tradeoff import pareto_figures, roofline_figures


def draw_figures(run: Run) -> list[Figure]:
    """Draws every figure for which the run has data, none for an empty run; the same run gives the same bytes."""
    looks = Looks(run)
    return [
        *pareto_figures(run, looks),
        *method_figures(run, looks),
        *fidelity_figures(run, looks),
        *scaling_figures(run, looks),
        *breakdown_figures(run, looks),
        *step_figures(run, looks),
        *roofline_figures(run, looks),
    ]
