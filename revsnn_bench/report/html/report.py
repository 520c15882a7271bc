"""One run as one page: the answer, the findings, the figures, every case, the method, the place."""

from collections.abc import Mapping, Sequence
from functools import partial

from markupsafe import Markup

from revsnn_bench.case import CASE_FIELDS, Case, CaseField
from revsnn_bench.metrics import BY_NAME
from revsnn_bench.records import Record, Run, Status
from revsnn_bench.report import units
from revsnn_bench.report.figures import Figure, draw_figures
from revsnn_bench.report.findings import findings
from revsnn_bench.report.html.answers import answers
from revsnn_bench.report.html.page import Cell, Column, Table, make_table, render_page
from revsnn_bench.report.points import ratio_text, ratio_to_lif, standard_lifs
from revsnn_bench.report.tables import (
    APPROXIMATE,
    APPROXIMATE_HEADINGS,
    approximate_rows,
    environment_rows,
    metric_rows,
    value_cell,
)

_SHOWN = (
    ("retained_bytes", True),
    ("peak_bytes", True),
    ("step_time_s", True),
    ("forward_copies", False),
    ("backward_copies", False),
    ("compile_time_s", False),
    ("gradient_error", False),
    ("accuracy", False),
    ("step_flops", True),
    ("forward_flops", False),
    ("backward_flops", False),
    ("recompute_flops", False),
    ("state_bytes", False),
)


_Numbered = tuple[int, Record]


def _point_cell(row: CaseField, item: _Numbered) -> Cell | str | int:
    value = item[1].case.value(row)
    return Cell(f"{value:g}", value) if isinstance(value, float) else value


_POINT: list[Column[_Numbered]] = [
    Column("node", lambda item: item[1].case.variant, "the node with its options", is_filter=True),
    *(
        Column(row.title, partial(_point_cell, row), row.meaning, is_number=row.is_number, is_filter=True)
        for row in CASE_FIELDS[1:]
    ),
    Column("status", lambda item: item[1].status.value, "how the case ended", is_filter=True),
]


def render_html(
    run: Run, figures: Sequence[Figure] | None = None, refresh_s: int | None = None, claims: Markup | None = None
) -> str:
    """Returns the report as one self-contained page; the same run gives the same text.

    Args:
        run: header and records.
        figures: what `draw_figures(run)` returned, where that was called already.
        refresh_s: seconds after which an open page loads itself again, while a run goes on; None for never.
        claims: the section of the paper's claims, see `claims/report.py`; None for none.
    """
    drawn = draw_figures(run) if figures is None else figures
    index = {record.case: number for number, record in enumerate(run)}
    points, first = answers(run, index)
    labels = [_label(record) for record in run]
    lifs = standard_lifs(run)
    return render_page(
        "report",
        refresh_s=refresh_s,
        title=f"Benchmark report {run.header.run_id}",
        header=run.header,
        place=run.place,
        counts=[(s.value, n) for s in Status if (n := sum(r.status is s for r in run))],
        points=points,
        first=first,
        findings=_by_topic(run),
        figures=[(figure, Markup(figure.inline(labels))) for figure in drawn],
        claims=claims or "",
        table=_cases(run, lifs),
        approximate=make_table(
            "approximate",
            "Cases of approximate methods",
            [_text_column(number, heading) for number, heading in enumerate(APPROXIMATE_HEADINGS)],
            approximate_rows(run),
        ),
        approximate_text=APPROXIMATE,
        metrics=metric_rows(run),
        places=[(name.replace("_", " "), text) for name, text in environment_rows(run)],
        absent=units.ABSENT,
        cell=value_cell,
        ratio=lambda name, record: ratio_text(ratio_to_lif(name, record, lifs)),
        times=units.times,
    )


def _text_column(number: int, heading: str) -> Column[tuple[str, ...]]:
    return Column(heading, lambda row: row[number], is_number=False)


def _by_topic(run: Run) -> list[tuple[str, list[str]]]:
    found: dict[str, list[str]] = {}
    for finding in findings(run):
        found.setdefault(finding.topic, []).append(finding.text)
    return list(found.items())


def _label(record: Record) -> str:
    """A figure's tooltip."""
    values = [
        f"{BY_NAME[name].label} {text}"
        for name in ("retained_bytes", "peak_bytes", "step_time_s", "gradient_error")
        if (text := value_cell(name, record)) != units.ABSENT
    ]
    return "; ".join([record.case.id, record.status.value, *values])


def _cases(run: Run, lifs: Mapping[Case, Record]) -> Table:
    latest = {record.case: number for number, record in enumerate(run)}
    values = [column for name, with_ratio in _SHOWN for column in _values(name, with_ratio, lifs)]
    return make_table(
        "cases",
        "Every case of the run",
        [
            *_POINT,
            *values,
            Column("host", lambda item: item[1].host or "", "host of the cluster"),
            Column("note", lambda item: _note(item[1]), "why the case ended so, and what the node warned of"),
        ],
        enumerate(run),
        kind=lambda item: item[1].status.value,
        anchor=lambda item: f"case-{item[0]}" if latest[item[1].case] == item[0] else None,
        drop_same=True,
    )


def _values(name: str, with_ratio: bool, lifs: Mapping[Case, Record]) -> list[Column[_Numbered]]:
    """The column of a metric, and that of its ratio."""
    metric = BY_NAME[name]

    def value(item: _Numbered) -> Cell:
        text = value_cell(name, item[1])
        return Cell(text, None if text == units.ABSENT else metric.read(item[1]))

    def ratio(item: _Numbered) -> Cell:
        found = ratio_to_lif(name, item[1], lifs)
        return Cell(ratio_text(found), found.value if found else None)

    columns = [Column(metric.label, value, metric.meaning, is_number=True)]
    if with_ratio:
        columns.append(Column("× lif", ratio, f"{metric.label} over that of the standard LIF", is_number=True))
    return columns


def _note(record: Record) -> str:
    notes = [record.reason, record.fidelity.warning if record.fidelity else None]
    return "; ".join(note for note in notes if note)
