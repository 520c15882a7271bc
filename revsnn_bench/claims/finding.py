"""What was found of one claim, and the selections of records that judging shares."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from revsnn_bench.case import Case
from revsnn_bench.records import Record

SOURCE = (
    "Lei et al., Towards Zero Memory Footprint Spiking Neural Network Training, arXiv 2308.08649. The equations "
    "measured are this project's reconstruction of the paper's node. Verdicts are computed from the records of the run."
)
"""What the claims are of, and what was measured."""

NO_VERDICT = "A gap is no verdict."


class Verdict(StrEnum):
    """What the records say of a claim."""

    REPRODUCED = "reproduced"
    CONDITIONS = "reproduced under conditions"
    NOT = "not reproduced"
    OPEN = "not measured"


@dataclass(frozen=True)
class ClaimFinding:
    """One row of the table of claims.

    Args:
        key: short name, as `--only` takes it.
        claim: what is claimed.
        conditions: where it was measured here.
        measured: what was found, with its numbers.
        verdict: what follows from the numbers.
        why: the rule that led to the verdict.
    """

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


def select(records: Iterable[Record], cases: Iterable[Case]) -> list[Record]:
    """The records of some cases, in the order of the cases; a case that has none is left out."""
    found = {record.case: record for record in records}
    return [found[case] for case in cases if case in found]


def by(records: Iterable[Record], **fields: Any) -> list[Record]:
    """Records whose case has these fields."""
    return [r for r in records if all(getattr(r.case, name) == value for name, value in fields.items())]


def one(records: Iterable[Record], **fields: Any) -> Record | None:
    """The first record whose case has these fields, or None."""
    return next(iter(by(records, **fields)), None)


def listed(values: Iterable[object]) -> str:
    """Values separated by commas."""
    return ", ".join(map(str, values))


def label(case: Case) -> str:
    """The node with the options that tell it from others; all cases here share a backend."""
    options = [f"{name}={option}" for name, option in case.node_options if name != "backend"]
    return f"{case.node}[{','.join(options)}]" if options else case.node
