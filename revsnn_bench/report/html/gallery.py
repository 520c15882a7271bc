"""All runs on one page: where each was measured, and the history of every quantity across commits, drawn.

A figure per metric holds a line per case, over its value in the gate's baseline; a table holds every exact quantity
that changed at some commit. Times are ratios to the reference of the same rounds, where they are decided, and of one
machine: the one that timed the case last.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING
from urllib.parse import quote

from markupsafe import Markup

from revsnn_bench.metrics import BY_NAME, METRICS, Metric, Number
from revsnn_bench.records import Record, Run, Status
from revsnn_bench.report import canvas, units
from revsnn_bench.report.comparison import machine_of
from revsnn_bench.report.html import Cell, Column, Table, make_table, moment, render_page
from revsnn_bench.report.labels import name_lines, names_room
from revsnn_bench.report.points import decided_ratio, ended_text
from revsnn_bench.system.environment import incomparable_fields

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STEADY = ("retained_bytes", "peak_bytes", "step_flops")
_MOST_ROWS, _MOST_NAMED = 4000, 8
_TICKS = (0.001, 0.01, 0.1, 0.25, 0.5, 0.8, 0.9, 1, 1.1, 1.25, 2, 4, 10, 100, 1000)
_FURTHEST, _WHEN_IN = 1000, 0.8  # inches for the date of a run
"""Times the baseline, or a part of it, beyond which a value is drawn no further away."""


@dataclass(frozen=True)
class History:
    """One quantity of one case: the runs that measured it, by date, what they found, and what the baseline holds."""

    case_id: str
    metric: Metric
    node: str
    runs: tuple[Run, ...]
    values: tuple[Number, ...]
    baseline: Number | None = None

    @property
    def turns(self) -> list[int]:
        """Positions at which the value differs from the one before."""
        return [i for i in range(1, len(self.values)) if self.values[i] != self.values[i - 1]]

    @property
    def direction(self) -> str:
        """Whether the latest value is better or worse than the first; empty where it is neither."""
        first, latest = self.values[0], self.values[-1]
        if self.metric.better is None or first == latest:
            return ""
        return "better" if (latest < first) == (self.metric.better == "lower") else "worse"

    def cell(self, value: Number | None) -> Cell:
        """One of the values, or that of the baseline."""
        return Cell(units.number(self.metric, value), value)

    def changes(self) -> str:
        """Each change with its commit, and with what else changed on which exact values depend."""
        texts = [units.number(self.metric, value) for value in self.values]
        return "; ".join(f"{_commit(self.runs[i])}: {texts[i - 1]} to {texts[i]}{self._beside(i)}" for i in self.turns)

    def _beside(self, turn: int) -> str:
        before, after = (run.header.environment for run in self.runs[turn - 1 : turn + 1])
        found = [f"{name} {old} to {new}" for name, old, new in incomparable_fields(before, after)]
        return f" ({', '.join(found)})" if found else ""

    def spark(self) -> Markup:
        """A line over the runs, from the least to the most; the latest run is the dot, the baseline the dashes."""
        known = self.values if self.baseline is None else (*self.values, self.baseline)
        low, count = min(known), len(self.values)
        span = (max(known) - low) or 1
        places = [
            (f"{4 + 92 * i / max(1, count - 1):.1f}", f"{20 - 16 * (value - low) / span:.1f}")
            for i, value in enumerate(self.values)
        ]
        height = None if self.baseline is None else f"{20 - 16 * (self.baseline - low) / span:.1f}"
        dashes = "" if height is None else Markup('<path d="M0 {}H100"/>').format(height)
        return Markup(
            '<svg class="spark" viewBox="0 0 100 24" role="img" aria-label="{} runs">{}'
            '<polyline points="{}"/><circle cx="{}" cy="{}" r="2.5"/></svg>'
        ).format(count, dashes, " ".join(map(",".join, places)), *places[-1])

    def over_baseline(self) -> list[tuple[Run, float]]:
        """Each value over that of the baseline, or over the first one where there is none; nothing over 0."""
        base = self.values[0] if self.baseline is None else self.baseline
        pairs = zip(self.runs, self.values, strict=True)
        ratios = [(run, value / base if base else 1.0) for run, value in pairs if base or not value]
        return [(run, min(max(ratio, 1 / _FURTHEST), _FURTHEST)) for run, ratio in ratios]


def render_gallery(runs: Iterable[Run], unread: Sequence[str] = (), baselines: Sequence[Run] = ()) -> str:
    """Returns the gallery of runs as one page, in order of commit date; a run is never left out.

    Where the commit is not known, the date of the run stands for it. Each run links to `<run id>.html` beside the page.

    Args:
        unread: a sentence about each file that could not be read as a run.
        baselines: the gate's; of a case that several have, the first one counts.
    """
    ordered = sorted(runs, key=_age)
    histories = _histories(ordered, baselines)
    exact = [history for history in histories if history.metric.deterministic]
    moved = [history for history in exact if history.turns]
    return render_page(
        "gallery",
        title=f"{len(ordered)} benchmark runs and their history",
        runs=ordered,
        unread=unread,
        baselines=[(run.header.run_id, _commit(run), run.header.started_at) for run in baselines],
        listing=make_table("runs", "Runs", _RUNS, reversed(ordered)),
        figures=[[(figure, Markup(figure.inline([]))) for figure in drawn] for drawn in _figures(histories, ordered)],
        moves=make_table(
            "moves", "What changed across commits", _MOVES, moved[:_MOST_ROWS], kind=lambda history: history.direction
        ),
        left_out=max(0, len(moved) - _MOST_ROWS),
        compared=sum(len(history.values) > 1 for history in exact),
        steady=_steady_table(exact),
    )


def _age(run: Run) -> tuple[datetime, datetime, str]:
    started = moment(run.header.started_at)
    committed = run.header.environment.committed_at
    return moment(committed) if committed else started, started, run.header.run_id


def _histories(runs: Sequence[Run], baselines: Sequence[Run]) -> list[History]:
    found: dict[tuple[str, str], list[tuple[Run, Number]]] = {}
    nodes: dict[str, str] = {}
    machines = {
        case_id: machine_of(run, record)
        for run in runs
        for case_id, record in _latest(run).items()
        if decided_ratio("step_time_s", record) is not None
    }

    def value_in(run: Run, record: Record, metric: Metric) -> Number | None:
        """What is compared across runs: a time as its ratio to the reference, and only where that is decided."""
        if metric.samples is not None:
            is_elsewhere = machine_of(run, record) != machines.get(record.case.id)
            is_reference = record.case == record.case.point
            return None if is_elsewhere or is_reference else decided_ratio(metric.name, record)
        value = metric.read(record)
        return value if value is not None and math.isfinite(value) else None

    for run in runs:
        for case_id, record in _latest(run).items():
            nodes[case_id] = record.case.variant
            for metric in METRICS:
                value = value_in(run, record, metric)
                if value is not None:
                    found.setdefault((case_id, metric.name), []).append((run, value))
    held = {case_id: (run, record) for run in reversed(baselines) for case_id, record in _latest(run).items()}
    return [
        History(
            case_id,
            BY_NAME[name],
            nodes[case_id],
            tuple(run for run, _ in taken),
            tuple(value for _, value in taken),
            value_in(*held[case_id], BY_NAME[name]) if case_id in held else None,
        )
        for (case_id, name), taken in found.items()
    ]


def _latest(run: Run) -> dict[str, Record]:
    """The cases of a run that have numbers, by id."""
    return {record.case.id: record for record in run if record.status in (Status.OK, Status.WRONG)}


def _figures(histories: Sequence[History], runs: Sequence[Run]) -> tuple[list[canvas.Figure], list[canvas.Figure]]:
    """One figure for each metric of which some case was measured twice: those that ever moved, then the others."""
    looks = canvas.Looks(record for run in runs for record in run)
    moved, still = list[canvas.Figure](), list[canvas.Figure]()
    for metric in METRICS:
        lines = [history for history in histories if history.metric is metric and len(history.values) > 1]
        if lines:
            moves = any(value != 1 for history in lines for _, value in history.over_baseline())
            (moved if moves else still).append(_drawn(metric, lines, looks))
    return moved, still


def _drawn(metric: Metric, lines: Sequence[History], looks: canvas.Looks) -> canvas.Figure:
    """A line per case over the runs that measured any, in order of commit; those that end furthest away are named."""
    runs = sorted({run.header.run_id: run for history in lines for run in history.runs}.values(), key=_age)
    place = {run.header.run_id: number for number, run in enumerate(runs)}
    points = {history.case_id: history.over_baseline() for history in lines}
    drawn = [history for history in lines if points[history.case_id]]
    far = sorted(drawn, key=lambda history: -abs(math.log(points[history.case_id][-1][1])))
    named = {h.case_id: canvas.plain(h.case_id) for h in far[:_MOST_NAMED] if points[h.case_id][-1][1] != 1}
    height, right = names_room([*named.values(), "baseline"])
    with canvas.panels(height, right=right) as (axes,):
        axes.axhline(1, color=canvas.INK, linewidth=1, linestyle=(0, (6, 3)))
        ends, paths = [], dict[tuple[str, str], dict[tuple[tuple[float, float], ...], None]]()
        for history in drawn:
            look, found = looks[history.node], points[history.case_id]
            at = tuple((place[run.header.run_id], value) for run, value in found)
            paths.setdefault((look.colour, look.marker), {})[at] = None
            if history.case_id in named:
                ends.append((*at[-1], named[history.case_id], look))
        # Cases by the thousand: lines of one look are one path with gaps, and what lies on another is drawn once.
        for (colour, marker), lines_of in paths.items():
            joined = [point for at in lines_of for point in (*at, (math.nan, math.nan))]
            axes.plot(*zip(*joined, strict=True), color=colour, linewidth=1.2, marker=marker, markersize=4)
        _scale(axes, [value for found in points.values() for _, value in found], runs)
        name_lines(axes, ends)
        axes.set_ylabel(f"{metric.label}{' × reference' if metric.samples else ''}, over the baseline")
        moved = sum(any(value != 1 for _, value in points[history.case_id]) for history in drawn)
        with_baseline = sum(history.baseline is not None for history in drawn)
        caption = (
            f"{len(drawn)} cases, a line each, {moved} of them ever off 1. {with_baseline} are held over the gate's "
            "baseline, the others over their first run. Runs are in order of commit."
        )
        if metric.samples:
            caption += " Times are of one machine, on which a case was timed last."
        return canvas.finish(axes, f"history-{metric.name}", f"{metric.label.capitalize()} across commits", caption)


def _scale(axes: "Axes", values: Sequence[float], runs: Sequence[Run]) -> None:
    """Commits below the runs, while there is room; heights on a logarithmic scale with 1 in it, named in full."""
    low, high = min([*values, 1.0]), max([*values, 1.0])
    axes.set_yscale("log", base=2)
    low, high = low / 1.1, high * 1.1
    axes.set_ylim(low, high)
    ticks = [tick for tick in _TICKS if low <= tick <= high]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_yticks([], minor=True)
    width = max(1, len(runs) - 1) + 0.6
    step = math.ceil(_WHEN_IN * width / (axes.get_position().width * canvas.WIDTH_IN))
    whens = [
        f"{(run.header.environment.commit or '?')[:7]}\n{moment(run.header.started_at):%m-%d %H:%M}"
        for run in runs[::step]
    ]
    axes.set_xticks(range(0, len(runs), step), whens, fontsize=8)
    axes.set_xlim(-0.3, width - 0.3)


def _link(run: Run) -> Cell:
    # A leading ./ keeps a run id from being read as a scheme.
    return Cell(run.header.run_id, link=f"./{quote(run.header.run_id, safe='')}.html")


def _commit(run: Run) -> str:
    commit = run.header.environment.commit
    changes = " with changes" if run.header.environment.dirty else ""
    return f"{commit[:12]}{changes}" if commit else "not known"


_RUNS: list[Column[Run]] = [
    Column("run", _link),
    Column("started", lambda run: run.header.started_at),
    Column("commit", _commit),
    Column("machine", lambda run: run.place, is_filter=True),
    Column("torch", lambda run: run.header.environment.torch, is_filter=True),
    Column("cases", lambda run: len(run.records), is_number=True),
    Column("measured", lambda run: run.extent),
    Column("ended as", lambda run: ended_text(run) or units.ABSENT),
]
_MOVES: list[Column[History]] = [
    Column("case", lambda each: each.case_id),
    Column("metric", lambda each: each.metric.name, is_filter=True),
    Column("first", lambda each: each.cell(each.values[0]), is_number=True),
    Column("latest", lambda each: each.cell(each.values[-1]), is_number=True),
    Column("baseline", lambda each: each.cell(each.baseline), "what the gate holds runs against", is_number=True),
    Column("history", lambda each: Cell(each.spark()), "every run that measured it, in order of date"),
    Column("changed", History.changes, "each change, with the commit at which it was first seen"),
]


def _steady_table(histories: Sequence[History]) -> Table:
    """The cases with the quantities that no run changed."""
    cases: dict[str, dict[str, History]] = {}
    for history in histories:
        if not history.turns:
            cases.setdefault(history.case_id, {})[history.metric.name] = history

    def latest(name: str) -> Column[dict[str, History]]:
        def show(known: dict[str, History]) -> Cell:
            return known[name].cell(known[name].values[-1]) if name in known else Cell(units.ABSENT)

        return Column(BY_NAME[name].label, show, BY_NAME[name].meaning, is_number=True)

    columns: list[Column[dict[str, History]]] = [
        Column("case", lambda known: next(iter(known.values())).case_id),
        Column("runs", lambda known: max(len(history.values) for history in known.values()), is_number=True),
        Column("same values", len, "exact quantities that no run changed", is_number=True),
        *map(latest, _STEADY),
    ]
    return make_table("steady", "What stayed the same", columns, cases.values())
