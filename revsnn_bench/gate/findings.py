"""What the gate says: findings, and the verdict that they add up to."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from revsnn_bench.exit_codes import ExitCode
from revsnn_bench.gate.policy import Policy
from revsnn_bench.metric_readers import Number


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
