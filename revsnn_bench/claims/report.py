"""The table of claims, for people and for programs."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from markupsafe import Markup
from rich.text import Text

from revsnn_bench.claims import SOURCE, judge
from revsnn_bench.claims.claim import ClaimFinding, Verdict
from revsnn_bench.claims.plan import Plan
from revsnn_bench.records import Run
from revsnn_bench.report import units, write_texts
from revsnn_bench.report.html import render_part
from revsnn_bench.report.markdown import bullets, table
from revsnn_bench.report.terminal import Grid

_STYLES = {
    Verdict.REPRODUCED: "green",
    Verdict.CONDITIONS: "yellow",
    Verdict.NOT: "red",
    Verdict.UNDECIDED: "yellow",
    Verdict.OPEN: "dim",
}


def write_claims(run: Run, findings: Sequence[ClaimFinding], reports_dir: Path) -> list[Path]:
    """Writes `<run>-claims.md` and `<run>-claims.json`; returns their paths."""
    texts = {"-claims.md": claims_markdown(run, findings), "-claims.json": claims_json(run, findings)}
    return write_texts(run, reports_dir, texts)


def claims_markdown(run: Run, findings: Sequence[ClaimFinding]) -> str:
    """The table, and below it how each verdict came about."""
    environment = run.header.environment
    rows = [(f.claim, f.conditions, f.measured, f.verdict.value, f.command) for f in findings]
    rules = bullets(f"**{f.key}**, {f.verdict.value}: {units.markdown(f.why)}" for f in findings)
    place, torch, start = map(units.markdown, (run.place, environment.torch, run.header.started_at))
    parts = [
        f"# The paper's claims, measured: {units.markdown(run.header.run_id)}",
        f"{SOURCE} Measured on {place} with torch {torch}, {start}.",
        table(("claim", "measured where", "measured", "verdict", "command"), rows),
        f"## Why these verdicts\n\n{rules}",
    ]
    return "\n\n".join(parts) + "\n"


def claims_section(run: Run) -> Markup:
    """The section of a run's page on the claims whose cases it holds; empty where it holds none."""
    shown = [finding for finding in judge(run, Plan()) if finding.verdict is not Verdict.OPEN]
    return render_part("claims", claims=shown, source=SOURCE) if shown else Markup("")


def claims_json(run: Run, findings: Sequence[ClaimFinding]) -> str:
    """The findings with their commands, and the run and environment they come from."""
    document = {
        "run_id": run.header.run_id,
        "environment": run.header.environment.model_dump(mode="json"),
        "claims": [asdict(finding) | {"command": finding.command} for finding in findings],
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def claims_table(findings: Sequence[ClaimFinding]) -> Grid:
    """The table for a terminal."""
    shown = Grid("The paper's claims, measured", ["claim", "measured where", "measured", "verdict"])
    for finding in findings:
        cells = [finding.claim, finding.conditions, finding.measured]
        verdict = Text(finding.verdict.value, style=_STYLES[finding.verdict])
        shown.add_row(*cells, verdict)
    return shown
