"""The verdict as Markdown, for the summary of a job or a comment on a change."""

from revsnn_bench.gate.findings import Verdict
from revsnn_bench.gate.outputs import wording
from revsnn_bench.gate.outputs.table import HEADINGS, NUMBERS, cells
from revsnn_bench.records import Run
from revsnn_bench.render import units
from revsnn_bench.render.markdown import bullets, table

MOST_ROWS = 200
"""Rows of one table that are shown; GitHub drops a summary of more than 1 MiB as a whole."""


def render(verdict: Verdict, run: Run) -> str:
    """Returns headline, tables and advice."""
    parts = [f"## Memory and FLOPs gate\n\n**{units.markdown(wording.headline(verdict))}**"]
    if verdict.allowed_differences:
        lines = (f"Compared although {wording.difference(found)}." for found in verdict.allowed_differences)
        parts.append(bullets(map(units.markdown, lines)))
    for title, findings in (
        ("What fails", verdict.failures),
        ("What became better", verdict.improvements),
        ("Remarks", verdict.remarks),
    ):
        if findings:
            rows = table(HEADINGS, map(cells, findings[:MOST_ROWS]), NUMBERS)
            rest = len(findings) - MOST_ROWS
            parts.append(f"### {title}\n\n{rows}" + (f"\n\nand {rest} more" if rest > 0 else ""))
    if said := wording.advice(verdict):
        parts.append(bullets(map(units.markdown, said)))
    return "\n\n".join(parts) + "\n"
