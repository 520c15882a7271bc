"""The paper's claims: which cases each needs, the findings that follow from the records of a run, and their table.

A judge is called only when every case of its claim ended and holds what the claim reads, so it takes the parts of a
record for granted; a claim whose records lack a value, or divide by one that is 0, stays open.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from markupsafe import Markup
from rich.text import Text

from revsnn_bench.case import Case
from revsnn_bench.claims import judges
from revsnn_bench.claims.judges import Gap, Judged, Verdict, listed
from revsnn_bench.claims.plan import Plan
from revsnn_bench.measuring import PASSES
from revsnn_bench.records import Record, Run, Status
from revsnn_bench.report import units, write_texts
from revsnn_bench.report.html import render_part
from revsnn_bench.report.markdown import bullets, table
from revsnn_bench.report.terminal import Grid

SOURCE = (
    "Lei et al., Towards Zero Memory Footprint Spiking Neural Network Training, arXiv 2308.08649. The equations "
    "measured are this project's reconstruction of the paper's node. Verdicts are computed from the records of the run."
)
"""What the claims are of, and what was measured."""


@dataclass(frozen=True)
class ClaimFinding:
    """One row of the table of claims: key as `--only` takes it, claim, and what a judge returns."""

    key: str
    claim: str
    conditions: str
    measured: str
    verdict: Verdict
    why: str

    @property
    def command(self) -> str:
        """The command that measures this claim alone."""
        return f"revsnn-bench claims --only {self.key}"


@dataclass(frozen=True)
class Claim:
    """One claim: the cases of a plan and the parts of their records that it needs, and the judge of these records, of
    which none failed."""

    key: str
    says: str
    cases: Callable[[Plan], list[Case]]
    reads: tuple[str, ...]
    judge: Callable[[list[Record]], Judged]


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "memory",
        "The node takes 58.65 times less memory than the current SNN node.",
        Plan.memory,
        ("memory", "fidelity"),
        judges.less_memory,
    ),
    Claim(
        "memory-right",
        "The same with a right gradient, by lif-carrier, which is not the paper's.",
        Plan.memory,
        ("memory", "fidelity"),
        judges.less_memory_right_gradient,
    ),
    Claim(
        "constant",
        "The node's memory does not grow with T.",
        Plan.memory,
        ("memory", "fidelity"),
        judges.constant_in_t,
    ),
    Claim(
        "network",
        "A whole network keeps at most half with the node swapped.",
        Plan.whole_network,
        ("memory",),
        judges.in_the_network,
    ),
    Claim(
        "flops",
        "Backward takes 23 % fewer FLOPs than classic reversible backprop (old and new method on VGG-11).",
        Plan.saving,
        ("flops", "fidelity"),
        judges.fewer_flops,
    ),
    Claim(
        "time",
        "Training takes 23.8 % less time than with classic reversible backprop.",
        Plan.saving,
        ("fidelity", "time"),
        judges.less_time,
    ),
    Claim("accuracy", "Accuracy is maintained.", Plan.accuracy, ("accuracy",), judges.accuracy_maintained),
    Claim(
        "accuracy-beta",
        "The same at beta = 0.1, which is not the paper's.",
        Plan.small_beta,
        ("accuracy",),
        judges.accuracy_maintained,
    ),
    Claim(
        "groups",
        "Accuracy rises with the number of groups.",
        Plan.group_counts,
        ("accuracy",),
        judges.rises_with_groups,
    ),
    Claim(
        "one-node",
        "One node swapped in a small VGG: less memory, the same accuracy.",
        Plan.one_swapped,
        ("memory", "accuracy"),
        judges.one_node_swapped,
    ),
    Claim(
        "inverse",
        "The inverse, checked step by step against stored activations with torch.allclose, gives them back.",
        Plan.memory,
        ("fidelity",),
        judges.inverse_checked,
    ),
    Claim(
        "remat",
        "One tensor per block with the network unchanged, by remat, which is not the paper's.",
        Plan.unchanged_network,
        ("memory", "fidelity", "time"),
        judges.one_tensor_per_block,
    ),
)
"""The paper's claims, then the experiments that the literature proposes for them."""


def cases_of(plan: Plan, keys: Iterable[str] = ()) -> list[Case]:
    """Every case that some claims need, each once; of all claims where no key is given."""
    return list(dict.fromkeys(case for claim in _chosen(keys) for case in claim.cases(plan)))


def passes_of(case: Case, plan: Plan, keys: Iterable[str] = ()) -> tuple[str, ...]:
    """The passes that some claims read of a case; training is not one, it follows from the case."""
    read = {part for claim in _chosen(keys) if case in claim.cases(plan) for part in claim.reads}
    return tuple(name for name, each in PASSES.items() if each.field in read)


def judge(run: Run, plan: Plan, keys: Iterable[str] = ()) -> list[ClaimFinding]:
    """The findings on some claims, or on all; a claim stays open where a case is missing, failed or half measured."""
    found = {record.case: record for record in run}
    return [_judged(claim, found, plan) for claim in _chosen(keys)]


def _chosen(keys: Iterable[str]) -> list[Claim]:
    wanted = set(keys) or {claim.key for claim in CLAIMS}
    return [claim for claim in CLAIMS if claim.key in wanted]


def _judged(claim: Claim, found: Mapping[Case, Record], plan: Plan) -> ClaimFinding:
    cases = claim.cases(plan)
    records = [found[case] for case in cases if case in found]
    ended = [r for r in records if r.status in (Status.OK, Status.WRONG)]
    failed = [r.case.id for r in records if r not in ended]
    partial = sum(any(getattr(r, part) is None for part in claim.reads) for r in ended)
    lack = []
    if missing := len(cases) - len(records):
        lack.append(f"{missing} of {len(cases)} cases are not in the run")
    if failed:
        lack.append(f"failed: {listed(failed)}")
    if partial:
        lack.append(f"{partial} cases were measured without {listed(claim.reads)}")
    judged, gap = None, "; ".join(lack)
    try:
        judged = None if lack else claim.judge(records)
    except ZeroDivisionError:
        gap = "a value that the claim divides by is 0"
    except Gap as error:
        gap = str(error)
    return ClaimFinding(claim.key, claim.says, *(judged or Judged("", gap, Verdict.OPEN, "A gap is no verdict.")))


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
    headings = ("claim", "measured where", "measured", "verdict")
    rows = [(f.claim, f.conditions, f.measured, Text(f.verdict.value, style=_STYLES[f.verdict])) for f in findings]
    return Grid("The paper's claims, measured", headings, rows=rows)
