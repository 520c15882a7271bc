"""What the gate says: findings, and the verdict that they add up to.

Time, as the ratio to the standard LIF of the same rounds, tested on the raw samples.

Seconds of two runs are never compared: the machine was not the same, not even where it was. The standard LIF
was timed in the same process, round by round, so each round gives one ratio, and two runs give two samples of
ratios.

The gate: a run, a baseline and a policy go in, a verdict comes out. Pure; nothing is read or written.

Baselines: finished runs kept under `results/baselines/`, replaced only when asked, and never by a bad run.
"""

import math
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from revsnn_bench.exit_codes import ExitCode
from revsnn_bench.gate.policy import Policy, names
from revsnn_bench.metrics import BY_NAME, Number
from revsnn_bench.records import Record, Run, Status
from revsnn_bench.runs import load_run


class Kind(StrEnum):
    """What a finding is about; `FAILING` of them fail the gate unless allowed."""

    GREW = "grew"
    UNMEASURED = "no longer measured"
    SLOWER = "slower"
    WRONG = "newly wrong"
    FAILED = "newly failing"
    SKIPPED = "newly skipped"
    ADDED = "added"
    REMOVED = "removed"
    IMPROVED = "improved"
    NOTE = "note"


FAILING = frozenset(Kind) - {Kind.IMPROVED, Kind.NOTE}
"""Kinds that fail the gate."""


@dataclass(frozen=True)
class Finding:
    """One thing that differs between run and baseline.

    Fields:
        kind: what happened.
        case: id of the case, or empty where it is about the whole run.
        metric: name of the metric; `status` for how a case ended.
        before, after: values in the metric's own unit, or the statuses; None where absent.
        detail: why, where there is more to say: the reason of a failure, or a p-value.
        allowed_by: the pattern that excuses it; None where nothing does.
    """

    kind: Kind
    case: str
    metric: str
    before: Number | str | None = None
    after: Number | str | None = None
    detail: str = ""
    allowed_by: str | None = None

    @property
    def fails(self) -> bool:
        """Whether this finding fails the gate."""
        return self.kind in FAILING and self.allowed_by is None


class Difference(NamedTuple):
    """A field of the environment that must agree, and does not."""

    field: str
    before: Any
    after: Any


@dataclass(frozen=True)
class Verdict:
    """What the gate found, in the order of the baseline.

    Fields:
        run_id, baseline_id: what was compared.
        policy: what was tolerated.
        findings: everything that differs; empty when the two are not comparable.
        incomparable: fields that forbid the comparison.
        allowed_differences: fields that differ and were allowed to.
        cases: ids of all cases of both runs.
        values_compared: how many pairs of values were held against each other.
    """

    run_id: str
    baseline_id: str
    policy: Policy
    findings: tuple[Finding, ...] = ()
    incomparable: tuple[Difference, ...] = ()
    allowed_differences: tuple[Difference, ...] = ()
    cases: tuple[str, ...] = ()
    values_compared: int = 0

    @property
    def failures(self) -> tuple[Finding, ...]:
        """Findings that fail the gate."""
        return tuple(finding for finding in self.findings if finding.fails)

    @property
    def improvements(self) -> tuple[Finding, ...]:
        """What became better."""
        return tuple(finding for finding in self.findings if finding.kind is Kind.IMPROVED)

    @property
    def remarks(self) -> tuple[Finding, ...]:
        """What is worth knowing and fails nothing: notes, and what was allowed by name."""
        return tuple(f for f in self.findings if not f.fails and f.kind is not Kind.IMPROVED)

    @property
    def exit_code(self) -> ExitCode:
        """How the command ends; see `ExitCode` for the order."""
        if self.incomparable:
            return ExitCode.NOT_COMPARABLE
        if any(finding.kind is Kind.FAILED for finding in self.failures):
            return ExitCode.CASE_FAILED
        return ExitCode.REGRESSION if self.failures else ExitCode.PASS

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against the run."""
        return self.exit_code is ExitCode.PASS


TIMES = ("forward_time_s", "backward_time_s")
"""The phases that are tested; their sum follows."""

FALSE_DISCOVERY_RATE = 0.05
"""Expected share of false alarms among the slowdowns that are reported."""

_Pair = tuple[Record, Record]


@dataclass(frozen=True)
class _Test:
    case: str
    metric: str
    before: float
    after: float
    p_value: float


def time_findings(pairs: Iterable[_Pair], percent: float) -> list[Finding]:
    """Finds slowdowns beyond a percentage, in cases that ended as `ok` in both runs.

    One-sided Mann-Whitney U test on the logarithms of the per-round ratios, the baseline's raised by the
    percentage: what is tested is not whether the case is slower, but whether it is slower by more than that.
    Benjamini and Hochberg's procedure keeps the rate of false alarms over all cases and phases.

    Args:
        pairs: record before and after, of the same case.
        percent: growth of the ratio that is tolerated.
    Returns:
        Findings `slower` with the median ratios, `no longer measured`, and notes on what could not be judged.
    """
    findings: list[Finding] = []
    tests: list[_Test] = []
    for before, after in pairs:
        if before.case == before.case.point:
            continue
        judged = [_judge(before, after, name, percent) for name in TIMES]
        tests += [test for test in judged if isinstance(test, _Test)]
        findings += [finding for finding in judged if isinstance(finding, Finding)]
    return findings + _significant(tests, percent)


def ratio_name(metric: str) -> str:
    """What the ratio of a time is called: the name that comparisons of runs give it."""
    return f"{metric}_ratio_to_lif"


def _judge(before: Record, after: Record, name: str, percent: float) -> _Test | Finding | None:
    """The test of one phase; a finding where it cannot be made; None where neither run timed it."""
    old, new = _ratios(before, name), _ratios(after, name)
    case, metric = after.case.id, ratio_name(name)
    if not old:
        return Finding(Kind.NOTE, case, metric, None, median(new), "not measured in the baseline") if new else None
    if not new:
        return Finding(Kind.UNMEASURED, case, metric, median(old), None)
    contended = sum(record.time.rounds_contended for record in (before, after) if record.time)
    if contended:
        detail = f"not judged: {contended} rounds were timed while other work held the processor"
        return Finding(Kind.NOTE, case, metric, median(old), median(new), detail)
    from scipy.stats import mannwhitneyu

    raised = [math.log(ratio * (1 + percent / 100)) for ratio in old]
    p_value = mannwhitneyu([math.log(ratio) for ratio in new], raised, alternative="greater").pvalue
    return _Test(case, metric, median(old), median(new), float(p_value))


def _ratios(record: Record, name: str) -> list[float]:
    read = BY_NAME[name].samples
    samples = read(record) if read else None
    if samples is None or len(samples.own) != len(samples.lif) or min(samples.own + samples.lif) <= 0:
        return []
    return [own / lif for own, lif in zip(samples.own, samples.lif, strict=True)]


def _significant(tests: Sequence[_Test], percent: float) -> list[Finding]:
    if not tests:
        return []
    from scipy.stats import false_discovery_control

    adjusted = false_discovery_control([test.p_value for test in tests])
    return [
        Finding(
            Kind.SLOWER,
            test.case,
            test.metric,
            test.before,
            test.after,
            f"more than {percent:g} % slower than the baseline, p = {p_value:.2g}",
        )
        for test, p_value in zip(tests, adjusted, strict=True)
        if p_value <= FALSE_DISCOVERY_RATE
    ]


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
    from revsnn_bench.system.environment import incomparable_fields

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


DEFAULT_BASELINE = Path("results/baselines/default.json")
"""The baseline that is taken where none is named."""


class MissingBaseline(LookupError):
    """There is no baseline; the message holds the command that makes one."""


class BaselineRefused(ValueError):
    """The run must not become the baseline; `exit_code` says what is wrong with it."""

    def __init__(self, message: str, exit_code: ExitCode) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def load_baseline(path: Path, run: str = "latest") -> Run:
    """Reads a baseline.

    Args:
        path: the file.
        run: the run as the command in the message names it.
    Raises:
        MissingBaseline: no such file.
        DamagedFile, UnknownSchema: see `load_run`.
    """
    if not path.is_file():
        raise MissingBaseline(
            f"`baseline` must be the file of a run; {path} does not exist. Without one there is nothing to hold "
            f"the run against. Make it from this run, and commit it: "
            f"revsnn-bench gate {run} --baseline {shlex.quote(str(path))} --update-baseline"
        )
    return load_run(path)


def update_baseline(run: Run, path: Path, *, verdict: Verdict | None, force: bool = False) -> Path:
    """Makes a run the baseline: the only way to replace one.

    Args:
        run: the run that becomes the baseline.
        path: where the baseline is, or will be.
        verdict: of `gate` on this run and the baseline that it replaces; None where there is none yet.
        force: replaces the baseline although the run did not pass.
    Returns:
        The path, replaced in one step as seen by readers.
    Raises:
        BaselineRefused: without `force`, for a run that did not pass; for a first baseline, for a run in which
            a case failed or which has no case.
        ValueError: the verdict is about another run, or missing although there is a baseline.
    """
    _require_verdict(run, path, verdict)
    if not force:
        _require_worthy(run, path, verdict)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(run.model_dump_json(indent=1) + "\n", encoding="utf-8", newline="\n")
    os.replace(temporary, path)
    return path


def _require_verdict(run: Run, path: Path, verdict: Verdict | None) -> None:
    if verdict is None and path.exists():
        raise ValueError(
            f"`verdict` must be given where there is a baseline; got None for {path}. It says whether the run "
            "may replace it. Pass what gate(run, baseline) returned."
        )
    if verdict is not None and verdict.run_id != run.header.run_id:
        raise ValueError(
            f"`verdict` must be about the run; got one on {verdict.run_id!r} for {run.header.run_id!r}. It says "
            "whether this run may replace the baseline. Pass what gate(run, baseline) returned."
        )


def _require_worthy(run: Run, path: Path, verdict: Verdict | None) -> None:
    if verdict is not None and not verdict.passed:
        raise BaselineRefused(
            f"`update_baseline` must follow a run that passed; got one that ended with {verdict.exit_code.value} "
            f"({_spelled(verdict.exit_code)}). {path} is unchanged, or the regression would be the norm from now "
            "on. Mend the run; or, if what differs is meant, add --force.",
            verdict.exit_code,
        )
    failed = [f"{record.case.id} ({record.status.value})" for record in run if record.status in FAILED]
    if verdict is None and (failed or not run.records):
        what = f"failed cases: {', '.join(failed)}" if failed else "no case at all"
        raise BaselineRefused(
            f"A first baseline must have no failed case; got {what}. They would be expected to fail from now on. "
            "Mend them; or, if that is what you expect, add --force.",
            ExitCode.CASE_FAILED,
        )


def _spelled(code: ExitCode) -> str:
    return code.name.lower().replace("_", " ")
