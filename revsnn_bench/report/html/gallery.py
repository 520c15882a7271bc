"""All runs on one page: where each was measured, and the history of every exact quantity across commits."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote

from markupsafe import Markup

from revsnn_bench.metrics import BY_NAME, METRICS, Metric, Number
from revsnn_bench.records import Run, Status
from revsnn_bench.report import units
from revsnn_bench.report.html.page import Cell, Column, Table, make_table, render_page

_EXACT = tuple(metric for metric in METRICS if metric.deterministic)
_STEADY = ("retained_bytes", "peak_bytes", "step_flops")
_MOST_ROWS = 4000


@dataclass(frozen=True)
class History:
    """One exact quantity of one case: the runs that measured it, by date, and what they found."""

    case_id: str
    metric: Metric
    runs: tuple[Run, ...]
    values: tuple[Number, ...]

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

    def cell(self, i: int) -> Cell:
        """One of the values."""
        return Cell(self._text(i), self.values[i])

    def changes(self) -> str:
        """Each change with its commit."""
        return "; ".join(f"{_commit(self.runs[i])}: {self._text(i - 1)} to {self._text(i)}" for i in self.turns)

    def spark(self) -> Markup:
        """A line over the runs, from the least to the most; the latest run is the dot."""
        low, count = min(self.values), len(self.values)
        span = (max(self.values) - low) or 1
        places = [
            (f"{4 + 92 * i / max(1, count - 1):.1f}", f"{20 - 16 * (value - low) / span:.1f}")
            for i, value in enumerate(self.values)
        ]
        return Markup(
            '<svg class="spark" viewBox="0 0 100 24" role="img" aria-label="{} runs">'
            '<polyline points="{}"/><circle cx="{}" cy="{}" r="2.5"/></svg>'
        ).format(count, " ".join(map(",".join, places)), *places[-1])

    def _text(self, i: int) -> str:
        return units.number(self.metric, self.values[i])


def render_gallery(runs: Iterable[Run], unread: Sequence[str] = ()) -> str:
    """Returns the gallery of runs as one page, in order of commit date; a run is never left out.

    Args:
        runs: all runs.
        unread: a sentence about each file that could not be read as a run.

    Where the commit is not known, the date of the run stands for it. Each run links to `<run id>.html` beside the
    page. Quantities whose value changed at some commit are listed with every turn, at most 4000 of them; the others
    with the value that they kept.
    """
    ordered = sorted(runs, key=_age)
    histories = _histories(ordered)
    moved = [history for history in histories if history.turns]
    return render_page(
        "gallery",
        title="Benchmark runs",
        runs=ordered,
        unread=unread,
        listing=make_table("runs", "Runs", _RUNS, reversed(ordered)),
        moves=make_table(
            "moves", "What changed across commits", _MOVES, moved[:_MOST_ROWS], kind=lambda history: history.direction
        ),
        left_out=max(0, len(moved) - _MOST_ROWS),
        compared=sum(len(history.values) > 1 for history in histories),
        steady=_steady_table(histories),
    )


def _age(run: Run) -> tuple[datetime, datetime, str]:
    started = _moment(run.header.started_at)
    committed = run.header.environment.committed_at
    return _moment(committed) if committed else started, started, run.header.run_id


def _moment(date: str) -> datetime:
    moment = datetime.fromisoformat(date)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _histories(runs: Sequence[Run]) -> list[History]:
    found: dict[tuple[str, str], list[tuple[Run, Number]]] = {}
    for run in runs:
        latest = {record.case.id: record for record in run}
        for case_id, record in latest.items():
            if record.status not in (Status.OK, Status.WRONG):
                continue
            for metric in _EXACT:
                value = metric.read(record)
                if value is not None:
                    found.setdefault((case_id, metric.name), []).append((run, value))
    return [
        History(case_id, BY_NAME[name], tuple(run for run, _ in taken), tuple(value for _, value in taken))
        for (case_id, name), taken in found.items()
    ]


def _link(run: Run) -> Cell:
    # A leading ./ keeps a run id from being read as a scheme.
    return Cell(run.header.run_id, link=f"./{quote(run.header.run_id, safe='')}.html")


def _ended(run: Run) -> str:
    counts = [f"{n} {s.value}" for s in Status if (n := sum(record.status is s for record in run))]
    return ", ".join(counts) or units.ABSENT


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
    Column("ended as", _ended),
]
_MOVES: list[Column[History]] = [
    Column("case", lambda history: history.case_id),
    Column("metric", lambda history: history.metric.name, is_filter=True),
    Column("first", lambda history: history.cell(0), is_number=True),
    Column("latest", lambda history: history.cell(-1), is_number=True),
    Column("history", lambda history: Cell(history.spark()), "every run that measured it, in order of date"),
    Column("changed", History.changes, "each change, with the commit at which it was first seen"),
]


def _steady_table(histories: Sequence[History]) -> Table:
    """The cases with the quantities that no run changed."""
    cases: dict[str, dict[str, History]] = {}
    for history in histories:
        if not history.turns:
            cases.setdefault(history.case_id, {})[history.metric.name] = history
    columns: list[Column[dict[str, History]]] = [
        Column("case", lambda known: next(iter(known.values())).case_id),
        Column("runs", lambda known: max(len(history.values) for history in known.values()), is_number=True),
        Column("same values", len, "exact quantities that no run changed", is_number=True),
        *map(_steady, _STEADY),
    ]
    return make_table("steady", "What stayed the same", columns, cases.values())


def _steady(name: str) -> Column[dict[str, History]]:
    def show(known: dict[str, History]) -> Cell:
        return known[name].cell(-1) if name in known else Cell(units.ABSENT)

    return Column(BY_NAME[name].label, show, BY_NAME[name].meaning, is_number=True)
