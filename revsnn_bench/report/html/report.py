"""One run as one page: the answer, the findings, the figures, every case, the method, the place."""

from collections.abc import Mapping, Sequence
from operator import itemgetter

from markupsafe import Markup

from revsnn_bench.case import CASE_FIELDS, Case, CaseField
from revsnn_bench.metrics import BY_NAME, measured
from revsnn_bench.records import Record, Run
from revsnn_bench.report import units
from revsnn_bench.report.canvas import Figure
from revsnn_bench.report.figures import draw_figures
from revsnn_bench.report.findings import findings
from revsnn_bench.report.html import Cell, Column, Table, make_table, render_page
from revsnn_bench.report.html.answers import Point, answers
from revsnn_bench.report.points import (
    Naming,
    Ratio,
    contended,
    ended,
    namings,
    ratio_of,
    ratio_text,
    reference_name,
    reference_text,
    references,
)
from revsnn_bench.report.tables import (
    APPROXIMATE,
    APPROXIMATE_HEADINGS,
    approximate_rows,
    environment_rows,
    environment_text,
    metric_rows,
    value_cell,
)

_FIRST = (("retained_bytes", False), ("peak_bytes", False), ("step_time_s", True))
"""Beside the place and the status; of each quantity the value, or its ratio to the standard LIF."""

_THEN = (
    ("gradient_error", False),
    ("accuracy", False),
    ("retained_bytes", True),
    ("peak_bytes", True),
    ("step_time_s", False),
    ("forward_copies", False),
    ("backward_copies", False),
    ("compile_time_s", False),
    ("step_flops", False),
    ("step_flops", True),
    ("forward_flops", False),
    ("backward_flops", False),
    ("recompute_flops", False),
    ("state_bytes", False),
)
_PLAIN_FIGURES = 4
"""Figures that are shown at first; the others when they are asked for."""

_FAMILIES = {"memory": "Memory", "flops": "FLOPs", "time": "time", "fidelity": "gradients", "accuracy": "accuracy"}
_MOST_NAMED = 3


def headline(run: Run) -> str:
    """Returns what was measured: quantities, nodes, workloads and time steps, such as `Memory and time of 7 nodes in
    layer, T = 4 to 64`."""
    found = {BY_NAME[name].family for record in run for name in measured(record)}
    quantities = [word for family, word in _FAMILIES.items() if family in found]
    if not quantities:
        return "Nothing was measured"
    nodes = list(dict.fromkeys(record.case.node for record in run))
    workloads = list(dict.fromkeys(record.case.workload for record in run))
    steps = sorted({record.case.timesteps for record in run})
    who = units.listing(nodes) if len(nodes) <= _MOST_NAMED else f"{len(nodes)} nodes"
    where = units.listing(workloads) if len(workloads) <= _MOST_NAMED else f"{len(workloads)} workloads"
    times = f"T = {steps[0]}" + (f" to {steps[-1]}" if len(steps) > 1 else "")
    words = units.listing(quantities)
    return f"{words[0].upper()}{words[1:]} of {who} in {where}, {times}"


def render_html(
    run: Run, figures: Sequence[Figure] | None = None, refresh_s: int | None = None, claims: Markup | None = None
) -> str:
    """Returns the report as one self-contained page; the same run gives the same text.

    Args:
        run: header and records.
        figures: what `draw_figures(run)` returned, where that was called already.
        refresh_s: seconds after which an open page loads itself again, while a run goes on; None for never.
        claims: the section of the paper's claims, see `revsnn_bench.claims`; None for none.
    """
    drawn = draw_figures(run) if figures is None else figures
    index = {record.case: number for number, record in enumerate(run)}
    points, first = answers(run, index)
    names = namings(run)
    labels = [_label(record, names) for record in run]
    known = references(run)
    return render_page(
        "report",
        refresh_s=refresh_s,
        title=f"{headline(run)} · {run.header.run_id}",
        heading=headline(run),
        header=run.header,
        where=run.place,
        counts=[(status.value, count) for status, count in ended(run).items()],
        points=points,
        first=first,
        picks=_picks(points),
        findings=findings(run),
        figures=[(figure, Markup(figure.inline(labels))) for figure in drawn],
        plain_figures=_PLAIN_FIGURES,
        more_titles="; ".join(dict.fromkeys(each.title.partition(":")[0] for each in drawn[_PLAIN_FIGURES:])),
        claims=claims or "",
        table=_cases(run, known, index),
        approximate=make_table(
            "approximate",
            "Cases of approximate methods",
            [Column(heading, itemgetter(number)) for number, heading in enumerate(APPROXIMATE_HEADINGS)],
            approximate_rows(run),
        ),
        approximate_text=APPROXIMATE,
        metrics=metric_rows(run),
        place=environment_text(run),
        places=[(name.replace("_", " "), text) for name, text in environment_rows(run)],
        absent=units.ABSENT,
        cell=value_cell,
        base=reference_name(run),
        against=reference_text(run),
        ratio=lambda name, record: _ratio(ratio_of(name, record, known)),
        note=names.note,
        times=units.times,
    )


def _ratio(found: Ratio | None) -> str | Markup:
    return _unsure(ratio_text(found), bool(found and not found.decided))


def _picks(points: Sequence[Point]) -> list[tuple[str, list[tuple[int, list[tuple[int, int]]]]]]:
    """Every point by setting, T and B, each with its number: what a reader without scripts chooses from."""
    found: dict[str, dict[int, list[tuple[int, int]]]] = {}
    for number, point in enumerate(points):
        found.setdefault(point.setting, {}).setdefault(point.timesteps, []).append((point.batch, number))
    return [(setting, list(steps.items())) for setting, steps in found.items()]


def _label(record: Record, names: Naming) -> str:
    """A figure's tooltip."""
    values = [
        f"{BY_NAME[name].label} {text}"
        for name in ("retained_bytes", "peak_bytes", "step_time_s", "gradient_error")
        if (text := value_cell(name, record)) != units.ABSENT
    ]
    return "; ".join([names.id(record.case), record.status.value, *values])


def _cases(run: Run, known: Mapping[Case, Record], index: Mapping[Case, int]) -> Table:
    """Node, place, T, B, status and three quantities first; then every other quantity, and the parts of the place."""
    names, varying = namings(run), _varying(run)
    fields = {row.name: _field(row) for row in CASE_FIELDS[1:]}
    where = Column[Record]("where", lambda record: _where(varying, record), "workload and size, as far as they differ")

    def anchor(record: Record) -> str | None:
        number = index[record.case]
        return f"case-{number}" if run.records[number] is record else None

    return make_table(
        "cases",
        "Every case of the run",
        [
            Column("node", lambda record: names(record.case), "the node with its options", is_filter=True),
            *([where] if varying else []),
            fields.pop("timesteps"),
            fields.pop("batch"),
            Column("status", lambda record: record.status.value, "how the case ended", is_filter=True),
            *(_column(name, as_ratio, known, reference_name(run)) for name, as_ratio in (*_FIRST, *_THEN)),
            *fields.values(),
            *([Column("host", lambda record: record.host or "", "host of the cluster")] if run.hosts else []),
            Column("note", _note, "why the case ended so, and what the node warned of"),
        ],
        run,
        kind=lambda record: record.status.value,
        anchor=anchor,
        drop_same=True,
    )


def _field(row: CaseField) -> Column[Record]:
    def show(record: Record) -> Cell | str | int:
        value = record.case.value(row)
        return Cell(f"{value:g}", value) if isinstance(value, float) else value

    return Column(row.title, show, row.meaning, is_number=row.is_number, is_filter=True)


def _varying(run: Run) -> list[CaseField]:
    """Fields of a case beside node, T and B in which the cases of a run differ."""
    rows = [row for row in CASE_FIELDS[1:] if row.name not in ("timesteps", "batch")]
    return [row for row in rows if len({record.case.value(row) for record in run}) > 1]


def _where(varying: Sequence[CaseField], record: Record) -> str:
    """Those fields as words: numbers and shapes with what they are."""
    words = []
    for row in varying:
        value = record.case.value(row)
        shown = f"{value:g}" if isinstance(value, float) else f"{value}"
        words.append(shown if row.name in ("workload", "dtype", "device", "encoding") else f"{row.title} {shown}")
    return ", ".join(words)


def _column(name: str, as_ratio: bool, known: Mapping[Case, Record], base: str) -> Column[Record]:
    """The column of a metric, or that of its ratio; a time taken beside other work is grey."""
    metric = BY_NAME[name]

    def value(record: Record) -> Cell:
        text = value_cell(name, record)
        number = None if text == units.ABSENT else metric.read(record)
        return Cell(_unsure(text, metric.family == "time" and contended(record)), number)

    def ratio(record: Record) -> Cell:
        found = ratio_of(name, record, known)
        return Cell(_ratio(found), found.value if found else None)

    if as_ratio:
        meaning = f"{metric.label} over that of {base} at the same point; below 1 is less"
        return Column(f"{metric.label} × {base}", ratio, meaning, is_number=True)
    return Column(metric.label, value, metric.meaning, is_number=True)


def _unsure(text: str, unsure: bool) -> str | Markup:
    return Markup('<span class="unsure">{}</span>').format(text) if unsure and text != units.ABSENT else text


def _note(record: Record) -> str:
    notes = [record.reason, record.fidelity.warning if record.fidelity else None]
    return "; ".join(note for note in notes if note)
