"""What a run found, in sentences: who needs least memory, at what cost, whose gradient is right, what to distrust.

For networks, retained bytes are split by the kind of module that made them (`module_rows`), and the saving of a node by
itself is held against that of a network made of it (`node_and_network`).
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from revsnn_bench.case import Case, is_own
from revsnn_bench.metrics import BY_NAME
from revsnn_bench.records import Record, Run, Status
from revsnn_bench.report import points, units
from revsnn_bench.system.process import CONTENDED_SHARE

KINDS = {
    "conv": "convolution outputs, the norms' inputs",
    "norm": "norm outputs and statistics",
    "node": "nodes: spikes, the convolutions' inputs, and what the node keeps for itself",
    "pool": "pooled spikes",
    "input": "the network's input",
}
"""Parts of a block by the name of the module that made the bytes; anything else is the rest."""

REST = "rest"
_MOST_MODULES = 12
_NOT_RANKED = "These times are shown as not decided, in a terminal with a question mark, and ranked nowhere."
_NUMBER = re.compile(r"\d+(\.\d+)?(e[-+]?\d+)?")


class Finding(NamedTuple):
    """A row of the table of findings, in plain text that may hold foreign characters."""

    topic: str
    where: str
    text: str


def findings(run: Run) -> list[Finding]:
    """Returns the findings of a run, most important first; the first one counts how the cases ended."""
    found = [Finding("Cases", "the whole run" if run.complete else "what was measured", overview(run))]
    for group in points.by_setting(run).values():
        found += [
            *_least(run, group, "peak_bytes", "Least peak memory"),
            *_least(run, group, "retained_bytes", "Least retained memory"),
            *_paper_ratio(run, group),
        ]
    found += [Finding("Node and network", where, text) for where, text in node_and_network(run)]
    times = [*_contention(run), *_one_process(run)]
    return [*found, *_trust(run), *uncounted(run), *_saving(run), *_accuracy(run), *times, *_warnings(run)]


def overview(run: Run) -> str:
    """Returns how many cases ended in which way."""
    if not run.records:
        return "No case was recorded."
    extent = "" if run.complete else f" Not complete: {run.extent}."
    return f"{len(run.records)} in all: {points.ended_text(run)}.{extent}"


class Least(NamedTuple):
    """Who needs least of a quantity at the point that says most: the records there that share the least value, by node,
    and at how many of the `compared` points these nodes are least, alone or shared."""

    point: Case
    winners: dict[str, Record]
    often: int
    compared: int


def least_of(run: Run, name: str) -> list[Least]:
    """Returns who needs least of a metric, one entry for each workload, dtype and device that compares nodes."""
    return [found for group in points.by_setting(run).values() if (found := _least_in(group, name))]


def _least_in(records: list[Record], name: str) -> Least | None:
    """Ranks the cases that are `ok` at each point; tells the longest with a reference, then the largest one."""
    read = BY_NAME[name].read
    places = points.by_point(r for r in records if r.status is Status.OK and read(r) is not None)
    ranked: dict[Case, dict[str, Record]] = {}
    for point, found in places.items():
        if len(found) > 1:
            least = min(value for record in found.values() if (value := read(record)) is not None)
            ranked[point] = {variant: record for variant, record in found.items() if read(record) == least}
    if not ranked:
        return None

    def tells(point: Case) -> tuple[bool, int, int]:
        nodes = {record.case.node for record in places[point].values()}
        return point.reference in nodes, point.timesteps, points.work(point)

    point = max(ranked, key=tells)
    often = sum(set(ranked[point]) <= set(other) for other in ranked.values())
    return Least(point, ranked[point], often, len(ranked))


def _least(run: Run, records: list[Record], name: str, topic: str) -> list[Finding]:
    found = _least_in(records, name)
    if found is None:
        return []
    first = next(iter(found.winners.values()))
    names = points.naming(record for record in records if record.case.point == found.point)
    winners = units.listing([names(record.case) for record in found.winners.values()])
    known = points.references(run)
    others = [record for record in found.winners.values() if points.reference_for(record.case, known) is not record]
    text = f"{winners} with {units.measured(name, first)}"
    text += f" ({_standard(run, first, name, names)})." if len(others) == len(found.winners) else "."
    for record in others:
        cost = costs(record, ("step_flops", "step_time_s"), known)
        text += f" Cost of {names(record.case)}: {cost or f'not known against {record.case.reference}'}."
    if found.compared > 1:
        text += f" Least, alone or shared, at {found.often} of the {found.compared} points compared."
    return [Finding(topic, f"{points.fixed_part(found.point)}. {names.note}".removesuffix(". "), text)]


def _standard(run: Run, record: Record, name: str, names: points.Naming) -> str:
    """What the reference needs at the point of a record, or why that is not known."""
    reference, base = points.reference_for(record.case, points.references(run)), record.case.reference
    if reference is not None:
        return f"{names(reference.case)}: {units.measured(name, reference)}"
    at_point = [other for other in run if other.case == record.case.point]
    return f"{base} ended as {at_point[-1].status.value} there" if at_point else f"{base} not measured there"


def costs(record: Record, names: Sequence[str], known: Mapping[Case, Record]) -> str:
    """Returns ratios to the reference as `1.53 × lif in step time and ...`; empty where there is none."""
    found = {name: points.ratio_of(name, record, known) for name in names}
    base = record.case.reference
    return units.listing(
        [f"{points.ratio_text(r)} × {base} in {BY_NAME[name].label}" for name, r in found.items() if r]
    )


def _paper_ratio(run: Run, records: list[Record]) -> list[Finding]:
    """How many times less the paper's node retains than the standard LIF; it means nothing without its T."""
    known = points.references(run)
    ratios = {
        record.case.timesteps: 1 / found.value
        for record in sorted(records, key=lambda record: record.case.timesteps)
        if record.case.node == "revlif" and (found := points.ratio_of("retained_bytes", record, known)) and found.value
    }
    shown = ", ".join(f"{units.times(times)} times at T = {t}" for t, times in ratios.items())
    case = records[0].case
    where = f"{case.workload}, {case.dtype}, {case.device}"
    text = f"lif's retained bytes over revlif's: {shown}; each holds at its T only."
    return [Finding("Memory ratio", where, text)] if ratios else []


def _trust(run: Run) -> list[Finding]:
    """One finding per dtype and set of T at which gradients are right or wrong, with the nodes of which it is true; one
    for a user's model as it is that nothing could judge."""
    names, order = points.naming(run), points.variants(run)
    compared = sorted((r for r in run if r.fidelity is not None), key=lambda r: order.index(r.case.variant))
    nodes = points.grouped(compared, lambda record: (names(record.case), record.case.dtype))
    alike = points.grouped(nodes, lambda n: (n[1], _steps(nodes[n], Status.OK), _steps(nodes[n], Status.WRONG)))
    found = []
    for (dtype, *_), members in alike.items():
        records = [record for node in members for record in nodes[node]]
        parts = [_errors("right", records, Status.OK), _errors("wrong", records, Status.WRONG)]
        if any(parts):
            where = f"{', '.join(name for name, _ in members)}; {dtype}"
            found.append(Finding("Gradient", where, f"{'; '.join(filter(None, parts))}."))
    models = {(names(r.case), r.case.dtype): r.reason for r in run if r.status is Status.OK and r.reason}
    for (name, dtype), reason in models.items():
        text = f"{reason}. What is done to the model is held against the model itself."
        found.append(Finding("Gradient", f"{name}; {dtype}", text))
    return found + not_judged(run)


def not_judged(run: Run) -> list[Finding]:
    """One finding with the nodes that are ranked although their run left out the pass that judges the gradient."""
    found, names = points.unjudged(run), points.naming(run)
    where = ", ".join(dict.fromkeys(names(record.case) for record in found))
    count = "" if len(found) == len(run.records) else f" in {len(found)} of {len(run.records)} cases"
    text = f"not judged{count}: the run left out the pass `fidelity`; what is ranked here may be wrong."
    return [Finding("Gradient", where, text)] if found else []


def uncounted(run: Run) -> list[Finding]:
    """Why operations were not counted: one finding per reason, with the cases of which it is true."""
    names, reasons = points.naming(run), dict.fromkeys(record.uncounted for record in run if record.uncounted)
    return [
        Finding(
            "Operations",
            ", ".join(dict.fromkeys(names(record.case) for record in run if record.uncounted == reason)),
            f"not counted: {reason}",
        )
        for reason in reasons
    ]


def _steps(records: Iterable[Record], status: Status) -> tuple[int, ...]:
    return tuple(sorted({record.case.timesteps for record in records if record.status is status}))


def _errors(word: str, records: list[Record], status: Status) -> str:
    """Such as `right at T = 4, 8 (worst error 6.0e-06, tolerance 1.0e-03)`."""
    known = [record.fidelity for record in records if record.fidelity is not None and record.status is status]
    if not known:
        return ""
    at = ", ".join(map(str, _steps(records, status)))
    shown_errors = []
    for fidelity in known:  # that of the input's gradient, or where it is within its tolerance, one that is not
        name = next(iter(fidelity.beyond_tolerance()), "gradient_error")
        shown_errors.append((fidelity.errors().get(name, fidelity.gradient_error), fidelity.allowed(name)))
    error, limit = max(shown_errors, key=lambda pair: math.inf if math.isnan(pair[0]) else pair[0])
    shown = units.number(BY_NAME["gradient_error"], error)
    return f"{word} at T = {at} (worst error {shown}, tolerance {limit:.1e})"


def _saving(run: Run) -> list[Finding]:
    """The paper's claim: what the inverse gradient saves over RevNet's, at points where both are right."""
    right = {record.case: record for record in run if record.status is Status.OK}
    of_flops, of_time = [], []
    for case, record in right.items():
        revnet = right.get(case.model_copy(update={"node": "revlif-revnet"}))
        if case.node != "revlif" or revnet is None:
            continue
        flops = [BY_NAME["backward_recompute_flops"].read(each) for each in (record, revnet)]
        if flops[0] is not None and flops[1]:
            of_flops.append(1 - flops[0] / flops[1])
        took = [points.ratio_of("backward_time_s", each) for each in (record, revnet)]
        if took[0] and took[1] and took[0].decided and took[1].decided and points.one_host(record, revnet):
            of_time.append(1 - took[0].value / took[1].value)
    parts = []
    for saved, what in (
        (of_flops, "fewer backward and recompute FLOPs"),
        (of_time, "less backward time as a ratio to lif's"),
    ):
        if saved:
            span = dict.fromkeys([units.percent(min(saved)), units.percent(max(saved))])
            parts.append(f"{' to '.join(span)} {what} ({len(saved)} points)")
    text = f"revlif takes {units.listing(parts)} than revlif-revnet."
    return [Finding("Inverse gradient", "revlif against revlif-revnet", text)] if parts else []


def _accuracy(run: Run) -> list[Finding]:
    """One finding for each size at which networks were trained, over all seeds."""
    trained = (record for record in run if record.accuracy is not None and record.status is Status.OK)
    places = points.grouped(trained, lambda record: points.fixed_part(record.case.model_copy(update={"seed": 0})))
    return [Finding("Accuracy", place, _scores(records)) for place, records in places.items()]


def _scores(records: list[Record]) -> str:
    """Mean and deviation of each node over its seeds."""
    names, texts = points.naming(records), []
    for name, seeds in points.grouped(records, lambda record: names(record.case)).items():
        scores = [BY_NAME["accuracy"].read(record) or 0.0 for record in seeds]
        texts.append(f"{name} {units.spread(scores)}{f' ({len(seeds)} seeds)' if len(seeds) > 1 else ''}")
    return f"{', '.join(texts)}. {names.note}".strip()


def _contention(run: Run) -> list[Finding]:
    """Says where threads had to wait for a core while they were timed, and whether other work can be the reason."""
    timed = [record.time for record in run if record.time is not None]
    kept = [time for time in timed if time.rounds_contended]
    alone = [time for time in kept if time.others_cores is not None and time.others_cores < CONTENDED_SHARE]
    texts = []
    if others := sum(time.rounds_contended for time in kept if time not in alone):
        texts.append(f"other work held the processor in {others} rounds that were kept")
    if own := sum(time.rounds_contended for time in alone):
        most = max(time.others_cores or 0.0 for time in alone)
        texts.append(
            f"threads waited for a core in {own} rounds that were kept, while other processes took at most {most:.2g} "
            "cores: the case's own threads are more than the cores"
        )
    text = f"{'; '.join(texts)}. {_NOT_RANKED}"
    return [Finding("Contention", f"{len(kept)} of {len(timed)} timed cases", text)] if kept else []


def _one_process(run: Run) -> list[Finding]:
    """Says which times have no interval because one process took them."""
    timed = [(record, found) for record in run if (found := points.ratio_of("step_time_s", record))]
    alone = [r for r, found in timed if not found.decided and r.time and len(r.time.rounds_by_process) < 2]
    asked = run.header.settings.get("processes")
    flag = "--processes" if run.header.command[:1] == ("revsnn-bench",) else "--run-processes"
    advice = f" Pass {flag} 3, or leave it out." if asked else ""
    if asked and asked > 1:
        advice = f" Of the {asked} that were to take them, the second ended without times, as at a limit."
    text = f"one process took them, and processes differ by more than the rounds of one tell. {_NOT_RANKED}{advice}"
    return [Finding("Times", f"{len(alone)} of {len(timed)} timed cases", text)] if alone else []


def _warnings(run: Run) -> list[Finding]:
    """Each warning once, with the node that gave it and the T at which it did; of numbers in it, those of the first."""
    names = points.namings(run)
    given: dict[tuple[str, str, str], dict[int, str]] = defaultdict(dict)
    for record in run:
        if record.fidelity is not None and record.fidelity.warning:
            kind = _NUMBER.sub("#", record.fidelity.warning)
            key = names(record.case), record.case.dtype, kind
            given[key].setdefault(record.case.timesteps, record.fidelity.warning)
    return [
        Finding("Warning", f"{name}, {dtype}, at T = {', '.join(map(str, sorted(texts)))}", texts[min(texts)])
        for (name, dtype, _), texts in given.items()
    ]


def by_kind(record: Record) -> dict[str, int]:
    """Retained bytes by the kind of module that made them, in the order of `KINDS`; nothing where not measured."""
    modules = None if record.memory is None else record.memory.retained_by_module_bytes
    sizes: dict[str, int] = defaultdict(int)
    for module, size in (modules or {}).items():
        sizes[next((part for part in module.split(".") if part in KINDS), REST)] += size
    return {kind: sizes[kind] for kind in (*KINDS, REST) if sizes[kind]}


def module_rows(run: Run) -> list[tuple[str, ...]]:
    """One row per case that ended well and whose modules are named by their kind: the case, its bytes, each kind's.

    In a model of the user's a name says nothing of the kind: a node called `sn` would be of no kind.
    """
    rows, names = [], points.namings(run)
    for record in run:
        sizes = {} if is_own(record.case.workload) else by_kind(record)
        if record.status is not Status.OK or record.memory is None or not set(sizes) - {"input", REST}:
            continue
        shown = [units.size(sizes.get(kind, 0)) for kind in (*KINDS, REST)]
        rows.append((names.id(record.case), units.measured("retained_bytes", record), *shown))
    return rows


def own_module_rows(run: Run) -> list[tuple[str, ...]]:
    """One row per case of a user's model that ended well: the case, its bytes, those of its modules, largest first."""
    rows: list[tuple[str, ...]] = []
    for record in run:
        modules = record.memory and record.memory.retained_by_module_bytes
        if record.status is not Status.OK or not modules or not is_own(record.case.workload):
            continue
        ordered = sorted(modules.items(), key=lambda pair: -pair[1])
        parts = [f"{name}: {units.size(size)}" for name, size in ordered[:_MOST_MODULES] if size]
        if left := sum(size for _, size in ordered[_MOST_MODULES:]):
            parts.append(f"{REST}: {units.size(left)}")
        rows.append((record.case.id, units.measured("retained_bytes", record), ", ".join(parts) or units.ABSENT))
    return rows


def node_and_network(run: Run) -> list[tuple[str, str]]:
    """Per node a sentence: the bytes of lif over its own, by itself and in each network of the run at the same T."""
    known, names = points.references(run), points.naming(run)
    alone: dict[tuple[str, int], float] = {}
    inside: dict[tuple[str, int], list[str]] = defaultdict(list)
    for record in run:
        found, key = points.ratio_of("retained_bytes", record, known), (names(record.case), record.case.timesteps)
        if found is None or points.reference_for(record.case, known) is record:
            continue
        if record.case.workload == "layer":
            alone[key] = found.value
        elif found.value:
            inside[key].append(f"{units.times(1 / found.value)} in {record.case.workload}")
    parts: dict[str, list[str]] = defaultdict(list)
    for (name, t), places in sorted(inside.items(), key=lambda pair: pair[0][1]):
        if (name, t) in alone:
            over = units.times(1 / alone[name, t]) if alone[name, t] else "infinitely many (0 B)"
            shown = units.listing(list(dict.fromkeys(places)))
            parts[name].append(f"{over} by itself, {shown} (T = {t})")
    return [(name, f"lif retains so many times as much: {'; '.join(texts)}.") for name, texts in parts.items()]
