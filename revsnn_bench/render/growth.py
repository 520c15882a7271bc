"""How a quantity grows along one axis: an exact line where there is one, else a fitted power."""

import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import correlation, linear_regression
from typing import Literal

from revsnn_bench.case import Case
from revsnn_bench.metric_readers import Number
from revsnn_bench.metrics import BY_NAME, METRICS, Metric
from revsnn_bench.records import Record, Run, Status
from revsnn_bench.render import units
from revsnn_bench.render.sweeps import AXES, ITEMSIZE, Axis, fixed_part, neurons, position, sweeps

Form = Literal["constant", "linear", "power", "irregular"]


@dataclass(frozen=True)
class Fit:
    """The form of a growth.

    Fields:
        form: `constant` and `linear` are exact, without residual; a line needs three points. `power` is a
            least-squares fit of the logarithms. `irregular` fits none of these.
        slope, intercept: of `constant` and `linear`.
        exponent, r_squared: of `power`; r_squared is None with two points, where every power fits.
    """

    form: Form
    slope: Fraction = Fraction(0)
    intercept: Fraction = Fraction(0)
    exponent: float | None = None
    r_squared: float | None = None


@dataclass(frozen=True)
class Growth:
    """One metric of one node along one axis.

    Fields:
        metric, variant, axis: what grows, of which node, with what.
        fixed: a case of the sweep, whose fields other than the axis hold for all.
        at, values: positions on the axis, increasing, and what was measured there.
        fit: the form that was found.
        wrong_at: positions where the gradient was wrong; their bytes and FLOPs are still what they are.
    """

    metric: str
    variant: str
    axis: Axis
    fixed: Case
    at: tuple[int, ...]
    values: tuple[Number, ...]
    fit: Fit
    wrong_at: tuple[int, ...] = ()

    def formula(self) -> str:
        """The growth alone, such as `3.00 b N T` or `T^1.02 (r² = 0.998)`."""
        symbol, fit = AXES[self.axis], self.fit
        if fit.form == "power":
            quality = "two points" if fit.r_squared is None else f"r² = {fit.r_squared:.3f}"
            return f"{symbol}^{fit.exponent:.2f} ({quality})"
        if fit.form == "irregular":
            return "no simple form: " + ", ".join(self._plain(value) for value in self.values)
        if fit.form == "constant":
            return f"{self._term(fit.intercept, fixed=True)}, independent of {symbol}"
        constant = self._term(abs(fit.intercept), fixed=True) if fit.intercept else ""
        sign = " - " if fit.intercept < 0 else " + "
        return self._term(fit.slope, fixed=False) + (sign + constant if constant else "")

    @property
    def title(self) -> str:
        """The fixed part of the sweep, in words."""
        return fixed_part(self.fixed, without=self.axis)

    def statement(self) -> str:
        """The growth as a sentence, with where it was measured."""
        over = f"measured over {AXES[self.axis]} = {', '.join(map(str, self.at))}"
        if self.wrong_at:
            over += f"; gradient wrong at {AXES[self.axis]} = {', '.join(map(str, self.wrong_at))}"
        return f"{self.metric} of {self.variant}: {self.formula()} ({over})"

    def _plain(self, value: Number) -> str:
        return units.number(BY_NAME[self.metric], value)

    def _term(self, value: Fraction, *, fixed: bool) -> str:
        """Multiples of b N (and T) where one node alone is measured, else plain units."""
        symbol = AXES[self.axis]
        unit, name = self._natural_unit(fixed=fixed)
        if value and unit and abs(value) >= unit / 100:
            return f"{_decimal(value / unit)} {name}"
        plain = self._plain(value.numerator if value.denominator == 1 else float(value))
        return plain if fixed else f"{plain} {symbol}"

    def _natural_unit(self, *, fixed: bool) -> tuple[int | None, str]:
        metric, case = BY_NAME[self.metric], self.fixed
        if case.workload != "layer" or metric.unit not in ("B", "FLOP"):
            return None, ""
        unit, prefix = (ITEMSIZE[case.dtype], "b ") if metric.unit == "B" else (1, "")
        if self.axis == "batch":
            # Per sample: N holds the batch, so a quantity in proportion to B is written with N.
            features = neurons(case) // case.batch
            return (None, "") if fixed else (unit * features * case.timesteps, f"{prefix}N T")
        if self.axis == "timesteps":
            return unit * neurons(case), f"{prefix}N" if fixed else f"{prefix}N T"
        full = unit * neurons(case) * case.timesteps
        return full, f"{prefix}N T" if fixed else f"{prefix}N T D"


def _decimal(value: Fraction) -> str:
    return f"{float(value):.2f}" if value * 100 == int(value * 100) else f"{float(value):.4g}"


def find_fit(at: Sequence[int], values: Sequence[Number]) -> Fit:
    """Finds the form of a growth from at least two positions and what was measured there."""
    exact = all(isinstance(value, int) for value in values)
    if exact and len(set(values)) == 1:
        return Fit("constant", intercept=Fraction(values[0]))
    if exact and len(at) > 2:
        slope = Fraction(int(values[-1]) - int(values[0]), at[-1] - at[0])
        intercept = Fraction(values[0]) - slope * at[0]
        if all(slope * x + intercept == y for x, y in zip(at, values, strict=True)):
            return Fit("linear", slope, intercept)
    if not all(math.isfinite(value) and value > 0 for value in values):
        return Fit("irregular")
    x, y = [math.log(position) for position in at], [math.log(value) for value in values]
    # A correlation with what does not vary is not defined: a power of 0 explains nothing.
    quality = (correlation(x, y) ** 2 if len(set(y)) > 1 else 0.0) if len(at) > 2 else None
    return Fit("power", exponent=linear_regression(x, y).slope, r_squared=quality)


def growths(run: Run, axis: Axis, names: Collection[str] = tuple(BY_NAME)) -> list[Growth]:
    """Returns the growth of byte, FLOP and time metrics, all or those named, of every node, sweep by sweep.

    Bytes and FLOPs of a case with a wrong gradient take part and are named as such, since they do not depend
    on the gradient's value; its times do not. A position measured twice counts with its latest record.
    """
    found: list[Growth] = []
    metrics = [metric for metric in METRICS if metric.name in names]
    for sweep in sweeps(run, axis):
        nodes: dict[str, list[Record]] = defaultdict(list)
        for record in sweep.records:
            nodes[record.case.variant].append(record)
        for records in nodes.values():
            found += [growth for metric in metrics if (growth := _growth(metric, axis, records))]
    return found


def _growth(metric: Metric, axis: Axis, records: Sequence[Record]) -> Growth | None:
    if not metric.has_ratio:
        return None
    usable = (Status.OK, Status.WRONG) if metric.deterministic else (Status.OK,)
    points = {position(r, axis): (r, metric.read(r)) for r in records if r.status in usable}
    known = {x: value for x, (_, value) in points.items() if value is not None}
    if len(known) < 2:
        return None
    at, values = tuple(known), tuple(known.values())
    wrong = tuple(x for x in at if points[x][0].status is Status.WRONG)
    case = records[0].case
    return Growth(metric.name, case.variant, axis, case, at, values, find_fit(at, values), wrong)
