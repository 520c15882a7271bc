"""What a claim is: the cases that it needs, the judge of their records, and what every judge reads records with."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple, TypeVar

from revsnn_bench.case import Case
from revsnn_bench.claims.plan import Plan
from revsnn_bench.records import FidelityRecord, MemoryRecord, Record
from revsnn_bench.report import units

NO_VERDICT = "A gap is no verdict."


class Verdict(StrEnum):
    """What the records say of a claim."""

    REPRODUCED = "reproduced"
    CONDITIONS = "reproduced under conditions"
    NOT = "not reproduced"
    UNDECIDED = "not decided"
    OPEN = "not measured"


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


class Judged(NamedTuple):
    """What a judge returns: where it was measured, what was found, the verdict, and the rule that led to it."""

    conditions: str
    measured: str
    verdict: Verdict
    why: str


@dataclass(frozen=True)
class Claim:
    """One claim: the cases of a plan and the parts of their records that it needs, and the judge of these records, of
    which none failed."""

    key: str
    says: str
    cases: Callable[[Plan], list[Case]]
    reads: tuple[str, ...]
    judge: Callable[[list[Record]], Judged]


_Part = TypeVar("_Part")


def by(records: Iterable[Record], **fields: Any) -> list[Record]:
    """Records whose case has these fields."""
    return [r for r in records if all(getattr(r.case, name) == value for name, value in fields.items())]


class Gap(LookupError):
    """A record holds nothing of what a claim reads."""


def known(part: _Part | None) -> _Part:
    """A part that the claim reads."""
    if part is None:
        raise Gap("a record lacks a value that the claim reads")
    return part


def memory(record: Record) -> MemoryRecord:
    """The bytes of a record whose claim reads them."""
    return known(record.memory)


def fidelity(record: Record) -> FidelityRecord:
    """The gradient errors of a record whose claim reads them."""
    return known(record.fidelity)


def is_right(record: Record) -> bool:
    """Whether every error lies within the tolerance."""
    return not fidelity(record).beyond_tolerance()


def listed(values: Iterable[object]) -> str:
    """Values separated by commas."""
    return ", ".join(map(str, values))


def sizes(records: Iterable[Record]) -> str:
    """The retained bytes that occur."""
    return listed(map(units.size, sorted({memory(record).retained_bytes for record in records})))


def of_all(holds: list[bool], every: str, some: str, none: str) -> tuple[Verdict, str]:
    """The verdict where a condition holds everywhere, somewhere and nowhere."""
    if all(holds):
        return Verdict.REPRODUCED, every
    return (Verdict.CONDITIONS, some) if any(holds) else (Verdict.NOT, none)


def label(case: Case) -> str:
    """The node with the options that tell it from others; all cases here share a backend."""
    options = [f"{name}={option}" for name, option in case.node_options if name != "backend"]
    return f"{case.node}[{','.join(options)}]" if options else case.node
