"""A run in a terminal of 100 columns: a dozen lines after measuring, or the findings and one table per sweep."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from revsnn_bench.case import Case
from revsnn_bench.records import Record, Run, Status
from revsnn_bench.report import units
from revsnn_bench.report.findings import Least, findings, least_of, overview
from revsnn_bench.report.points import AXES, ratio_text, ratio_to_lif, rest, standard_lifs, sweeps, variants
from revsnn_bench.report.tables import Column, columns, ratio_value

_STYLES = {
    Status.OK: "",
    Status.WRONG: "yellow",
    Status.UNVERIFIED: "yellow",
    Status.SKIPPED: "dim",
    Status.OOM: "red",
    Status.TIMEOUT: "red",
    Status.ERROR: "red",
}
_MOST_ROWS, _MOST_FAILURES = 5, 2
_POINT_WIDTH, _NODE_WIDTH = 32, 20
_ONE_LINE: dict[str, Any] = {"no_wrap": True, "overflow": "ellipsis"}
_HEADINGS = ("workload and point", "least peak", "bytes", "× lif", "retained", "time × lif")


def print_summary(run: Run, console: Console) -> None:
    """Prints the answer of a run in about a dozen lines; the reports hold the rest.

    One row for each workload, dtype and device: at the largest T at which the standard LIF and another node are right,
    whose step has the least peak, and what it costs.
    """
    console.print(Text(f"Run {units.one_line(run.header.run_id)}: {overview(run)}", style="bold"))
    if found := least_of(run, "peak_bytes"):
        lifs = standard_lifs(run)
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
        for heading in _HEADINGS:
            table.add_column(Text(heading), justify="left" if heading in _HEADINGS[:2] else "right", no_wrap=True)
        for least in found[:_MOST_ROWS]:
            table.add_row(*map(Text, _answer(least, lifs)))
        console.print(table)
        if len(found) > _MOST_ROWS:
            console.print(f"{len(found) - _MOST_ROWS} more workloads and types are in the report.")
    wrong = variants(record for record in run if record.status is Status.WRONG)
    if wrong:
        text = f"Wrong gradient at some points, and ranked at none of them: {units.listing(wrong)}."
        console.print(Text(units.one_line(text), style=_STYLES[Status.WRONG]), **_ONE_LINE)
    failed = [record for record in run if record.status in (Status.OOM, Status.TIMEOUT, Status.ERROR)]
    for record in failed[:_MOST_FAILURES]:
        console.print(_failure(record), **_ONE_LINE)
    if len(failed) > _MOST_FAILURES:
        console.print(f"{len(failed) - _MOST_FAILURES} more cases failed; the report has their reasons.")


def _answer(least: Least, lifs: Mapping[Case, Record]) -> tuple[str, ...]:
    """The cells of a row: of several nodes that share the least bytes the quickest one, and how many there are more."""

    def took(record: Record) -> float:
        found = ratio_to_lif("step_time_s", record, lifs)
        return found.value if found and found.decided else math.inf

    best = min(least.winners.values(), key=took)
    more = f" (+{len(least.winners) - 1})" if len(least.winners) > 1 else ""
    device = "" if best.case.device == "cpu" else f" {best.case.device}"
    return (
        _cut(f"{best.case.workload} {best.case.size} {best.case.dtype}{device}", _POINT_WIDTH),
        _cut(best.case.variant, _NODE_WIDTH - len(more)) + more,
        units.measured("peak_bytes", best),
        ratio_value("peak_bytes", best, lifs),
        ratio_value("retained_bytes", best, lifs),
        ratio_text(ratio_to_lif("step_time_s", best, lifs)),
    )


def _cut(text: str, width: int) -> str:
    line = units.one_line(text)
    return line if len(line) <= width else f"{line[: width - 1]}…"


def print_run(run: Run, console: Console) -> None:
    """Prints the findings, every case that did not end as `ok`, and the sweep tables of a run."""
    console.print(Text(f"Run {units.one_line(run.header.run_id)}", style="bold"))
    for finding in findings(run):
        console.print(Text.assemble((f"{finding.topic}: ", "bold"), units.one_line(finding.text)))
    for record in run:
        if record.status is not Status.OK:
            console.print(_failure(record))
    for axis in AXES:
        for sweep in sweeps(run, axis):
            console.print(_record_table(sweep.title, columns(run, axis, compact=True), sweep.records))
    if records := rest(run):
        console.print(_record_table("Single points", columns(run, None, compact=True), records))


def _failure(record: Record) -> Text:
    text = f"{record.case.id} {record.status.value}: {record.reason or 'no reason recorded'}"
    return Text(units.one_line(text), style=_STYLES[record.status])


def grid(
    title: str, headings: Sequence[str], numbers: Sequence[bool], rows: Iterable[Sequence[str]] = (), style: str = ""
) -> Table:
    """Returns a table whose cells fold, so that nothing is cut off in a narrow terminal."""
    table = Table(title=Text(units.one_line(title)), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading, is_number in zip(headings, numbers, strict=True):
        table.add_column(Text(heading), justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(units.one_line(cell)) for cell in row), style=style)
    return table


def _record_table(title: str, shown: Sequence[Column], records: Iterable[Record]) -> Table:
    table = grid(title, [column.heading for column in shown], [column.is_number for column in shown])
    for record in records:
        table.add_row(*(Text(units.one_line(column.cell(record))) for column in shown), style=_STYLES[record.status])
    return table
