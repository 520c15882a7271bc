"""Which node for which budget: the nodes at every measured point, ranked, with cost and trust in words."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from revsnn_bench.case import Case
from revsnn_bench.metrics import Number
from revsnn_bench.records import Record, Run, Status
from revsnn_bench.report import units
from revsnn_bench.report.findings import costs
from revsnn_bench.report.points import (
    Naming,
    by_point,
    contended,
    ended,
    exact,
    naming,
    pareto_front,
    ratio_of,
    reference_for,
    references,
    work,
)
from revsnn_bench.report.tables import value_cell


@dataclass(frozen=True)
class Candidate:
    """One node at one point: its record with the record's index, and for a right one its peak and its cost.

    The cost is against the reference, in time where a time is decided at the point, else in operations; one taken
    beside other work is none.
    """

    node: str
    record: Record
    case: int
    peak_bytes: Number | None
    cost: Number | None


@dataclass(frozen=True)
class Point:
    """Every node at one size.

    Fields:
        setting: workload, features, depth, dtype and device in words, and the backend where several were measured.
        note: options that all its nodes share, in a sentence.
        timesteps, batch: T and B.
        reference: the node that ratios are taken against.
        winner: the nodes that need least peak memory among those that are right; empty where none is.
        memory, cost, trust: the answer in sentences.
        steps: by increasing budget, the node that is cheapest from there on.
        cost_label: in what the cost is.
        candidates: right ones by memory, then wrong ones, then those that failed.
    """

    setting: str
    note: str
    timesteps: int
    batch: int
    reference: str
    winner: str
    memory: str
    cost: str
    trust: str
    steps: list[Candidate]
    cost_label: str
    candidates: list[Candidate]


def answers(run: Run, index: Mapping[Case, int]) -> tuple[list[Point], int]:
    """Returns every point in order of setting, T and B, and which of them to show first.

    The first one shown has most nodes that are right; of several such points the largest.
    """
    points = by_point(exact(run))
    backends: dict[str, set[object]] = defaultdict(set)
    for point in points:
        backends[setting(point)].add(point.node_options)
    order = sorted(points, key=lambda p: (setting(p), p.node_options, p.timesteps, p.batch))
    if not order:
        return [], 0

    def tells(point: Case) -> tuple[int, int]:
        return sum(record.status is Status.OK for record in points[point].values()), work(point)

    known = references(run)
    made = [
        _point(point, list(points[point].values()), index, known, len(backends[setting(point)]) > 1) for point in order
    ]
    return made, order.index(max(order, key=tells))


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
    names = naming(records)
    timed = any(_cost_of("step_time_s", r, known) for r in right)

    def candidate(record: Record) -> Candidate:
        cost = _cost_of("step_time_s" if timed else "step_flops", record, known)
        return Candidate(names(record.case), record, index[record.case], _need(record)[0], cost)

    ranked = [candidate(r) for r in right]
    backend = [f"{name}={value}" for name, value in point.node_options] if several else []
    return Point(
        setting=", ".join([setting(point), *backend]),
        note=names.note,
        timesteps=point.timesteps,
        batch=point.batch,
        reference=point.reference,
        winner=units.listing([names(r.case) for r in best]),
        memory=_memory(best, reference_for(best[0].case, known) if best else None, records, names),
        cost=" ".join(_cost(r, known, names) for r in best),
        trust=_trust(best, others, names),
        steps=_steps(ranked),
        cost_label="time" if timed else "FLOPs",
        candidates=[*ranked, *(Candidate(names(r.case), r, index[r.case], None, None) for r in others)],
    )


def _cost_of(name: str, record: Record, known: Mapping[Case, Record]) -> Number | None:
    found = ratio_of(name, record, known)
    return found.value if found and found.decided else None


def _need(record: Record) -> tuple[Number, Number]:
    memory = record.memory
    return (memory.peak_bytes, memory.retained_bytes) if memory else (0, 0)


def _memory(best: list[Record], lif: Record | None, records: list[Record], names: Naming) -> str:
    if not best:
        return _unranked(records)
    record = best[0]
    text = f"Peak {value_cell('peak_bytes', record)}, retained {value_cell('retained_bytes', record)}"
    if lif is not None and lif.memory is not None:
        return f"{text}; {names(lif.case)}: {value_cell('peak_bytes', lif)} and {value_cell('retained_bytes', lif)}."
    at_lif = {r.case: r for r in records}.get(record.case.point)
    why = f"ended as {at_lif.status.value}" if at_lif is not None else "was not measured"
    return f"{text}; {record.case.reference} {why} here."


def _unranked(records: list[Record]) -> str:
    """Why no node is recommended: memory was not measured, or how each ended."""
    if any(record.status is Status.OK for record in records):
        return "Memory was not measured here, so no node is ranked by it."
    counts = units.listing([f"{count} {status.value}" for status, count in ended(records).items()])
    return f"No node can be recommended here: of {len(records)} measured, {counts}."


def _cost(record: Record, known: Mapping[Case, Record], names: Naming) -> str:
    name = names(record.case)
    if record.case == record.case.point:
        return f"{name} is the standard: every ratio is taken against it."
    found = costs(record, ("step_time_s", "step_flops"), known)
    text = f"{name} costs {found or f'an amount not known against {record.case.reference}'}."
    return (
        f"{text} Other work held the processor in some rounds, so its time is not ranked."
        if contended(record)
        else text
    )


def _trust(best: list[Record], others: list[Record], names: Naming) -> str:
    texts = []
    for record in best:
        found, name = record.fidelity, names(record.case)
        if found is None:
            texts.append(f"The gradient of {name} was not compared.")
            continue
        error = units.measured("gradient_error", record)
        texts.append(f"{name} is right: relative error {error}, tolerance {found.tolerance:.0e}.")
    wrong = [names(record.case) for record in others if record.status is Status.WRONG]
    if wrong:
        texts.append(f"Wrong here, and ranked nowhere: {units.listing(wrong)}.")
    return " ".join(texts)


def _steps(right: list[Candidate]) -> list[Candidate]:
    """The candidates that no other beats in both memory and cost, by increasing memory."""
    known = {c.node: c for c in right}
    places = {c.node: (c.peak_bytes, c.cost) for c in right if c.peak_bytes is not None and c.cost is not None}
    return [known[name] for name in pareto_front(places)]
