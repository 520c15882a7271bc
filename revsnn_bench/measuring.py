"""The one measuring path: a case goes in, a record comes out. Every door leads here."""

import time
import warnings
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from revsnn_bench.case import Case
from revsnn_bench.meters.compile import measure_compile_time
from revsnn_bench.meters.fidelity import is_right, measure_fidelity
from revsnn_bench.meters.flops import measure_flops, register_fused_operators
from revsnn_bench.meters.memory import measure_memory
from revsnn_bench.meters.timing import measure_time, set_steady_state_malloc
from revsnn_bench.models.reference import subject_of
from revsnn_bench.models.training import train
from revsnn_bench.models.workloads import build
from revsnn_bench.records import FidelityRecord, FlopsRecord, MemoryRecord, Record, Status, TimeRecord
from revsnn_bench.runner.client import utc_now
from revsnn_bench.runner.worker import SkipCase
from revsnn_bench.system.environment import conditions, read_conditions

Pass = Literal["compile", "memory", "flops", "fidelity", "time"]
USUAL: tuple[Pass, ...] = ("memory", "flops", "fidelity", "time")
"""What a case gets unless its suite names other passes."""

KEEPING_ROUNDS = 10
"""Until a process that keeps what it frees has all the memory that its steps will ask for."""


class Settings(BaseModel):
    """How to measure: which passes, and how long the timed one takes.

    Args:
        passes: what to measure; each is a pass of its own, so that no counter runs while the clock does. "compile" is
            for cases that compile something, and none of the usual ones.
        target_s: timed seconds to aim for per case, the standard LIF's rounds included.
        min_rounds, max_rounds: bounds on the number of timed rounds.
        keep_freed: whether the timed process keeps all memory that it frees, so that no page is new; see
            `meters.timing.set_steady_state_malloc`.
        epochs: epochs of training for accuracy in the workload `digits-net`, 0 for none; other networks are trained
            where their case gives a number of epochs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    passes: tuple[Pass, ...] = USUAL
    target_s: float = Field(default=0.3, gt=0)
    min_rounds: int = Field(default=5, ge=1)
    max_rounds: int = Field(default=50, ge=1)
    keep_freed: bool = False
    epochs: int = Field(default=0, ge=0)


def measure(case: Case, settings: Settings | None = None) -> Record:
    """Measures one case in this process; for a process of its own, hand this function to a `Runner`.

    Memory comes first, while the heap is fresh; time comes after the passes that count, with the allocator as a
    long-running process has it.

    Args:
        case: what to measure.
        settings: how; see `Settings`.
    Returns:
        A record with status `ok`, or `wrong` where output or gradient disagree with the reference.
    Raises:
        SkipCase: the case cannot run on this machine.
        ValueError: the case names a node, a workload or options that do not exist or do not fit.
    """
    settings = settings or Settings()
    if case.device == "cuda" and not torch.cuda.is_available():
        raise SkipCase("no CUDA device is available")
    started_at, start, before = utc_now(), time.monotonic(), read_conditions()
    with warnings.catch_warnings():
        # What a node warns of is recorded by the fidelity pass; here it would only be repeated.
        warnings.simplefilter("ignore")
        compile_time_s = measure_compile_time(case) if "compile" in settings.passes else None
        memory = _memory(case) if "memory" in settings.passes else None
        flops = _flops(case) if "flops" in settings.passes else None
        fidelity = measure_fidelity(subject_of(case)) if "fidelity" in settings.passes else None
        timing = _time(case, settings) if "time" in settings.passes else None
        epochs = case.epochs or (settings.epochs if case.workload.startswith("digits-net") else 0)
        accuracy = train(case, epochs) if epochs else None
    right = fidelity is None or is_right(fidelity)
    return Record(
        case=case,
        status=Status.OK if right else Status.WRONG,
        reason=None if fidelity is None or right else _disagreement(fidelity),
        memory=memory,
        flops=flops,
        compile_time_s=compile_time_s,
        time=timing,
        fidelity=fidelity,
        accuracy=accuracy,
        conditions=conditions(before),
        started_at=started_at,
        duration_s=time.monotonic() - start,
    )


def _memory(case: Case) -> MemoryRecord:
    return measure_memory(build(case))


def _flops(case: Case) -> FlopsRecord:
    register_fused_operators()
    return measure_flops(build(case))


def _time(case: Case, settings: Settings) -> TimeRecord:
    kept = set_steady_state_malloc(settings.keep_freed)
    # A function that once ran under a dispatch mode, as attribution uses, torch.compile leaves eager from then on.
    torch.compiler.reset()
    reference = None if case == case.point else build(case.point)
    record = measure_time(
        build(case),
        reference,
        target_s=settings.target_s,
        min_rounds=settings.min_rounds,
        max_rounds=settings.max_rounds,
        warm_rounds=KEEPING_ROUNDS if kept and settings.keep_freed else 2,
    )
    return record.model_copy(update={"freed_memory_kept": kept and settings.keep_freed})


def _disagreement(fidelity: FidelityRecord) -> str:
    errors = {
        "gradient_error": fidelity.gradient_error,
        "parameter_gradient_error": fidelity.parameter_gradient_error,
        "output_error": fidelity.output_error,
    }
    beyond = [
        f"{name} {error:.2g}" for name, error in errors.items() if error is not None and not error <= fidelity.tolerance
    ]
    return f"{', '.join(beyond)}: more than the tolerance {fidelity.tolerance:g}"
