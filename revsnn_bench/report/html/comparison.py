"""Two runs on one page: what changed, for better or worse, and what only one of them has."""

import math
from collections import Counter
from collections.abc import Mapping

from revsnn_bench.case import Case
from revsnn_bench.gate.diff import ONLY_AFTER, ONLY_BEFORE, changed, compare, differing_fields
from revsnn_bench.metrics import BY_NAME
from revsnn_bench.records import Record, Run, Status
from revsnn_bench.report import units
from revsnn_bench.report.html.page import Cell, Heading, Row, make_table, render_page
from revsnn_bench.report.points import Ratio, ratio_to_lif

_MOST_ROWS = 5000
_SUFFIX = "_ratio_to_lif"
_ORDER = ("gone", "worse", "better", "new", "changed", "varies")
_MEANINGS = {
    "gone": "in the run before only",
    "worse": "an exact value, a status, or a time beyond its noise got worse",
    "better": "the same, for the better",
    "new": "in the run after only",
    "changed": "differs, and neither direction is better",
    "varies": "differs, but is never exact, or lies within the noise of the samples",
}


def render_comparison_html(a: Run, b: Run) -> str:
    """Returns the comparison of a run before and a run after as one self-contained page.

    Only what differs is listed, at most 5000 rows with the worst news first; the page counts all of it. Exact
    quantities count as better or worse at any difference, times where the 95 % intervals of their ratios to
    the standard LIF do not overlap. Whether a change is a regression is for the gate to say.
    """
    frame = compare(a, b)
    differing = changed(frame)
    before, after = _by_id(a), _by_id(b)
    rows = []
    for row in differing.itertuples(index=False, name=None):
        case_id, name, old, new, change, note = row
        verdict = _verdict(name, old, new, change, note, before.get(case_id), after.get(case_id))
        rows.append(Row(_cells(case_id, name, old, new, change, verdict), verdict))
    rows.sort(key=lambda row: _ORDER.index(row.kind))
    counts = Counter(row.kind for row in rows)
    headings = [
        Heading("case", "workload, node, size, dtype, device"),
        Heading("metric", "what was measured; times as ratios to lif", is_filter=True),
        Heading("before", is_number=True),
        Heading("after", is_number=True),
        Heading("change", "(after - before) / before", is_number=True),
        Heading("verdict", "which way it changed", is_filter=True),
    ]
    return render_page(
        "comparison",
        title=f"{a.header.run_id} compared with {b.header.run_id}",
        before=a.header,
        after=b.header,
        fields=[(name.replace("_", " "), *pair) for name, pair in differing_fields(a, b).items()],
        counts=[(kind, counts[kind], _MEANINGS[kind]) for kind in _ORDER if counts[kind]],
        compared=len(frame),
        left_out=max(0, len(rows) - _MOST_ROWS),
        table=make_table("changes", "What changed", headings, rows[:_MOST_ROWS]),
    )


def _by_id(run: Run) -> dict[str, Record]:
    return {record.case.id: record for record in run}


def _verdict(
    name: str, old: object, new: object, change: float, note: str, before: Record | None, after: Record | None
) -> str:
    if note in (ONLY_BEFORE, ONLY_AFTER):
        return "gone" if note == ONLY_BEFORE else "new"
    if name == "status":
        return "better" if new == Status.OK.value else "worse" if old == Status.OK.value else "changed"
    base = name.removesuffix(_SUFFIX)
    metric = BY_NAME[base]
    if metric.better is None:
        return "changed"
    if base != name:
        left, right = (_ratio(base, before), _ratio(base, after))
        if not _apart(left, right):
            return "varies"
    elif not metric.deterministic:
        return "varies"
    return "better" if (change < 0) == (metric.better == "lower") else "worse"


def _ratio(name: str, record: Record | None) -> Ratio | None:
    lifs: Mapping[Case, Record] = {}
    return None if record is None else ratio_to_lif(BY_NAME[name], record, lifs)


def _apart(left: Ratio | None, right: Ratio | None) -> bool:
    """Whether two intervals do not overlap; a ratio without an interval tells nothing."""
    if left is None or right is None or left.low is None or right.low is None:
        return False
    return (left.high or 0.0) < right.low or (right.high or 0.0) < left.low


def _cells(case_id: str, name: str, old: object, new: object, change: float, verdict: str) -> list[Cell]:
    if math.isnan(change):
        shown = Cell(units.ABSENT)
    else:
        sign = "−" if change < 0 else "+"
        text = "from 0" if math.isinf(change) else f"{sign}{abs(100 * change):.2f} %"
        shown = Cell(text, change)
    return [Cell(case_id), Cell(name), _value(name, old), _value(name, new), shown, Cell(verdict)]


def _value(name: str, value: object) -> Cell:
    if not isinstance(value, int | float):
        return Cell(units.ABSENT if value is None else str(value))
    metric = BY_NAME.get(name)
    return Cell(units.times(value) if metric is None else units.number(metric, value), value)
