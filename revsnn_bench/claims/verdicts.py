"""Verdicts, each a pure function of a plan and the records of its cases."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from revsnn_bench.case import Case
from revsnn_bench.claims.bytes import constant_in_t, in_the_network, less_memory, less_memory_right_gradient
from revsnn_bench.claims.finding import NO_VERDICT, ClaimFinding, Verdict, listed, select
from revsnn_bench.claims.learning import accuracy_maintained, one_node_swapped, rises_with_groups
from revsnn_bench.claims.plan import Plan
from revsnn_bench.claims.work import fewer_flops, inverse_checked, less_time
from revsnn_bench.records import Record, Run, Status


@dataclass(frozen=True)
class Claim:
    """One claim: what it says, the cases it needs, and how their records are judged.

    Args:
        key: short name.
        says: the claim in words.
        cases: the cases of a plan that it needs.
        reads: the parts of their records that it needs.
        judge: conditions, findings, verdict and rule, from the records of those cases, none of which failed.
    """

    key: str
    says: str
    cases: Callable[[Plan], list[Case]]
    reads: tuple[str, ...]
    judge: Callable[[list[Record]], tuple[str, str, Verdict, str]]


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "memory",
        "The node takes 58.65 times less memory than the current SNN node.",
        Plan.memory,
        ("memory", "fidelity"),
        less_memory,
    ),
    Claim(
        "memory-right",
        "The same with a right gradient, by lif-carrier, which is not the paper's.",
        Plan.memory,
        ("memory", "fidelity"),
        less_memory_right_gradient,
    ),
    Claim("constant", "The node's memory does not grow with T.", Plan.memory, ("memory", "fidelity"), constant_in_t),
    Claim(
        "network",
        "The memory of a whole network falls with that of its nodes.",
        Plan.whole_network,
        ("memory",),
        in_the_network,
    ),
    Claim(
        "flops",
        "Backward takes 23 % fewer FLOPs than classic reversible backprop (old and new method on VGG-11).",
        Plan.saving,
        ("flops",),
        fewer_flops,
    ),
    Claim(
        "time",
        "Training takes 23.8 % less time than with classic reversible backprop.",
        Plan.saving,
        ("time",),
        less_time,
    ),
    Claim("accuracy", "Accuracy is maintained.", Plan.accuracy, ("accuracy",), accuracy_maintained),
    Claim("groups", "Accuracy rises with the number of groups.", Plan.group_counts, ("accuracy",), rises_with_groups),
    Claim(
        "one-node",
        "One node swapped in a small VGG: less memory, the same accuracy.",
        Plan.one_swapped,
        ("memory", "accuracy"),
        one_node_swapped,
    ),
    Claim(
        "inverse",
        "The inverse, checked step by step against stored activations with torch.allclose, gives them back.",
        Plan.memory,
        ("fidelity",),
        inverse_checked,
    ),
)
"""The paper's claims, then the experiments that the literature proposes for them."""


def cases_of(plan: Plan, keys: Iterable[str] = ()) -> list[Case]:
    """Every case that some claims need, each once; of all claims where no key is given."""
    wanted = set(keys) or {claim.key for claim in CLAIMS}
    return list(dict.fromkeys(case for claim in CLAIMS if claim.key in wanted for case in claim.cases(plan)))


def judge(run: Run, plan: Plan, keys: Iterable[str] = ()) -> list[ClaimFinding]:
    """The findings on some claims, or on all; a claim stays open where a case is missing, failed or half measured."""
    wanted = set(keys) or {claim.key for claim in CLAIMS}
    return [_judged(claim, run, plan) for claim in CLAIMS if claim.key in wanted]


def _judged(claim: Claim, run: Run, plan: Plan) -> ClaimFinding:
    cases = claim.cases(plan)
    records = select(run, cases)
    ended = [r for r in records if r.status in (Status.OK, Status.WRONG)]
    failed = [r.case.id for r in records if r not in ended]
    missing = len(cases) - len(records)
    partial = sum(any(getattr(r, part) is None for part in claim.reads) for r in ended)
    if missing or failed or partial:
        lack = [f"{missing} of {len(cases)} cases are not in the run"] if missing else []
        lack += [f"failed: {listed(failed)}"] if failed else []
        lack += [f"{partial} cases were measured without {listed(claim.reads)}"] if partial else []
        return ClaimFinding(claim.key, claim.says, "", "; ".join(lack), Verdict.OPEN, NO_VERDICT)
    return ClaimFinding(claim.key, claim.says, *claim.judge(records))
