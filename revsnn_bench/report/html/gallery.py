"""All runs on one page: where each was measured, and the history of every exact quantity across commits."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import quote

from markupsafe import Markup

from revsnn_bench.metrics import BY_NAME, METRICS, Number
from revsnn_bench.records import Run, Status
from revsnn_bench.report import units
from revsnn_bench.report.html.page import Cell, Heading, Row, Table, make_table, render_page

_EXACT = tuple(metric for metric in METRICS if metric.deterministic)
_STEADY = ("retained_bytes", "peak_bytes", "step_flops")
_MOST_ROWS = 4000


@dataclass(frozen=True)
class History:
    """One exact quantity of one case: the runs that measured it, by date, and what they found."""

    case_id: str
    metric: str
    runs: tuple[Run, ...]
    values: tuple[Number, ...]

    @property
    def turns(self) -> list[int]:
        """Positions at which the value differs from the one before."""
        return [i for i in range(1, len(self.values)) if self.values[i] != self.values[i - 1]]


def render_gallery(runs: Iterable[Run]) -> str:
    """Returns the gallery of runs as one page, in order of commit date; a run is never left out.

    Where the commit is not known, the date of the run stands for it.

    Each run links to `<run id>.html` beside the page. Quantities whose value changed at some commit are listed
    with every turn, at most 4000 of them; the others with the value that they kept.
    """
    ordered = sorted(runs, key=_age)
    histories = _histories(ordered)
    moved = [history for history in histories if history.turns]
    return render_page(
        "gallery",
        title="Benchmark runs",
        runs=ordered,
        listing=_runs_table(ordered),
        moves=_moved_table(moved[:_MOST_ROWS]),
        left_out=max(0, len(moved) - _MOST_ROWS),
        compared=sum(len(history.values) > 1 for history in histories),
        steady=_steady_table(histories),
    )


def _age(run: Run) -> tuple[datetime, datetime, str]:
    started = datetime.fromisoformat(run.header.started_at)
    committed = run.header.environment.committed_at
    return datetime.fromisoformat(committed) if committed else started, started, run.header.run_id


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
        History(case_id, name, tuple(run for run, _ in taken), tuple(value for _, value in taken))
        for (case_id, name), taken in found.items()
    ]


def _runs_table(runs: Sequence[Run]) -> Table:
    headings = [
        Heading("run"),
        Heading("started"),
        Heading("commit"),
        Heading("machine", is_filter=True),
        Heading("torch", is_filter=True),
        Heading("cases", is_number=True),
        Heading("ended as"),
    ]
    return make_table("runs", "Runs", headings, [Row(_run_cells(run)) for run in reversed(runs)])


def _run_cells(run: Run) -> list[Cell]:
    header, place = run.header, run.header.environment
    ended = [f"{n} {s.value}" for s in Status if (n := sum(record.status is s for record in run))]
    return [
        # A leading ./ keeps a run id from being read as a scheme.
        Cell(header.run_id, link=f"./{quote(header.run_id, safe='')}.html"),
        Cell(header.started_at),
        Cell(_commit(run)),
        Cell(place.gpu or place.cpu_model),
        Cell(place.torch),
        Cell(str(len(run.records)), len(run.records)),
        Cell(", ".join(ended) or units.ABSENT),
    ]


def _moved_table(histories: Sequence[History]) -> Table:
    headings = [
        Heading("case"),
        Heading("metric", is_filter=True),
        Heading("first", is_number=True),
        Heading("latest", is_number=True),
        Heading("history", "every run that measured it, in order of date"),
        Heading("changed", "each change, with the commit at which it was first seen"),
    ]
    return make_table("moves", "What changed across commits", headings, [_moved_row(h) for h in histories])


def _moved_row(history: History) -> Row:
    values, metric = history.values, BY_NAME[history.metric]
    kind = ""
    if metric.better and values[-1] != values[0]:
        kind = "better" if (values[-1] < values[0]) == (metric.better == "lower") else "worse"
    turns = [
        f"{_commit(history.runs[i])}: {_text(history.metric, values[i - 1])} to {_text(history.metric, values[i])}"
        for i in history.turns
    ]
    return Row(
        [
            Cell(history.case_id),
            Cell(history.metric),
            Cell(_text(history.metric, values[0]), values[0]),
            Cell(_text(history.metric, values[-1]), values[-1]),
            Cell(_spark(values)),
            Cell("; ".join(turns)),
        ],
        kind,
    )


def _steady_table(histories: Sequence[History]) -> Table:
    cases: dict[str, dict[str, History]] = {}
    for history in histories:
        if not history.turns:
            cases.setdefault(history.case_id, {})[history.metric] = history
    headings = [
        Heading("case"),
        Heading("runs", is_number=True),
        Heading("same values", "exact quantities that no run changed", is_number=True),
        *(Heading(BY_NAME[name].label, BY_NAME[name].meaning, is_number=True) for name in _STEADY),
    ]
    rows = []
    for case_id, known in cases.items():
        runs = max(len(history.values) for history in known.values())
        cells = [Cell(case_id), Cell(str(runs), runs), Cell(str(len(known)), len(known))]
        for name in _STEADY:
            value = known[name].values[-1] if name in known else None
            cells.append(Cell(units.number(BY_NAME[name], value), value))
        rows.append(Row(cells))
    return make_table("steady", "What stayed the same", headings, rows)


def _text(name: str, value: Number) -> str:
    return units.number(BY_NAME[name], value)


def _commit(run: Run) -> str:
    commit = run.header.environment.commit
    changes = " with changes" if run.header.environment.dirty else ""
    return f"{commit[:12]}{changes}" if commit else "not known"


def _spark(values: Sequence[Number]) -> Markup:
    """A line over the runs, from the least to the most; the latest run is the dot."""
    low, span = min(values), (max(values) - min(values)) or 1
    places = [(4 + 92 * i / max(1, len(values) - 1), 20 - 16 * (value - low) / span) for i, value in enumerate(values)]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    x, y = places[-1]
    return Markup(
        '<svg class="spark" viewBox="0 0 100 24" role="img" aria-label="{} runs">'
        '<polyline points="{}"/><circle cx="{}" cy="{}" r="2.5"/></svg>'
    ).format(len(values), line, f"{x:.1f}", f"{y:.1f}")
