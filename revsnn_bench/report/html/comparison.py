"""Two runs on one page: what changed, for better or worse, and what only one of them has."""

import math
from collections import Counter
from typing import NamedTuple

from revsnn_bench.metrics import Number
from revsnn_bench.records import Run, Status
from revsnn_bench.report.comparison import ONLY_AFTER, ONLY_BEFORE, STATUS, CasePair, Difference, compare
from revsnn_bench.report.html.page import Cell, Column, make_table, render_page
from revsnn_bench.report.points import Ratio

_MOST_ROWS = 5000
_MEANINGS = {
    "gone": "in the run before only",
    "worse": "an exact value, a status, or a time beyond its noise got worse",
    "better": "the same, for the better",
    "new": "in the run after only",
    "changed": "differs, and neither direction is better",
    "varies": "differs, but is never exact, or lies within the noise of the samples",
}
"""Verdicts on a difference, in the order of the rows."""


class _Row(NamedTuple):
    case: str
    found: Difference
    verdict: str


_COLUMNS: list[Column[_Row]] = [
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
    quantities count as better or worse at any difference, times where the 95 % intervals of their ratios to
    the standard LIF do not overlap. Whether a change is a regression is decided by the gate.
    """
    comparison = compare(before, after)
    rows = [_Row(pair.id, found, _verdict(pair, found)) for pair, found in comparison.changed()]
    rows.sort(key=lambda row: list(_MEANINGS).index(row.verdict))
    counts = Counter(row.verdict for row in rows)
    return render_page(
        "comparison",
        title=f"{before.header.run_id} compared with {after.header.run_id}",
        before=before.header,
        after=after.header,
        places=(before.place, after.place),
        fields=[(name.replace("_", " "), *values) for name, *values in comparison.fields()],
        counts=[(kind, counts[kind], meaning) for kind, meaning in _MEANINGS.items() if counts[kind]],
        compared=comparison.values_compared,
        left_out=max(0, len(rows) - _MOST_ROWS),
        table=make_table("changes", "What changed", _COLUMNS, rows[:_MOST_ROWS], kind=lambda row: row.verdict),
    )


def _verdict(pair: CasePair, found: Difference) -> str:
    """The key of `_MEANINGS` that describes a difference."""
    if found.note in (ONLY_BEFORE, ONLY_AFTER):
        return "gone" if found.note == ONLY_BEFORE else "new"
    if found.name == STATUS:
        return "better" if found.after == Status.OK.value else "worse" if found.before == Status.OK.value else "changed"
    metric = found.metric
    if metric is None or metric.better is None:
        return "changed"
    if not (_apart(*pair.ratios(metric)) and not pair.two_hosts if found.is_ratio else metric.deterministic):
        return "varies"
    return "better" if (found.change < 0) == (metric.better == "lower") else "worse"


def _apart(left: Ratio | None, right: Ratio | None) -> bool:
    """Whether two intervals do not overlap; a ratio without an interval tells nothing."""
    if left is None or right is None or left.low is None or right.low is None:
        return False
    return (left.high or 0.0) < right.low or (right.high or 0.0) < left.low


def _number(value: Number | str | None) -> Number | None:
    return None if isinstance(value, str) else value
