"""A run as a Markdown report for someone who has not read the code."""

from collections.abc import Iterable, Sequence
from urllib.parse import quote

from tabulate import tabulate

from revsnn_bench.records import Record, Run, Status
from revsnn_bench.report import points, tables, units
from revsnn_bench.report.canvas import Figure
from revsnn_bench.report.findings import KINDS, REST, findings, module_rows, own_module_rows

_TITLES = {"timesteps": "Time steps T", "batch": "Batch B", "depth": "Depth D"}
_STATED = ("retained_bytes", "peak_bytes", "step_flops", "step_time_s")


def render(run: Run, pictures: Sequence[Figure] = ()) -> str:
    """Returns the report, with the figures whose files lie beside it; the same run always gives the same text."""
    found = [(each.topic, each.where, each.text) for each in findings(run)]
    note, headings, trained = tables.accuracy_table(run)
    sections = [
        f"# Benchmark report {units.markdown(run.header.run_id)}",
        _intro(run),
        _section("Findings", [], ("about", "where", "what was found"), found),
        _pictures(run, pictures),
        _failures(run),
        _section(
            "Approximate gradients", [tables.APPROXIMATE], tables.APPROXIMATE_HEADINGS, tables.approximate_rows(run)
        ),
        *(_sweep_section(run, axis) for axis in points.AXES),
        f"## Single points\n\n{_record_table(run, None, left)}" if (left := points.rest(run)) else "",
        _section(
            "Against a copy of the input",
            [f"{tables.BANDWIDTH} {tables.about_pages(run)}"],
            tables.BANDWIDTH_HEADINGS,
            tables.bandwidth_rows(run),
            [heading != "node" for heading in tables.BANDWIDTH_HEADINGS],
        ),
        _growth_section(run),
        _section("Accuracy", [units.markdown(note)], headings, trained),
        _module_section(run),
        _peak_section(run),
        _reading(run),
        f"## Environment\n\n{units.markdown(tables.environment_text(run))}\n\n"
        + table(("field", "value"), tables.environment_rows(run)),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def bullets(lines: Iterable[str]) -> str:
    """Returns a Markdown list of lines that are Markdown already."""
    return "\n".join(f"- {line}" for line in lines)


def table(headings: Sequence[str], rows: Iterable[Sequence[object]], numbers: Sequence[bool] = ()) -> str:
    """Returns a GitHub table whose cells show foreign text word for word."""
    cells = [[units.markdown(cell) for cell in row] for row in rows]
    aligned = ["right" if number else "left" for number in numbers] or ["left"] * len(headings)
    return tabulate(
        cells,
        headers=[units.markdown(heading) for heading in headings],
        tablefmt="github",
        disable_numparse=True,
        colalign=aligned if cells else None,
    )


def _pictures(run: Run, pictures: Sequence[Figure]) -> str:
    """The figures, each with its caption; they follow the reader's light or dark setting by themselves."""
    shown = ["## Figures"] if pictures else []
    for each in pictures:
        title, file = units.markdown(each.title), quote(f"{run.header.run_id}{each.suffix}")
        shown.append(f"### {title}\n\n![{title}]({file})\n\n{units.markdown(each.caption)}")
    return "\n\n".join(shown)


def _record_table(run: Run, axis: points.Axis | None, records: Sequence[Record]) -> str:
    """The table of some records, below the options that all its nodes share."""
    names = points.namings(records)
    shown = tables.columns(run, axis, names, compact=False)
    rows = [[column.cell(record) for column in shown] for record in records]
    made = table([column.heading for column in shown], rows, [column.is_number for column in shown])
    return f"{units.markdown(names.note)}\n\n{made}" if names.note else made


def _intro(run: Run) -> str:
    header, environment = run.header, run.header.environment
    return (
        f"Measured on {units.markdown(run.place)} with torch {units.markdown(environment.torch)}, started "
        f"{units.markdown(header.started_at)}. One case is one node in one workload at one size, run in a "
        f"process of its own. Ratios (× {points.reference_name(run)}) are taken against {points.reference_text(run)} "
        "at the same size: below 1 means that the node needs less. 1 MiB is 2^20 bytes."
    )


def _section(
    title: str,
    texts: Sequence[str],
    headings: Sequence[str],
    rows: Sequence[Sequence[object]],
    numbers: Sequence[bool] = (),
) -> str:
    """A section with a table below some paragraphs, of which some may be empty; nothing where the table has no row."""
    return "\n\n".join([f"## {title}", *filter(None, texts), table(headings, rows, numbers)]) if rows else ""


def _failures(run: Run) -> str:
    """Every case that did not end as `ok`, with its reason."""
    failed = [record for record in points.exact(run) if record.status is not Status.OK]
    names = points.namings(failed)
    rows = [
        (
            names.id(record.case),
            record.status.value,
            tables.value_cell("gradient_error", record),
            record.reason or units.ABSENT,
        )
        for record in failed
    ]
    text = "They take part in no ranking and have no ratio; raw values of wrong cases are in the CSV and JSON files."
    texts, headings = (units.markdown(names.note), text), ("case", "status", "gradient error", "reason")
    return _section("Cases that did not end well", texts, headings, rows)


def _sweep_section(run: Run, axis: points.Axis) -> str:
    found = points.sweeps(run, axis)
    parts = [f"### {units.markdown(sweep.title)}\n\n{_record_table(run, axis, sweep.records)}" for sweep in found]
    return "\n\n".join([f"## {_TITLES[axis]}", *parts]) if parts else ""


def _growth_section(run: Run) -> str:
    """Retained and peak memory, FLOPs and time of a step; the other metrics follow from the files."""
    names = points.namings(run)
    rows = [
        (
            growth.metric,
            names(growth.fixed),
            growth.formula(),
            f"{points.AXES[axis]} = {', '.join(map(str, growth.at))}",
            ", ".join(map(str, growth.wrong_at)) or units.ABSENT,
            points.fixed_part(growth.fixed, without=axis),
        )
        for axis in points.AXES
        for growth in points.growths(run, axis, _STATED)
    ]
    text = (
        "b is the bytes of one number, N the neurons of the whole batch, T the time steps, "
        "D the depth. A line is exact, with no residual; a power is fitted to the logarithms. Bytes and "
        "FLOPs do not depend on whether the gradient is right, so wrong cases take part, and are named."
    )
    text = f"{text} {units.markdown(names.note)}".strip()
    headings = ("metric", "node", "growth", "measured over", "gradient wrong at", "fixed")
    return _section("Growth", [text], headings, rows)


def _module_section(run: Run) -> str:
    """What each network retains, by the kind of module that made it; the kinds sum to the total."""
    kinds = "; ".join(f"{kind}: {meaning}" for kind, meaning in KINDS.items())
    headings = ("case", "retained", *KINDS, REST)
    texts, numbers = (
        (units.markdown(points.namings(run).note), f"{kinds}."),
        [heading != "case" for heading in headings],
    )
    title = "Where the retained bytes come from"
    text = "`input` is the model's input; `unattributed` is what no module was seen to make."
    own = _section(f"{title}, by module", [text], ("case", "retained", "made by"), own_module_rows(run))
    return "\n\n".join(filter(None, [_section(title, texts, headings, module_rows(run), numbers), own]))


def _peak_section(run: Run) -> str:
    names = points.namings(run)
    rows = [
        (
            names.id(record.case),
            tables.value_cell("peak_bytes", record),
            record.memory.peak_phase,
            record.memory.peak_module,
            ", ".join(f"{kind} {units.size(n)}" for kind, n in record.memory.peak_by_category_bytes.items() if n),
        )
        for record in run
        if record.memory is not None and record.status is Status.OK
    ]
    headings = ("case", "peak", "phase", "module", "made of")
    return _section("Where the peak is", [units.markdown(names.note)], headings, rows)


def _reading(run: Run) -> str:
    return (
        "## How to read the columns\n\n"
        f"`{units.ABSENT}` means not measured, or withheld because the case did not end as ok. A case is "
        "`wrong` when its output or gradient disagrees with float64 backpropagation beyond the stated "
        "tolerance, and `approximate` when its method does not mean to compute that gradient. Time ratios are medians "
        "of rounds in which the two alternate in one process; brackets hold their "
        "interval, over several processes where the case was timed in several. The quotient of two step times in a "
        "table is another number, for they were taken minutes apart. What was timed beside other work, or "
        "too seldom, is not decided. A ratio in memory holds at its T only.\n\n"
        + table(("name in the files", "column", "meaning", "direction", "in repeated runs"), tables.metric_rows(run))
    )
