"""Pages from records, and what they share: templates, style, script, tables that a reader can search, filter and sort.

A page is one file that works without a server or a network, and may run nothing but its own script.
"""

import base64
import hashlib
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import Any, Generic, NamedTuple, TypeVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from revsnn_bench.metrics import Number
from revsnn_bench.report import units
from revsnn_bench.report.canvas import dark_rules

_MOST_OPTIONS = 40
MOST_COLUMNS = 8
"""Columns of a table that are shown at first; the style sheet hides the others."""


class Cell(NamedTuple):
    """What a cell shows, and the number by which it is sorted; None sorts by the text, absent ones last."""

    text: str | Markup
    value: Number | None = None
    link: str | None = None

    @property
    def key(self) -> str | None:
        """The number as text, exact for integers; what is not finite sorts as the largest."""
        if self.value is None:
            return None
        return f"{self.value}" if math.isfinite(self.value) else "1e999"


T = TypeVar("T")


@dataclass(frozen=True)
class Column(Generic[T]):
    """A column: its title, what it shows of an item, and what the title means."""

    title: str
    show: Callable[[T], Cell | str | int]
    meaning: str = ""
    is_number: bool = False
    is_filter: bool = False

    def cell(self, item: T) -> Cell:
        """The cell of an item; a number is shown as it is and sorted by its value."""
        shown = self.show(item)
        return shown if isinstance(shown, Cell) else Cell(str(shown), shown if isinstance(shown, int) else None)


class Table(NamedTuple):
    """What the template of a table shows; of more than `MOST_COLUMNS` columns the others when they are asked for.

    Fields:
        name: tells tables of a page apart.
        rows: cells in the order of the columns, the kind that colours the row, the anchor that figures link to.
        filters: title, number and values of columns to choose by.
        same: title and value of columns that say the same everywhere.
    """

    name: str
    label: str
    columns: Sequence[Column[Any]]
    rows: Sequence[tuple[Sequence[Cell], str, str | None]]
    filters: Sequence[tuple[str, int, Sequence[str | Markup]]]
    same: Sequence[tuple[str, str | Markup]]


def make_table(
    name: str,
    label: str,
    columns: Sequence[Column[T]],
    items: Iterable[T],
    *,
    kind: Callable[[T], str] = lambda item: "",
    anchor: Callable[[T], str | None] = lambda item: None,
    drop_same: bool = False,
) -> Table:
    """Builds a table of one row per item, with a filter for each column that is to have one and holds several values.

    Args:
        name, label: for the script and for screen readers.
        kind, anchor: of the row of an item.
        drop_same: leave out filter columns that say the same everywhere, and columns without any value.
    """
    rows = [([column.cell(item) for column in columns], kind(item), anchor(item)) for item in items]
    values = [list(dict.fromkeys(cells[i].text for cells, *_ in rows)) for i in range(len(columns))]
    same, shown = [], []
    for i, column in enumerate(columns):
        if drop_same and column.is_filter and len(rows) > 1 and len(values[i]) == 1:
            same.append((column.title, values[i][0]))
        elif not (drop_same and values[i] in ([units.ABSENT], [""])):
            shown.append(i)
    filters = [
        (columns[i].title, place, values[i])
        for place, i in enumerate(shown)
        if columns[i].is_filter and 1 < len(values[i]) <= _MOST_OPTIONS
    ]
    shown_rows = [([cells[i] for i in shown], its_kind, its_anchor) for cells, its_kind, its_anchor in rows]
    return Table(name, label, [columns[i] for i in shown], shown_rows, filters, same)


def render_page(template: str, *, refresh_s: int | None = None, **values: object) -> str:
    """Fills the template of a page; every value is escaped and kept on one line, unless it is `Markup`.

    With `refresh_s` an open page loads itself again after so many seconds.
    """
    script = _asset("page.js")
    return render_part(
        template,
        style=Markup(_asset("page.css") + dark_rules("@media screen and (prefers-color-scheme: dark)")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        refresh_s=refresh_s,
        most_columns=MOST_COLUMNS,
        **values,
    )


def render_part(template: str, **values: object) -> Markup:
    """Fills the template of a section, which a page then takes as it is."""
    return Markup(_environment().get_template(f"{template}.html.j2").render(**values))


def moment(date: str) -> datetime:
    """A date of a run; one that names no zone is of UTC."""
    found = datetime.fromisoformat(date)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader(__name__),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        # Foreign text loses control characters and newlines before it is escaped.
        finalize=lambda value: value if isinstance(value, Markup) else units.one_line(value),
    )

    def breakable(name: str | Markup) -> Markup:
        """A name that may break before each of its parts, where a column is narrow."""
        text = name if isinstance(name, Markup) else re.sub(r"(?<=[\[,=+])", "<wbr/>", escape(units.one_line(name)))
        return Markup(text)

    made.filters["breakable"] = breakable
    made.filters["minute"] = lambda date: f"{moment(date).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    return made


@cache
def _asset(name: str) -> str:
    return files(__name__).joinpath(name).read_text(encoding="utf-8")
