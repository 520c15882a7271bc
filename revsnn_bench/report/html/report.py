"""One run as one page: which node for which budget, the findings, the figures, every case, the method, the place."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import NamedTuple

from markupsafe import Markup

from revsnn_bench.case import CASE_FIELDS, Case, CaseField
from revsnn_bench.metrics import BY_NAME, Number, measured
from revsnn_bench.records import Record, Run, Status
from revsnn_bench.report import points, tables, units
from revsnn_bench.report.canvas import Figure
from revsnn_bench.report.figures import draw_figures
from revsnn_bench.report.findings import costs, findings
from revsnn_bench.report.html import Cell, Column, Table, make_table, render_page

_QUANTITIES = (
    ("retained_bytes", False),
    ("peak_bytes", False),
    ("step_time_s", True),
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
"""Of each the value, or its ratio to the standard LIF; the first three are shown at first."""

_PLAIN_FIGURES = 4
"""Figures that are shown at first; the others when they are asked for."""

_FAMILIES = {"memory": "Memory", "flops": "FLOPs", "time": "time", "fidelity": "gradients", "accuracy": "accuracy"}
_MOST_NAMED = 3


def headline(run: Run) -> str:
    """Returns what was measured, such as `Memory and time of 7 nodes in layer, T = 4 to 64`."""
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
        figures: what `draw_figures(run)` returned, where that was called already.
        refresh_s: seconds after which an open page loads itself again, while a run goes on.
        claims: the section of the paper's claims, see `revsnn_bench.claims`.
    """
    drawn = draw_figures(run) if figures is None else figures
    index = {record.case: number for number, record in enumerate(run)}
    answered, first = answers(run, index)
    names = points.namings(run)
    labels = [_label(record, names) for record in run]
    known = points.references(run)
    return render_page(
        "report",
        refresh_s=refresh_s,
        title=f"{headline(run)} · {run.header.run_id}",
        heading=headline(run),
        header=run.header,
        where=run.place,
        counts=[(status.value, count) for status, count in points.ended(run).items()],
        points=answered,
        first=first,
        picks=_picks(answered),
        findings=findings(run),
        figures=[(figure, Markup(figure.inline(labels))) for figure in drawn],
        plain_figures=_PLAIN_FIGURES,
        more_titles="; ".join(dict.fromkeys(each.title.partition(":")[0] for each in drawn[_PLAIN_FIGURES:])),
        claims=claims or "",
        table=_cases(run, known, index),
        approximate=make_table(
            "approximate",
            "Cases of approximate methods",
            [Column(heading, itemgetter(number)) for number, heading in enumerate(tables.APPROXIMATE_HEADINGS)],
            tables.approximate_rows(run),
        ),
        approximate_text=tables.APPROXIMATE,
        metrics=tables.metric_rows(run),
        place=tables.environment_text(run),
        places=[(name.replace("_", " "), text) for name, text in tables.environment_rows(run)],
        absent=units.ABSENT,
        cell=tables.value_cell,
        base=points.reference_name(run),
        against=points.reference_text(run),
        ratio=lambda name, record: _ratio(points.ratio_of(name, record, known)),
        note=names.note,
        times=units.times,
    )


def _ratio(found: points.Ratio | None) -> str | Markup:
    return _unsure(points.ratio_text(found), bool(found and not found.decided))


class Candidate(NamedTuple):
    """One node at one point: its record with the record's index, and for a right one its peak and its cost.

    The cost is against the reference, in time where that of another node is decided at the point, else in operations;
    one taken beside other work is none.
    """

    node: str
    record: Record
    case: int
    peak_bytes: Number | None
    cost: Number | None


class Point(NamedTuple):
    """Every node at one size, and the answer in sentences.

    Fields:
        setting: what a reader chooses beside T and B, and the backend where several were measured.
        gradient: what is known of it for those that are ranked.
        winner: the nodes that need least peak memory among those that are right; empty where none is.
        steps: by increasing budget, the node that is cheapest from there on: those that no other beats in both.
        candidates: right ones by memory, then wrong ones, then those that failed.
    """

    setting: str
    note: str
    timesteps: int
    batch: int
    reference: str
    gradient: str
    winner: str
    memory: str
    cost: str
    trust: str
    steps: list[Candidate]
    cost_label: str
    candidates: list[Candidate]


def answers(run: Run, index: Mapping[Case, int]) -> tuple[list[Point], int]:
    """Returns every point in order of setting, T and B, and which to show first: of those where something is cheapest
    within a budget that with most nodes that are right, of several such points the largest."""
    places = points.by_point(points.exact(run))
    backends: dict[str, set[object]] = defaultdict(set)
    for point in places:
        backends[setting(point)].add(point.node_options)
    order = sorted(places, key=lambda p: (setting(p), p.node_options, p.timesteps, p.batch))
    if not order:
        return [], 0

    known = points.references(run)
    made = [
        _point(point, list(places[point].values()), index, known, len(backends[setting(point)]) > 1) for point in order
    ]

    def tells(number: int) -> tuple[bool, int, int]:
        right = sum(record.status is Status.OK for record in places[order[number]].values())
        return bool(made[number].steps), right, points.work(order[number])

    return made, max(range(len(order)), key=tells)


def setting(case: Case) -> str:
    """Returns what a reader chooses beside T and B."""
    depth = [f"depth {case.depth}"] if case.depth > 1 else []
    return ", ".join([case.workload, f"features {case.features}", *depth, case.dtype, case.device, *case.others])


def _point(
    point: Case, records: list[Record], index: Mapping[Case, int], known: Mapping[Case, Record], several: bool
) -> Point:
    right = sorted((r for r in records if r.status is Status.OK and r.memory is not None), key=_need)
    others = sorted((r for r in records if r not in right), key=lambda r: list(Status).index(r.status))
    best = [r for r in right if _need(r) == _need(right[0])]
    names = points.naming(records)
    timed = any(points.decided_ratio("step_time_s", r, known) for r in right if r.case != point)
    quantity = "step_time_s" if timed else "step_flops"
    ranked = [
        Candidate(names(r.case), r, index[r.case], _need(r)[0], points.decided_ratio(quantity, r, known)) for r in right
    ]
    places = {c.node: (c.peak_bytes, c.cost) for c in ranked if c.peak_bytes is not None and c.cost is not None}
    by_node = {candidate.node: candidate for candidate in ranked}
    backend = [f"{name}={value}" for name, value in point.node_options] if several else []
    return Point(
        setting=", ".join([setting(point), *backend]),
        note=names.note,
        timesteps=point.timesteps,
        batch=point.batch,
        reference=point.reference,
        gradient=points.ranked_gradient(right),
        winner=units.listing([names(r.case) for r in best]),
        memory=_memory_text(best, points.reference_for(best[0].case, known) if best else None, records, names),
        cost=" ".join(_cost_text(r, known, names) for r in best),
        trust=_trust_text(best, others, names),
        steps=[by_node[name] for name in points.pareto_front(places)],
        cost_label="time" if timed else "FLOPs",
        candidates=[*ranked, *(Candidate(names(r.case), r, index[r.case], None, None) for r in others)],
    )


def _need(record: Record) -> tuple[Number, Number]:
    memory = record.memory
    return (memory.peak_bytes, memory.retained_bytes) if memory else (0, 0)


def _memory_text(best: list[Record], lif: Record | None, records: list[Record], names: points.Naming) -> str:
    if not best and any(record.status is Status.OK for record in records):
        return "Memory was not measured here, so no node is ranked by it."
    if not best:
        counts = units.listing([f"{count} {status.value}" for status, count in points.ended(records).items()])
        return f"No node can be recommended here: of {len(records)} measured, {counts}."
    record = best[0]
    text = f"Peak {tables.value_cell('peak_bytes', record)}, retained {tables.value_cell('retained_bytes', record)}"
    if lif is not None and lif.memory is not None:
        its = [tables.value_cell(name, lif) for name in ("peak_bytes", "retained_bytes")]
        return f"{text}; {names(lif.case)}: {' and '.join(its)}."
    at_lif = {r.case: r for r in records}.get(record.case.point)
    why = f"ended as {at_lif.status.value}" if at_lif is not None else "was not measured"
    return f"{text}; {record.case.reference} {why} here."


def _cost_text(record: Record, known: Mapping[Case, Record], names: points.Naming) -> str:
    name = names(record.case)
    if record.case == record.case.point:
        return f"{name} is the standard: every ratio is taken against it."
    found = costs(record, ("step_time_s", "step_flops"), known)
    unsure = " Its threads had to wait for a core in some rounds, so its time is not ranked."
    if not found:
        return f"Neither time nor FLOPs of {name} can be held against those of {record.case.reference} here."
    text = f"{name} costs {found}."
    return text + unsure * points.contended(record)


def _trust_text(best: list[Record], others: list[Record], names: points.Naming) -> str:
    texts = []
    for record in best:
        found, name = record.fidelity, names(record.case)
        if found is None:
            texts.append(f"The gradient of {name} was not judged.")
        else:
            error = units.measured("gradient_error", record)
            texts.append(f"{name} is right: relative error {error}, tolerance {found.tolerance:.0e}.")
    if wrong := [names(record.case) for record in others if record.status is Status.WRONG]:
        texts.append(f"Wrong here, and ranked nowhere: {units.listing(wrong)}.")
    return " ".join(texts)


def _picks(answered: Sequence[Point]) -> list[tuple[str, list[tuple[int, list[tuple[int, int]]]]]]:
    """Every point by setting, T and B, each with its number: what a reader without scripts chooses from."""
    found: dict[str, dict[int, list[tuple[int, int]]]] = {}
    for number, point in enumerate(answered):
        found.setdefault(point.setting, {}).setdefault(point.timesteps, []).append((point.batch, number))
    return [(setting, list(steps.items())) for setting, steps in found.items()]


def _label(record: Record, names: points.Naming) -> str:
    """A figure's tooltip."""
    values = [
        f"{BY_NAME[name].label} {text}"
        for name in ("retained_bytes", "peak_bytes", "step_time_s", "gradient_error")
        if (text := tables.value_cell(name, record)) != units.ABSENT
    ]
    return "; ".join([names.id(record.case), record.status.value, *values])


def _cases(run: Run, known: Mapping[Case, Record], index: Mapping[Case, int]) -> Table:
    """Node, place, T, B, status and three quantities first; then every other quantity, and the parts of the place."""
    names = points.namings(run)
    places = [row for row in CASE_FIELDS[1:] if row.name not in ("timesteps", "batch")]
    varying = [row for row in places if len({record.case.value(row) for record in run}) > 1]
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
            *(_column(name, as_ratio, known, points.reference_name(run)) for name, as_ratio in _QUANTITIES),
            *fields.values(),
            *([Column("host", lambda record: record.host or "", "host of the cluster")] if run.hosts else []),
            Column(
                "note",
                lambda record: "; ".join(
                    filter(None, [record.reason, record.fidelity.warning if record.fidelity else None])
                ),
                "why the case ended so, and what the node warned of",
            ),
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

    return Column(row.title, show, row.meaning, is_number=row.is_whole, is_filter=True)


def _where(varying: Sequence[CaseField], record: Record) -> str:
    """Some fields as words: numbers and shapes with what they are."""
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
        text = tables.value_cell(name, record)
        number = None if text == units.ABSENT else metric.read(record)
        return Cell(_unsure(text, metric.family == "time" and points.contended(record)), number)

    def ratio(record: Record) -> Cell:
        found = points.ratio_of(name, record, known)
        return Cell(_ratio(found), found.value if found else None)

    if not as_ratio:
        return Column(metric.label, value, metric.meaning, is_number=True)
    meaning = f"{metric.label} over that of {base} at the same point; below 1 is less"
    return Column(f"{metric.label} × {base}", ratio, meaning, is_number=True)


def _unsure(text: str, unsure: bool) -> str | Markup:
    return Markup('<span class="unsure">{}</span>').format(text) if unsure and text != units.ABSENT else text
