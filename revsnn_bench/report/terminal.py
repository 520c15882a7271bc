"""A run in a terminal of 80 columns or more: a dozen lines after measuring, or the findings and a table per sweep."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from revsnn_bench.case import Case
from revsnn_bench.records import Record, Run, Status
from revsnn_bench.report import points, units
from revsnn_bench.report.findings import Least, findings, least_of, not_judged, overview, uncounted
from revsnn_bench.report.tables import accuracy_table, columns, ratio_value

_STYLES = {
    Status.OK: "",
    Status.WRONG: "yellow",
    Status.UNVERIFIED: "yellow",
    Status.APPROXIMATE: "cyan",
    Status.SKIPPED: "dim",
    Status.OOM: "red",
    Status.TIMEOUT: "red",
    Status.ERROR: "red",
}
_MOST_ROWS, _MOST_FAILURES = 4, 2
_LEAST_POINT, _NODE_WIDTH, _WIDE = 16, 20, 100

_ONE_LINE: dict[str, Any] = {"no_wrap": True, "overflow": "ellipsis"}
_HEADINGS = ("workload and point", "least peak", "peak", "peak × {0}", "retained × {0}", "time × {0}")


def print_summary(run: Run, console: Console) -> None:
    """Prints the answer of a run in about a dozen lines: whose step has the least peak, and what it costs, at the
    largest T at which the reference and another node are right; a row for each of several settings."""
    console.print(Text(f"Run {units.one_line(run.header.run_id)}: {overview(run)}", style="bold"))
    if found := least_of(run, "peak_bytes"):
        known, names = points.references(run), points.naming(run)
        console.print(Text(_headline(found[0], known, names)))
        if len(found) > 1:
            rows = [_answer(least, known, names) for least in found[:_MOST_ROWS]]
            console.print(_answers(rows, points.reference_name(run), console.width))
        if len(found) > _MOST_ROWS:
            console.print(f"{len(found) - _MOST_ROWS} more workloads and types are in the report.")
    wrong = points.variants(record for record in run if record.status is Status.WRONG)
    if wrong:
        text = f"Wrong gradient at some points, and ranked at none of them: {units.listing(wrong)}."
        console.print(Text(units.one_line(text), style=_STYLES[Status.WRONG]), **_ONE_LINE)
    if methods := points.variants(points.approximate(run)):
        text = f"Approximate gradient by design, ranked nowhere: {units.listing(methods)}."
        console.print(Text(units.one_line(text), style=_STYLES[Status.APPROXIMATE]), **_ONE_LINE)
    for finding in [*not_judged(run), *uncounted(run)]:
        console.print(Text(units.one_line(f"{finding.topic} of {finding.where}: {finding.text}")))
    failed = [record for record in run if record.status in (Status.OOM, Status.TIMEOUT, Status.ERROR)]
    for record in failed[:_MOST_FAILURES]:
        console.print(_failure(record))
    if len(failed) > _MOST_FAILURES:
        console.print(f"{len(failed) - _MOST_FAILURES} more cases failed; the report has their reasons.")


def _quickest(least: Least, known: Mapping[Case, Record]) -> Record:
    """Of several nodes that share the least bytes the one whose time is least, among those whose time is decided."""
    return min(
        least.winners.values(), key=lambda record: points.decided_ratio("step_time_s", record, known) or math.inf
    )


def _headline(least: Least, known: Mapping[Case, Record], names: points.Naming) -> str:
    """Peak and time of the first setting, each to the reference, the time with its interval."""
    best = _quickest(least, known)
    peak, base = ratio_value("peak_bytes", best, known), best.case.reference
    time = points.ratio_text(points.ratio_of("step_time_s", best, known))
    text = f"Least peak at {_size(best.case)}: {names(best.case)}, {units.measured('peak_bytes', best)}"
    text += f" ({peak} × {base})" if peak != units.ABSENT else ""
    text += f", time {time} × {base}" if time != units.ABSENT else ""
    return units.one_line(f"{text}.")


def _size(case: Case) -> str:
    device = "" if case.device == "cpu" else f" {case.device}"
    return f"{case.workload} {case.size} {case.dtype}{device}"


def _answer(least: Least, known: Mapping[Case, Record], names: points.Naming) -> tuple[str, ...]:
    """The cells of a row: the quickest of the nodes that share the least bytes, and how many more there are."""
    best = _quickest(least, known)
    more = f" (+{len(least.winners) - 1})" if len(least.winners) > 1 else ""
    return (
        _size(best.case),
        _cut(names(best.case), _NODE_WIDTH - len(more)) + more,
        units.measured("peak_bytes", best),
        ratio_value("peak_bytes", best, known),
        ratio_value("retained_bytes", best, known),
        points.ratio_text(points.ratio_of("step_time_s", best, known)),
    )


def _answers(rows: Sequence[tuple[str, ...]], base: str, width: int) -> Table:
    """The rows as a table of single lines; a narrow terminal has no column of what is retained, and shorter points."""
    headings = [heading.format(base) for heading in _HEADINGS]
    shown = [n for n in range(len(headings)) if width >= _WIDE or not headings[n].startswith("retained")]
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    room = width
    for n in shown:
        table.add_column(Text(headings[n]), justify="left" if n < 2 else "right", no_wrap=True)
        room -= max(len(headings[n]), *(len(row[n]) for row in rows)) + 2 if n else 2
    for point, *cells in rows:
        row = (_cut(point, max(_LEAST_POINT, room)), *cells)
        table.add_row(*(Text(row[n]) for n in shown))
    return table


def _cut(text: str, width: int) -> str:
    line = units.one_line(text)
    return line if len(line) <= width else f"{line[: width - 1]}…"


def print_run(run: Run, console: Console) -> None:
    """Prints the findings, every case that did not end as `ok`, and the sweep tables of a run."""
    console.print(Text(f"Run {units.one_line(run.header.run_id)}", style="bold"))
    for finding in findings(run):
        where = f"{finding.topic}, {units.one_line(finding.where)}: "
        console.print(Text.assemble((where, "bold"), units.one_line(finding.text)))
    for record in run:
        if record.status is not Status.OK:
            console.print(_failure(record))
    for axis in points.AXES:
        for sweep in points.sweeps(run, axis):
            console.print(_record_table(sweep.title, run, axis, sweep.records))
    if records := points.rest(run):
        console.print(_record_table("Single points", run, None, records))
    note, headings, trained = accuracy_table(run)
    if trained:
        title = f"Accuracy. {note}" if note else "Accuracy"
        console.print(Grid(title, headings[:5], [False] * 2 + [True] * 3, [row[:5] for row in trained]))


def _failure(record: Record) -> Text:
    """Why a case failed; the traceback is in the record."""
    shown = units.reason(record.reason or "no reason recorded")
    return Text(units.one_line(f"{record.case.id} {record.status.value}: {shown}"), style=_STYLES[record.status])


_MOST_LINES = 4
"""Lines of a cell from which on a table looks for a form with wider cells; one, where first cells repeat."""


class Grid:
    """A table that no terminal breaks within a word: where a row has no room, its first cell goes on a line of its own,
    and where the others have no room either, each cell does.
    """

    def __init__(
        self,
        title: str,
        headings: Sequence[str],
        numbers: Sequence[bool] = (),
        rows: Iterable[Sequence[str | Text]] = (),
        style: str = "",
    ) -> None:
        self.title, self.headings = units.one_line(title), headings
        self.numbers = numbers or [False] * len(headings)
        self.rows: list[tuple[list[Text], str]] = []
        for row in rows:
            self.add_row(*row, style=style)

    def add_row(self, *cells: str | Text, style: str = "") -> None:
        """Adds a row; text of records is kept on one line, and a style is of the whole row."""
        self.rows.append(([cell if isinstance(cell, Text) else Text(units.one_line(cell)) for cell in cells], style))

    def fits(self, width: int) -> bool:
        """Whether the rows of a table of this width each have a line of cells beside or below the first one."""
        return any(self._widths(width - 2 * first, gap, first) is not None for first in (0, 1) for gap in (2, 1))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Renders the widest form that fits."""
        if self.title:
            yield Text(self.title, style="italic")
        forms = [
            (widths, gap, first)
            for first in (0, 1)
            for gap in (2, 1)
            if (widths := self._widths(options.max_width - 2 * first, gap, first))
        ]
        if forms:
            repeats = 2 * len({cells[0].plain for cells, _ in self.rows}) <= len(self.rows)
            most = 1 if repeats else _MOST_LINES
            widths, gap, first = min(forms, key=lambda form: max(most, self._tallest(form[0], form[2])))
            if not first:
                yield self._table(self.rows, widths, gap, 0)
                return
            yield Padding(self._table([], widths, gap, 1), (0, 0, 0, 2))
            for name, rows in groupby(self.rows, key=lambda row: row[0][0].plain):
                yield Text(name, style="bold")
                yield Padding(self._table(list(rows), widths, gap, 1, heads=False), (0, 0, 0, 2))
            return
        for cells, style in self.rows:
            yield Text(cells[0].plain, style="bold")
            for heading, cell in zip(self.headings[1:], cells[1:], strict=True):
                yield Padding(Text.assemble((f"{heading} ", "dim"), cell, style=style), (0, 0, 0, 2))

    def _tallest(self, widths: Sequence[int], first: int) -> int:
        """About how many lines the longest cell takes."""
        cells = (pair for row, _ in self.rows for pair in zip(row[first:], widths, strict=True))
        return max((math.ceil(text.cell_len / max(width, 1)) for text, width in cells), default=1)

    def _widths(self, room: int, gap: int, first: int) -> list[int] | None:
        """Columns from one on: as wide as their contents where there is room, at least as their longest word."""
        least, most = [], []
        for n in range(first, len(self.headings)):
            texts = [cells[n].plain for cells, _ in self.rows]
            words = texts if self.numbers[n] else [word for text in texts for word in text.split()]
            least.append(max(map(cell_len, [*self.headings[n].split(), *words]), default=0))
            most.append(max(map(cell_len, [self.headings[n], *texts])))
        left = room - sum(least) - gap * (len(least) - 1)
        if left < 0:
            return None
        # Those that need little more get it; the others share what is left.
        needs = sorted(range(len(least)), key=lambda n: most[n] - least[n])
        for place, n in enumerate(needs):
            more = min(most[n] - least[n], left // (len(needs) - place))
            least[n], left = least[n] + more, left - more
        return least

    def _table(
        self, rows: Sequence[tuple[list[Text], str]], widths: Sequence[int], gap: int, first: int, heads: bool = True
    ) -> Table:
        # A box has a space between its columns; without one all of the gap is padding.
        box, padding = (SIMPLE_HEAD, gap - 1) if heads else (None, gap)
        table = Table(box=box, padding=(0, padding, 0, 0), pad_edge=False, show_edge=False, show_header=heads)
        for n, width in zip(range(first, len(self.headings)), widths, strict=True):
            table.add_column(Text(self.headings[n]), justify="right" if self.numbers[n] else "left", width=width)
        for cells, style in rows:
            table.add_row(*cells[first:], style=style)
        return table


def _record_table(title: str, run: Run, axis: points.Axis | None, records: Sequence[Record]) -> Grid:
    """A table of records, whose title says which options all its nodes share."""
    names = points.naming(records)
    shown = columns(run, axis, names, compact=True)
    made = Grid(
        f"{title}. {names.note}" if names.note else title,
        [column.heading for column in shown],
        [column.is_number for column in shown],
    )
    for record in records:
        made.add_row(*(column.cell(record) for column in shown), style=_STYLES[record.status])
    return made
