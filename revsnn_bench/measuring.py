"""The one measuring path: a case goes in, a record comes out. The command line, pytest and Python all call `measure`.

`PASSES` is the table of what can be measured. A new meter is one file in `meters/` and one row here, with the field of
`Record` that it fills. Meters are imported when they run, so that the table can be read without torch.
"""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from revsnn_bench.case import AS_IS, Case, is_own
from revsnn_bench.records import (
    AccuracyRecord,
    FidelityRecord,
    FlopsRecord,
    MemoryRecord,
    NoOracle,
    Record,
    SkipCase,
    Status,
    TimeRecord,
    UnknownOperation,
    utc_now,
)

KEEPING_ROUNDS = 10
"""Rounds until a process that keeps what it frees has all the memory that its steps will ask for."""

NEAR_TOLERANCE, SEEDS = 0.01, 3
"""An error above this share of the tolerance, and within it, may lie above it with other inputs: seeds decide."""


class Settings(BaseModel):
    """How to measure: which passes, and how long the timed one takes.

    Args:
        passes: what to measure, names of `PASSES`; each runs by itself, so that no counter runs while the clock does.
        target_s: timed seconds to aim for per case, the reference's rounds included.
        min_rounds, max_rounds: bounds on the number of timed rounds.
        processes: how many processes time a case in a run, one after the other, since what differs from process to
            process is more than what differs from round to round; `measure` itself is one.
        keep_freed: whether the timed process keeps all memory that it frees, so that no page is new; see
            `meters.timing.set_steady_state_malloc`.
        epochs: epochs of training for accuracy in the workload `digits-net`, 0 for none; other networks are trained
            where their case gives a number of epochs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    passes: tuple[str, ...] = Field(default_factory=lambda: USUAL)
    target_s: float = Field(default=0.3, gt=0)
    min_rounds: int = Field(default=5, ge=1)
    max_rounds: int = Field(default=50, ge=1)
    processes: int = Field(default=3, ge=1)
    keep_freed: bool = False
    epochs: int = Field(default=0, ge=0)

    @field_validator("passes")
    @classmethod
    def _passes_exist(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        unknown = sorted(set(value) - set(PASSES))
        if unknown:
            raise ValueError(f"`passes` must be among {', '.join(PASSES)}; got {', '.join(unknown)}.")
        return value


def measure(case: Case, settings: Settings | None = None) -> Record:
    """Measures one case in this process; for a process of its own, hand this function to a `Runner`.

    Memory comes first, while the heap is fresh; time comes after the passes that count, with the allocator as a
    long-running process has it.

    Returns:
        A record with status `ok`; `wrong` where output or gradient disagree with the reference; `approximate` where the
        output is right and the gradient is not meant to be that of backpropagation; `unverified` where nothing can
        judge the gradient, where memory grows with every step or differs from one to the next, where the process holds
        much more memory than the tensors that were counted, or where the model changed settings of the process. A
        user's model as it is, which its methods are held against, is `ok` where nothing can judge it; the reason says
        so.
    Raises:
        SkipCase: the case cannot run on this machine.
        ValueError: the case names a node, a workload or options that do not exist or do not fit.
    """
    import torch

    from revsnn_bench.system.environment import conditions, read_conditions, read_switches, restore_switches
    from revsnn_bench.system.process import hand_over

    settings = settings or Settings()
    if case.device == "cuda" and not torch.cuda.is_available():
        raise SkipCase("no CUDA device is available")
    if is_own(case.workload):
        from revsnn_bench.models.own import load_callable

        load_callable(case.workload)  # what its module sets as it is imported holds for its reference all the time, too
    started_at, start, before, switches = utc_now(), time.monotonic(), read_conditions(), read_switches()
    try:
        with warnings.catch_warnings():
            # What a node warns of is recorded by the fidelity pass; here it would only be repeated.
            warnings.simplefilter("ignore")
            parts: dict[str, Any] = {}
            for each in (each for name, each in PASSES.items() if name in settings.passes):
                torch.compiler.reset()  # a function is compiled so many times, and left eager from there on
                parts[each.field] = each.meter(case, settings)
                # Bytes and operations, all of them, are true whatever a later pass finds.
                exact = ["memory"] if _uncounted(parts) else ["memory", "flops"]
                hand_over({name: parts[name] for name in exact if parts.get(name) is not None})
            accuracy = _accuracy(case, settings)
    finally:
        switched = restore_switches(switches)
    status, reason = _verdict(case, parts, switched)
    if uncounted := _uncounted(parts):
        parts["flops"] = None
    if isinstance(parts.get("fidelity"), NoOracle):
        parts["fidelity"] = None
    return Record(
        case=case,
        status=status,
        reason=reason or None,
        uncounted=uncounted,
        accuracy=accuracy,
        conditions=conditions(before),
        started_at=started_at,
        duration_s=time.monotonic() - start,
        **parts,
    )


def _verdict(case: Case, parts: Mapping[str, Any], switched: str) -> tuple[Status, str]:
    """The status of a case whose passes ran, and why it is not `ok`; `switched`: settings that the model changed."""
    from revsnn_bench.models.methods import is_approximate

    fidelity, status, reason = parts.get("fidelity"), Status.OK, ""
    if isinstance(fidelity, NoOracle):
        # A user's model as it is makes no claim: it is what its methods are held against.
        status = Status.OK if case.node == case.reference == AS_IS else Status.UNVERIFIED
        reason = f"its gradient was not judged: {fidelity}"
    elif fidelity is not None and (beyond := fidelity.beyond_tolerance()):
        errors = ", ".join(f"{name} {error:.2g}" for name, error in beyond.items())
        limits = " and ".join(dict.fromkeys(f"{fidelity.allowed(name):g}" for name in beyond))
        status, reason = Status.WRONG, f"{errors}: more than the tolerance {limits}"
    elif is_approximate(case.node):
        status, reason = (
            Status.APPROXIMATE,
            "its gradient is not meant to be that of BPTT, and its bias was not measured",
        )
        if bias := None if fidelity is None else fidelity.gradient_bias:
            reason = f"its gradient is {bias.relative:.2g} from that of BPTT in relative L2, cosine {bias.cosine:.2g}"
    if status in (Status.OK, Status.APPROXIMATE) and (doubt := memory_doubt(case, parts.get("memory"))):
        status, reason = Status.UNVERIFIED, doubt
    if status in (Status.OK, Status.APPROXIMATE) and switched:
        status = Status.UNVERIFIED
        reason = (
            f"it changed settings of the process while it was measured, which others meet too: {switched}. Set them "
            "where its module is imported, threads by --threads"
        )
    return status, reason


def _uncounted(parts: Mapping[str, Any]) -> str | None:
    """Why the operations that were counted are not all; None where they are, or none were counted."""
    flops, memory = parts.get("flops"), parts.get("memory")
    if isinstance(flops, UnknownOperation):
        return str(flops)
    elsewhere = 0 if memory is None or memory.untracked_bytes is None else memory.untracked_bytes.elsewhere
    return f"{elsewhere:,} operators ran in other threads, where none is seen" if flops and elsewhere else None


def _compile_time(case: Case, settings: Settings) -> float:
    from revsnn_bench.meters.timing import measure_compile_time

    return measure_compile_time(case, "revsnn_bench.models.workloads:build")


def _memory(case: Case, settings: Settings) -> MemoryRecord:
    from revsnn_bench.meters.memory import measure_memory
    from revsnn_bench.models.peers import unlisted
    from revsnn_bench.models.workloads import build

    def rehearse() -> None:
        with unlisted():
            step = build(case)
            step.backward(step.forward())
            # A carried state may hold a checkpointed graph, and that the model: a circle that no collector sees.
            step.prepare()

    return measure_memory(build(case), rehearse)


def _flops(case: Case, settings: Settings) -> FlopsRecord | UnknownOperation:
    """The operations, or which of them has no formula: a part of a count would pass for the whole."""
    from revsnn_bench.meters.flops import measure_flops
    from revsnn_bench.meters.step import change_input
    from revsnn_bench.models.workloads import build

    step = build(case)
    change_input(step)  # what the pass before left in a cache of the class is of another input
    try:
        return measure_flops(step)
    except UnknownOperation as reason:
        return reason


def _fidelity(case: Case, settings: Settings) -> "FidelityRecord | NoOracle":
    """The fidelity, or why nothing can judge it; with errors near the tolerance of several seeds, the worst counts."""
    from revsnn_bench.meters.fidelity import measure_fidelity
    from revsnn_bench.models.reference import subject_of
    from revsnn_bench.system.process import spoiled_memory

    def of_seed(seed: int) -> FidelityRecord:
        with _without_tf32(), spoiled_memory():
            return measure_fidelity(subject_of(case.model_copy(update={"seed": seed})))

    try:
        found = of_seed(case.seed)
        # One parameter's rounding is no sign: its small gradient is held against its own norm.
        signs = [error for name, error in found.errors().items() if name != "largest_parameter_error"]
        near = NEAR_TOLERANCE * found.tolerance < max(signs, default=0.0)
        while near and found.inputs < SEEDS and not found.beyond_tolerance():
            found = found.worst_with(of_seed(case.seed + found.inputs))
        return found
    except NoOracle as reason:
        return reason


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Inside, convolutions and products in float32 are in float32 on CUDA too: TF32 alone is wrong by 1e-3."""
    import torch

    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, products.allow_tf32
    cudnn.allow_tf32 = products.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32, products.allow_tf32 = before


def _time(case: Case, settings: Settings) -> TimeRecord:
    """The times of a case beside the standard LIF, or beside the user's model as it is."""
    from revsnn_bench.meters.timing import measure_time, set_steady_state_malloc
    from revsnn_bench.models.workloads import build

    kept = set_steady_state_malloc(settings.keep_freed)
    record = measure_time(
        build(case),
        None if case == case.point else build(case.point),
        target_s=settings.target_s,
        min_rounds=settings.min_rounds,
        max_rounds=settings.max_rounds,
        warm_rounds=KEEPING_ROUNDS if kept and settings.keep_freed else 2,
    )
    return record.model_copy(update={"reference": case.reference, "freed_memory_kept": kept and settings.keep_freed})


def _accuracy(case: Case, settings: Settings) -> AccuracyRecord | None:
    epochs = case.epochs or (settings.epochs if case.workload.startswith("digits-net") else 0)
    if not epochs:
        return None
    from revsnn_bench.models.training import train

    return train(case, epochs)


@dataclass(frozen=True)
class Pass:
    """Something that is measured of a case by itself, for a field of `Record`; `usual` unless a suite names passes.

    One that is `timed` bears no other case beside it.
    """

    meter: Callable[[Case, Settings], Any]
    field: str
    usual: bool = True
    timed: bool = False


PASSES: dict[str, Pass] = {
    "compile": Pass(_compile_time, "compile_time_s", usual=False, timed=True),
    "memory": Pass(_memory, "memory"),
    "flops": Pass(_flops, "flops"),
    "fidelity": Pass(_fidelity, "fidelity"),
    "time": Pass(_time, "time", timed=True),
}
"""What can be measured, in the order in which it is: memory while the heap is fresh, time after what counts."""

USUAL: tuple[str, ...] = tuple(name for name, each in PASSES.items() if each.usual)
"""What a case gets unless its suite names other passes."""

UNTIMED: tuple[str, ...] = tuple(name for name, each in PASSES.items() if not each.timed)
"""What several cases can be measured in at once."""


LEAST_SEEN_BYTES, LEAST_SEEN_SHARE = 1 << 20, 0.05
"""Memory outside of tensors below one of these, the second as a share of the peak, passes for what Python and the C
library need."""

GRAPH_BYTES = 512 << 10
"""What autograd's own objects may take per time step besides: about 3 KB per layer, or group of one."""


def memory_doubt(case: Case, memory: MemoryRecord | None) -> str:
    """Why the bytes of a case cannot be believed; "" where they can, or were not measured."""
    if memory is not None and memory.growth_bytes:
        where = "" if memory.growth_module is None else f", in module {memory.growth_module!r}"
        return f"it holds {memory.growth_bytes:,} B more after every step{where}"
    if memory is not None and memory.unsteady_bytes > LEAST_SEEN_SHARE * memory.peak_bytes:
        return f"what two of its steps take differs by {memory.unsteady_bytes:,} B: one step does not tell of others"
    if memory is None or memory.untracked_bytes is None:
        return ""
    beyond = memory.untracked_bytes
    least = max(LEAST_SEEN_BYTES + GRAPH_BYTES * case.timesteps, LEAST_SEEN_SHARE * memory.peak_bytes)
    found = {
        "holds {} that are no tensors after forward": beyond.held,
        "writes {} in forward": beyond.written,
        "keeps {} that are no tensors from its first step on": beyond.lasting,
        "takes {} that are no tensors for a time": beyond.passing,
        "takes {} in other processes that it starts": beyond.children,
    }
    parts = [text.format(f"{size:,} B") for text, size in found.items() if size > least]
    if beyond.elsewhere:
        parts.append(f"runs {beyond.elsewhere:,} operators in other threads, whose tensors are not seen")
    return f"its memory was not all counted: it {' and '.join(parts)}" if parts else ""
