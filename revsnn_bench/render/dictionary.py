"""What each column of the CSV files means, as a CSV file of its own."""

import csv
import io

from revsnn_bench.metrics import BY_NAME
from revsnn_bench.render.rows import LONG_COLUMNS, WIDE_COLUMNS

COLUMNS = ("column", "file", "unit", "meaning", "better", "in_repeated_runs")
_TEXTS = {
    "id": "Name of the case: workload/node/size/dtype/device.",
    "node": "Registry name of the node.",
    "variant": "The node with the options that differ from its defaults.",
    "workload": "What the node was measured in: layer, or a network.",
    "timesteps": "T, the number of time steps.",
    "batch": "B, samples per step.",
    "shape": "Features of one sample, sizes joined by x.",
    "depth": "D, blocks stacked.",
    "dtype": "Floating-point type of input, state and parameters.",
    "device": "Where the case ran.",
    "seed": "Seed of parameters and input.",
    "status": "How the case ended: ok, wrong, oom, timeout, error or skipped.",
    "metric": "Name of the quantity; empty for a case without any.",
    "value": "The quantity, in the unit of the column `unit`.",
    "unit": "Unit of the value: B is bytes, FLOP operations, s seconds, 1 a pure number.",
    "ratio_to_lif": "Value over that of the standard LIF at the same point.",
    "ratio_low": "Lower end of the 95 % bootstrap interval of a ratio of times.",
    "ratio_high": "Upper end of the 95 % bootstrap interval of a ratio of times.",
    "reason": "Why the case did not end as ok.",
    "warning": "The warning that the node gave, word for word.",
    "tolerance": "Largest gradient error that counts as right for this dtype.",
    "peak_phase": "Phase in which the peak occurred.",
    "peak_module": "Module in which the peak occurred.",
}


def columns_csv() -> str:
    """Returns the data dictionary of the wide and the long CSV file; every run has the same columns."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for column in dict.fromkeys([*WIDE_COLUMNS, *LONG_COLUMNS]):
        files = [name for name, known in (("wide", WIDE_COLUMNS), ("long", LONG_COLUMNS)) if column in known]
        writer.writerow([column, " and ".join(files), *_described(column)])
    return text.getvalue()


def _described(column: str) -> tuple[str, str, str, str]:
    if column in BY_NAME:
        metric = BY_NAME[column]
        return metric.unit, metric.meaning, metric.better or "", "exact" if metric.deterministic else "varies"
    base = column.removesuffix("_ratio_to_lif")
    if base != column:
        return "1", f"Ratio of {base} to that of the standard LIF at the same point.", BY_NAME[base].better or "", ""
    return "", _TEXTS[column], "", ""
