"""The verdict for a terminal: headline, what fails, what became better, and what to do next."""

from collections.abc import Sequence
from io import StringIO

from rich.console import Console
from rich.text import Text

from revsnn_bench.gate.findings import Finding, Verdict
from revsnn_bench.gate.outputs import wording
from revsnn_bench.records import Run
from revsnn_bench.render import units
from revsnn_bench.render.terminal import grid

HEADINGS = ("case", "metric", "before", "after", "change", "what")
NUMBERS = (False, False, True, True, True, False)
_WIDTH = 160


def print_verdict(verdict: Verdict, console: Console) -> None:
    """Prints the verdict."""
    console.print(Text(units.one_line(wording.headline(verdict)), style="green" if verdict.passed else "bold red"))
    for found in verdict.allowed_differences:
        console.print(Text(units.one_line(f"Compared although {wording.difference(found)}."), style="yellow"))
    _print("What fails", verdict.failures, "red", console)
    _print("What became better", verdict.improvements, "green", console)
    _print("Remarks", verdict.remarks, "", console)
    for line in wording.advice(verdict):
        console.print(Text(line))


def render(verdict: Verdict, run: Run) -> str:
    """Returns the same without colour, 160 columns wide."""
    text = StringIO()
    print_verdict(verdict, Console(file=text, width=_WIDTH, color_system=None))
    return text.getvalue()


def cells(finding: Finding) -> list[str]:
    """Returns a finding as the cells of a table with `HEADINGS`."""
    return [
        finding.case or wording.WHOLE_RUN,
        finding.metric,
        wording.value(finding.metric, finding.before),
        wording.value(finding.metric, finding.after),
        wording.change(finding),
        wording.label(finding),
    ]


def _print(title: str, findings: Sequence[Finding], style: str, console: Console) -> None:
    if not findings:
        return
    table = grid(title, HEADINGS, NUMBERS)
    for finding in findings:
        table.add_row(*(Text(units.one_line(cell)) for cell in cells(finding)), style=style)
    console.print(table)
