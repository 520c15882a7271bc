"""A run in a terminal of 100 columns: the findings, then one table per sweep."""

from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from revsnn_bench.records import Record, Run, Status
from revsnn_bench.render import units
from revsnn_bench.render.summary import findings
from revsnn_bench.render.sweeps import AXES, rest, sweeps
from revsnn_bench.render.view import Column, columns

_STYLES = {
    Status.OK: "",
    Status.WRONG: "yellow",
    Status.SKIPPED: "dim",
    Status.OOM: "red",
    Status.TIMEOUT: "red",
    Status.ERROR: "red",
}


def print_run(run: Run, console: Console) -> None:
    """Prints the findings, every case that did not end as `ok`, and the sweep tables of a run."""
    console.print(Text(f"Run {units.one_line(run.header.run_id)}", style="bold"))
    for finding in findings(run):
        console.print(Text.assemble((f"{finding.topic}: ", "bold"), units.one_line(finding.text)))
    for record in run:
        if record.status is not Status.OK:
            text = f"{record.case.id} {record.status.value}: {record.reason or 'no reason recorded'}"
            console.print(Text(units.one_line(text), style=_STYLES[record.status]))
    for axis in AXES:
        for sweep in sweeps(run, axis):
            console.print(_table(sweep.title, columns(run, axis, compact=True), sweep.records))
    if records := rest(run):
        console.print(_table("Single points", columns(run, None, compact=True), records))


def grid(title: str, headings: Sequence[str], numbers: Sequence[bool]) -> Table:
    """Returns an empty table whose cells fold, so that nothing is cut off in a narrow terminal."""
    table = Table(title=Text(units.one_line(title)), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading, is_number in zip(headings, numbers, strict=True):
        table.add_column(Text(heading), justify="right" if is_number else "left", overflow="fold")
    return table


def _table(title: str, shown: Sequence[Column], records: Iterable[Record]) -> Table:
    table = grid(title, [column.heading for column in shown], [column.is_number for column in shown])
    for record in records:
        cells = [Text(units.one_line(column.cell(record))) for column in shown]
        table.add_row(*cells, style=_STYLES[record.status])
    return table
