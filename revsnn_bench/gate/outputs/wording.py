"""Verdicts in words: one sentence per finding, one headline, and what to do next."""

import math

from revsnn_bench.exit_codes import ExitCode
from revsnn_bench.gate.findings import Difference, Finding, Kind, Verdict
from revsnn_bench.metric_readers import Number
from revsnn_bench.metrics import BY_NAME
from revsnn_bench.render import units

WHOLE_RUN = "the whole run"


def value(metric: str, amount: Number | str | None) -> str:
    """Returns a value exactly: bytes and operations to the last one, ratios at three digits."""
    if amount is None:
        return units.ABSENT
    if isinstance(amount, str):
        return amount
    known = BY_NAME.get(metric)
    return f"{amount:,} {known.unit}" if known else f"{units.times(amount)} x lif"


def change(finding: Finding) -> str:
    """Returns the difference, absolute and in percent; a dash where it has no meaning."""
    before, after = finding.before, finding.after
    if isinstance(before, str) or isinstance(after, str) or before is None or after is None:
        return units.ABSENT
    known = BY_NAME.get(finding.metric)
    share = "from 0" if before == 0 else f"{100 * (after - before) / before:+.3g} %"
    return f"{after - before:+,} {known.unit} ({share})" if known and math.isfinite(after - before) else share


def sentence(finding: Finding) -> str:
    """Returns a finding as `case: metric before -> after (change), what it is: detail`."""
    place = finding.case or WHOLE_RUN
    values = f"{value(finding.metric, finding.before)} -> {value(finding.metric, finding.after)}"
    shown = "" if finding.before is None and finding.after is None else f" {values}"
    difference = change(finding)
    if difference != units.ABSENT:
        shown += f", {difference}"
    return f"{place}: {finding.metric}{shown}; {label(finding)}"


def label(finding: Finding) -> str:
    """Returns the kind of a finding with its detail and what allowed it."""
    allowed = f"allowed by {finding.allowed_by}" if finding.allowed_by else ""
    detail = units.one_line(finding.detail)
    kind = "" if finding.kind is Kind.NOTE and detail else finding.kind.value
    return "; ".join(part for part in (kind, detail, allowed) if part)


def difference(found: Difference) -> str:
    """Returns a field of the environment with both of its values."""
    return f"{found.field} is {found.before} in the baseline and {found.after} in the run"


def headline(verdict: Verdict) -> str:
    """Returns the verdict in one sentence."""
    pair = f"{verdict.run_id} against the baseline {verdict.baseline_id}"
    if verdict.incomparable:
        return f"NOT COMPARABLE: {pair}: {'; '.join(map(difference, verdict.incomparable))}."
    compared = f"{verdict.values_compared} values compared over {len(verdict.cases)} cases"
    better = f", {len(verdict.improvements)} better" if verdict.improvements else ""
    if verdict.passed:
        return f"PASS: {pair}: {compared}{better}, none worse."
    count = len(verdict.failures)
    return f"FAIL: {pair}: {compared}{better}, {count} {'is' if count == 1 else 'are'} worse."


def advice(verdict: Verdict) -> list[str]:
    """Returns what to do next, one sentence each; empty where there is nothing to do."""
    if verdict.incomparable:
        fields = " ".join(f"--allow-environment {found.field}" for found in verdict.incomparable)
        return [
            "Exact bytes and operations belong to one environment. Measure a baseline in the new one and keep it "
            f"with --update-baseline --force, or compare in spite of it: {fields}"
        ]
    said = []
    kinds = {finding.kind for finding in verdict.failures}
    if verdict.exit_code is ExitCode.CASE_FAILED:
        said.append("A case that failed was not compared. Mend it first, then look at the numbers again.")
    if kinds & {Kind.ADDED, Kind.REMOVED, Kind.SKIPPED, Kind.FAILED}:
        said.append("If a case is meant to come, go or fail, name it: --allow 'ID or pattern'.")
    if kinds:
        said.append("If all of this is meant, make it the norm: --update-baseline --force.")
    elif verdict.improvements:
        said.append("Keep what was gained, so that it cannot be lost unnoticed: --update-baseline.")
    return said
