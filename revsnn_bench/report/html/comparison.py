"""Two runs on one page: what changed, for better or worse, and what only one of them has."""

import math
from collections import Counter

from revsnn_bench.metrics import Number
from revsnn_bench.records import Run
from revsnn_bench.report import units
from revsnn_bench.report.comparison import VERDICTS, Change, compare
from revsnn_bench.report.html.page import Cell, Column, make_table, render_page

_MOST_ROWS = 5000


_COLUMNS: list[Column[Change]] = [
    Column("case", lambda row: row.case, "workload, node, size, dtype, device"),
    Column("metric", lambda row: row.found.name, "what was measured; times as ratios to lif", is_filter=True),
    Column("before", lambda row: Cell(row.found.texts()[0], _number(row.found.before)), is_number=True),
    Column("after", lambda row: Cell(row.found.texts()[1], _number(row.found.after)), is_number=True),
    Column(
        "change",
        lambda row: Cell(row.found.change_text("−"), None if math.isnan(row.found.change) else row.found.change),
        "(after - before) / before",
        is_number=True,
    ),
    Column("verdict", lambda row: row.verdict, "which way it changed", is_filter=True),
]


def render_comparison_html(before: Run, after: Run) -> str:
    """Returns the comparison of a run before and a run after as one self-contained page.

    Only what differs is listed, at most 5000 rows, what is gone or worse first; the page counts all of it. Exact
    quantities of comparable environments count as better or worse at any difference, times where the 95 % intervals of
    their ratios to the standard LIF do not overlap; nothing else is judged. Whether a change is a regression is decided
    by the gate.
    """
    comparison = compare(before, after)
    rows = comparison.judged()
    counts = Counter(row.verdict for row in rows)
    return render_page(
        "comparison",
        title=f"{before.header.run_id} compared with {after.header.run_id}",
        before=before.header,
        after=after.header,
        places=(before.place, after.place),
        fields=[(name.replace("_", " "), *values) for name, *values in comparison.fields()],
        counts=[(kind, counts[kind], meaning) for kind, meaning in VERDICTS.items() if counts[kind]],
        compared=comparison.values_compared,
        incomparable=units.listing([found.field.replace("_", " ") for found in comparison.incomparable_fields()]),
        left_out=max(0, len(rows) - _MOST_ROWS),
        table=make_table(
            "changes",
            "What changed",
            _COLUMNS,
            rows[:_MOST_ROWS],
            kind=lambda row: row.verdict.replace(" ", "-"),
        ),
    )


def _number(value: Number | str | None) -> Number | None:
    return None if isinstance(value, str) else value
