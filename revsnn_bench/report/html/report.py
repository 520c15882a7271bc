"""One run as one page: the answer, the findings, the figures, every case, the method, the place."""

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from revsnn_bench.case import Case
from revsnn_bench.claims import Plan, Verdict, judge
from revsnn_bench.claims.judge import SOURCE
from revsnn_bench.metrics import BY_NAME
from revsnn_bench.records import Record, Run, Status
from revsnn_bench.report import units
from revsnn_bench.report.figures import Figure, draw_figures
from revsnn_bench.report.findings import findings
from revsnn_bench.report.html.answers import answers
from revsnn_bench.report.html.page import Cell, Heading, Row, Table, make_table, render_page
from revsnn_bench.report.points import ratio_text, ratio_to_lif, standard_lifs
from revsnn_bench.report.tables import environment_rows, metric_rows, value_cell

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


def render_html(run: Run, figures: Sequence[Figure] | None = None, refresh_s: int | None = None) -> str:
    """Returns the report as one self-contained page; the same run gives the same text.

    Args:
        run: header and records.
        figures: what `draw_figures(run)` returned, where that was called already.
        refresh_s: seconds after which an open page loads itself again, while a run goes on; None for never.
    """
    drawn = draw_figures(run) if figures is None else figures
    index = {record.case: number for number, record in enumerate(run)}
    points, first = answers(run, index)
    labels = [_label(record) for record in run]
    return render_page(
        "report",
        refresh_s=refresh_s,
        title=f"Benchmark report {run.header.run_id}",
        header=run.header,
        counts=[(s.value, n) for s in Status if (n := sum(r.status is s for r in run))],
        points=points,
        first=first,
        findings=_by_topic(run),
        figures=[(figure, Markup(figure.inline(labels))) for figure in drawn],
        claims=[finding for finding in judge(run, Plan()) if finding.verdict is not Verdict.OPEN],
        claims_source=SOURCE,
        table=_cases(run, standard_lifs(run)),
        metrics=metric_rows(run),
        places=[(name.replace("_", " "), text) for name, text in environment_rows(run)],
        absent=units.ABSENT,
    )


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
    rows = [
        Row(
            _cells(record, lifs),
            record.status.value,
            f"case-{number}" if latest[record.case] == number else None,
        )
        for number, record in enumerate(run)
    ]
    return make_table("cases", "Every case of the run", _headings(), rows, drop_same=True)


def _headings() -> list[Heading]:
    point = [
        Heading("node", "the node with its options", is_filter=True),
        Heading("workload", "what the node was measured in", is_filter=True),
        Heading("T", "time steps", is_number=True, is_filter=True),
        Heading("B", "samples in a batch", is_number=True, is_filter=True),
        Heading("features", "shape of one sample", is_filter=True),
        Heading("D", "blocks stacked", is_number=True, is_filter=True),
        Heading("dtype", "", is_filter=True),
        Heading("device", "", is_filter=True),
        Heading("seed", "", is_number=True, is_filter=True),
        Heading("status", "how the case ended", is_filter=True),
    ]
    values = []
    for name, with_ratio in _SHOWN:
        values.append(Heading(BY_NAME[name].label, BY_NAME[name].meaning, is_number=True))
        if with_ratio:
            values.append(Heading("× lif", f"{BY_NAME[name].label} over that of the standard LIF", is_number=True))
    return [*point, *values, Heading("note", "why the case ended so, and what the node warned of")]


def _cells(record: Record, lifs: Mapping[Case, Record]) -> list[Cell]:
    case = record.case
    cells = [
        Cell(case.variant),
        Cell(case.workload),
        Cell(str(case.timesteps), case.timesteps),
        Cell(str(case.batch), case.batch),
        Cell("x".join(map(str, case.shape))),
        Cell(str(case.depth), case.depth),
        Cell(case.dtype),
        Cell(case.device),
        Cell(str(case.seed), case.seed),
        Cell(record.status.value),
    ]
    for name, with_ratio in _SHOWN:
        text = value_cell(name, record)
        cells.append(Cell(text, None if text == units.ABSENT else BY_NAME[name].read(record)))
        if with_ratio:
            ratio = ratio_to_lif(name, record, lifs)
            cells.append(Cell(ratio_text(ratio), ratio.value if ratio else None))
    notes = [record.reason, record.fidelity.warning if record.fidelity else None]
    return [*cells, Cell("; ".join(note for note in notes if note))]
