"""Records as tables: exact rows for CSV and JSON files, the dictionary of their columns, and tables for people.

In a file, what was not measured is empty (CSV) or null (JSON), and a measured NaN stays visible; the same run always
gives the same bytes. `columns` are those of a sweep table in Markdown and in a terminal.
"""

import csv
import io
import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from revsnn_bench.case import CASE_FIELDS, Case
from revsnn_bench.metrics import BY_NAME, METRICS, measured
from revsnn_bench.records import Record, Run, Status
from revsnn_bench.report import points, units

if TYPE_CHECKING:
    import pandas as pd

Value = str | int | float | None
Row = dict[str, Value]

IDENTITY = ("id", "node", "variant", *(row.name for row in CASE_FIELDS[1:]), "status")
LONG_COLUMNS = (*IDENTITY, "metric", "value", "unit", "ratio", "ratio_low", "ratio_high")
_NOTES = ("times_decided", "host", "reason", "warning", "tolerance", "peak_phase", "peak_module")
WIDE_COLUMNS = (
    *IDENTITY,
    *(metric.name for metric in METRICS),
    *(f"{metric.name}_ratio" for metric in METRICS if metric.has_ratio),
    *_NOTES,
)


def identity(record: Record) -> Row:
    """Returns what was asked for and how it ended."""
    case = record.case
    values = {row.name: case.value(row) for row in CASE_FIELDS}
    return {"id": case.id, "variant": case.variant, "status": record.status.value, **values}


def long_rows(run: Run) -> list[Row]:
    """Returns one row per case and measured metric; a case without any has one row without a metric.

    Values are in the unit of the column `unit`. A row with NaN was measured as NaN; what was not measured has no row.
    """
    known = points.references(run)
    rows: list[Row] = []
    for record in run:
        values = measured(record)
        if not values:
            rows.append(dict.fromkeys(LONG_COLUMNS) | identity(record))
        for name, value in values.items():
            row = dict.fromkeys(LONG_COLUMNS) | identity(record)
            row |= {"metric": name, "value": value, "unit": BY_NAME[name].unit}
            if ratio := points.ratio_of(name, record, known):
                row |= {"ratio": ratio.value, "ratio_low": ratio.low, "ratio_high": ratio.high}
            rows.append(row)
    return rows


def wide_rows(run: Run) -> list[Row]:
    """Returns one row per case, in the order of the run, each with every column of `WIDE_COLUMNS`."""
    known = points.references(run)
    rows: list[Row] = []
    for record in run:
        row: Row = dict.fromkeys(WIDE_COLUMNS) | identity(record) | measured(record)
        for name in BY_NAME:
            if ratio := points.ratio_of(name, record, known):
                row[f"{name}_ratio"] = ratio.value
        if times := points.ratio_of("step_time_s", record):
            row["times_decided"] = times.decided
        row["host"], row["reason"] = record.host, record.reason
        if record.fidelity is not None:
            row["warning"], row["tolerance"] = record.fidelity.warning, record.fidelity.tolerance
        if record.memory is not None:
            row["peak_phase"], row["peak_module"] = record.memory.peak_phase, record.memory.peak_module
        rows.append(row)
    return rows


def long_csv(run: Run) -> str:
    """Returns one line per case and metric; see `long_rows`."""
    return _csv(long_rows(run), LONG_COLUMNS)


def wide_csv(run: Run) -> str:
    """Returns one line per case; see `wide_rows`."""
    return _csv(wide_rows(run), WIDE_COLUMNS)


def frame(run: Run, *, long: bool = False) -> "pd.DataFrame":
    """Returns the rows of `wide_rows`, or of `long_rows`, for analysis with pandas.

    Bytes, operations and settings are integers that may be missing (Int64), other numbers float64.
    """
    import pandas as pd  # not above: it would take half of the time of every command's start

    columns = LONG_COLUMNS if long else WIDE_COLUMNS
    table = pd.DataFrame(long_rows(run) if long else wide_rows(run), columns=list(columns), dtype=object)
    whole = {row.name for row in CASE_FIELDS if row.is_whole}
    whole |= {metric.name for metric in METRICS if metric.unit in ("B", "FLOP")}
    numbers = {name for name in columns if name in BY_NAME or "ratio_" in name} | {"value", "tolerance"}
    types = {name: "Int64" if name in whole else "float64" for name in columns if name in whole | numbers}
    return table.astype(types)


def wide_json(run: Run) -> str:
    """Returns a flat JSON document: run, schema version, environment, and `cases`, one object per case.

    What was not measured is null; NaN and infinities are the strings "NaN", "Infinity" and "-Infinity",
    because JSON has no such numbers.
    """
    header = run.header
    document = {
        "run_id": header.run_id,
        "schema_version": header.schema_version,
        "started_at": header.started_at,
        "environment": header.environment.model_dump(mode="json"),
        "cases": [{name: _json_value(value) for name, value in row.items()} for row in wide_rows(run)],
    }
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _csv(rows: Sequence[Row], columns: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    # The csv module writes None as nothing and floats by repr: NaN stays visible as `nan`.
    writer.writerows({name: _plain(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


_FORMULA = ("=", "+", "-", "@", "\t")


def _plain(value: Value) -> Value:
    """Text that a spreadsheet would run as a formula, behind an apostrophe; numbers as they are.

    Carriage returns become line feeds: the csv module does not quote them, and readers take them for the end of a row.
    """
    if not isinstance(value, str):
        return value
    text = value.replace("\r\n", "\n").replace("\r", "\n")
    return f"'{text}" if text.startswith(_FORMULA) else text


def _json_value(value: Value) -> Value:
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


_DICTIONARY_COLUMNS = ("column", "file", "unit", "meaning", "better", "in_repeated_runs")
_MEANINGS = {
    "id": "Name of the case: workload/node/size/dtype/device.",
    "variant": "The node with the options that differ from its defaults.",
    **{row.name: row.meaning for row in CASE_FIELDS},
    "status": "How the case ended: ok, wrong, unverified, approximate, oom, timeout, error or skipped.",
    "metric": "Name of the quantity; empty for a case without any.",
    "value": "The quantity, in the unit of the column `unit`.",
    "unit": "Unit of the value: B is bytes, FLOP operations, s seconds, 1 a pure number.",
    "ratio": "Value over that of the standard LIF at the same point; of a user's model, over that as it is.",
    "ratio_low": "Lower end of the interval of a ratio of times; empty where it is not decided.",
    "ratio_high": "Upper end of the interval of a ratio of times; empty where it is not decided.",
    "times_decided": "Whether the ratios of times can be believed: not where threads had to wait for a core, or one "
    "process alone took them.",
    "host": "Host of the cluster that measured it; empty where the run has one machine.",
    "reason": "Why the case did not end as ok.",
    "warning": "The warning that the node gave, word for word.",
    "tolerance": "Largest gradient error that counts as right for this dtype.",
    "peak_phase": "Phase in which the peak occurred.",
    "peak_module": "Module in which the peak occurred.",
}


def columns_csv() -> str:
    """Returns the data dictionary of the wide and the long CSV file; every run has the same columns."""
    rows: list[Row] = []
    for column in dict.fromkeys([*WIDE_COLUMNS, *LONG_COLUMNS]):
        files = [name for name, known in (("wide", WIDE_COLUMNS), ("long", LONG_COLUMNS)) if column in known]
        cells = (column, " and ".join(files), *_described(column))
        rows.append(dict(zip(_DICTIONARY_COLUMNS, cells, strict=True)))
    return _csv(rows, _DICTIONARY_COLUMNS)


def _described(column: str) -> tuple[str, str, str, str]:
    if column in BY_NAME:
        metric = BY_NAME[column]
        return metric.unit, metric.meaning, metric.better or "", "exact" if metric.deterministic else "varies"
    base = column.removesuffix("_ratio")
    if base != column:
        return "1", _MEANINGS["ratio"].replace("Value", base), BY_NAME[base].better or "", ""
    return "", _MEANINGS[column], "", ""


def metric_rows(run: Run) -> list[tuple[str, str, str, str, str]]:
    """Returns name, label, meaning, direction and repeatability of each metric that the run holds."""
    present = set().union(*(measured(record) for record in run))
    return [
        (
            metric.name,
            metric.label,
            metric.meaning,
            f"{metric.better} is better" if metric.better else units.ABSENT,
            "exact" if metric.deterministic else "varies",
        )
        for metric in METRICS
        if metric.name in present
    ]


def environment_text(run: Run) -> str:
    """Returns where and how the run was measured, in words."""
    header, place = run.header, run.header.environment
    gpu = f" and one {place.gpu} (driver {place.driver}, CUDA {place.cuda})" if place.gpu else ""
    code = f"revsnn-bench {place.package}"
    if place.commit:
        code += f" at commit {place.commit[:12]}{', with changes' if place.dirty else ''}"
    threads = "1 thread" if place.threads == 1 else f"{place.threads} threads"
    cores = "1 core" if place.cores == 1 else f"{place.cores} cores"
    texts = [
        f"Measured on {cores} of {place.cpu_model} with {units.size(place.memory_bytes)} of memory{gpu}, in {threads}, "
        f"under {place.platform}, with torch {place.torch}, Python {place.python} and {code}.",
        f"Started at {header.started_at}.",
    ]
    passes, processes = header.settings.get("passes"), header.settings.get("processes")
    if isinstance(passes, list):
        texts.append(f"Passes: {', '.join(map(str, passes))}.")
    if processes and passes and "time" in passes:
        texts.append(f"A time is taken in {'one process' if processes == 1 else f'{processes} processes'}.")
    if header.settings.get("keep_freed"):
        texts.append("Freed memory was kept, so that no time contains the mapping of new pages.")
    return " ".join(texts)


_OF_A_GPU = ("cuda", "driver", "gpu")
"""What a machine without a GPU has none of."""


def environment_rows(run: Run) -> list[tuple[str, str]]:
    """Returns every field of the environment and of the run, as name and text; of hosts, in which they differ."""
    fields = run.header.environment.model_dump(mode="json")
    hosts = {name: environment.model_dump(mode="json") for name, environment in run.hosts.items()}
    differing = [name for name, value in fields.items() if any(host[name] != value for host in hosts.values())]
    fields = {name: value for name, value in fields.items() if name not in differing}
    fields |= {f"host {name}": {field: host[field] for field in differing} for name, host in hosts.items()}
    if fields.get("sources", "") is None:  # nothing but installed packages
        del fields["sources"]
    fields |= {"command": " ".join(run.header.command), "settings": run.header.settings}
    return [(name, "none" if name in _OF_A_GPU and value is None else _flat(value)) for name, value in fields.items()]


def _flat(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in sorted(value.items())) or "none"
    return "not known" if value is None else str(value)


class Column(NamedTuple):
    """A heading and what to show of a record; numbers are aligned to the right."""

    heading: str
    cell: Callable[[Record], str]
    is_number: bool = True


APPROXIMATE = (
    "What these methods compute is not meant to be the gradient of backpropagation through time. The bias is the L2 "
    "distance to that gradient, in float64 and of the same forward, over its norm; 0 is exact, 1 no better than no "
    "gradient. They are ranked nowhere and have no ratio; the last column is the peak of exact backpropagation."
)
APPROXIMATE_HEADINGS = ("case", "bias", "cosine", "by module", "retained", "peak", "step time", "peak of lif")


def approximate_rows(run: Run) -> list[tuple[str, ...]]:
    """Returns one row per case of an approximate method, in the order of `APPROXIMATE_HEADINGS`."""
    known, names = points.references(run), points.namings(points.approximate(run))
    rows = []
    for record in points.approximate(run):
        lif, bias = points.reference_for(record.case, known), record.fidelity and record.fidelity.gradient_bias
        modules = bias.by_module.items() if bias else ()
        rows.append(
            (
                names.id(record.case),
                units.fraction(bias.relative) if bias else units.ABSENT,
                units.fraction(bias.cosine) if bias else units.ABSENT,
                ", ".join(f"{name} {units.fraction(relative)}" for name, (relative, _) in modules) or units.ABSENT,
                *(units.measured(name, record) for name in ("retained_bytes", "peak_bytes", "step_time_s")),
                units.ABSENT if lif is None else units.measured("peak_bytes", lif),
            )
        )
    return rows


def accuracy_table(run: Run) -> tuple[str, tuple[str, ...], list[tuple[str, ...]]]:
    """Returns what all trained nodes share, headings, and a row for each case that was trained."""
    shown = [metric for metric in METRICS if metric.family == "accuracy"]
    names = points.namings(record for record in run if record.accuracy is not None)
    rows = [
        (
            names.id(record.case),
            record.status.value,
            *(units.number(metric, metric.read(record)) for metric in shown),
            f"{known.data}, {known.epochs} epoch{'s' * (known.epochs > 1)}",
            str(known.train_samples),
            str(known.test_samples),
        )
        for record in run
        if (known := record.accuracy) is not None
    ]
    headings = ("case", "status", *(metric.label for metric in shown), "data", "trained on", "tested on")
    return names.note, headings, rows


LEAST_COPIES = {"forward": 1.0, "backward": 1.5}
"""Of the input: forward reads the input and writes the output, backward reads output and gradient and writes one."""

BANDWIDTH_HEADINGS = (
    "T",
    "input",
    "node",
    "copy",
    "copy, GB/s",
    *(f"{phase}, {what}" for phase in LEAST_COPIES for what in ("copies", "of the bandwidth")),
    "compile time",
)
BANDWIDTH = (
    "A copy reads the input once and writes it once, in the same rounds as the node beside it; one copy is the least "
    "for forward, one and a half for backward, and the share is that over what was taken. Beyond 100 % data came from "
    "a cache, or other work slowed the copy. Compilation is what the first step of a process takes beyond a later one, "
    f"with nothing compiled on disk; {units.ABSENT} where nothing is compiled."
)
NEW_PAGES = "Results above 32 MiB lie in memory that the system mapped anew in each step, and their times contain that."
NO_NEW_PAGES = "The process kept the memory that it freed (`--keep-freed`): no time contains the mapping of new pages."


def copies(record: Record) -> dict[str, float]:
    """Returns in how many copies of the input each phase was done, where both were timed."""
    found = {phase: BY_NAME[f"{phase}_copies"].read(record) for phase in LEAST_COPIES}
    return {phase: taken for phase, taken in found.items() if taken}


def bandwidth_shares(record: Record) -> dict[str, float]:
    """Returns the least traffic of each phase over what was done in its time, 1 for all of a copy's bandwidth."""
    return {phase: LEAST_COPIES[phase] / taken for phase, taken in copies(record).items()}


def compared_nodes(run: Run) -> dict[Case, dict[str, Record]]:
    """The nodes timed by themselves, by variant, at every size where one of several was told its backend."""
    groups: dict[Case, dict[str, Record]] = defaultdict(dict)
    for record in run:
        if record.status is Status.OK and record.case.workload == "layer" and copies(record):
            place = record.case.point.model_copy(update={"node_options": ()})
            groups[place][record.case.variant] = record
    return {
        place: found
        for place, found in groups.items()
        if len(found) > 1 and any("backend" in record.case.options for record in found.values())
    }


def bandwidth_rows(run: Run) -> list[tuple[str, ...]]:
    """Returns one row per node and size, in the order of `BANDWIDTH_HEADINGS`: sizes as they grow, in each the fastest
    node first."""
    groups = compared_nodes(run)
    names = points.naming(record for found in groups.values() for record in found.values())

    def input_bytes(place: Case) -> int:
        return place.timesteps * points.neurons(place) * points.ITEMSIZE[place.dtype]

    rows = []
    for place in sorted(groups, key=lambda place: (input_bytes(place), place.timesteps)):
        for record in sorted(groups[place].values(), key=lambda record: sum(copies(record).values())):
            assert record.time is not None
            size, copy_s = input_bytes(place), median(record.time.copy_time_s)
            row = [str(place.timesteps), units.size(size), names(record.case), units.seconds(copy_s)]
            row.append(units.times(2 * size / copy_s / 1e9))
            for phase, taken in copies(record).items():
                row += [units.times(taken), units.percent(LEAST_COPIES[phase] / taken)]
            row.append(units.ABSENT if record.compile_time_s is None else units.seconds(record.compile_time_s))
            rows.append(tuple(row))
    return rows


def about_pages(run: Run) -> str:
    """Whether the times of `bandwidth_rows` contain the first touch of new pages."""
    records = [record for found in compared_nodes(run).values() for record in found.values()]
    kept = {record.time.freed_memory_kept for record in records if record.time is not None}
    return NO_NEW_PAGES if kept == {True} else NEW_PAGES


def value_cell(name: str, record: Record) -> str:
    """Returns a value for people; of a case that is not `ok` all but its errors is withheld."""
    if record.status is not Status.OK and BY_NAME[name].family != "fidelity":
        return units.ABSENT
    return units.measured(name, record)


def columns(run: Run, axis: points.Axis | None, names: points.Naming, *, compact: bool) -> list[Column]:
    """Returns the columns of a sweep table, at most 100 characters wide if `compact`; with no axis, those of cases
    outside of all sweeps, which show their whole point."""
    known, base = points.references(run), points.reference_name(run)

    def value(name: str) -> Column:
        return Column(BY_NAME[name].label, lambda record: value_cell(name, record))

    def ratio(name: str, heading: str) -> Column:
        return Column(heading, lambda record: points.ratio_text(points.ratio_of(name, record, known)))

    if axis is None:
        place = Column("point", lambda record: " ".join(record.case.place), is_number=False)
    else:
        place = Column(points.AXES[axis], lambda record: str(points.position(record, axis)))
    shown = [
        place,
        Column("node", lambda record: names(record.case), is_number=False),
        Column("status", lambda record: record.status.value, is_number=False),
        value("retained_bytes"),
        ratio("retained_bytes", f"× {base}" if compact else f"retained × {base}"),
        value("peak_bytes"),
        ratio("peak_bytes", f"× {base}" if compact else f"peak × {base}"),
    ]
    if compact:
        time = Column(f"time × {base}", lambda record: ratio_value("step_time_s", record, known))
        error = Column("error", lambda record: value_cell("gradient_error", record))
        return [*shown, time, error]
    return [
        *shown,
        value("process_peak_bytes"),
        value("state_bytes"),
        value("forward_flops"),
        value("backward_flops"),
        value("recompute_flops"),
        ratio("step_flops", f"step FLOPs × {base}"),
        value("step_time_s"),
        ratio("step_time_s", f"step time × {base}"),
        value("gradient_error"),
    ]


def ratio_value(name: str, record: Record, known: Mapping[Case, Record]) -> str:
    """Returns a ratio to the reference without its interval, which a terminal has no room for; with a question mark
    where it is not decided."""
    found = points.ratio_of(name, record, known)
    return units.ABSENT if found is None else f"{units.times(found.value)}{'' if found.decided else '?'}"
