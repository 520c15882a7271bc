"""Rows as CSV and JSON text: byte-stable for the same run, a measured NaN told apart from a gap."""

import csv
import io
import json
import math
from collections.abc import Sequence

from revsnn_bench.records import Run
from revsnn_bench.render.rows import LONG_COLUMNS, WIDE_COLUMNS, Row, Value, long_rows, wide_rows


def long_csv(run: Run) -> str:
    """Returns one line per case and metric; see `frame.long`."""
    return _csv(long_rows(run), LONG_COLUMNS)


def wide_csv(run: Run) -> str:
    """Returns one line per case; see `frame.wide`."""
    return _csv(wide_rows(run), WIDE_COLUMNS)


def wide_json(run: Run) -> str:
    """Returns a flat JSON document: run, schema version, environment, and `cases`, one object per case.

    What was not measured is null; NaN and infinities are the strings "NaN", "Infinity" and "-Infinity",
    because JSON has no such numbers.
    """
    header = run.header
    document = {
        "run_id": header.run_id,
        "schema_version": header.schema_version,
        "started_at": header.started_at,
        "environment": header.environment.model_dump(mode="json"),
        "cases": [{name: _json_value(value) for name, value in row.items()} for row in wide_rows(run)],
    }
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _csv(rows: Sequence[Row], columns: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    # The csv module writes None as nothing and floats by repr: NaN stays visible as `nan`.
    writer.writerows(rows)
    return text.getvalue()


def _json_value(value: Value) -> Value:
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
