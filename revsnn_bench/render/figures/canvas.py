"""One panel as SVG: fixed layout, byte-stable, light and dark, readable without colour."""

import io
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from html import escape
from typing import TYPE_CHECKING, Any

from revsnn_bench.render import units
from revsnn_bench.render.figures.tidy import tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, MUTED, GRID, PAPER = "#1c1e22", "#5f6670", "#dfe2e6", "#ffffff"
_DARK = {INK: "#eceef1", MUTED: "#a3abb6", GRID: "#343a42", PAPER: "#15171b"}

WIDTH_IN, PLOT_HEIGHT_IN = 5.2, 3.0
_LEFT_IN, _RIGHT_IN, _TOP_IN, _BOTTOM_IN, _ROW_IN = 0.95, 0.14, 0.12, 0.5, 0.205
_CASE_URL = re.compile(r'<a (?:xlink:)?href="case:(\d+)"(?: target="[^"]*")?>')
_NAME_LENGTH = 30
_RC: Any = {
    "svg.hashsalt": "revsnn-bench",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "hatch.linewidth": 0.7,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.title_fontsize": 8.5,
}


@dataclass(frozen=True)
class Figure:
    """One picture.

    Fields:
        name: unique within a run, fit for a file name: `retained_bytes-timesteps-1`.
        title: what is shown, of which sweep; may hold foreign characters.
        caption: how to read it, and what it leaves out.
        svg: the drawing; points link to `case:<index of the record in the run>`.
    """

    name: str
    title: str
    caption: str
    svg: str

    def standalone(self) -> str:
        """The drawing as a file of its own, which follows the reader's light or dark setting."""
        without_links = re.sub(r"</?a\b[^>]*>", "", self.svg)
        title = f"<title>{escape(units.one_line(self.title))}</title>"
        style = f"<style>{dark_rules('@media (prefers-color-scheme: dark)')}</style>"
        return re.sub(r"(<svg\b[^>]*>)", lambda found: f"{found[1]}{title}{style}", without_links, count=1)

    def inline(self, labels: list[str]) -> str:
        """The drawing for use inside HTML: ids unique to it, points linked to `#case-<index>`.

        Args:
            labels: names the case of each record, in order; shown as tooltip and read by screen readers.
        """

        def link(found: re.Match[str]) -> str:
            label = escape(units.one_line(labels[int(found[1])]))
            return f'<a href="#case-{found[1]}"><title>{label}</title>'

        body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{self.name}-", self.svg)
        return _CASE_URL.sub(link, body)


def dark_rules(media: str) -> str:
    """Returns CSS that recolours drawings in the dark; viewers without CSS keep the light colours."""
    rules = "".join(
        f'svg [style*="{part}:{light}"]{{{part}:{dark}!important}}'
        for light, dark in _DARK.items()
        for part in ("fill", "stroke")
    )
    # The ground of a hatch has its colour in an attribute.
    rules += f'svg pattern [fill="{PAPER}"]{{fill:{_DARK[PAPER]}!important}}'
    return f"{media}{{{rules}}}"


@contextmanager
def panel(legend_rows: int = 0, plot_height: float = PLOT_HEIGHT_IN, left: float = _LEFT_IN) -> Iterator["Axes"]:
    """Gives axes with room for a legend of so many rows below; draw inside, then take `to_svg(axes)`."""
    with panels(1, legend_rows, plot_height, left) as (axes,):
        yield axes


@contextmanager
def panels(
    count: int, legend_rows: int, plot_height: float, left: float = _LEFT_IN, between: float = 0.0
) -> Iterator[list["Axes"]]:
    """Gives axes one above the other, with so many inches between them, which share the y axis; the first on top.

    The layout is fixed in inches, which is faster than a fitted one and the same everywhere.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure as Drawing

    below = _BOTTOM_IN + (_ROW_IN * legend_rows + 0.06 if legend_rows else 0)
    height = _TOP_IN + count * plot_height + (count - 1) * between + below
    made: list[Axes] = []
    with mpl.rc_context(_RC):
        drawing = Drawing(figsize=(WIDTH_IN, height))
        drawing.patch.set_visible(False)
        for row in range(count):
            bottom = below + (count - 1 - row) * (plot_height + between)
            place = (left / WIDTH_IN, bottom / height, 1 - (left + _RIGHT_IN) / WIDTH_IN, plot_height / height)
            made.append(drawing.add_axes(place, facecolor="none", sharey=made[0] if made else None))
        yield made


def to_svg(axes: "Axes") -> str:
    """Returns the drawing, the label of the y axis halfway up; the same content gives the same bytes."""
    text = io.StringIO()
    places = [each.get_position() for each in _drawing(axes).axes]
    middle = (min(place.y0 for place in places) + max(place.y1 for place in places)) / 2
    axes.yaxis.set_label_coords(0.13 / WIDTH_IN, middle, _whole(axes))
    _drawing(axes).savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return tidy(text.getvalue())


def legend(axes: "Axes", handles: list[Any], columns: int = 2, title: str | None = None) -> None:
    """Puts a legend below the axis label, in the room that `panel` reserved."""
    below = axes.get_position().y0 - (_BOTTOM_IN - 0.02) / _drawing(axes).get_figheight()
    axes.legend(
        handles=handles,
        ncols=columns,
        title=title,
        alignment="left",
        loc="upper left",
        bbox_to_anchor=(0.1 / WIDTH_IN, below),
        bbox_transform=_whole(axes),
        borderpad=0,
        borderaxespad=0,
        handlelength=3.2,
        columnspacing=1.6,
        labelspacing=0.35,
    )


def _drawing(axes: "Axes") -> Any:
    return axes.figure


def _whole(axes: "Axes") -> Any:
    return _drawing(axes).transFigure


def legend_rows(entries: int, columns: int = 2, *, titled: bool = False) -> int:
    """Returns how many rows `legend` takes."""
    return -(-entries // columns) + int(titled)


def label_room(labels: Iterable[str]) -> float:
    """Inches to the left of a panel that the longest of some names takes, at most 2.4."""
    return min(2.4, 0.35 + 0.078 * max(map(len, labels)))


@cache
def plain(text: str) -> str:
    """Returns foreign text that the font can draw, on one line, cut where it is very long."""
    glyphs = _glyphs()
    line = "".join(c if ord(c) in glyphs else "?" for c in units.one_line(text))
    return line if len(line) <= _NAME_LENGTH else f"{line[: _NAME_LENGTH - 1]}…"


@cache
def _glyphs() -> frozenset[int]:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return frozenset(get_font(findfont(FontProperties(family="DejaVu Sans"))).get_charmap())
