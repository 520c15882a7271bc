"""The paper's claims: which cases each needs, and the findings that follow from the records of a run.

A judge is called only when every case of its claim ended and holds what the claim reads, so it takes the parts of a
record for granted.
"""

from collections.abc import Iterable

from revsnn_bench.case import Case
from revsnn_bench.claims.accuracy import accuracy_maintained, one_node_swapped, rises_with_groups
from revsnn_bench.claims.claim import NO_VERDICT, Claim, ClaimFinding, Verdict, listed
from revsnn_bench.claims.costs import (
    constant_in_t,
    fewer_flops,
    in_the_network,
    inverse_checked,
    less_memory,
    less_memory_right_gradient,
    less_time,
    one_tensor_per_block,
)
from revsnn_bench.claims.plan import Plan
from revsnn_bench.measuring import PASSES
from revsnn_bench.records import Run, Status

__all__ = ["CLAIMS", "SOURCE", "ClaimFinding", "Plan", "Verdict", "cases_of", "judge", "passes_of"]

SOURCE = (
    "Lei et al., Towards Zero Memory Footprint Spiking Neural Network Training, arXiv 2308.08649. The equations "
    "measured are this project's reconstruction of the paper's node. Verdicts are computed from the records of the run."
)
"""What the claims are of, and what was measured."""


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
    Claim(
        "constant",
        "The node's memory does not grow with T.",
        Plan.memory,
        ("memory", "fidelity"),
        constant_in_t,
    ),
    Claim(
        "network",
        "A whole network keeps at most half with the node swapped.",
        Plan.whole_network,
        ("memory",),
        in_the_network,
    ),
    Claim(
        "flops",
        "Backward takes 23 % fewer FLOPs than classic reversible backprop (old and new method on VGG-11).",
        Plan.saving,
        ("flops", "fidelity"),
        fewer_flops,
    ),
    Claim(
        "time",
        "Training takes 23.8 % less time than with classic reversible backprop.",
        Plan.saving,
        ("fidelity", "time"),
        less_time,
    ),
    Claim("accuracy", "Accuracy is maintained.", Plan.accuracy, ("accuracy",), accuracy_maintained),
    Claim(
        "accuracy-beta",
        "The same at beta = 0.1, which is not the paper's.",
        Plan.small_beta,
        ("accuracy",),
        accuracy_maintained,
    ),
    Claim(
        "groups",
        "Accuracy rises with the number of groups.",
        Plan.group_counts,
        ("accuracy",),
        rises_with_groups,
    ),
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
    Claim(
        "remat",
        "One tensor per block with the network unchanged, by remat, which is not the paper's.",
        Plan.unchanged_network,
        ("memory", "fidelity", "time"),
        one_tensor_per_block,
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
    return [_judged(claim, run, plan) for claim in _chosen(keys)]


def _chosen(keys: Iterable[str]) -> list[Claim]:
    wanted = set(keys) or {claim.key for claim in CLAIMS}
    return [claim for claim in CLAIMS if claim.key in wanted]


def _judged(claim: Claim, run: Run, plan: Plan) -> ClaimFinding:
    cases, found = claim.cases(plan), {record.case: record for record in run}
    records = [found[case] for case in cases if case in found]
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
