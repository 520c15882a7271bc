"""Two runs side by side: exact quantities as they are, times only as ratios to the standard LIF.

This tells what changed; whether a change is a regression is for the gate to say.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from revsnn_bench.metrics import BY_NAME, METRICS, Number
from revsnn_bench.records import Record, Run
from revsnn_bench.report import markdown, units
from revsnn_bench.report.points import ratio_to_lif
from revsnn_bench.report.terminal import grid

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("id", "metric", "before", "after", "change", "note")
ONLY_BEFORE = "only before"
ONLY_AFTER = "only after"
_HEADINGS = ("case", "metric", "before", "after", "change", "note")


@dataclass(frozen=True)
class _Values:
    """What is compared of one record: its status, and its metrics by the name used in the table."""

    status: str
    numbers: dict[str, Number]


def compare(a: Run, b: Run) -> pd.DataFrame:
    """Compares two runs case by case and metric by metric.

    Args:
        a: the run before.
        b: the run after.
    Returns:
        One row per case and metric, in the order of `a`, then what only `b` has: `id`, `metric`, `before`,
        `after` (exact Python numbers; None where absent), `change` ((after - before) / before; infinite from
        0, NaN where it has no meaning), and `note`, which names what only one of the two has and a status
        that differs. Each case starts with a row `status`. Times appear as `<name>_ratio_to_lif`.
    """
    import pandas as pd

    before, after = _by_id(a), _by_id(b)
    rows: list[dict[str, object]] = []
    for case_id in dict.fromkeys([*before, *after]):
        rows += _case_rows(case_id, before.get(case_id), after.get(case_id))
    frame = pd.DataFrame(rows, columns=list(COLUMNS), dtype=object)
    frame["change"] = frame["change"].astype("float64")
    return frame


def differing_fields(a: Run, b: Run) -> dict[str, tuple[str, str]]:
    """Returns the fields of header and environment in which two runs differ, before and after.

    Run id, start and command differ always and are left out.
    """
    left = a.header.model_dump(mode="json", exclude={"run_id", "started_at", "command"})
    right = b.header.model_dump(mode="json", exclude={"run_id", "started_at", "command"})
    left |= left.pop("environment")
    right |= right.pop("environment")
    return {name: (str(left[name]), str(right[name])) for name in left if left[name] != right[name]}


def changed(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows of a comparison in which anything differs, in their order.

    A case that only one run has is told by its row `status` alone.
    """
    status = frame["metric"] == "status"
    lonely = set(frame["id"][status & frame["note"].isin([ONLY_BEFORE, ONLY_AFTER])])
    keep = [
        (row.metric == "status" or row.id not in lonely) and (bool(row.note) or not _same(row.before, row.after))
        for row in frame.itertuples()
    ]
    import pandas as pd

    return frame.loc[pd.Series(keep, index=frame.index, dtype=bool)]


def render_comparison(a: Run, b: Run, console: Console | None = None) -> str:
    """Returns the comparison as Markdown, and prints it as tables where a console is given.

    Only what differs is shown, see `changed`; how many values were compared is stated.
    """
    frame = compare(a, b)
    rows = changed(frame)
    cells = [_cells(*row) for row in rows.itertuples(index=False, name=None)]
    title = f"{a.header.run_id} before, {b.header.run_id} after"
    places = [(name, *pair) for name, pair in differing_fields(a, b).items()]
    equal = f"{len(frame)} values compared; the {len(rows)} shown differ, or stand in one run only."
    if console is not None:
        _print(title, equal, places, cells, console)
    parts = [f"# Comparison: {units.markdown(title)}", equal]
    if places:
        table = markdown.table(("field", "before", "after"), places)
        parts.append(f"## The runs differ in more than their results\n\n{table}")
    if cells:
        numbers = (False, False, True, True, True, False)
        parts.append(f"## What changed\n\n{markdown.table(_HEADINGS, cells, numbers)}")
    return "\n\n".join(parts) + "\n"


def _print(
    title: str, equal: str, places: list[tuple[str, str, str]], cells: list[list[str]], console: Console
) -> None:
    console.print(Text(units.one_line(title), style="bold"))
    console.print(Text(equal))
    for name, before, after in places:
        console.print(Text(units.one_line(f"{name}: {before} before, {after} after"), style="yellow"))
    if cells:
        table = grid("", _HEADINGS, (False, False, True, True, True, False))
        for row in cells:
            table.add_row(*(Text(units.one_line(cell)) for cell in row))
        console.print(table)


def _by_id(run: Run) -> dict[str, _Values]:
    return {record.case.id: _values(record) for record in run}


def _values(record: Record) -> _Values:
    numbers: dict[str, Number] = {}
    for metric in METRICS:
        value = metric.read(record)
        if metric.samples is not None:
            ratio = ratio_to_lif(metric, record, {})
            if ratio is not None:
                numbers[f"{metric.name}_ratio_to_lif"] = ratio.value
        elif value is not None and metric.unit != "s":
            numbers[metric.name] = value
    return _Values(record.status.value, numbers)


def _case_rows(case_id: str, before: _Values | None, after: _Values | None) -> list[dict[str, object]]:
    note = ONLY_AFTER if before is None else ONLY_BEFORE if after is None else ""
    statuses = (before.status if before else None, after.status if after else None)
    differs = "status differs" if not note and statuses[0] != statuses[1] else note
    rows: list[dict[str, object]] = [dict(zip(COLUMNS, (case_id, "status", *statuses, math.nan, differs), strict=True))]
    left, right = (before.numbers if before else {}), (after.numbers if after else {})
    for name in dict.fromkeys([*left, *right]):
        old, new = left.get(name), right.get(name)
        which = ONLY_AFTER if old is None else ONLY_BEFORE if new is None else ""
        rows.append(dict(zip(COLUMNS, (case_id, name, old, new, _change(old, new), which), strict=True)))
    return rows


def _change(before: Number | None, after: Number | None) -> float:
    if before is None or after is None:
        return math.nan
    if before == 0:
        return 0.0 if after == 0 else math.copysign(math.inf, after)
    return (after - before) / abs(before)


def _same(before: object, after: object) -> bool:
    """Equal, or both measured as NaN."""
    return before == after or (before != before and after != after)


def _cells(case_id: str, name: str, before: object, after: object, change: float, note: str) -> list[str]:
    if math.isnan(change):
        percent = units.ABSENT
    elif math.isinf(change):
        percent = "from 0"
    else:
        percent = f"{100 * change:+.2f} %"
    return [case_id, name, _number(name, before), _number(name, after), percent, note]


def _number(name: str, value: object) -> str:
    if not isinstance(value, int | float):
        return units.ABSENT if value is None else str(value)
    metric = BY_NAME.get(name)
    return units.times(value) if metric is None else units.number(metric, value)
