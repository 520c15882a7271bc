"""Points of a run: sweeps along one axis, ratios to the reference at the same point, and growth along an axis.

A point is everything of a case but the node and its options. The reference is the standard LIF; of a user's model it is
that model as it is. Growth is an exact line where there is one, else a fitted power.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate, combinations, pairwise
from operator import itemgetter
from statistics import correlation, linear_regression, mean, median, stdev
from types import MappingProxyType
from typing import Literal, NamedTuple, TypeVar

from revsnn_bench.case import AS_IS, Case, Option, is_own
from revsnn_bench.metrics import BY_NAME, METRICS, Metric, Number
from revsnn_bench.records import Record, Run, Status
from revsnn_bench.report import units

Axis = Literal["timesteps", "batch", "depth"]
AXES: dict[Axis, str] = {"timesteps": "T", "batch": "B", "depth": "D"}
ITEMSIZE = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
Points = dict[Case, dict[str, Record]]
"""Records by `Case.point` and by node with its options."""

Setting = tuple[str, str, str]
"""Workload, dtype and device: rankings never cross these."""

Form = Literal["constant", "linear", "power", "irregular"]
NOT_DECIDED = "(not decided)"
"""Beside a ratio of times from one process, or from rounds in which threads had to wait for a core."""

CONFIDENCE = 0.95


class Sweep(NamedTuple):
    """Records along one axis, with everything else but the node fixed; sorted by the axis, then by node in order of
    first appearance, the reference first."""

    axis: Axis
    records: tuple[Record, ...]

    @property
    def title(self) -> str:
        """The fixed part, such as `layer, B = 8, N = 4096, float32, cpu`."""
        return fixed_part(self.records[0].case, without=self.axis)


def position(record: Record, axis: Axis) -> int:
    """Returns where on the axis a record stands."""
    return int(getattr(record.case, axis))


def fixed_part(case: Case, without: str | None = None) -> str:
    """Returns a point in words, without the axis that varies."""
    sizes = [f"{symbol} = {getattr(case, axis)}" for axis, symbol in AXES.items() if axis != without]
    if case.depth == 1 and without != "depth":
        sizes.remove("D = 1")
    return ", ".join([case.workload, *sizes, f"features {case.features}", case.dtype, case.device, *case.others])


def neurons(case: Case) -> int:
    """Returns N, batch times features."""
    return case.batch * math.prod(case.shape)


def work(case: Case) -> int:
    """Returns time steps times neurons times depth."""
    return case.timesteps * neurons(case) * case.depth


def setting(case: Case) -> Setting:
    """Returns the setting of a case."""
    return case.workload, case.dtype, case.device


Item = TypeVar("Item")
Key = TypeVar("Key")


def grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """Returns the items of each key, in order of first appearance."""
    groups: dict[Key, list[Item]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups


def by_setting(records: Iterable[Record]) -> dict[Setting, list[Record]]:
    """Returns the records of each setting, in order of first appearance."""
    return grouped(records, lambda record: setting(record.case))


def by_point(records: Iterable[Record]) -> Points:
    """Returns the latest record of each node at each point."""
    points: Points = defaultdict(dict)
    for record in records:
        points[record.case.point][record.case.variant] = record
    return points


def pareto_front(points: Mapping[Key, tuple[Number, ...]]) -> list[Key]:
    """Returns what no other beats, by increasing values: beaten is what another needs at most as much of everything as,
    and less of something. Of equal points all are there."""

    def beaten(own: tuple[Number, ...]) -> bool:
        return any(other != own and all(a <= b for a, b in zip(other, own, strict=True)) for other in points.values())

    return sorted((key for key, own in points.items() if not beaten(own)), key=lambda key: points[key])


def best_points(points: Points, rank: Callable[[Case], tuple[int, ...]]) -> Points:
    """Returns the highest-ranked point of each setting, where it has several nodes."""
    best = {setting(point): point for point in sorted(points, key=rank)}
    return {point: points[point] for point in best.values() if len(points[point]) > 1}


def points_by_setting(run: Run) -> Points:
    """Returns the point with most nodes that are right and have their memory measured, then the largest one, of each
    setting; most nodes first."""
    points = by_point(record for record in run if record.status is Status.OK and record.memory is not None)
    best = best_points(points, lambda point: (len(points[point]), work(point)))
    return dict(sorted(best.items(), key=lambda item: -len(item[1])))


def ended(records: Iterable[Record]) -> dict[Status, int]:
    """Returns how many records ended in which way, ways that occur, in the order of `Status`."""
    counts = Counter(record.status for record in records)
    return {status: counts[status] for status in Status if counts[status]}


def ended_text(records: Iterable[Record]) -> str:
    """Returns the same as `3 ok, 1 oom`."""
    return ", ".join(f"{count} {status.value}" for status, count in ended(records).items())


def variants(records: Iterable[Record]) -> list[str]:
    """Returns the nodes with their options, what ratios are taken against first, then by first appearance."""
    found = dict.fromkeys(record.case.variant for record in records)
    return sorted(found, key=lambda variant: variant not in ("lif", AS_IS))


Shared = tuple[tuple[tuple[str, Option], tuple[str, ...]], ...]
"""Options that several nodes have, each with the nodes that have it; none for all of them."""


@dataclass(frozen=True)
class Naming:
    """What nodes are called in one table or figure: options that they share are said once, beside it.

    `shared` has these options by `setting` where each has its own, else under None.
    """

    shared: Mapping[Setting | None, Shared]

    def short(self, case: Case) -> Case:
        """The case without the options that are said once."""
        said = {option for option, _ in self.shared[None if None in self.shared else setting(case)]}
        kept = tuple(option for option in case.node_options if option not in said)
        return case if kept == case.node_options else case.model_copy(update={"node_options": kept})

    def __call__(self, case: Case) -> str:
        """The node, with the options in which it differs from others."""
        return self.short(case).variant

    def id(self, case: Case) -> str:
        """The id of the case, without the options that are said once."""
        return self.short(case).id

    @property
    def note(self) -> str:
        """Which options the nodes share, a sentence for the workloads in which they are the same; empty for none."""
        places = grouped(self.shared, lambda place: _said(self.shared[place]))
        if len(places) == 1:
            (said,) = places
            return f"{said[0].upper()}{said[1:]}." if said.startswith("every") else said and f"{said}."
        settings = Counter(place[0] for place in self.shared if place)
        words = {place: place[0] if settings[place[0]] == 1 else " ".join(place) for place in self.shared if place}
        parts = [(units.listing([words[each] for each in found if each]), said) for said, found in places.items()]
        return " ".join(f"In {where} {said}." for where, said in parts if said)


def _said(shared: Shared) -> str:
    parts = []
    for nodes, options in sorted(grouped(shared, itemgetter(1)).items(), key=lambda pair: len(pair[0])):
        said = " and ".join(f"{name}={value}" for (name, value), _ in options)
        parts.append(f"{units.listing(nodes) or 'every node'} {'have' if len(nodes) > 1 else 'has'} {said}")
    return "; ".join(parts)


def namings(records: Iterable[Record]) -> Naming:
    """Returns the names for a table with records of several workloads and dtypes, each with options of its own."""
    return Naming({place: _shared(found) for place, found in by_setting(records).items()})


def naming(records: Iterable[Record]) -> Naming:
    """Returns the names for a table or figure of these records."""
    return Naming({None: _shared(records)})


def _shared(records: Iterable[Record]) -> Shared:
    """Options with one value in all names that have them, of nodes that are not there both with and without them; one
    that a single name of several has stays in that name."""
    cases = {record.case.variant: record.case for record in records}.values()
    values: dict[str, set[Option]] = defaultdict(set)
    for case in cases:
        for name, value in case.node_options:
            values[name].add(value)
    shared = []
    for name in sorted(values):
        with_it = [case.node for case in cases if name in case.options]
        without = {case.node for case in cases if name not in case.options}
        if len(values[name]) == 1 and not without.intersection(with_it) and (len(with_it) > 1 or not without):
            nodes = dict.fromkeys(with_it) if without else ()
            shared.append(((name, next(iter(values[name]))), tuple(nodes)))
    return tuple(shared)


def sweeps(run: Run, axis: Axis) -> list[Sweep]:
    """Returns every sweep along an axis, of exact methods: at least two positions with all else but the node equal.

    A case of which the gradient alone was judged stands on the axis of time steps, for errors grow with T.
    """
    rank = {variant: index for index, variant in enumerate(variants(run))}
    swept = [r for r in _costed(run) if axis == "timesteps" or r.fidelity is None or r.memory or r.flops or r.time]
    groups = grouped(swept, lambda record: record.case.point.model_copy(update={axis: 1}))
    return [
        Sweep(axis, tuple(sorted(records, key=lambda r: (position(r, axis), rank[r.case.variant]))))
        for records in groups.values()
        if len({position(record, axis) for record in records}) > 1
    ]


def rest(run: Run) -> list[Record]:
    """Returns the records that belong to no sweep, in the order of the run."""
    swept = {record.case for axis in AXES for sweep in sweeps(run, axis) for record in sweep.records}
    return [record for record in _costed(run) if record.case not in swept]


def _costed(run: Run) -> list[Record]:
    """The records of exact methods but those of trainings alone, which are in the table of accuracy."""
    costs = ("memory", "flops", "time", "fidelity")
    return [r for r in exact(run) if r.accuracy is None or any(getattr(r, name) is not None for name in costs)]


def one_host(*records: Record) -> bool:
    """Whether the times of these records may meet in a ratio, a fit or a ranking: one machine took them all."""
    return len({record.host for record in records}) < 2


def exact(run: Run) -> list[Record]:
    """Returns the records but those of approximate methods, in the order of the run."""
    return [record for record in run if record.status is not Status.APPROXIMATE]


def unjudged(records: Iterable[Record]) -> list[Record]:
    """Returns the records that are ranked although their run left out the pass that judges the gradient."""
    left_out = (r for r in records if r.status is Status.OK and r.fidelity is None and not r.reason)
    return [record for record in left_out if record.memory or record.flops or record.time]


def ranked_gradient(records: Iterable[Record]) -> str:
    """Returns what is known of the gradient of each of these records that is ranked: that it `is right`."""
    return "is right or was not judged" if unjudged(records) else "is right"


def approximate(run: Run) -> list[Record]:
    """Returns the records whose gradient is not meant to be exact: point by point, in the order of the run."""
    found = [record for record in run if record.status is Status.APPROXIMATE]
    places = list(dict.fromkeys(record.case.point for record in found))
    return sorted(found, key=lambda record: places.index(record.case.point))


@dataclass(frozen=True)
class Ratio:
    """A case over the reference at its point; below 1 the case needs less.

    Fields:
        low, high: interval of a ratio of times, see `ratio_of_times`; None for exact quantities.
        decided: whether the value can be believed: exact, or a time with an interval from rounds left alone.
    """

    value: float
    low: float | None = None
    high: float | None = None
    decided: bool = True


def references(run: Run) -> dict[Case, Record]:
    """Returns what ratios are taken against: every standard LIF that ended well, whatever its options, and every user's
    model as it is. The latest record of each counts."""
    return {r.case: r for r in run if r.status is Status.OK and r.case.node == r.case.reference}


def reference_name(records: Iterable[Record]) -> str:
    """Returns the node that ratios of records are taken against: lif, as-is, or both."""
    return " or ".join(dict.fromkeys(record.case.reference for record in records)) or "lif"


def reference_text(records: Iterable[Record]) -> str:
    """Returns what ratios of records are taken against, in words."""
    words = {"lif": "the standard LIF", AS_IS: "the user's model as it is"}
    return " or ".join(words[each] for each in reference_name(records).split(" or "))


def reference_for(case: Case, known: Mapping[Case, Record]) -> Record | None:
    """Returns what a case is compared with, from `references` of the same run.

    That is a user's model as it is, or else the standard LIF on the same backend, without other options; where it was
    not measured, the one that shares most options with the case and has no others, such as `lif[decay_input=False]` for
    a node with that option.
    """
    return next((known[each] for each in _standards(case) if each in known), None)


def ratio_of(name: str, record: Record, known: Mapping[Case, Record] = MappingProxyType({})) -> Ratio | None:
    """Compares one metric of a record with the reference at the same point.

    Args:
        known: from `references` of the same run; times do not need it, since each record holds the reference's.
    Returns:
        The ratio; None where the metric has none, something was not measured, the reference failed or
        kept 0 bytes, or the case did not end as `ok` (a wrong gradient makes no saving).
    """
    metric = BY_NAME[name]
    if record.status is not Status.OK or not metric.has_ratio:
        return None
    if metric.samples is None:
        reference = reference_for(record.case, known)
        value, base = metric.read(record), None if reference is None else metric.read(reference)
        return Ratio(value / base) if value is not None and base else None
    samples = metric.samples(record)
    if samples is None or record.time is None:
        return None
    found = ratio_of_times(samples.own, samples.lif, record.time.rounds_by_process)
    if found is None or samples.own == samples.lif:
        return found  # a time over itself
    left_alone = not contended(record) and found.low is not None
    return found if left_alone else Ratio(found.value, decided=False)


def decided_ratio(name: str, record: Record, known: Mapping[Case, Record] = MappingProxyType({})) -> float | None:
    """Returns the value of `ratio_of` where it can be believed."""
    found = ratio_of(name, record, known)
    return found.value if found and found.decided else None


def contended(record: Record) -> bool:
    """Whether threads had to wait for a core in rounds of its times that were kept: these are shown, and not ranked."""
    return record.time is not None and record.time.rounds_contended > 0


def ratio_text(found: Ratio | None) -> str:
    """Returns a ratio with its interval where one was taken."""
    if found is None:
        return units.ABSENT
    value = units.times(found.value)
    if not found.decided:
        return f"{value} {NOT_DECIDED}"
    if found.low is None or found.high is None:
        return value
    low, high = units.times(found.low), units.times(found.high)
    return value if low == high == value else f"{value} [{low}, {high}]"


@lru_cache(maxsize=4096)
def ratio_of_times(own: tuple[float, ...], lif: tuple[float, ...], processes: tuple[int, ...] = ()) -> Ratio | None:
    """Returns the median ratio of two times that were taken round by round, with its interval over several processes.

    It is Student's, of the logarithm of each one's median ratio, at 95 %: it accounts for what differs from process to
    process. Of that the rounds of one process tell nothing, so that they give no interval, nor do rounds that do not
    match.

    Args:
        own, lif: seconds of each round.
        processes: how many of the rounds, in order, each process took; empty for a single one.
    """
    if not own or not lif or min(*own, *lif) <= 0:
        return None
    if len(own) != len(lif):
        return Ratio(median(own) / median(lif))
    ratios = [a / b for a, b in zip(own, lif, strict=True)]
    if len(processes) < 2:
        return Ratio(median(ratios))
    middle, low, high = map(math.exp, interval_of_mean(logs_by_process(ratios, processes)))
    return Ratio(middle, low, high)


def logs_by_process(ratios: Sequence[float], processes: Sequence[int]) -> list[float]:
    """Returns the logarithm of the median ratio of each process; of all rounds where no process is told."""
    ends = list(accumulate(processes or (len(ratios),)))
    return [math.log(median(ratios[a:b])) for a, b in pairwise([0, *ends])]


class Interval(NamedTuple):
    """A mean, or a slope, and where it lies by some confidence; infinite where too few values tell."""

    mean: float
    low: float
    high: float

    def in_points(self) -> str:
        """That of accuracies, in points."""
        bounds = "(one seed)" if math.isinf(self.low) else f"[{100 * self.low:+.2f}, {100 * self.high:+.2f}]"
        return f"{100 * self.mean:+.2f} points {bounds}"


def interval_of_mean(values: Sequence[float], quantile: float = (1 + CONFIDENCE) / 2) -> Interval:
    """Returns Student's interval of a mean; the quantile is that of its upper end."""
    middle, count = mean(values), len(values)
    if count < 2:
        return Interval(middle, -math.inf, math.inf)
    half = student(count - 1, quantile) * stdev(values) / math.sqrt(count)
    return Interval(middle, middle - half, middle + half)


def student(freedom: int, quantile: float) -> float:
    """Returns a quantile of Student's distribution."""
    from scipy.special import stdtrit  # not above: it takes longer to load than a report without times

    return float(stdtrit(freedom, quantile))


@lru_cache(maxsize=8192)
def _standards(case: Case) -> tuple[Case, ...]:
    """What a case may be compared with, the first choice first; remembered, for it is asked often."""
    if is_own(case.workload):
        return (case.point,)
    subsets = [kept for n in range(len(case.node_options), 0, -1) for kept in combinations(case.node_options, n)]
    return case.point, *(case.model_copy(update={"node": "lif", "node_options": kept}) for kept in subsets)


class Fit(NamedTuple):
    """The form of a growth: `constant` and `linear` are exact, without residual, and a line needs three points; `power`
    is a least-squares fit of the logarithms, whose r_squared is None with two points, where every power fits;
    `irregular` is none of these."""

    form: Form
    slope: Fraction = Fraction(0)
    intercept: Fraction = Fraction(0)
    exponent: float | None = None
    r_squared: float | None = None


@dataclass(frozen=True)
class Growth:
    """One metric of one node along one axis.

    Fields:
        fixed: a case of the sweep, whose fields other than the axis hold for all.
        at, values: positions on the axis, increasing, and what was measured there.
        wrong_at: positions where the gradient was wrong; their bytes and FLOPs are still what they are.
    """

    metric: str
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

    def _plain(self, value: Number) -> str:
        return units.number(BY_NAME[self.metric], value)

    def _term(self, value: Fraction, *, fixed: bool) -> str:
        """Multiples of b N (and T) where one node alone is measured, else plain units."""
        case, n = self.fixed, neurons(self.fixed)
        size, constant, slope = {
            # Per sample: N holds the batch, so a quantity in proportion to B is written with N.
            "batch": (n // case.batch * case.timesteps, "", "N T"),
            "timesteps": (n, "N", "N T"),
            "depth": (n * case.timesteps, "N T", "N T D"),
        }[self.axis]
        name = constant if fixed else slope
        if BY_NAME[self.metric].unit == "B":
            size, name = size * ITEMSIZE[case.dtype], name and f"b {name}"
        is_counted = BY_NAME[self.metric].unit in ("B", "FLOP")
        if value and name and is_counted and case.workload == "layer" and abs(value) >= size / 100:
            return f"{_decimal(value / size)} {name}"
        plain = self._plain(value.numerator if value.denominator == 1 else float(value))
        return plain if fixed else f"{plain} {AXES[self.axis]}"


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
    on the gradient's value; its times do not, nor do times of several hosts or taken beside other work. A position
    measured twice counts with its latest record.
    """
    return [
        growth
        for sweep in sweeps(run, axis)
        for records in grouped(sweep.records, lambda record: record.case.variant).values()
        for metric in METRICS
        if metric.name in names and (growth := _growth(metric, axis, records))
    ]


def _growth(metric: Metric, axis: Axis, records: Sequence[Record]) -> Growth | None:
    if not metric.has_ratio or (metric.family == "time" and not one_host(*records)):
        return None
    usable = (Status.OK, Status.WRONG) if metric.deterministic else (Status.OK,)
    shown = [r for r in records if r.status in usable and not (metric.family == "time" and contended(r))]
    points = {position(r, axis): (r, metric.read(r)) for r in shown}
    known = {x: value for x, (_, value) in points.items() if value is not None}
    if len(known) < 2:
        return None
    at, values = tuple(known), tuple(known.values())
    wrong = tuple(x for x in at if points[x][0].status is Status.WRONG)
    return Growth(metric.name, axis, records[0].case, at, values, find_fit(at, values), wrong)
