"""The gate: fails a run that needs more bytes or operations than its baseline, or lost a case. Never measures."""

from revsnn_bench.exit_codes import ExitCode
from revsnn_bench.gate.policy import GATED, Policy
from revsnn_bench.gate.verdict import (
    BaselineRefused,
    Finding,
    Kind,
    MissingBaseline,
    Verdict,
    gate,
    load_baseline,
    update_baseline,
)

__all__ = [
    "GATED",
    "BaselineRefused",
    "ExitCode",
    "Finding",
    "Kind",
    "MissingBaseline",
    "Policy",
    "Verdict",
    "gate",
    "load_baseline",
    "update_baseline",
]
