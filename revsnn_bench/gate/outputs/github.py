"""The verdict as annotations of GitHub Actions: lines on standard output that the runner turns into notices.

Format: workflow commands, with the escapes of @actions/core: `%`, carriage return and newline everywhere, and `:`
and `,` in properties. GitHub shows the first ten errors of a step.
"""

from revsnn_bench.gate.findings import Finding, Kind, Verdict
from revsnn_bench.gate.outputs import wording
from revsnn_bench.records import Run


def render(verdict: Verdict, run: Run) -> str:
    """Returns one error per field or finding that fails, then warnings, then a notice with the headline."""
    lines = [
        _command("error", f"Not comparable: {found.field}", wording.difference(found)) for found in verdict.incomparable
    ]
    lines += [_command("error", _title(finding), wording.sentence(finding)) for finding in verdict.failures]
    lines += [
        _command("warning", _title(finding), wording.sentence(finding))
        for finding in verdict.remarks
        if finding.allowed_by or not finding.case
    ]
    lines.append(
        _command("notice", "Memory and FLOPs gate", " ".join([wording.headline(verdict), *wording.advice(verdict)]))
    )
    return "\n".join(lines) + "\n"


def _title(finding: Finding) -> str:
    what = finding.metric if finding.kind is Kind.NOTE else f"{finding.metric} {finding.kind.value}"
    return f"{finding.case or wording.WHOLE_RUN}: {what}"


def _command(name: str, title: str, message: str) -> str:
    escaped = _data(title).replace(":", "%3A").replace(",", "%2C")
    return f"::{name} title={escaped}::{_data(message)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
