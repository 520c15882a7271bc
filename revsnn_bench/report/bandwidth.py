"""How near nodes come to the memory bandwidth: the least traffic that a step can do with, over its time."""

from collections import defaultdict
from statistics import median

from revsnn_bench.case import Case
from revsnn_bench.metrics import BY_NAME
from revsnn_bench.records import Record, Run, Status
from revsnn_bench.report import units
from revsnn_bench.report.points import ITEMSIZE, Naming, naming, neurons

LEAST_COPIES = {"forward": 1.0, "backward": 1.5}
"""Of the input: forward reads the input and writes the output, backward reads output and gradient and writes one."""

HEADINGS = (
    "T",
    "input",
    "node",
    "copy",
    "copy, GB/s",
    *(f"{phase}, {what}" for phase in LEAST_COPIES for what in ("copies", "of the bandwidth")),
    "compile time",
)

READING = (
    "A copy reads the input once and writes it once, in the same rounds as the node beside it; one copy is the least "
    "for forward, one and a half for backward, and the share is that over what was taken. Beyond 100 % data came from "
    "a cache, or other work slowed the copy. Compilation is what the first step of a process takes beyond a later one, "
    f"with nothing compiled on disk; {units.ABSENT} where nothing is compiled."
)

NEW_PAGES = "Results above 32 MiB lie in memory that the system mapped anew in each step, and their times contain that."
NO_NEW_PAGES = "The process kept the memory that it freed (`--keep-freed`): no time contains the mapping of new pages."

Shares = dict[str, float]
"""Share of the copy's bandwidth, 1 for all of it, by phase."""


def shares(record: Record) -> Shares:
    """Returns the share of each phase whose time, and that of a copy, was measured."""
    copies = {phase: BY_NAME[f"{phase}_copies"].read(record) for phase in LEAST_COPIES}
    return {phase: LEAST_COPIES[phase] / taken for phase, taken in copies.items() if taken}


def compared_nodes(run: Run) -> dict[Case, dict[str, Record]]:
    """The nodes timed by themselves, by variant, at every size where one of several was told its backend."""
    groups: dict[Case, dict[str, Record]] = defaultdict(dict)
    for record in run:
        if record.status is Status.OK and record.case.workload == "layer" and shares(record):
            place = record.case.point.model_copy(update={"node_options": ()})
            groups[place][record.case.variant] = record
    return {place: found for place, found in groups.items() if len(found) > 1 and _names_a_backend(found)}


def bandwidth_rows(run: Run) -> list[tuple[str, ...]]:
    """One row per node and size, with the columns of `HEADINGS`: sizes as they grow, in each the fastest node first."""
    groups = sorted(compared_nodes(run).items(), key=lambda group: (_input_bytes(group[0]), group[0].timesteps))
    names = naming(record for _, found in groups for record in found.values())
    return [_row(place, record, names) for place, found in groups for record in sorted(found.values(), key=_copies)]


def about_pages(run: Run) -> str:
    """Whether times contain the first touch of new pages."""
    records = [record for found in compared_nodes(run).values() for record in found.values()]
    kept = {record.time.freed_memory_kept for record in records if record.time is not None}
    return NO_NEW_PAGES if kept == {True} else NEW_PAGES


def _row(place: Case, record: Record, names: Naming) -> tuple[str, ...]:
    assert record.time is not None
    size, copy_s, share = _input_bytes(place), median(record.time.copy_time_s), shares(record)
    phases = [
        text
        for phase in LEAST_COPIES
        for text in (units.times(LEAST_COPIES[phase] / share[phase]), units.percent(share[phase]))
    ]
    return (
        str(place.timesteps),
        units.size(size),
        names(record.case),
        units.seconds(copy_s),
        units.times(2 * size / copy_s / 1e9),
        *phases,
        units.ABSENT if record.compile_time_s is None else units.seconds(record.compile_time_s),
    )


def _names_a_backend(found: dict[str, Record]) -> bool:
    return any("backend" in record.case.options for record in found.values())


def _input_bytes(case: Case) -> int:
    return case.timesteps * neurons(case) * ITEMSIZE[case.dtype]


def _copies(record: Record) -> float:
    return sum(LEAST_COPIES[phase] / share for phase, share in shares(record).items())
