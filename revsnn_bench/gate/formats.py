"""A verdict in the formats of people, CI servers and benchmark services, by name in `RENDERERS`.

`junit` is one test case per benchmark case, in the schema of the Jenkins xUnit plugin as pytest writes it. `github` are
workflow commands that the runner of GitHub Actions turns into annotations, with the escapes of @actions/core; GitHub
shows the first ten errors of a step. `bencher` (Bencher Metric Format) and `customSmallerIsBetter`
(github-action-benchmark) hold the gated values without the verdict, for services that keep a history.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from io import StringIO
from itertools import groupby
from typing import NamedTuple
from xml.etree import ElementTree

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from revsnn_bench.exit_codes import ExitCode
from revsnn_bench.gate import FAILING, NO_VALUE, TIMES, Finding, Kind, Verdict
from revsnn_bench.metrics import BY_NAME, Number
from revsnn_bench.records import Record, Run
from revsnn_bench.report import units
from revsnn_bench.report.comparison import EXTENT, FieldDifference, ratio_name
from revsnn_bench.report.markdown import bullets, table
from revsnn_bench.report.points import ratio_of
from revsnn_bench.report.terminal import Grid

WHOLE_RUN = "the whole run"
HEADINGS = ("case", "metric", "before", "after", "change", "what")
NUMBERS = (False, False, True, True, True, False)
MOST_ROWS = 200
"""Rows of one Markdown table; GitHub drops a summary of more than 1 MiB as a whole."""

_UNITS = {"B": "bytes", "FLOP": "FLOP"}


def _value(metric: str, amount: Number | str | None) -> str:
    """Returns a value exactly: bytes and operations to the last one, ratios at three digits."""
    if amount is None:
        return units.ABSENT
    if isinstance(amount, str):
        return amount
    known = BY_NAME.get(metric)
    return f"{amount:,} {known.unit}" if known else f"{units.times(amount)} x reference"


def _change(finding: Finding) -> str:
    """Returns the difference, absolute and in percent; a dash where it has no meaning."""
    before, after = finding.before, finding.after
    if isinstance(before, str) or isinstance(after, str) or before is None or after is None:
        return units.ABSENT
    known = BY_NAME.get(finding.metric)
    share = "from 0" if before == 0 else f"{100 * (after - before) / before:+.3g} %"
    return f"{after - before:+,} {known.unit} ({share})" if known and math.isfinite(after - before) else share


def sentence(finding: Finding) -> str:
    """Returns a finding as `case: metric before -> after, change; what it is; detail`."""
    return f"{finding.case or WHOLE_RUN}: {_told(finding)}"


def _told(finding: Finding) -> str:
    """A finding without its case, for below it."""
    _, metric, before, after, change, what = _cells(finding)
    shown = "" if finding.before is None and finding.after is None else f" {before} -> {after}"
    if change != units.ABSENT:
        shown += f", {change}"
    return f"{metric}{shown}; {what}"


def _label(finding: Finding) -> str:
    """Returns the kind of a finding with its detail and what allowed it."""
    allowed = f"allowed by {finding.allowed_by}" if finding.allowed_by else ""
    detail = units.one_line(finding.detail)
    kind = "" if finding.kind is Kind.NOTE and detail else finding.kind.value
    return "; ".join(part for part in (kind, detail, allowed) if part)


def _difference(found: FieldDifference) -> str:
    """Returns a field of the environment, or how much was measured, with both values."""
    if found.field == EXTENT:
        return f"the run has {found.after}, and the baseline {found.before}"
    if found.field == NO_VALUE:
        return "nothing was compared, for no case has a gated value in both"
    return f"{found.field} is {found.before} in the baseline and {found.after} in the run"


def headline(verdict: Verdict) -> str:
    """Returns the verdict in one sentence."""
    pair = f"{verdict.run_id} against the baseline {verdict.baseline_id}"
    if verdict.incomparable:
        return f"NOT COMPARABLE: {pair}: {'; '.join(map(_difference, verdict.incomparable))}."
    cases = verdict.cases_compared
    compared = f"{verdict.values_compared} values of {cases} {'case' if cases == 1 else 'cases'} compared"
    better = f", {len(verdict.improvements)} better" if verdict.improvements else ""
    if verdict.passed:
        return f"PASS: {pair}: {compared}{better}, none worse."
    count = len(verdict.failures)
    return f"FAIL: {pair}: {compared}{better}, {count} {'fails' if count == 1 else 'fail'}."


def advice(verdict: Verdict) -> list[str]:
    """Returns what to do next, one sentence each; empty where there is nothing to do."""
    if any(found.field == EXTENT for found in verdict.incomparable):
        how = "" if verdict.policy.allow_partial else ", or judge the cases that it has: --partial"
        return [
            "A run that is not complete may have lost cases. Go on with `revsnn-bench run --resume`, or join shards "
            f"with `revsnn-bench merge`{how}."
        ]
    if any(found.field == NO_VALUE for found in verdict.incomparable):
        return [
            "Bytes and operations are gated. Measure both with the passes memory and flops, or with the pass time and "
            "gate by --time-ratio. Cases that failed or were skipped have no value, whatever --allow names."
        ]
    if verdict.incomparable:
        fields = " ".join(f"--allow-environment {found.field}" for found in verdict.incomparable)
        return [
            "Exact bytes and operations belong to one environment. Measure a baseline in the new one and keep it "
            f"with --update-baseline --force, or compare nevertheless: {fields}"
        ]
    said = []
    kinds = {finding.kind for finding in verdict.failures}
    if verdict.exit_code is ExitCode.CASE_FAILED:
        said.append("A case that failed was not compared. Fix it first, then run the gate again.")
    if kinds & {Kind.ADDED, Kind.REMOVED, Kind.SKIPPED, Kind.FAILED}:
        said.append("If a case is intended to appear, disappear or fail, name it: --allow 'ID or pattern'.")
    if kinds:
        said.append("If all of this is intended, make it the baseline: --update-baseline --force.")
    elif verdict.improvements:
        said.append("Update the baseline, or a later run can lose the gain unnoticed: --update-baseline.")
    return said


def print_verdict(verdict: Verdict, console: Console) -> None:
    """Prints the verdict, with a table where the terminal has room for it, else a line per finding below its case."""
    console.print(Text(units.one_line(headline(verdict)), style="green" if verdict.passed else "bold red"))
    for line in _allowed(verdict):
        console.print(Text(units.one_line(line), style="yellow"))
    for (title, findings), style in zip(_sections(verdict), ("red", "green", ""), strict=True):
        grid = Grid(title, HEADINGS, NUMBERS, map(_cells, findings), style)
        if findings and grid.fits(console.width):
            console.print(grid)
        elif findings:
            console.print(Text(title, style="italic"))
            for case, of_case in groupby(findings, key=lambda finding: finding.case or WHOLE_RUN):
                console.print(Text(units.one_line(case), style="bold"))
                for finding in of_case:
                    console.print(Padding(Text(units.one_line(_told(finding)), style=style), (0, 0, 0, 2)))
    for line in advice(verdict):
        console.print(Text(line))


def render_table(verdict: Verdict, run: Run) -> str:
    """Returns the same without colour, 160 columns wide."""
    text = StringIO()
    print_verdict(verdict, Console(file=text, width=160, color_system=None))
    return text.getvalue()


def render_markdown(verdict: Verdict, run: Run) -> str:
    """Returns headline, tables and advice, for the summary of a job or a comment on a change."""
    parts = [f"## Memory and FLOPs gate\n\n**{units.markdown(headline(verdict))}**"]
    if verdict.allowed_differences:
        parts.append(bullets(map(units.markdown, _allowed(verdict))))
    for title, findings in _sections(verdict):
        if findings:
            rows = table(HEADINGS, map(_cells, findings[:MOST_ROWS]), NUMBERS)
            rest = len(findings) - MOST_ROWS
            parts.append(f"### {title}\n\n{rows}" + (f"\n\nand {rest} more" if rest > 0 else ""))
    if said := advice(verdict):
        parts.append(bullets(map(units.markdown, said)))
    return "\n\n".join(parts) + "\n"


def _allowed(verdict: Verdict) -> list[str]:
    return [f"Compared although {_difference(found)}." for found in verdict.allowed_differences]


def _sections(verdict: Verdict) -> tuple[tuple[str, Sequence[Finding]], ...]:
    return (
        ("What fails", verdict.failures),
        ("What became better", verdict.improvements),
        ("Remarks", verdict.remarks),
    )


def _cells(finding: Finding) -> list[str]:
    """A finding as the cells of a table with `HEADINGS`."""
    values = [_value(finding.metric, amount) for amount in (finding.before, finding.after)]
    return [finding.case or WHOLE_RUN, finding.metric, *values, _change(finding), _label(finding)]


def render_junit(verdict: Verdict, run: Run) -> str:
    """Returns one test suite; a run that is not comparable has one test case more, which is an error."""
    records = {record.case.id: record for record in run}
    suite = ElementTree.Element("testsuite", name="revsnn-bench gate")
    for found in verdict.incomparable:
        case = ElementTree.SubElement(suite, "testcase", classname="environment", name=found.field, time="0")
        ElementTree.SubElement(case, "error", message=units.one_line(_difference(found)), type="not comparable")
    for case_id in verdict.cases:
        findings = [finding for finding in verdict.findings if finding.case == case_id]
        _add_case(suite, case_id, records.get(case_id), findings, compared=not verdict.incomparable)
    for attribute, tag in (("tests", "testcase"), ("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(attribute, str(len(list(suite.iter(tag)))))
    suite.set("time", f"{sum(record.duration_s for record in run):.3f}")
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _add_case(
    suite: ElementTree.Element, case_id: str, record: Record | None, findings: Sequence[Finding], *, compared: bool
) -> None:
    group, _, name = map(units.one_line, case_id.partition("/"))
    seconds = f"{record.duration_s:.3f}" if record else "0"
    case = ElementTree.SubElement(suite, "testcase", classname=group, name=name, time=seconds)
    failing = [finding for finding in findings if finding.fails]
    if failing:
        tag = "error" if any(finding.kind is Kind.FAILED for finding in failing) else "failure"
        message, kind = units.one_line(sentence(failing[0])), failing[0].kind.value
        ElementTree.SubElement(case, tag, message=message, type=kind).text = _lines(failing)
    elif not compared or record is None or any(finding.kind in FAILING for finding in findings):
        message = units.one_line("; ".join(map(sentence, findings)) or "not compared")
        ElementTree.SubElement(case, "skipped", message=message)
    if rest := [finding for finding in findings if not finding.fails]:
        ElementTree.SubElement(case, "system-out").text = _lines(rest)


def _lines(findings: Sequence[Finding]) -> str:
    return "\n".join(units.one_line(sentence(finding)) for finding in findings)


def render_github(verdict: Verdict, run: Run) -> str:
    """Returns one error per field or finding that fails, then warnings, then a notice with the headline."""
    lines = [_command("error", f"Not comparable: {found.field}", _difference(found)) for found in verdict.incomparable]
    lines += [_command("error", _title(finding), sentence(finding)) for finding in verdict.failures]
    lines += [
        _command("warning", _title(finding), sentence(finding))
        for finding in verdict.remarks
        if finding.allowed_by or not finding.case
    ]
    lines.append(_command("notice", "Memory and FLOPs gate", " ".join([headline(verdict), *advice(verdict)])))
    return "\n".join(lines) + "\n"


def _title(finding: Finding) -> str:
    what = finding.metric if finding.kind is Kind.NOTE else f"{finding.metric} {finding.kind.value}"
    return f"{finding.case or WHOLE_RUN}: {what}"


def _command(name: str, title: str, message: str) -> str:
    escaped = _data(title).replace(":", "%3A").replace(",", "%2C")
    return f"::{name} title={escaped}::{_data(message)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


class _Measure(NamedTuple):
    """One value of one case; `low` and `high` bound it where it varies."""

    record: Record
    metric: str
    value: Number
    unit: str
    low: float | None = None
    high: float | None = None


def _measures(verdict: Verdict, run: Run) -> Iterator[_Measure]:
    """Every gated metric of every case, then time as a ratio to the reference; smaller is better in all.

    What was not measured is left out, and so are a case that failed, which is no number, and a time that is not
    decided, which a history would take for a step up or down.
    """
    for record in {record.case.id: record for record in run}.values():
        for name in verdict.policy.metrics:
            value = BY_NAME[name].read(record)
            if value is not None:
                yield _Measure(record, name, value, _UNITS[BY_NAME[name].unit])
        for name in TIMES:
            ratio = ratio_of(name, record)
            if ratio is not None and ratio.decided:
                unit = f"x {record.case.reference}"
                yield _Measure(record, ratio_name(name), ratio.value, unit, ratio.low, ratio.high)


def render_bencher(verdict: Verdict, run: Run) -> str:
    """Returns values by case and metric, with the bounds of those that vary, as JSON."""
    document: dict[str, dict[str, dict[str, float]]] = {}
    for measure in _measures(verdict, run):
        metric: dict[str, float] = {"value": measure.value}
        if measure.low is not None and measure.high is not None:
            metric |= {"lower_value": measure.low, "upper_value": measure.high}
        document.setdefault(measure.record.case.id, {})[measure.metric] = metric
    return json.dumps(document, indent=1) + "\n"


def render_customsmaller(verdict: Verdict, run: Run) -> str:
    """Returns a list of name, unit and value as JSON."""
    entries = []
    for measure in _measures(verdict, run):
        entry: dict[str, object] = {
            "name": f"{measure.record.case.id} {measure.metric}",
            "unit": measure.unit,
            "value": measure.value,
            "extra": f"status: {measure.record.status.value}",
        }
        if measure.low is not None and measure.high is not None:
            entry["range"] = f"± {(measure.high - measure.low) / 2:.3g}"
        entries.append(entry)
    return json.dumps(entries, indent=1) + "\n"


RENDERERS: dict[str, Callable[[Verdict, Run], str]] = {
    "table": render_table,
    "markdown": render_markdown,
    "junit": render_junit,
    "github": render_github,
    "customSmallerIsBetter": render_customsmaller,
    "bencher": render_bencher,
}
"""Text of a verdict in each format, by its name on the command line."""
