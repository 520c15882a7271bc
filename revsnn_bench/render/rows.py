"""Records as flat rows of plain Python values: exact integers, `None` for what was not measured."""

from revsnn_bench.metrics import METRICS, measured
from revsnn_bench.records import Record, Run
from revsnn_bench.render.ratios import ratio_to_lif, standard_lifs

Value = str | int | float | None
Row = dict[str, Value]

IDENTITY = (
    "id",
    "node",
    "variant",
    "workload",
    "timesteps",
    "batch",
    "shape",
    "depth",
    "dtype",
    "device",
    "seed",
    "status",
)
LONG_COLUMNS = (*IDENTITY, "metric", "value", "unit", "ratio_to_lif", "ratio_low", "ratio_high")
_TEXTS = ("reason", "warning", "tolerance", "peak_phase", "peak_module")
WIDE_COLUMNS = (
    *IDENTITY,
    *(metric.name for metric in METRICS),
    *(f"{metric.name}_ratio_to_lif" for metric in METRICS if metric.has_ratio),
    *_TEXTS,
)


def identity(record: Record) -> Row:
    """Returns what was asked for and how it ended."""
    case = record.case
    return {
        "id": case.id,
        "node": case.node,
        "variant": case.variant,
        "workload": case.workload,
        "timesteps": case.timesteps,
        "batch": case.batch,
        "shape": "x".join(map(str, case.shape)),
        "depth": case.depth,
        "dtype": case.dtype,
        "device": case.device,
        "seed": case.seed,
        "status": record.status.value,
    }


def long_rows(run: Run) -> list[Row]:
    """Returns one row per case and measured metric; a case without any has one row without a metric."""
    lifs = standard_lifs(run)
    rows: list[Row] = []
    for record in run:
        values = measured(record)
        if not values:
            rows.append(dict.fromkeys(LONG_COLUMNS) | identity(record))
        for metric in METRICS:
            if metric.name not in values:
                continue
            ratio = ratio_to_lif(metric, record, lifs)
            rows.append(
                identity(record)
                | {
                    "metric": metric.name,
                    "value": values[metric.name],
                    "unit": metric.unit,
                    "ratio_to_lif": ratio.value if ratio else None,
                    "ratio_low": ratio.low if ratio else None,
                    "ratio_high": ratio.high if ratio else None,
                }
            )
    return rows


def wide_rows(run: Run) -> list[Row]:
    """Returns one row per case, in the order of the run, each with every column of `WIDE_COLUMNS`."""
    lifs = standard_lifs(run)
    rows: list[Row] = []
    for record in run:
        row: Row = dict.fromkeys(WIDE_COLUMNS) | identity(record) | measured(record)
        for metric in METRICS:
            ratio = ratio_to_lif(metric, record, lifs)
            if ratio is not None:
                row[f"{metric.name}_ratio_to_lif"] = ratio.value
        row["reason"] = record.reason
        if record.fidelity is not None:
            row["warning"], row["tolerance"] = record.fidelity.warning, record.fidelity.tolerance
        if record.memory is not None:
            row["peak_phase"], row["peak_module"] = record.memory.peak_phase, record.memory.peak_module
        rows.append(row)
    return rows
