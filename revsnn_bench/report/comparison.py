"""Two runs compared: which cases, values and fields of the environment differ. The gate and `compare` read this.

Cases are matched by id; of a case recorded twice in one run, the last record counts. Bytes and operations are
compared exactly. Seconds of two runs are never compared, since load and clocks differ even on one machine: each time is
taken as a ratio to the reference, which was timed in the same process, round by round. `Comparison.verdict` judges only
exact values of comparable environments, and times with intervals, all of them together by the gate's test, so that many
cases give no more false alarms than few; what is a regression is decided by the gate.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from statistics import mean, variance
from typing import Any, NamedTuple, TypeVar

from rich.console import Console
from rich.text import Text

from revsnn_bench.metrics import BY_NAME, METRICS, Metric, Number
from revsnn_bench.records import Record, Run, Status
from revsnn_bench.report import markdown, units
from revsnn_bench.report.points import logs_by_process, one_host, ratio_of
from revsnn_bench.report.terminal import Grid
from revsnn_bench.system.environment import incomparable_fields

STATUS, EXTENT = "status", "measured"
_SUFFIX = "_ratio"
_HEADINGS = ("case", "metric", "before", "after", "change", "verdict")
_NUMBERS = (False, False, True, True, True, False)
_MOST_ROWS = 5000
FALSE_DISCOVERY_RATE = 0.05
"""Expected share of false alarms among the times that are told to have changed."""

Key = TypeVar("Key")
_POINT = 0.01 * (1 - 1e-9)
"""A point of accuracy, whatever the rounding of a difference."""


GONE, WORSE, BETTER, NEW, CHANGED, FAR, UNJUDGED, VARIES = (
    "gone", "worse", "better", "new", "changed", "far apart", "not judged", "varies",
)  # fmt: skip
VERDICTS = {
    GONE: "in the run before only",
    WORSE: "an exact value, a status, or a time beyond its noise got worse",
    BETTER: "the same, for the better",
    NEW: "in the run after only",
    CHANGED: "differs, and neither direction is better",
    FAR: "never exact: an accuracy that differs by a point or more, or an error that does by ten times or more or is "
    "on the other side of its tolerance",
    UNJUDGED: "an exact value of environments that are not comparable, a time without an interval, "
    "or a case that a run which is not complete may still measure",
    VARIES: "differs, but is never exact, or lies within the noise of the samples",
}
"""Verdicts on a difference with their meaning, in the order of the rows."""


def ratio_name(metric: str) -> str:
    """Returns the name under which the ratio of a time to the reference is compared."""
    return f"{metric}{_SUFFIX}"


@dataclass(frozen=True)
class Difference:
    """One value of a case in two runs, equal or not; None where a run has none.

    The name is that of the metric, `ratio_name` of a time, or `status` for how the case ended.
    """

    name: str
    before: Number | str | None
    after: Number | str | None

    @property
    def metric(self) -> Metric | None:
        """The metric, of a ratio that of its time; None for the status."""
        return BY_NAME.get(self.name.removesuffix(_SUFFIX))

    @property
    def is_ratio(self) -> bool:
        """Whether the values are ratios to the reference."""
        return self.name.endswith(_SUFFIX)

    @property
    def note(self) -> str:
        """Which run alone has a value, or that the status differs; else empty."""
        if self.before is None:
            return "only after"
        if self.after is None:
            return "only before"
        return "status differs" if self.name == STATUS and self.before != self.after else ""

    @property
    def differs(self) -> bool:
        """Whether the values differ; two measured NaN do not."""
        both_nan = self.before != self.before and self.after != self.after
        return bool(self.note) or not (self.before == self.after or both_nan)

    @property
    def change(self) -> float:
        """(after - before) / |before|; infinite from 0, NaN where a value is absent or a status."""
        before, after = self.before, self.after
        if before is None or after is None or isinstance(before, str) or isinstance(after, str):
            return math.nan
        if before == 0:
            return 0.0 if after == 0 else math.copysign(math.inf, after)
        return (after - before) / abs(before)

    def texts(self) -> tuple[str, str]:
        """Both values for people: bytes and operations to the last one where they would read alike."""
        texts = self._text(self.before), self._text(self.after)
        if self.metric is not None and self.differs and texts[0] == texts[1] and isinstance(self.before, int):
            return f"{self.before:,} {self.metric.unit}", f"{self.after:,} {self.metric.unit}"
        return texts

    def change_text(self, minus: str = "-") -> str:
        """The change in percent; a dash where it has no meaning."""
        if math.isnan(self.change):
            return units.ABSENT
        sign, share = minus if self.change < 0 else "+", abs(100 * self.change)
        shown = f"{share:.2f}" if share >= 0.005 or not share else f"{share:.1e}"
        return "from 0" if math.isinf(self.change) else f"{sign}{shown} %"

    def _text(self, value: Number | str | None) -> str:
        if value is None or isinstance(value, str):
            return value or units.ABSENT
        return units.times(value) if self.is_ratio or self.metric is None else units.number(self.metric, value)


@dataclass(frozen=True)
class CasePair:
    """The records of one case in two runs, None where a run does not have it, and on which machines they were made."""

    id: str
    before: Record | None
    after: Record | None
    machines: tuple[str, str] = ("", "")

    @cached_property
    def differences(self) -> tuple[Difference, ...]:
        """The status, then every value that one of the two has: exact ones, and times of one machine as ratios."""
        before, after = _values(self.before), _values(self.after)
        found = [Difference(name, before.get(name), after.get(name)) for name in dict.fromkeys([*before, *after])]
        return tuple(d for d in found if not (self.two_machines and d.metric and d.metric.family == "time"))

    @property
    def two_machines(self) -> str:
        """On which two hosts of a cluster, or on which kinds of machines, the case was timed, in words; "" where it was
        on one of each."""
        if self.before is None or self.after is None or not (self.before.time and self.after.time):
            return ""
        before, after = self.machines
        if not one_host(self.before, self.after):
            before, after = (record.host or "a machine without a cluster" for record in (self.before, self.after))
        return f"timed on {before} before and on {after} after" if before != after else ""

    def p_value(self, metric: Metric) -> float | None:
        """How likely a time's ratios are to lie so far apart without a change; None where that cannot be told."""
        left, right = (None if r is None else ratio_of(metric.name, r) for r in (self.before, self.after))
        if left is None or right is None or left.low is None or right.low is None:
            return None
        before, after = self.logs_by_process(metric)
        return min(1.0, 2 * min(p_of_slowdown(before, after), p_of_slowdown(after, before)))

    def logs_by_process(self, metric: Metric) -> tuple[list[float], list[float]]:
        """Of each process in both runs the logarithm of its median ratio; empty where a time was not measured."""
        return _logs(self.before, metric), _logs(self.after, metric)


def p_of_slowdown(old: list[float], new: list[float], percent: float = 0.0) -> float:
    """How likely a slowdown of no more than a percentage is to show as the one between two lists of logarithms, one
    value per process: one-sided t-test, of equal variances."""
    from scipy.special import stdtr

    beyond = mean(new) - mean(old) - math.log1p(percent / 100)
    freedom = len(old) + len(new) - 2
    squares = variance(old) * (len(old) - 1) + variance(new) * (len(new) - 1)
    error = math.sqrt(squares / freedom * (1 / len(old) + 1 / len(new)))
    return float(stdtr(freedom, -beyond / error)) if error else float(beyond <= 0)


def discoveries(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """Which of many tests found something, with their p-values adjusted by Benjamini and Hochberg's procedure."""
    if not p_values:
        return {}
    from scipy.stats import false_discovery_control

    adjusted = zip(p_values, false_discovery_control([*p_values.values()]), strict=True)
    return {key: float(p_value) for key, p_value in adjusted if p_value <= FALSE_DISCOVERY_RATE}


class FieldDifference(NamedTuple):
    """A field of header or environment with its value in both runs."""

    field: str
    before: Any
    after: Any


@dataclass(frozen=True)
class Comparison:
    """Two runs and their cases, in the order of the first run, then those that only the second one has."""

    before: Run
    after: Run
    cases: tuple[CasePair, ...]

    @property
    def values_compared(self) -> int:
        """How many values of cases in both runs at least one of them has, statuses included."""
        return sum(len(pair.differences) for pair in self.cases if pair.before and pair.after)

    def changed(self) -> list[tuple[CasePair, Difference]]:
        """Every case with each value in which it differs; of one of which only one run has values, the status alone."""
        found = []
        for pair in self.cases:
            both = len(_values(pair.before)) > 1 and len(_values(pair.after)) > 1
            shown = pair.differences if both else pair.differences[:1]
            found += [(pair, each) for each in shown if each.differs]
        return found

    def fields(self) -> list[FieldDifference]:
        """Fields of header and environment that differ; run id, start and command always do and are left out."""
        left, right = _fields(self.before), _fields(self.after)
        names = [name for name in dict.fromkeys([*left, *right]) if left.get(name) != right.get(name)]
        differing = (FieldDifference(name, str(left.get(name, "none")), str(right.get(name, "none"))) for name in names)
        return [*self.extents(), *differing]

    def extents(self) -> list[FieldDifference]:
        """How much of each run there is, where one of them is not complete."""
        if self.before.complete and self.after.complete:
            return []
        return [FieldDifference(EXTENT, self.before.extent, self.after.extent)]

    def uncompared(self) -> list[str]:
        """What was not compared, a sentence each: anything, where no case is in both runs; times of two machines."""
        machines = dict.fromkeys(text for pair in self.cases if (text := pair.two_machines))
        apart = self.cases and not any(pair.before and pair.after for pair in self.cases)
        nothing = [
            "No case in common: no value of one run was held against one of the other. `revsnn-bench merge` puts cases "
            "of two runs into one report."
        ] if apart else []  # fmt: skip
        return [*nothing, *(f"Times are not compared: {text}." for text in machines)]

    @cached_property
    def incomparable_fields(self) -> list[FieldDifference]:
        """Fields of the environment that must agree before exact values are compared, and differ."""
        found = incomparable_fields(self.before.header.environment, self.after.header.environment)
        return [FieldDifference(*difference) for difference in found]

    @cached_property
    def _times_apart(self) -> Mapping[tuple[str, str], float]:
        """Cases and times whose ratios differ by more than processes do, of all that are tested together."""
        tested = {
            (pair.id, found.metric.name): p_value
            for pair, found in self.changed()
            if found.is_ratio and found.metric and (p_value := pair.p_value(found.metric)) is not None
        }
        return discoveries(tested)

    def verdict(self, pair: CasePair, found: Difference) -> str:
        """The key of `VERDICTS` that describes a difference."""
        if found.before is None or found.after is None:
            lacking, verdict = (self.before, NEW) if found.before is None else (self.after, GONE)
            return UNJUDGED if found.name == STATUS and not lacking.complete else verdict
        if found.name == STATUS:
            return BETTER if found.after == Status.OK.value else WORSE if found.before == Status.OK.value else CHANGED
        metric = found.metric
        if metric is None or metric.better is None:
            return CHANGED
        if found.is_ratio:
            if pair.p_value(metric) is None:
                return UNJUDGED
            if (pair.id, metric.name) not in self._times_apart:
                return VARIES
        elif not metric.deterministic:
            return FAR if _far_apart(pair, metric) else VARIES
        elif self.incomparable_fields:
            return UNJUDGED
        return BETTER if (found.change < 0) == (metric.better == "lower") else WORSE

    def judged(self) -> list["Change"]:
        """What differs with its verdict, what is gone or worse first."""
        found = [Change(pair.id, each, self.verdict(pair, each)) for pair, each in self.changed()]
        return sorted(found, key=lambda change: list(VERDICTS).index(change.verdict))


def _far_apart(pair: CasePair, metric: Metric) -> bool:
    """Whether an accuracy or an error differs by so much that it is worth a look, though it is never exact."""
    assert pair.before is not None
    assert pair.after is not None
    before, after = metric.read(pair.before) or 0, metric.read(pair.after) or 0
    if metric.family == "accuracy":
        return abs(after - before) >= _POINT
    left, right = pair.before.fidelity, pair.after.fidelity
    if metric.family != "fidelity" or left is None or right is None or metric.name not in left.errors():
        return False
    is_near = before == after or (before < 10 * after and after < 10 * before)  # a NaN is near nothing
    return not is_near or (metric.name in left.beyond_tolerance()) != (metric.name in right.beyond_tolerance())


class Change(NamedTuple):
    """A difference: the id of its case, and the key of `VERDICTS` that describes it."""

    case: str
    found: Difference
    verdict: str


def compare(before: Run, after: Run) -> Comparison:
    """Matches the cases of two runs."""
    left, right = ({record.case.id: record for record in run} for run in (before, after))

    def pair(name: str) -> CasePair:
        a, b = left.get(name), right.get(name)
        return CasePair(name, a, b, (machine_of(before, a), machine_of(after, b)))

    return Comparison(before, after, tuple(map(pair, dict.fromkeys([*left, *right]))))


def machine_of(run: Run, record: Record | None) -> str:
    """Returns what the times of a record depend on: the GPU where it ran there, the processor, its cores, and whether
    the process kept what it freed."""
    if record is None:
        return ""
    place = run.hosts.get(record.host or "", run.header.environment)
    gpu = f"{place.gpu}, " if record.case.device != "cpu" else ""
    kept = " with freed memory kept" if record.time and record.time.freed_memory_kept else ""
    return f"{gpu}{place.cpu_model}, {place.cores} cores{kept}"


def render_comparison(before: Run, after: Run, console: Console | None = None) -> str:
    """Returns the comparison as Markdown, and prints it as tables where a console is given: what differs with its
    verdict, what is gone or worse first; what only varies is counted."""
    comparison = compare(before, after)
    judged = comparison.judged()
    rows = [
        [case, found.name, *found.texts(), found.change_text(), verdict]
        for case, found, verdict in judged
        if verdict != VARIES
    ]
    title = f"{before.header.run_id} before, {after.header.run_id} after"
    fields, said = comparison.fields(), _counted(comparison, [change.verdict for change in judged])
    if console is not None:
        console.print(Text(units.one_line(title), style="bold"))
        console.print(Text(said))
        for name, old, new in fields:
            console.print(Text(units.one_line(f"{name}: {old} before, {new} after"), style="yellow"))
        if rows:
            console.print(Grid("", _HEADINGS, _NUMBERS, rows))
    parts = [f"# Comparison: {units.markdown(title)}", units.markdown(said)]
    if fields:
        table = markdown.table(("field", "before", "after"), fields)
        parts.append(f"## The runs differ in more than their results\n\n{table}")
    if rows:
        parts.append(f"## What changed\n\n{markdown.table(_HEADINGS, rows, _NUMBERS)}")
    return "\n\n".join(parts) + "\n"


def render_comparison_html(before: Run, after: Run) -> str:
    """Returns the comparison as one self-contained page that lists at most 5000 differences and counts all of them."""
    from revsnn_bench.report.html import Cell, Column, make_table, render_page

    def cell(text: str, value: Number | str | None) -> Cell:
        return Cell(text, None if isinstance(value, str) else value)

    columns: list[Column[Change]] = [
        Column("case", lambda row: row.case, "workload, node, size, dtype, device"),
        Column("metric", lambda row: row.found.name, "what was measured; times as ratios", is_filter=True),
        Column("before", lambda row: cell(row.found.texts()[0], row.found.before), is_number=True),
        Column("after", lambda row: cell(row.found.texts()[1], row.found.after), is_number=True),
        Column(
            "change",
            lambda row: Cell(row.found.change_text("−"), None if math.isnan(row.found.change) else row.found.change),
            "(after - before) / before",
            is_number=True,
        ),
        Column("verdict", lambda row: row.verdict, "which way it changed", is_filter=True),
    ]
    comparison = compare(before, after)
    rows = comparison.judged()
    counts = Counter(row.verdict for row in rows)
    shown = rows[:_MOST_ROWS]
    return render_page(
        "comparison",
        title=f"{before.header.run_id} compared with {after.header.run_id}",
        before=before.header,
        after=after.header,
        places=(before.place, after.place),
        fields=[(name.replace("_", " "), *values) for name, *values in comparison.fields()],
        counts=[(kind, counts[kind], meaning) for kind, meaning in VERDICTS.items() if counts[kind]],
        compared=comparison.values_compared,
        incomparable=units.listing([found.field.replace("_", " ") for found in comparison.incomparable_fields]),
        uncompared=comparison.uncompared(),
        left_out=len(rows) - len(shown),
        table=make_table("changes", "What changed", columns, shown, kind=lambda row: row.verdict.replace(" ", "-")),
    )


def _counted(comparison: Comparison, verdicts: list[str]) -> str:
    """How many values were compared, and how many differ in which way."""
    counts = [f"{n} {kind}" for kind in VERDICTS if kind != VARIES and (n := verdicts.count(kind))]
    text = f"{comparison.values_compared} values compared: {', '.join(counts) or 'none that can be judged differs'}."
    if varying := verdicts.count(VARIES):
        text += f" {varying} more are never exact or differ within their noise, and are not listed."
    if comparison.incomparable_fields:
        fields = units.listing([found.field for found in comparison.incomparable_fields])
        text += f" Bytes and operations are not judged, because the runs differ in {fields}."
    return " ".join([*comparison.uncompared(), text])


def _values(record: Record | None) -> dict[str, Number | str]:
    """The status and every compared value of a record; times as ratios, other seconds left out."""
    if record is None:
        return {}
    found: dict[str, Number | str] = {STATUS: record.status.value}
    for metric in METRICS:
        if metric.samples is not None:
            if ratio := ratio_of(metric.name, record):
                found[ratio_name(metric.name)] = ratio.value
        elif metric.unit != "s" and (value := metric.read(record)) is not None:
            found[metric.name] = value
    return found


def _logs(record: Record | None, metric: Metric) -> list[float]:
    samples = metric.samples(record) if record and metric.samples else None
    if samples is None or len(samples.own) != len(samples.lif) or min(samples.own + samples.lif) <= 0:
        return []
    ratios = [own / lif for own, lif in zip(samples.own, samples.lif, strict=True)]
    return logs_by_process(ratios, record.time.rounds_by_process if record and record.time else ())


def _fields(run: Run) -> dict[str, Any]:
    fields: dict[str, Any] = run.header.model_dump(mode="json", exclude={"run_id", "started_at", "command"})
    environment: dict[str, Any] = fields.pop("environment")
    fields |= environment
    tables = {name: fields.pop(name) for name in list(fields) if isinstance(fields[name], dict)}
    return fields | {f"{table} {name}": value for table, values in tables.items() for name, value in values.items()}
