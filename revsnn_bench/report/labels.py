"""Names beside what they name: at the end of each line, and next to each point, where they touch no other.

A figure with them needs no legend: a name stands in ink beside the marker and in the height of its line. Widths are
those of DejaVu Sans, which is wider than the fonts that browsers take: a name never needs more room than it has.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from revsnn_bench.report.canvas import INK, MUTED, PLOT_HEIGHT_IN, Look, drawing_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NAME_PT, _LETTER_IN, _NAME_ROW_IN, _NAME_GAP_IN = 8.5, 0.066, 0.16, 0.28
"""Size, width of a letter, height of a row, and from the plot to the first letter."""


def names_room(labels: Iterable[str]) -> tuple[float, float]:
    """Returns the height of a plot in which names stand one below the other, and the inches they take beside it."""
    shown = list(labels)
    height = max(PLOT_HEIGHT_IN, _NAME_ROW_IN * (len(shown) + 1))
    return height, _NAME_GAP_IN + _LETTER_IN * max(map(len, shown), default=0)


def name_lines(axes: "Axes", ends: Sequence[tuple[float, float, str, Look]]) -> None:
    """Writes the name of each line to the right of the plot, at the height where the line ends or as near as there is
    room; call it when the scales are set, in a panel whose right margin is that of `names_room`.

    `ends` are place and height of the last point of each line, its name, and its look.
    """
    wide, high = _inches(axes)
    at = [_fraction(axes, x, y) for x, y, *_ in ends]
    places = apart([y * high for _, y in at], _NAME_ROW_IN, 0.0, high)
    for (x, y), (_, _, text, look), place in zip(at, ends, places, strict=True):
        _join(axes, (x, y), (1 + 0.1 / wide, place / high), look.colour)
        axes.plot([1 + 0.17 / wide], [place / high], transform=axes.transAxes, **look.point() | {"markersize": 5})
        _write(axes, 1 + _NAME_GAP_IN / wide, place / high, text, "left", INK)


def _join(axes: "Axes", start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    """Draws a thin line from what is named to its name; places are fractions of the plot, here and in `_write`."""
    line = zip(start, end, strict=True)
    axes.plot(*line, transform=axes.transAxes, color=colour, linewidth=0.6, clip_on=False, zorder=1)


def _write(axes: "Axes", x: float, y: float, text: str, side: str, colour: str) -> None:
    place: Any = {"transform": axes.transAxes, "ha": side, "va": "center_baseline"}
    axes.text(x, y, text, fontsize=_NAME_PT, color=colour, **place)


def apart(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Returns places as near as possible to those wanted, at least a gap apart and between two bounds; the bounds give
    way where there is no room."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    blocks: list[tuple[float, int]] = []  # the middle of places that touch, and how many they are
    for i in order:
        middle, count = min(max(wanted[i], low), high), 1
        while blocks and blocks[-1][0] + gap * (blocks[-1][1] + count) / 2 > middle:
            before, many = blocks.pop()
            middle, count = (before * many + middle * count) / (many + count), many + count
            half = gap * (count - 1) / 2
            middle = max(min(middle, high - half), low + half)
        blocks.append((middle, count))
    spread = [middle + gap * (k - (count - 1) / 2) for middle, count in blocks for k in range(count)]
    places = [0.0] * len(wanted)
    for i, place in zip(order, spread, strict=True):
        places[i] = place
    return places


_SIDES = ((1, 0), (-1, 0), (1, 1), (1, -1), (0, 1), (0, -1), (-1, 1), (-1, -1))
_STEPS_IN = (0.0, 0.2, 0.4)


def name_points(
    axes: "Axes",
    points: Sequence[tuple[float, float, str, str]],
    right: float,
    line: Sequence[tuple[float, float]] = (),
) -> None:
    """Writes the name of each point beside it, where no other point or name is; call it when the scales are set.

    A point is its place, height, name, and the name's colour. Names may reach so many inches beyond the plot at its
    right, and should not cross the line, a staircase given by its corners.
    """
    wide, high = _inches(axes)
    spots = [(x * wide, y * high) for x, y in (_fraction(axes, x, y) for x, y, *_ in points)]
    taken = [(x - 0.07, y - 0.07, x + 0.07, y + 0.07) for x, y in spots]
    corners = [(x * wide, y * high) for x, y in (_fraction(axes, *corner) for corner in line)]
    taken += [
        (min(a, c) - 0.02, min(b, d) - 0.02, max(a, c) + 0.02, max(b, d) + 0.02) for (a, b), (c, d) in pairwise(corners)
    ]
    for (x, y), (_, _, text, colour) in zip(spots, points, strict=True):
        length = _LETTER_IN * len(text)
        choices = [(_beside(x, y, length, side, step), side[0]) for step in _STEPS_IN for side in _SIDES]
        box, across = min(choices, key=lambda choice: _crowded(choice[0], taken, wide + right, high))
        taken.append(box)
        middle = (box[1] + box[3]) / 2
        if abs(middle - y) > 0.2:
            near = min(max(x, box[0]), box[2])
            _join(axes, (x / wide, y / high), (near / wide, middle / high), MUTED)
        # Drawn in another font a name is shorter than its box: it stands at the side of its point.
        at, side = {0: ((box[0] + box[2]) / 2, "center"), 1: (box[0], "left"), -1: (box[2], "right")}[across]
        _write(axes, at / wide, middle / high, text, side, colour)


Box = tuple[float, float, float, float]
"""Left, lower, right and upper edge, in inches."""


def _beside(x: float, y: float, length: float, side: tuple[int, int], step: float) -> Box:
    """Where a name may stand: to a side of a point, and so much further up or down."""
    across, up = side
    left = x + 0.1 if across > 0 else x - 0.1 - length if across < 0 else x - length / 2
    middle = y + up * (0.15 + step)
    return left, middle - _NAME_ROW_IN / 2, left + length, middle + _NAME_ROW_IN / 2


def _crowded(box: Box, taken: Sequence[Box], wide: float, high: float) -> float:
    """How much of a box is on others or out of bounds; those that come first are free."""
    left, lower, right, upper = box
    over = sum(max(0.0, min(right, r) - max(left, a)) * max(0.0, min(upper, t) - max(lower, b)) for a, b, r, t in taken)
    return over + max(0.0, -left) + max(0.0, right - wide) + max(0.0, -lower) + max(0.0, upper - high)


def _inches(axes: "Axes") -> tuple[float, float]:
    place, drawing = axes.get_position(), drawing_of(axes)
    return place.width * drawing.get_figwidth(), place.height * drawing.get_figheight()


def _fraction(axes: "Axes", x: float, y: float) -> tuple[float, float]:
    """Where a point of the data lies in the plot: 0 and 1 are its edges."""
    across, up = axes.transAxes.inverted().transform(axes.transData.transform((x, y)))
    return float(across), float(up)
