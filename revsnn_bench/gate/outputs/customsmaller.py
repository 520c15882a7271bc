"""The run for github-action-benchmark, tool `customSmallerIsBetter`: a list of name, unit and value."""

import json

from revsnn_bench.gate.findings import Verdict
from revsnn_bench.gate.outputs.measures import Measure, measures
from revsnn_bench.records import Run


def render(verdict: Verdict, run: Run) -> str:
    """Returns the list as JSON; the verdict is the gate's own and does not appear in it."""
    return json.dumps([_entry(measure) for measure in measures(verdict, run)], indent=1) + "\n"


def _entry(measure: Measure) -> dict[str, object]:
    entry: dict[str, object] = {
        "name": f"{measure.case} {measure.metric}",
        "unit": measure.unit,
        "value": measure.value,
        "extra": f"status: {measure.status}",
    }
    if measure.low is not None and measure.high is not None:
        entry["range"] = f"± {(measure.high - measure.low) / 2:.3g}"
    return entry
