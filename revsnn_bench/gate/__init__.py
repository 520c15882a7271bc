"""The gate: fails a run that needs more bytes or operations than its baseline, or lost a case. Never measures.

Which cases and values differ is computed by `report/comparison.py`; here it is decided which differences are
regressions. Times are tested as ratios to the reference of the same rounds. Baselines are finished runs kept under
`results/baselines/`; `update_baseline` alone replaces them.
"""

import math
import shlex
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import mean
from types import MappingProxyType

from revsnn_bench.exit_codes import ExitCode
from revsnn_bench.metrics import BY_NAME, METRICS, Number
from revsnn_bench.records import Environment, Record, Run, Status
from revsnn_bench.report import units
from revsnn_bench.report.comparison import (
    EXTENT,
    STATUS,
    CasePair,
    Difference,
    FieldDifference,
    compare,
    discoveries,
    p_of_slowdown,
    ratio_name,
)
from revsnn_bench.runs import load_run, write_run

_FOLLOWS_FROM_OTHERS = ("forward_pointwise_flops", "backward_recompute_flops", "step_flops")

GATED: tuple[str, ...] = tuple(
    metric.name for metric in METRICS if metric.deterministic and metric.name not in _FOLLOWS_FROM_OTHERS
)
"""Metrics that are gated unless told otherwise: everything exact, sums and parts of the others left out."""


@dataclass(frozen=True)
class Policy:
    """What may differ between a run and its baseline without failing the gate.

    Args:
        tolerance_percent: by how much a deterministic metric may grow, in percent of the baseline; 0 where
            not named. Naming a metric that is not gated by default gates it.
        allow: case ids, or patterns with `*`, `?` and `[...]`, of cases that may be added, removed, skipped
            or newly failing. A pattern never allows more bytes, more operations or a wrong gradient.
        allow_environment: fields of the environment that may differ.
        allow_partial: whether a run that has not measured all of its planned cases is judged by those that it has.
        time_ratio_percent: by how much the time relative to the reference may grow, in percent; None
            leaves time out.
    Raises:
        ValueError: a metric that is not deterministic or does not exist, an unknown field, or a percentage
            that is negative or not finite.
    """

    tolerance_percent: Mapping[str, float] = field(default_factory=dict)
    allow: tuple[str, ...] = ()
    allow_environment: tuple[str, ...] = ()
    allow_partial: bool = False
    time_ratio_percent: float | None = None

    def __post_init__(self) -> None:
        exact = [*GATED, *_FOLLOWS_FROM_OTHERS]
        for name, percent in self.tolerance_percent.items():
            if name not in BY_NAME:
                raise ValueError(f"`tolerance` must name a metric; got {name!r}. {_near(name, exact)}")
            if not BY_NAME[name].deterministic:
                raise ValueError(
                    f"`tolerance` must name a metric that repeats exactly; got {name!r}. It varies from run to run on "
                    "an unchanged program. Gate times with a time ratio, and leave the others to reports."
                )
            _require_percentage(f"tolerance of {name}", percent)
        if self.time_ratio_percent is not None:
            _require_percentage("time_ratio_percent", self.time_ratio_percent)
        for name in self.allow_environment:
            if name not in Environment.model_fields:
                raise ValueError(
                    f"`allow_environment` must name a field of the environment; got {name!r}. "
                    f"{_near(name, Environment.model_fields)}"
                )
        object.__setattr__(self, "tolerance_percent", MappingProxyType(dict(self.tolerance_percent)))

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the gated metrics, in the order of the table of metrics."""
        return tuple(metric.name for metric in METRICS if metric.name in {*GATED, *self.tolerance_percent})

    def pattern_for(self, case_id: str) -> str | None:
        """The first of `allow` that names a case, or None."""
        return next((pattern for pattern in self.allow if names(pattern, case_id)), None)


def names(pattern: str, case_id: str) -> bool:
    """Whether a pattern names a case; an id, which may hold brackets, names itself."""
    return pattern == case_id or fnmatchcase(case_id, pattern)


def _require_percentage(name: str, percent: float) -> None:
    if not (math.isfinite(percent) and percent >= 0):
        raise ValueError(
            f"`{name}` must be a percentage of at least 0; got {percent}. It bounds how much a value may grow. "
            "Pass for example 5 for 5 %."
        )


def _near(name: str, known: Collection[str]) -> str:
    """The names that begin with a wrong one or hold it, or are spelled like it; all where there is none."""
    held = sorted((each for each in known if name in each), key=lambda each: not each.startswith(name))
    close = (name and held) or get_close_matches(name, list(known), 3)
    return f"Did you mean {' or '.join(close[:3])}?" if close else f"Pass one of {', '.join(sorted(known))}."


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


@dataclass(frozen=True)
class Verdict:
    """What the gate found, in the order of the baseline.

    Fields:
        findings: everything that differs; empty where the environments are not comparable.
        incomparable: fields that forbid the comparison.
        allowed_differences: fields that differ and were allowed to.
        cases: ids of all cases of both runs.
        cases_compared, values_compared: in how many cases how many pairs of values were held against each other.
    """

    run_id: str
    baseline_id: str
    policy: Policy
    findings: tuple[Finding, ...] = ()
    incomparable: tuple[FieldDifference, ...] = ()
    allowed_differences: tuple[FieldDifference, ...] = ()
    cases: tuple[str, ...] = ()
    cases_compared: int = 0
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
    def tolerated(self) -> int:
        """How many values grew within their tolerance."""
        return sum(
            f.kind is Kind.NOTE and f.metric in BY_NAME and f.before is not None and f.after is not None
            for f in self.findings
        )

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
        """Whether no finding fails the gate."""
        return self.exit_code is ExitCode.PASS


FAILED = (Status.OOM, Status.TIMEOUT, Status.ERROR)
"""Statuses of a case that broke; `skipped` did not, and `wrong` has numbers."""

TIMES = ("forward_time_s", "backward_time_s")
"""The phases that are tested; their sum follows."""

NO_VALUE = "gated values"
"""Field of a verdict on two runs of which nothing was held against each other: no value, and no time that is gated."""

NO_RATIO = "not judged: no case that is ok in both runs has the time of another than its reference"
"""What is said of times to be gated where there are none."""

_MEASURED = (Status.OK, Status.WRONG, Status.UNVERIFIED, Status.APPROXIMATE)
_FINE = (Status.OK, Status.APPROXIMATE)
_EXCUSABLE = (Kind.ADDED, Kind.REMOVED, Kind.FAILED, Kind.SKIPPED)


def gate(run: Run, baseline: Run, policy: Policy | None = None) -> Verdict:
    """Judges a run against a baseline.

    A run that is not complete is not comparable, unless the policy allows it: then what it lacks is left out. A run
    without a case is not comparable either, unless it lost those of the baseline, and neither are two runs of which no
    value and no time was compared, as where every case may fail: a pass has judged something.
    More of any gated quantity than tolerated is a regression, and less is an improvement. So is a case that
    was added, removed, newly failing, newly skipped or newly wrong, lost a measurement, or whose gradient is no longer
    judged. A case that is wrong or approximate in both is compared all the same, for its bytes and operations are
    exact; one that was right and is approximate now counts as newly wrong. By default nothing is tolerated, and time is
    left out.
    """
    policy = policy or Policy()
    comparison = compare(baseline, run)
    differing = comparison.incomparable_fields
    forbidden = tuple(found for found in differing if found.field not in policy.allow_environment)
    partial = tuple(comparison.extents())
    if not (run.complete or policy.allow_partial):
        forbidden, partial = forbidden + partial, ()
    cases = tuple(pair.id for pair in comparison.cases)
    # Not lost, but not measured yet.
    pending = () if run.complete else cases if run.planned is None else run.missing
    findings: list[Finding] = []
    values: list[int] = []
    if not forbidden:
        for pair in comparison.cases:
            if pair.after is None and pair.id in pending:
                continue
            found, compared = _judge_case(pair, policy)
            findings += found
            values += [compared] if compared else []
        timed = 0
        if policy.time_ratio_percent is not None:
            times, timed = time_findings(comparison.cases, policy.time_ratio_percent)
            findings += times
        findings += _idle_patterns(policy, cases)
        findings += _processors(run, baseline, findings)
        findings = [replace(f, allowed_by=policy.pattern_for(f.case)) if f.kind in _EXCUSABLE else f for f in findings]
        if not run.records and not any(finding.case for finding in findings):
            forbidden, partial = (FieldDifference(EXTENT, baseline.extent, "no case yet"),), ()
        elif not (values or timed or any(f.fails or f.kind is Kind.IMPROVED for f in findings)):
            forbidden, partial = (FieldDifference(NO_VALUE, "none", "none"),), ()
    return Verdict(
        run_id=run.header.run_id,
        baseline_id=baseline.header.run_id,
        policy=policy,
        findings=tuple(findings),
        incomparable=forbidden,
        allowed_differences=(*partial, *(each for each in differing if each.field in policy.allow_environment)),
        cases=cases,
        cases_compared=len(values),
        values_compared=sum(values),
    )


def _idle_patterns(policy: Policy, cases: Collection[str]) -> list[Finding]:
    """Notes on what is allowed for cases that neither run has."""
    idle = [pattern for pattern in policy.allow if not any(names(pattern, case) for case in cases)]
    return [Finding(Kind.NOTE, "", "allow", detail=f"{pattern!r} names no case of either run") for pattern in idle]


def _processors(run: Run, baseline: Run, findings: Iterable[Finding]) -> list[Finding]:
    """A note on two processors where a peak differs: scratch of convolutions depends on their vector units."""
    old, new = (each.header.environment.cpu_model for each in (baseline, run))
    if old == new or not any(finding.metric == "peak_bytes" for finding in findings):
        return []
    why = "scratch of convolutions, and so their peak, depends on the processor"
    return [Finding(Kind.NOTE, "", "cpu_model", old, new, why)]


def _judge_case(pair: CasePair, policy: Policy) -> tuple[list[Finding], int]:
    """Findings on one case, and how many pairs of values were compared."""
    before, after = pair.before, pair.after
    if after is None:
        return [Finding(Kind.REMOVED, pair.id, STATUS, pair.differences[0].before)], 0
    if before is None:
        kind = Kind.FAILED if after.status in FAILED else Kind.ADDED
        return [Finding(kind, pair.id, STATUS, None, after.status.value, units.reason(after.reason))], 0
    findings = _judge_status(pair.id, before, after)
    if before.status not in _MEASURED or after.status not in _MEASURED:
        return findings, 0
    if before.fidelity and not after.fidelity and after.status is Status.OK:
        why = units.reason(after.reason) or "the pass `fidelity` was left out, and a wrong gradient would not be seen"
        findings.append(Finding(Kind.UNMEASURED, pair.id, "gradient_error", detail=why))
    found = {difference.name: difference for difference in pair.differences}
    values = [found[name] for name in policy.metrics if name in found]
    for value in values:
        if value.differs:
            findings.append(_judge_value(pair.id, value, policy.tolerance_percent.get(value.name, 0.0)))
    return findings, sum(value.before is not None and value.after is not None for value in values)


def _judge_status(case_id: str, before: Record, after: Record) -> list[Finding]:
    old, new = before.status, after.status
    if old is new and new in _FINE:
        return []
    detail = units.reason(after.reason)
    if old is new:
        kind, detail = Kind.NOTE, f"the same in the baseline; {detail}"
    elif new in FAILED:
        kind = Kind.FAILED
    elif new in (Status.WRONG, Status.UNVERIFIED) or (old, new) == _FINE:
        kind = Kind.WRONG
    elif new is Status.SKIPPED:
        kind = Kind.SKIPPED if old in _MEASURED else Kind.NOTE
    else:
        kind = Kind.IMPROVED
    return [Finding(kind, case_id, STATUS, old.value, new.value, detail)]


def _judge_value(case_id: str, value: Difference, tolerance: float) -> Finding:
    """The finding on a deterministic metric that differs."""
    before, after = value.before, value.after
    assert not isinstance(before, str)
    assert not isinstance(after, str)
    kind, detail = Kind.GREW, ""
    if after is None:
        kind = Kind.UNMEASURED
    elif before is None:
        kind, detail = Kind.NOTE, "not measured in the baseline"
    elif after < before:
        kind = Kind.IMPROVED
    elif (after - before) * 100 <= tolerance * before:
        kind, detail = Kind.NOTE, f"within the tolerance of {tolerance:g} %"
    return Finding(kind, case_id, value.name, before, after, detail)


def time_findings(pairs: Iterable[CasePair], percent: float) -> tuple[list[Finding], int]:
    """Finds slowdowns beyond a percentage, in cases that ended as `ok` in both runs.

    One-sided t-test, of equal variances, on one value per process: the logarithm of its median ratio, the baseline's
    raised by the percentage. Processes differ by more than the rounds of one do, so that rounds are no independent
    samples. What is tested is not whether the case is slower, but whether it is slower by more than the percentage.
    Benjamini and Hochberg's procedure keeps the rate of false alarms over all cases and phases.

    Returns:
        Notes on what could not be judged and `no longer measured`, then `slower`, each with the ratios; one note where
        neither run has a ratio. And how many times were tested.
    """
    pairs = list(pairs)
    machines = dict.fromkeys(text for pair in pairs if (text := pair.two_machines))
    findings = [Finding(Kind.NOTE, "", "time", detail=f"not judged: {text}") for text in machines]
    tests: dict[Finding, float] = {}
    ratios = False
    for pair in pairs:
        if pair.before is None or pair.after is None or pair.after.case == pair.after.case.point:
            continue
        if pair.before.status is pair.after.status is Status.OK:
            for name in TIMES:
                old, new = pair.logs_by_process(BY_NAME[name])
                ratios = ratios or bool(old or new)
                if (not old and not new) or (old and new and pair.two_machines):
                    continue
                found = _judge_time(pair, ratio_name(name), old, new)
                if found.kind is Kind.SLOWER:
                    tests[found] = p_of_slowdown(old, new, percent)
                else:
                    findings.append(found)
    if not ratios:
        findings.append(Finding(Kind.NOTE, "", "time", detail=NO_RATIO))
    for found, p_value in discoveries(tests).items():
        detail = f"more than {percent:g} % slower than the baseline, p = {p_value:.2g}"
        findings.append(replace(found, detail=detail))
    return findings, len(tests)


def _judge_time(pair: CasePair, metric: str, old: list[float], new: list[float]) -> Finding:
    """The finding on one phase: `slower` where a test may say so, else why none can."""
    kind, detail = Kind.NOTE, ""
    contended = sum(r.time.rounds_contended for r in (pair.before, pair.after) if r is not None and r.time)
    if not old:
        detail = "not measured in the baseline"
    elif not new:
        kind = Kind.UNMEASURED
    elif contended:
        detail = f"not judged: {contended} rounds were timed while threads had to wait for a core"
    elif len(old) == 1 or len(new) == 1:
        detail = f"one process: not judged; {len(old)} timed the case before and {len(new)} after"
    else:
        kind = Kind.SLOWER
    before, after = (math.exp(mean(logs)) if logs else None for logs in (old, new))
    return Finding(kind, pair.id, metric, before, after, detail)


DEFAULT_BASELINE = Path("results/baselines/default.json")
"""The baseline that is taken where none is named."""


class MissingBaseline(LookupError):
    """There is no baseline; the message holds the command that makes one."""


class BaselineRefused(ValueError):
    """The run must not become the baseline; `exit_code` says what is wrong with it."""

    def __init__(self, message: str, exit_code: ExitCode) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def load_baseline(path: Path | str, run: str = "latest") -> Run:
    """Reads a baseline; `run` is how the command in the message names the run.

    Raises:
        MissingBaseline: no such file.
        DamagedFile, UnknownSchema: see `load_run`.
    """
    path = Path(path)
    if path.is_dir():
        raise MissingBaseline(f"`baseline` must be the file of a run; {path} is a folder. Name a .json file in it.")
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
        path: replaced in one step as seen by readers, and returned.
        verdict: of `gate` on this run and the baseline that it replaces; None where there is none yet.
        force: replaces the baseline although the run did not pass.
    Raises:
        BaselineRefused: without `force`, for a run that did not pass; for a first baseline, for a run in which
            a case failed or none was measured, and for a run that is not complete.
        ValueError: the verdict is about another run, or missing although there is a baseline.
    """
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
    if not force:
        _require_worthy(run, path, verdict)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_run(run, path)
    return path


def _require_worthy(run: Run, path: Path, verdict: Verdict | None) -> None:
    if not run.complete:
        raise BaselineRefused(
            f"A baseline must be a complete run; got {run.extent} in {run.header.run_id!r}. The other cases would "
            "count as added from now on. Go on with `revsnn-bench run --resume`, or join shards with `revsnn-bench "
            "merge`; or, if that is what you want, add --force.",
            ExitCode.NOT_COMPARABLE,
        )
    if verdict is not None and not verdict.passed:
        spelled = verdict.exit_code.name.lower().replace("_", " ")
        raise BaselineRefused(
            f"`update_baseline` must follow a run that passed; got one that ended with {verdict.exit_code.value} "
            f"({spelled}). {path} is unchanged: as the baseline, this run would "
            "hide what went wrong from now on. Fix the run; or, if the differences are intended, add --force.",
            verdict.exit_code,
        )
    failed = [f"{record.case.id} ({record.status.value})" for record in run if record.status in FAILED]
    if verdict is None and (failed or not any(record.status in _MEASURED for record in run)):
        what = f"failed cases: {', '.join(failed)}" if failed else "no case that was measured"
        raise BaselineRefused(
            f"A first baseline must have measured cases and no failed one; got {what}. That would be expected from now "
            "on. Fix it; or, if that is what you expect, add --force.",
            ExitCode.CASE_FAILED,
        )
