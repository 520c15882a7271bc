"""What every figure is drawn with: panels as SVG, logarithmic scales, one look per node, and a smaller SVG.

The layout is fixed in inches, which is faster than a fitted one, and the same content gives the same bytes. Each node
has a colour and a marker, from the one table `_NODES`; variants of a node differ in their dash. Scales are in the units
of the field: binary bytes, powers of two of T, and a place for 0 and for what is not finite.
"""

import io
import math
import re
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from html import escape
from itertools import cycle
from typing import TYPE_CHECKING, Any

from revsnn_bench.metrics import Number
from revsnn_bench.records import Record
from revsnn_bench.report import units
from revsnn_bench.report.points import naming, variants

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

FONT = "system-ui,'Segoe UI',Roboto,'Helvetica Neue',Arial,'DejaVu Sans',sans-serif"
INK, MUTED, GRID, PAPER = "#1c1e22", "#5f6670", "#dfe2e6", "#ffffff"
_NODES = {
    "lif": (INK, "o"),
    "lif-checkpoint": ("#C77700", "s"),
    "revlif-stored": ("#3A93CC", "D"),
    "revlif-revnet": ("#C2619A", "v"),
    "revlif": ("#D55E00", "^"),
    "revlif-anchored": ("#0072B2", "P"),
    "lif-carrier": ("#009E73", "X"),
    "norm-carrier": ("#4F9A2F", "h"),
    "lif+remat": ("#B545C0", "*"),
    "lif+checkpoint": ("#A0683C", "s"),
    "lif+bitpack": ("#7F8000", "H"),
    "lif+save-on-cpu": ("#7A7F87", "H"),
    "lif+offload": ("#7A7F87", "8"),
    "lif-carrier+checkpoint-conv": ("#00869B", "X"),
    "if": ("#7A7F87", "d"),
    "plif": ("#A0683C", "p"),
    "spikingjelly": ("#8A5FD0", "<"),
    "spikingjelly+bitpack": ("#5B6BD6", "H"),
    "spikingjelly-compiled": ("#8A5FD0", ">"),
    "snntorch": ("#7F8000", "D"),
    "snntorch-default": ("#7F8000", "d"),
    "norse": ("#00869B", "8"),
    "sinabs": ("#D03B4A", "p"),
}
"""Colour and marker of every node, the same in every figure. Each colour has three times the contrast of white paper
and of dark paper; `lif` alone is black, or white in the dark."""

_COLOURS = tuple(dict.fromkeys(colour for colour, _ in _NODES.values() if colour != INK))
_MARKERS = ("o", "s", "D", "v", "^", "P", "X", "<", ">", "p", "*", "h", "H", "8", "d")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)), (0, (3, 2)), (0, (8, 2, 2, 2)))
_DARK = {INK: "#eceef1", MUTED: "#a3abb6", GRID: "#343a42", PAPER: "#15171b"}

WIDTH_IN, PLOT_HEIGHT_IN = 4.9, 2.9
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
}
_MOST_TICKS, _DIGIT_IN, _TICK_IN = 8, 0.082, 0.65
MOST_POINTS = 3
"""How many settings of a run are drawn as figures of one kind."""

_HEAD = re.compile(r"^.*?(<svg\b)", re.DOTALL)
_METADATA = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)
_LONG_NUMBER = re.compile(r"(?<=[\s\"(])-?\d+\.\d{3,}(?=[\s\")])")
_NO_ROTATION = re.compile(r' transform="rotate\(-?0 [^)]*\)"')
_IDS = re.compile(r' id="([^"]+)"')
_REFERENCES = re.compile(r'(?:href="#|url\(#)([^")]+)')
# Each use of a marker repeats its style, which alone follows the dark rules: they do not reach into definitions.
_MARKER_STYLE = re.compile(r'(<path id="m[^"]+" d="[^"]*") style="stroke[^"]*"')
_PLAIN_GROUP = re.compile(r"<g>([^<]*(?:<(?!/?g\b)[^<]*)*)</g>")


@dataclass(frozen=True)
class Figure:
    """One picture: title and caption may hold foreign characters.

    Fields:
        name: unique within a run, fit for a file name: `retained_bytes-timesteps-1`.
        svg: the drawing; points link to `case:<index of the record in the run>`.
    """

    name: str
    title: str
    caption: str
    svg: str

    @property
    def suffix(self) -> str:
        """What follows the run's name in that of the figure's file."""
        return f"-{self.name}.svg"

    def standalone(self) -> str:
        """The drawing as a file of its own, which follows the reader's light or dark setting."""
        without_links = re.sub(r"</?a\b[^>]*>", "", self.svg)
        title = f"<title>{escape(units.one_line(self.title))}</title>"
        style = f"<style>{dark_rules('@media (prefers-color-scheme: dark)')}</style>"
        return re.sub(r"(<svg\b[^>]*>)", lambda found: f"{found[1]}{title}{style}", without_links, count=1)

    def inline(self, labels: list[str]) -> str:
        """The drawing for use inside HTML: ids unique to it, points linked to `#case-<index>`, with the labels of these
        records as tooltips, which screen readers read."""

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
    return f"{media}{{{rules}}}"


@contextmanager
def panels(
    plot_height: float = PLOT_HEIGHT_IN,
    left: float = _LEFT_IN,
    right: float = _RIGHT_IN,
    *,
    legend: Sequence[Any] = (),
    columns: int = 2,
    count: int = 1,
    between: float = 0.0,
) -> Iterator[list["Axes"]]:
    """Gives axes one above the other, the first on top, which share both axes; draw inside, then `finish`.

    Args:
        plot_height, left, right: of each, and the margins beside them.
        legend: entries of a legend below, in so many `columns`.
        count: how many axes.
        between: room between two of them, for a title; half of it is above the first.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure as Drawing

    rows = -(-len(legend) // columns)
    below = _BOTTOM_IN + (_ROW_IN * rows + 0.06 if rows else 0)
    height = max(_TOP_IN, between / 2) + count * plot_height + (count - 1) * between + below
    made: list[Axes] = []
    with mpl.rc_context(_RC):
        drawing = Drawing(figsize=(WIDTH_IN, height))
        drawing.patch.set_visible(False)
        for row in range(count):
            bottom = below + (count - 1 - row) * (plot_height + between)
            place = (left / WIDTH_IN, bottom / height, 1 - (left + right) / WIDTH_IN, plot_height / height)
            first = made[0] if made else None
            made.append(drawing.add_axes(place, facecolor="none", sharex=first, sharey=first))
        if legend:
            made[-1].legend(
                handles=legend,
                ncols=columns,
                loc="upper left",
                bbox_to_anchor=(0.1 / WIDTH_IN, made[-1].get_position().y0 - (_BOTTOM_IN - 0.02) / height),
                bbox_transform=drawing.transFigure,
                borderpad=0,
                borderaxespad=0,
                handlelength=3.2,
                columnspacing=1.6,
                labelspacing=0.35,
            )
        yield made


@contextmanager
def named_rows(
    names: Sequence[str], plot_height: float, legend: Sequence[Any] = (), columns: int = 2
) -> Iterator["Axes"]:
    """Gives axes for horizontal bars or dots: row 0 is on top, and each row has its name at the left."""
    left = min(2.4, 0.35 + 0.078 * max(map(len, names)))
    with panels(plot_height, left, legend=legend, columns=columns) as (axes,):
        axes.grid(visible=False, axis="y")
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(names) - 0.5, -0.5)
        yield axes


def finish(axes: "Axes", name: str, title: str, *caption: str) -> Figure:
    """Returns the figure drawn in a panel, or in several with the first one, its y label halfway up.

    Of the caption's sentences some may be empty.
    """
    text, drawing = io.StringIO(), drawing_of(axes)
    places = [each.get_position() for each in drawing.axes]
    middle = (min(place.y0 for place in places) + max(place.y1 for place in places)) / 2
    axes.yaxis.set_label_coords(0.2 / WIDTH_IN, middle, drawing.transFigure)
    drawing.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return Figure(name, title, " ".join(filter(None, caption)), tidy(text.getvalue()))


def entry(label: str, **style: Any) -> Any:
    """Returns a line or a marker as the entry of a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], label=label, **style)


def drawing_of(axes: "Axes") -> Any:
    """The figure that holds the axes."""
    return axes.figure


@cache
def plain(text: str) -> str:
    """Returns foreign text that the font can draw, on one line, cut where it is very long; options without words that
    say nothing: `lif[torch,detach_reset]`."""
    glyphs = _glyphs()
    line = "".join(c if ord(c) in glyphs else "?" for c in units.one_line(text))
    line = line.replace("backend=", "").replace("=True", "")
    return line if len(line) <= _NAME_LENGTH else f"{line[: _NAME_LENGTH - 1]}…"


@cache
def _glyphs() -> frozenset[int]:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return frozenset(get_font(findfont(FontProperties(family="DejaVu Sans"))).get_charmap())


@dataclass(frozen=True)
class Look:
    """How one node with its options is drawn, in matplotlib's terms: colour and marker are the node's, the dash is the
    variant's. `weight` is 1 for the first node and less for later ones, so that lines on top of each other all show."""

    label: str
    node: str
    colour: str
    marker: str
    dash: Any
    weight: float

    def point(self, *, filled: bool = True) -> dict[str, Any]:
        """Keywords of a marker; a hollow one stands for a wrong gradient."""
        return {
            "marker": self.marker,
            "markersize": 4.5 + 3.5 * self.weight,
            "markerfacecolor": self.colour if filled else PAPER,
            "markeredgecolor": self.colour,
            "markeredgewidth": 1.2,
            "linestyle": "none",
            "clip_on": False,
        }

    def line(self) -> dict[str, Any]:
        """Keywords of a line."""
        return {"color": self.colour, "linestyle": self.dash, "linewidth": 1.1 + 1.3 * self.weight}


class Looks(dict[str, Look]):
    """The look of every node with its options in some records, the standard LIF first, and links to the records.

    A node of `_NODES` looks alike in every run. Another one has a colour and a marker that follow from its name, the
    next ones that are free where the run has them already; never those of `lif`.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        found = list(records)
        self._index = {record.case: number for number, record in enumerate(found)}
        nodes = {record.case.variant: record.case.node for record in found}
        own: dict[str, tuple[str, str]] = {}
        for variant in variants(found):
            node = nodes[variant]
            if node not in own:
                own[node] = _NODES.get(node) or _free(node, {*own.values(), *_NODES.values()})
            rank = list(_NODES).index(node) if node in _NODES else len(_NODES)
            self[variant] = Look(plain(variant), node, *own[node], _DASHES[0], 1 - min(rank, 6) / 6)

    def url(self, record: Record) -> str:
        """What a point of a record links to, until `Figure.inline` knows the page."""
        return f"case:{self._index[record.case]}"

    def in_order(self, names: Iterable[str]) -> list[str]:
        """The names that occur, in the order of the looks."""
        found = set(names)
        return [name for name in self if name in found]

    def labels(self, records: Collection[Record], only: Iterable[str] | None = None) -> tuple[dict[str, str], str]:
        """What each variant of some records is called in a figure, of all or of those named, and which options all
        share, see `Naming.note`."""
        cases = {record.case.variant: record.case for record in records}
        names = naming(records)
        shown = self.in_order(cases if only is None else only)
        return {variant: plain(names(cases[variant])) for variant in shown}, names.note

    def dashed(self, names: Iterable[str]) -> dict[str, Look]:
        """The looks for one figure: the first variant of a node has a solid line, further ones a dash each."""
        dashes: dict[str, Iterator[Any]] = defaultdict(lambda: cycle(_DASHES))
        return {name: replace(self[name], dash=next(dashes[self[name].node])) for name in names}


def _free(node: str, taken: set[tuple[str, str]]) -> tuple[str, str]:
    """Colour and marker of a node that the table does not have."""
    pairs = [(colour, marker) for marker in _MARKERS for colour in _COLOURS]
    start = zlib.crc32(node.encode("utf-8", "replace")) % len(pairs)
    return next((pair for pair in (*pairs[start:], *pairs[:start]) if pair not in taken), pairs[start])


class LogRange:
    """Where values stand on a logarithmic axis, of base 2 for bytes; 0 and what is not finite lie beyond its ends."""

    def __init__(self, values: Iterable[Number], base: int) -> None:
        given = list(values)
        known = [value for value in given if math.isfinite(value) and value > 0] or [1]
        self.base = base
        self.first = math.floor(math.log(min(known), base) + 1e-9)
        self.last = max(math.ceil(math.log(max(known), base) - 1e-9), self.first + 1)
        self.step = max(1, -(-(self.last - self.first) // _MOST_TICKS))
        self.has_zero = any(value <= 0 for value in given if math.isfinite(value))
        self.has_lost = any(not math.isfinite(value) for value in given)

    @property
    def _gap(self) -> float:
        return max(1.0, (self.last - self.first) * 0.14)

    def place(self, value: Number) -> float:
        """Returns where to draw a value."""
        if not math.isfinite(value):
            return float(self.base ** (self.last + self._gap))
        return float(value) if value > 0 else float(self.base ** (self.first - self._gap))

    def _ticks(self, power_in: float) -> list[tuple[int, float]]:
        """Powers of the base; where bytes span two octaves at most, parts of them as well.

        Args:
            power_in: inches of one power, which a name must fit in; infinite on an axis that goes up.
        """
        octaves = self.last - self.first
        parts = {1: (1, 1.25, 1.5, 1.75), 2: (1, 1.5)}.get(octaves, (1,)) if self.base == 2 else (1,)
        step = max(self.step, math.ceil(_TICK_IN / power_in)) if len(parts) == 1 else self.step
        powers = range(self.first, self.last + 1, step)
        return [(power, part) for power in powers for part in parts if power < self.last or part == 1]

    def apply(self, axes: "Axes", axis: "Axis", zero: str = "0 B", lost: str = "") -> None:
        """Sets scale, limits and ticks of `axes.xaxis` or `axes.yaxis`; names those of 0 and of what is not finite."""
        up = axis is axes.yaxis
        span = self.last - self.first + (0.24 + 1.23 * (self.has_zero + self.has_lost)) * self._gap
        ticks = self._ticks(math.inf if up else axes.get_position().width * WIDTH_IN / span)
        places = [float(self.base**exponent) * part for exponent, part in ticks]
        names = [binary_tick(exponent, part) if self.base == 2 else _decimal(exponent) for exponent, part in ticks]
        low, high = self.first - 0.12 * self._gap, self.last + 0.12 * self._gap
        draw = axes.axhline if up else axes.axvline
        if self.has_zero:
            places, names, low = [self.place(0), *places], [zero, *names], self.first - 1.35 * self._gap
            draw(self.base ** (self.first - 0.5 * self._gap), color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)))
        if self.has_lost:
            places, names, high = [*places, self.place(math.nan)], [*names, lost], self.last + 1.35 * self._gap
            draw(self.base ** (self.last + 0.5 * self._gap), color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)))
        (axes.set_yscale if up else axes.set_xscale)("log", base=self.base)
        axis.set_ticks(places, names)
        axis.set_ticks([], minor=True)
        (axes.set_ylim if up else axes.set_xlim)(float(self.base) ** low, float(self.base) ** high)


def positions(axes: "Axes", at: Sequence[int]) -> None:
    """Marks the x axis at the positions that were measured, spaced by their logarithm, as far as there is room."""
    shown = sorted(set(at))
    axes.set_xscale("log", base=2)
    spread = (shown[-1] / shown[0]) ** 0.05 if shown[0] != shown[-1] else 1.5
    axes.set_xlim(shown[0] / spread, shown[-1] * spread)
    octave = axes.get_position().width * WIDTH_IN / math.log2(shown[-1] / shown[0] * spread**2)
    kept = [shown[-1]]
    for position in reversed(shown[:-1]):
        if math.log2(kept[-1] / position) * octave > _DIGIT_IN * (len(str(position)) + len(str(kept[-1]))) / 2 + 0.05:
            kept.append(position)
    axes.xaxis.set_ticks(kept, [str(position) for position in kept])
    axes.xaxis.set_ticks([], minor=True)


def from_zero(axes: "Axes", values: Sequence[Number], unit: str) -> tuple[float, str]:
    """Gives the y axis a linear scale from 0, for costs that lie within a few times of each other; returns what to
    divide values by, and the unit that they are in then."""
    largest = max(values, default=0) or 1
    steps = [(10.0 ** (3 * power), prefix) for power, prefix in zip(range(-3, 6), "nµm kMGTP", strict=True)]
    scale, prefix = next(((s, p) for s, p in reversed(steps) if largest >= s), steps[0])
    axes.set_ylim(0, 1.12 * largest / scale)
    return scale, f"{prefix.strip()}{unit}"


def _decimal(exponent: int) -> str:
    return f"1e{exponent}" if abs(exponent) > 2 else f"{10.0**exponent:g}"


def binary_tick(exponent: int, part: float = 1) -> str:
    """Returns the name of the tick at a multiple of a power of two, in bytes."""
    index = min(max(exponent, 0) // 10, len(units.BINARY) - 1)
    return f"{part * 2.0 ** (exponent - 10 * index):.10g} {units.BINARY[index]}"


def tidy(svg: str) -> str:
    """Returns the same drawing in about half the bytes, as one `<svg>` element without a prolog."""
    svg = _METADATA.sub("", _HEAD.sub(r"\1", svg, count=1))
    svg = _NO_ROTATION.sub("", svg)
    svg = re.sub(r"font-family: [^;\"]+; ?", "", svg)
    svg = svg.replace("<svg ", f'<svg font-family="{FONT}" ', 1)
    parts = re.split(r"(>[^<]*)", svg)
    svg = "".join(part if part.startswith(">") else _LONG_NUMBER.sub(_short, part) for part in parts)
    used = set(_REFERENCES.findall(svg))
    svg = _IDS.sub(lambda found: found[0] if found[1] in used else "", svg)
    svg = re.sub(r">\s+<", "><", re.sub(r"[ \t]*\n[ \t]*", " ", svg))
    svg = _MARKER_STYLE.sub(r"\1", svg)
    before = ""
    while before != svg:
        before, svg = svg, _PLAIN_GROUP.sub(r"\1", svg).replace("<g></g>", "")
    svg = re.sub(r'style="[^"]*"', lambda found: found[0].replace("; ", ";").replace(": ", ":"), svg)
    return re.sub(r"(</g>|</defs>)", r"\1\n", svg).strip() + "\n"


def _short(found: re.Match[str]) -> str:
    return f"{float(found[0]):.2f}".rstrip("0").rstrip(".")
