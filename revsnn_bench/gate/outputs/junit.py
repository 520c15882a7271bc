"""The verdict as JUnit XML: one test case per benchmark case, which most CI servers show as a list.

Format: the schema of the Jenkins xUnit plugin, as pytest writes it.
"""

from collections.abc import Sequence
from xml.etree import ElementTree

from revsnn_bench.gate.findings import FAILING, Finding, Kind, Verdict
from revsnn_bench.gate.outputs import wording
from revsnn_bench.records import Record, Run
from revsnn_bench.render import units

SUITE = "revsnn-bench gate"


def render(verdict: Verdict, run: Run) -> str:
    """Returns one test suite; a run that is not comparable has one test case more, which is an error."""
    records = {record.case.id: record for record in run}
    suite = ElementTree.Element("testsuite", name=SUITE)
    for found in verdict.incomparable:
        case = ElementTree.SubElement(suite, "testcase", classname="environment", name=found.field, time="0")
        ElementTree.SubElement(case, "error", message=units.one_line(wording.difference(found)), type="not comparable")
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
    group, _, name = case_id.partition("/")
    seconds = f"{record.duration_s:.3f}" if record else "0"
    case = ElementTree.SubElement(suite, "testcase", classname=units.one_line(group), name=units.one_line(name))
    case.set("time", seconds)
    failing = [finding for finding in findings if finding.fails]
    if failing:
        broken = any(finding.kind is Kind.FAILED for finding in failing)
        element = ElementTree.SubElement(case, "error" if broken else "failure")
        element.set("message", units.one_line(wording.sentence(failing[0])))
        element.set("type", failing[0].kind.value)
        element.text = _lines(failing)
    elif not compared or record is None or any(finding.kind in FAILING for finding in findings):
        element = ElementTree.SubElement(case, "skipped")
        element.set("message", units.one_line("; ".join(map(wording.sentence, findings)) or "not compared"))
    if rest := [finding for finding in findings if not finding.fails]:
        ElementTree.SubElement(case, "system-out").text = _lines(rest)


def _lines(findings: Sequence[Finding]) -> str:
    return "\n".join(units.one_line(wording.sentence(finding)) for finding in findings)
