"""One look per node: colour, marker and dash, so that any one of the three is enough to tell nodes apart."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from revsnn_bench.records import Run
from revsnn_bench.render.figures.canvas import INK, PAPER, plain
from revsnn_bench.render.sweeps import variants

_FIXED = ("lif", "lif-checkpoint", "revlif-stored", "revlif-revnet", "revlif", "revlif-anchored", "lif-carrier")
# Okabe and Ito's colours without yellow, which is too pale on white.
_COLOURS = (INK, "#E69F00", "#56B4E9", "#CC79A7", "#D55E00", "#0072B2", "#009E73")
_MARKERS = ("o", "s", "D", "v", "^", "P", "X", "<", ">", "p", "*")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)), (0, (3, 2)), (0, (8, 2, 2, 2)))


@dataclass(frozen=True)
class Look:
    """How one node with its options is drawn.

    Fields:
        label: the node's name, fit to be drawn.
        colour, marker, dash: in matplotlib's terms.
        weight: 1 for the first node, less for later ones, so that lines on top of each other all show.
    """

    label: str
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

    def handle(self, label: str, *, line: bool = True) -> Any:
        """Returns a legend entry."""
        from matplotlib.lines import Line2D

        styles = self.line() if line else {}
        return Line2D([], [], label=label, **(self.point() | styles))


def looks(run: Run) -> dict[str, Look]:
    """Returns the look of every node in a run, standard LIF first; the known nodes look alike in every run."""
    names = variants(run)
    others = [name for name in names if name not in _FIXED]
    slots = {name: _FIXED.index(name) if name in _FIXED else len(_FIXED) + others.index(name) for name in names}
    return {name: _look(name, slot) for name, slot in slots.items()}


def _look(name: str, slot: int) -> Look:
    return Look(
        label=plain(name),
        colour=_COLOURS[slot % len(_COLOURS)],
        marker=_MARKERS[slot % len(_MARKERS)],
        dash=_DASHES[slot % len(_DASHES)],
        weight=1 - min(slot, 6) / 6,
    )


def in_order(known: dict[str, Look], names: Iterable[str]) -> list[str]:
    """Returns the names that occur, in the order of the looks."""
    found = set(names)
    return [name for name in known if name in found]
