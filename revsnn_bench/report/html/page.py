"""A table that a reader can search, filter and sort; the script does the rest.

What every page shares: templates, the style sheet, the script, and the ban on network access.
"""

import base64
import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from revsnn_bench.metrics import Number
from revsnn_bench.report import units
from revsnn_bench.report.figures import dark_rules

_MOST_OPTIONS = 40


@dataclass(frozen=True)
class Cell:
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


@dataclass(frozen=True)
class Heading:
    """A column: its title, what the title means, whether it holds numbers, and whether it can be filtered by."""

    title: str
    meaning: str = ""
    is_number: bool = False
    is_filter: bool = False


@dataclass(frozen=True)
class Row:
    """Cells in the order of the headings; the kind colours the row, the anchor lets figures link to it."""

    cells: Sequence[Cell]
    kind: str = ""
    anchor: str | None = None


@dataclass(frozen=True)
class Filter:
    """A choice among the values of one column."""

    title: str
    column: int
    options: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Headings, rows and the filters that make sense for them; `name` tells tables of a page apart."""

    name: str
    label: str
    headings: Sequence[Heading]
    rows: Sequence[Row]
    filters: Sequence[Filter] = field(default_factory=tuple)
    same: Sequence[tuple[str, str]] = field(default_factory=tuple)


def make_table(
    name: str,
    label: str,
    headings: Sequence[Heading],
    rows: Iterable[Row],
    *,
    drop_same: bool = False,
) -> Table:
    """Builds a table with a filter for each column that is meant to have one and holds several values.

    Args:
        name, label: for the script and for screen readers.
        headings, rows: in order.
        drop_same: leave out filter columns that say the same everywhere, and report them as `same`; columns
            without any value are left out as well.
    """
    kept = list(rows)
    columns = [list(dict.fromkeys(row.cells[i].text for row in kept)) for i in range(len(headings))]
    same = []
    shown = []
    for i, heading in enumerate(headings):
        single = len(kept) > 1 and len(columns[i]) == 1
        if drop_same and single and heading.is_filter:
            same.append((heading.title, columns[i][0]))
        elif not (drop_same and columns[i] in (["–"], [""])):
            shown.append(i)
    filters = [
        Filter(headings[i].title, place, columns[i])
        for place, i in enumerate(shown)
        if headings[i].is_filter and 1 < len(columns[i]) <= _MOST_OPTIONS
    ]
    return Table(
        name,
        label,
        [headings[i] for i in shown],
        [Row([row.cells[i] for i in shown], row.kind, row.anchor) for row in kept],
        filters,
        same,
    )


def render_page(template: str, *, refresh_s: int | None = None, **values: object) -> str:
    """Fills a template; every value is escaped and kept on one line, unless it is `Markup`.

    Args:
        template: name without extension, such as `report`.
        refresh_s: seconds after which an open page loads itself again; None for never.
        values: for the template.
    Returns:
        One HTML file that needs no other and asks no server for anything.
    """
    script = _asset("page.js")
    return (
        _environment()
        .get_template(f"{template}.html.j2")
        .render(
            style=Markup(_asset("page.css") + dark_rules("@media screen and (prefers-color-scheme: dark)")),
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            refresh_s=refresh_s,
            **values,
        )
    )


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("revsnn_bench.report.html"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=_one_line,
    )


def _one_line(value: Any) -> Any:
    """Drops control characters and newlines from foreign text before it is escaped."""
    return value if isinstance(value, Markup) else units.one_line(value)


@cache
def _asset(name: str) -> str:
    return files("revsnn_bench.report.html").joinpath(name).read_text(encoding="utf-8")
