"""Records as pandas tables, for notebooks and further analysis."""

import pandas as pd

from revsnn_bench.metrics import BY_NAME
from revsnn_bench.records import Run
from revsnn_bench.render.rows import LONG_COLUMNS, WIDE_COLUMNS, Row, long_rows, wide_rows

_COUNTS = ("timesteps", "batch", "depth", "seed")


def _typed(rows: list[Row], columns: tuple[str, ...]) -> pd.DataFrame:
    """Bytes, FLOPs and counts become nullable integers, other numbers float64, the rest stays text."""
    frame = pd.DataFrame(rows, columns=list(columns), dtype=object)
    for column in columns:
        metric = BY_NAME.get(column)
        if column in _COUNTS or (metric is not None and metric.unit in ("B", "FLOP")):
            frame[column] = frame[column].astype("Int64")
        elif metric is not None or column in ("value", "tolerance") or "ratio_" in column:
            frame[column] = frame[column].astype("float64")
    return frame


def long(run: Run) -> pd.DataFrame:
    """Returns one row per case and measured metric, raw values in the unit of the column `unit`.

    A case without any measurement (out of memory, say) keeps one row, with its status and no metric. A row
    whose value is NaN was measured as NaN; what was not measured has no row.
    """
    return _typed(long_rows(run), LONG_COLUMNS)


def wide(run: Run) -> pd.DataFrame:
    """Returns one row per case, one column per metric and one per ratio to the standard LIF."""
    return _typed(wide_rows(run), WIDE_COLUMNS)
