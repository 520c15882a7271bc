"""Logarithmic axes in the units of the field: binary bytes, powers of two of T, and a place for 0 and NaN."""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from revsnn_bench.metric_readers import Number
from revsnn_bench.render import units
from revsnn_bench.render.figures.canvas import MUTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

_MOST_TICKS = 8


class LogRange:
    """Where values stand on a logarithmic axis; 0 and what is not finite get places beyond its two ends.

    Args:
        values: everything that will be placed.
        base: 2 for bytes, 10 for errors and times.
    """

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

    def _ticks(self) -> list[tuple[int, float]]:
        """Powers of the base; where bytes span two octaves at most, parts of them as well."""
        octaves = self.last - self.first
        parts = {1: (1, 1.25, 1.5, 1.75), 2: (1, 1.5)}.get(octaves, (1,)) if self.base == 2 else (1,)
        powers = range(self.first, self.last + 1, self.step)
        return [(power, part) for power in powers for part in parts if power < self.last or part == 1]

    def apply(self, axes: "Axes", axis: "Axis", zero: str, lost: str, tick_name: "Names") -> None:
        """Sets scale, limits and ticks of `axes.xaxis` or `axes.yaxis`."""
        ticks = self._ticks()
        places = [float(self.base**exponent) * part for exponent, part in ticks]
        names = [tick_name(exponent, part) for exponent, part in ticks]
        low, high = self.first - 0.12 * self._gap, self.last + 0.12 * self._gap
        draw = axes.axhline if axis is axes.yaxis else axes.axvline
        if self.has_zero:
            places, names, low = [self.place(0), *places], [zero, *names], self.first - 1.35 * self._gap
            draw(self.base ** (self.first - 0.5 * self._gap), color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)))
        if self.has_lost:
            places, names, high = [*places, self.place(math.nan)], [*names, lost], self.last + 1.35 * self._gap
            draw(self.base ** (self.last + 0.5 * self._gap), color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)))
        _logarithmic(axes, axis, self.base)
        axis.set_ticks(places, names)
        axis.set_ticks([], minor=True)
        (axes.set_ylim if axis is axes.yaxis else axes.set_xlim)(float(self.base) ** low, float(self.base) ** high)


class Names:
    """Names the tick at a power of the base, or at a multiple of one."""

    def __init__(self, base: int, unit: str) -> None:
        self.base, self.unit = base, unit

    def __call__(self, exponent: int, part: float = 1) -> str:
        """Returns the name of `part * base ** exponent`."""
        if self.unit == "B":
            return _binary(exponent, part)
        return f"1e{exponent}" if abs(exponent) > 2 else f"{float(self.base) ** exponent:g}"


BYTES, PLAIN = Names(2, "B"), Names(10, "1")


def positions(axes: "Axes", at: Sequence[int]) -> None:
    """Marks the x axis at the positions that were measured, spaced by their logarithm."""
    shown = sorted(set(at))
    _logarithmic(axes, axes.xaxis, 2)
    kept = shown if len(shown) <= 10 else shown[:: -(-len(shown) // 10)]
    axes.xaxis.set_ticks(kept, [str(position) for position in kept])
    axes.xaxis.set_ticks([], minor=True)
    spread = (shown[-1] / shown[0]) ** 0.05 if shown[0] != shown[-1] else 1.5
    axes.set_xlim(shown[0] / spread, shown[-1] * spread)


def from_zero(axes: "Axes", values: Sequence[Number], unit: str) -> tuple[float, str]:
    """Gives the y axis a linear scale from 0, for costs that lie within a few times of each other.

    Returns:
        What to divide values by, and the name of the unit that they are in then.
    """
    largest = max(values, default=0) or 1
    steps = [(10.0 ** (3 * power), prefix) for power, prefix in zip(range(-3, 6), "nµm kMGTP", strict=True)]
    scale, prefix = next(((s, p) for s, p in reversed(steps) if largest >= s), steps[0])
    axes.set_ylim(0, 1.12 * largest / scale)
    return scale, f"{prefix.strip()}{unit}"


def _logarithmic(axes: "Axes", axis: "Axis", base: int) -> None:
    (axes.set_yscale if axis is axes.yaxis else axes.set_xscale)("log", base=base)


def _binary(exponent: int, part: float) -> str:
    index = min(max(exponent, 0) // 10, len(units.BINARY) - 1)
    return f"{part * 2.0 ** (exponent - 10 * index):.10g} {units.BINARY[index]}"
