"""The gate: a run, a baseline and a policy go in, a verdict comes out. Pure; nothing is read or written."""

from collections.abc import Mapping
from dataclasses import replace

from revsnn_bench.gate.findings import Difference, Finding, Kind, Verdict
from revsnn_bench.gate.policy import Policy, names
from revsnn_bench.gate.times import time_findings
from revsnn_bench.metric_readers import Number
from revsnn_bench.metrics import BY_NAME
from revsnn_bench.records import Record, Run, Status

FAILED = (Status.OOM, Status.TIMEOUT, Status.ERROR)
"""Statuses of a case that broke; `skipped` did not, and `wrong` has numbers."""

_MEASURED = (Status.OK, Status.WRONG)
_MAY_BE_ALLOWED = (Kind.ADDED, Kind.REMOVED, Kind.FAILED, Kind.SKIPPED)


def gate(run: Run, baseline: Run, policy: Policy | None = None) -> Verdict:
    """Judges a run against a baseline.

    More of any gated quantity than tolerated is a regression, and less is an improvement. So is a case that
    was added, removed, newly failing, newly skipped or newly wrong, or lost a measurement. A case that is wrong
    in both is compared all the same, for its bytes and operations are exact. Of a case recorded twice in one
    run, the last record counts.

    Args:
        run: what was measured now.
        baseline: what it is held against.
        policy: what is tolerated; by default nothing, and time is left out.
    """
    policy = policy or Policy()
    differences = _differences(baseline, run)
    allowed = tuple(found for found in differences if found.field in policy.allow_environment)
    forbidden = tuple(found for found in differences if found.field not in policy.allow_environment)
    before, after = _by_id(baseline), _by_id(run)
    cases = tuple(dict.fromkeys([*before, *after]))
    findings: list[Finding] = []
    values = 0
    if not forbidden:
        for case_id in cases:
            found, compared = _judge_case(case_id, before.get(case_id), after.get(case_id), policy)
            findings += found
            values += compared
        findings += _judge_times(before, after, policy)
        findings += _idle_patterns(policy, cases)
    return Verdict(
        run_id=run.header.run_id,
        baseline_id=baseline.header.run_id,
        policy=policy,
        findings=tuple(_excused(finding, policy) for finding in findings),
        incomparable=forbidden,
        allowed_differences=allowed,
        cases=cases,
        values_compared=values,
    )


def _differences(baseline: Run, run: Run) -> list[Difference]:
    # Imported late: it brings torch along, which nothing else here needs.
    from revsnn_bench.environment import incomparable_fields

    found = incomparable_fields(baseline.header.environment, run.header.environment)
    return [Difference(*difference) for difference in found]


def _by_id(run: Run) -> dict[str, Record]:
    return {record.case.id: record for record in run}


def _judge_case(case_id: str, before: Record | None, after: Record | None, policy: Policy) -> tuple[list[Finding], int]:
    """Findings on one case, and how many pairs of values were compared."""
    if after is None:
        was = None if before is None else before.status.value
        return [Finding(Kind.REMOVED, case_id, "status", was, None)], 0
    if before is None:
        kind = Kind.FAILED if after.status in FAILED else Kind.ADDED
        return [Finding(kind, case_id, "status", None, after.status.value, after.reason or "")], 0
    findings = _judge_status(before, after)
    if before.status not in _MEASURED or after.status not in _MEASURED:
        return findings, 0
    compared = 0
    for name in policy.metrics:
        old, new = BY_NAME[name].read(before), BY_NAME[name].read(after)
        findings += _judge_value(case_id, name, old, new, policy.tolerance(name))
        compared += old is not None and new is not None
    return findings, compared


def _judge_status(before: Record, after: Record) -> list[Finding]:
    old, new = before.status, after.status
    if old is new is Status.OK:
        return []
    detail = after.reason or ""
    if old is new:
        kind, detail = Kind.NOTE, f"the same in the baseline; {detail}"
    elif new in FAILED:
        kind = Kind.FAILED
    elif new is Status.WRONG:
        kind = Kind.WRONG
    elif new is Status.SKIPPED:
        kind = Kind.SKIPPED if old in _MEASURED else Kind.NOTE
    else:
        kind = Kind.IMPROVED
    return [Finding(kind, after.case.id, "status", old.value, new.value, detail)]


def _judge_value(
    case_id: str, name: str, before: Number | None, after: Number | None, tolerance: float
) -> list[Finding]:
    if before == after:
        return []
    if after is None:
        return [Finding(Kind.UNMEASURED, case_id, name, before, None)]
    if before is None:
        return [Finding(Kind.NOTE, case_id, name, None, after, "not measured in the baseline")]
    if after < before:
        return [Finding(Kind.IMPROVED, case_id, name, before, after)]
    if (after - before) * 100 <= tolerance * before:
        return [Finding(Kind.NOTE, case_id, name, before, after, f"within the tolerance of {tolerance:g} %")]
    return [Finding(Kind.GREW, case_id, name, before, after)]


def _judge_times(before: Mapping[str, Record], after: Mapping[str, Record], policy: Policy) -> list[Finding]:
    if policy.time_ratio_percent is None:
        return []
    pairs = [
        (before[case_id], record)
        for case_id, record in after.items()
        if case_id in before and record.status is before[case_id].status is Status.OK
    ]
    return time_findings(pairs, policy.time_ratio_percent)


def _idle_patterns(policy: Policy, cases: tuple[str, ...]) -> list[Finding]:
    """A pattern that names no case is a typing error, or left over: it is said, and fails nothing."""
    return [
        Finding(Kind.NOTE, "", "allow", detail=f"{pattern!r} names no case of either run")
        for pattern in policy.allow
        if not any(names(pattern, case_id) for case_id in cases)
    ]


def _excused(finding: Finding, policy: Policy) -> Finding:
    pattern = policy.pattern_for(finding.case)
    if finding.kind not in _MAY_BE_ALLOWED or pattern is None:
        return finding
    return replace(finding, allowed_by=pattern)
