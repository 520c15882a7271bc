"""The run in Bencher Metric Format, for Bencher's adapter `json`: benchmark, measure, value and its bounds."""

import json

from revsnn_bench.gate.findings import Verdict
from revsnn_bench.gate.outputs.measures import measures
from revsnn_bench.records import Run


def render(verdict: Verdict, run: Run) -> str:
    """Returns the document as JSON; the verdict is the gate's own and does not appear in it."""
    document: dict[str, dict[str, dict[str, float]]] = {}
    for measure in measures(verdict, run):
        metric: dict[str, float] = {"value": measure.value}
        if measure.low is not None and measure.high is not None:
            metric |= {"lower_value": measure.low, "upper_value": measure.high}
        document.setdefault(measure.case, {})[measure.metric] = metric
    return json.dumps(document, indent=1) + "\n"
