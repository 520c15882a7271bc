"""What was measured: versioned, immutable records, one per case; `None` always means not measured.

Every quantity has one name, ends in its unit, is stored raw, and is formatted only for display.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from itertools import chain
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_serializer, field_validator

from revsnn_bench.case import Case

Course = tuple[tuple[int, int], ...]
"""(number of the event, live bytes from it on), wherever the bytes change; 0 before the first."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=True, ser_json_inf_nan="strings")


class MemoryTimeline(_Frozen):
    """Live bytes over one training step; each block that is allocated or freed is one event.

    Of a long step some events are kept, each the highest of those that it stands for, so that the peak is exact.

    Fields:
        events: how many there were.
        forward_events: how many of them, the first ones, in forward.
        live_bytes: by category of `peak_by_category_bytes`; in files as text, `"1:4096 17:0"`.
    """

    events: int
    forward_events: int
    live_bytes: dict[str, Course]

    @property
    def peak_bytes(self) -> int:
        """The highest sum of all categories; less than the record's peak by what is `unattributed` there."""
        return max((sum(row.values()) for _, row in self.rows()), default=0)

    def rows(self) -> list[tuple[int, dict[str, int]]]:
        """Every kept event with the live bytes of every category from it on."""
        changes: dict[int, dict[str, int]] = {}
        for name, course in self.live_bytes.items():
            for event, nbytes in course:
                changes.setdefault(event, {})[name] = nbytes
        now = dict.fromkeys(self.live_bytes, 0)
        rows = []
        for event in sorted(changes):
            now |= changes[event]
            rows.append((event, dict(now)))
        return rows

    @field_validator("live_bytes", mode="before")
    @classmethod
    def _read_text(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {
            name: [pair.split(":") for pair in course.split()] if isinstance(course, str) else course
            for name, course in value.items()
        }

    @field_serializer("live_bytes", when_used="json")
    def _write_text(self, value: dict[str, Course]) -> dict[str, str]:
        return {name: " ".join(f"{event}:{nbytes}" for event, nbytes in course) for name, course in value.items()}


SCHEMA_VERSION = 2
"""Version 2 knows which cases were planned, and whether the run is complete; `runs.py` reads version 1 too."""

MOST_TEXT_BYTES = 8192
"""Longest text of others that a record holds, such as the reason of a failure."""


def cut(text: object) -> object:
    """Text of others as valid Unicode of at most `MOST_TEXT_BYTES` in UTF-8: of a longer one head and tail.

    What is no text is returned as it is, for the field to refuse.
    """
    if not isinstance(text, str):
        return text
    content = text.encode("utf-8", errors="backslashreplace")
    if len(content) > MOST_TEXT_BYTES:
        part = MOST_TEXT_BYTES // 2 - 32
        gap = f"\n[... {len(content) - 2 * part} bytes ...]\n".encode()
        content = content[:part] + gap + content[-part:]
    return content.decode("utf-8", errors="ignore")


Foreign = Annotated[str, BeforeValidator(cut)]
"""Text that a node, a model or a library made."""

Amount = Annotated[int, Field(ge=0)]  # of bytes, operations, or what is counted
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


def _taken(seconds: float) -> float:
    if 0 < seconds < 1e-12:
        raise ValueError(f"must be 0 or at least a picosecond; got {seconds} s")
    return seconds


Seconds = Annotated[float, Field(ge=0, le=1e10, allow_inf_nan=False), AfterValidator(_taken)]
"""A time that a clock can tell, so that the ratio of two is finite."""


def _not_negative(error: float) -> float:
    if error < 0:
        raise ValueError(f"must not be negative; got {error}")
    return error


Error = Annotated[float, AfterValidator(_not_negative)]
"""A distance, which may be infinite; a NaN was measured."""


def _date(text: str) -> str:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"must be a date as in ISO 8601; got {text[:40]!r}") from None
    return text


Date = Annotated[str, AfterValidator(_date)]


class Status(StrEnum):
    """How a case ended; none of these is a number."""

    OK = "ok"
    WRONG = "wrong"
    UNVERIFIED = "unverified"
    APPROXIMATE = "approximate"
    OOM = "oom"
    TIMEOUT = "timeout"
    ERROR = "error"
    SKIPPED = "skipped"


class SavedBytes(_Frozen):
    """Unique storages packed for backward: `own`, or aliasing the caller's `input` or `output`."""

    own: Amount
    input: Amount
    output: Amount


class UntrackedBytes(_Frozen):
    """Host memory beyond tensors, by the C library and the kernel; never exact, and part of no other quantity.

    Fields:
        held: after forward, beyond live tensors.
        written: passed to `write` in forward.
        lasting: by which the first step made the process grow for good.
        passing: the most that Python's objects and arrays took at once in forward and backward; by tracemalloc.
        elsewhere: how many operators of torch ran in other threads, where the profiler sees no block.
        children: pages that processes started in forward or backward have touched.
    """

    held: int
    written: int
    lasting: int
    passing: int = 0
    elsewhere: int = 0
    children: int = 0


class MemoryRecord(_Frozen):
    """Bytes of one training step; on CPU from the profiler's timeline, exact to the byte.

    Fields, beside what `revsnn_bench.metrics.METRICS` says of them:
        retained_bytes: read while the state is carried, as in a training loop.
        saved_bytes: what autograd packs; None where a transform of `torch.func` refuses the hooks that see it.
        peak_by_category_bytes: the peak by kind (input, output, retained, gradient, temporary, ...).
        peak_phase, peak_module: where the peak occurred.
        retained_by_module_bytes: the retained bytes by the module that made them; sums to `retained_bytes` exactly.
        timeline: live bytes over the step; its highest sum is `peak_bytes`, less what is `unattributed` there.
        lasting_bytes: tensors that the first step made and never freed; part of retained and peak bytes.
        growth_bytes: by which tensors grow with every step, though state and gradients are dropped after it.
        growth_module: the module that holds most of the growth, "" for the root; None where nothing grows, or where no
            module holds it.
        unsteady_bytes: by which steps differ in what they keep or in their peaks, the highest of which count; CPU only.
        untracked_bytes: memory that is no tensor; None where the system does not say.
    """

    retained_bytes: Amount
    state_bytes: Amount
    output_bytes: Amount
    saved_bytes: SavedBytes | None = None
    peak_bytes: Amount
    peak_by_category_bytes: dict[str, int]
    peak_phase: str
    peak_module: Foreign
    retained_by_module_bytes: dict[Foreign, int] | None = None
    timeline: MemoryTimeline | None = None
    lasting_bytes: Amount = 0
    growth_bytes: Amount = 0
    growth_module: Foreign | None = None
    unsteady_bytes: Amount = 0
    untracked_bytes: UntrackedBytes | None = None
    process_peak_bytes: int | None = None
    device_peak_bytes: Amount | None = None
    device_reserved_bytes: Amount | None = None
    driver_peak_bytes: int | None = None


class PhaseFlops(_Frozen):
    """Operations of one phase: 1 per pointwise output element, 2 per multiply-accumulate."""

    pointwise: Amount
    multiply_accumulate: Amount

    @property
    def total(self) -> int:
        """All operations of the phase."""
        return self.pointwise + self.multiply_accumulate


class FlopsRecord(_Frozen):
    """Operations of one training step, phases apart; `fvcore_forward_flops` is the cross-check (2 per MAC)."""

    forward: PhaseFlops
    backward: PhaseFlops
    recompute: PhaseFlops
    fvcore_forward_flops: Amount | None = None


class TimeRecord(_Frozen):
    """Raw wall-time samples in seconds, interleaved with what ratios are taken against at the same point.

    Fields:
        reference: the node that those are of: the standard LIF, or of a user's model that as it is.
        forward_time_s, backward_time_s: one sample per accepted round, in order.
        lif_forward_time_s, lif_backward_time_s: the reference's samples of the same rounds, in the same process; equal
            to the case's own samples where the case is the reference.
        copy_time_s: in each round, copying the input to memory that is mapped already: one read and one write of it,
            the unit in which kernels near the memory bandwidth are understood.
        first_step_time_s: forward and backward of the very first round, before any was timed; what other passes or
            caches on disk hold compiled is not compiled again (see `Record.compile_time_s`).
        rounds_by_process: how many of the rounds, in order, each process took that ran the case; empty for one process.
        rounds_rejected: rounds thrown away because their threads had to wait for a core.
        rounds_contended: rounds kept in spite of that, because too few were left alone.
        others_cores: cores that other processes took meanwhile, rejected rounds included; None in records from before.
        load_before, load_after: load average over one minute.
        freed_memory_kept: whether the process kept all that it freed, at any size, so that no page was new.
    """

    forward_time_s: tuple[Seconds, ...]
    backward_time_s: tuple[Seconds, ...]
    lif_forward_time_s: tuple[Seconds, ...] = ()
    lif_backward_time_s: tuple[Seconds, ...] = ()
    reference: str = "lif"
    copy_time_s: tuple[Seconds, ...] = ()
    first_step_time_s: Seconds | None = None
    rounds_by_process: tuple[int, ...] = ()
    rounds_rejected: Amount
    rounds_contended: Amount = 0
    others_cores: float | None = None
    load_before: float
    load_after: float
    threads: Annotated[int, Field(ge=1)]
    freed_memory_kept: bool = False

    def model_post_init(self, context: Any) -> None:
        """Refuses processes that did not take the rounds that there are."""
        processes, rounds = self.rounds_by_process, len(self.forward_time_s)
        if processes and (min(processes) < 1 or sum(processes) != rounds):
            raise ValueError(f"`rounds_by_process` must be positive, with the sum {rounds}; got {processes}"[:200])


def joined(times: Sequence[TimeRecord]) -> TimeRecord:
    """The times of one case in several processes, one after the other."""
    samples = ("forward_time_s", "backward_time_s", "lif_forward_time_s", "lif_backward_time_s", "copy_time_s")
    others = [each.others_cores for each in times if each.others_cores is not None]
    return times[0].model_copy(
        update={name: tuple(chain.from_iterable(getattr(each, name) for each in times)) for name in samples}
        | {name: sum(getattr(each, name) for each in times) for name in ("rounds_rejected", "rounds_contended")}
        | {"rounds_by_process": tuple(len(each.forward_time_s) for each in times), "load_after": times[-1].load_after}
        | {"others_cores": sum(others) / len(others) if others else None}
    )


class GradientBias(_Frozen):
    """How far a gradient that is not meant to be exact is from that of float64 backpropagation of the same forward.

    Of the parameters' gradients in a call from rest.

    Fields:
        relative: L2 distance over the L2 norm of the exact one, all parameters taken as one vector.
        cosine: of the angle between the two.
        by_module: the same two numbers for each module's own parameters.
    """

    relative: float
    cosine: float
    by_module: dict[Foreign, tuple[float, float]]


ONE_PARAMETER = 10
"""Tolerances that the gradient of one parameter may be wrong by: rounding shows in one more than in all together, and a
gradient that is lost or reversed is wrong by its whole norm or twice that."""


class FidelityRecord(_Frozen):
    """Is the gradient right? Relative L2 errors against float64 backpropagation of the same forward.

    Fields, beside what `revsnn_bench.metrics.METRICS` says of them:
        gradient_error: the worst of two calls in a row, as all errors are; of all parameters' where the step needs no
            gradient of its input.
        parameter_gradient_error: of those that are not rounding alone; None without parameters.
        largest_parameter_error: of the parameter whose gradient is worst, by its own norm or, where that is less, by
            a tolerance of the norm of all; None without parameters, in half precision, or where differences judge.
        state_gradient_error: None where no membrane is carried, or the reference carries others.
        output_error: in the same dtype; None without a reference.
        tolerance: largest gradient error that counts as right for this dtype.
        reconstruction_error, flipped_spikes: None where nothing is inverted.
        recovered_steps: how many steps, from the last one back, the inverse agrees with the stored input and membrane
            by `torch.allclose`; None where no membrane is inverted.
        bit_equal: how many outputs and gradients of both calls, and buffers after them, have the bits of the same
            network without its strategy, and how many there are; None where there is no such network to compare with.
        warning: the warning that the node gave, word for word.
        judged_by: "reference", backpropagation through the reference's forward; or "differences" of the model's own
            forward, for a model that names no reference; see `meters/oracle.py`.
        inputs: on how many seeds' inputs and parameters, of which the errors are the worst.
        gradient_bias: of a method that is not meant to be exact; None of every other. It has no tolerance.
    """

    gradient_error: Error
    parameter_gradient_error: Error | None = None
    largest_parameter_error: Error | None = None
    state_gradient_error: Error | None = None
    output_error: Error | None = None
    tolerance: Annotated[float, Field(ge=0, le=0.1, allow_inf_nan=False)]
    reconstruction_error: Error | None = None
    flipped_spikes: Amount | None = None
    recovered_steps: Amount | None = None
    predicted_error: Error | None = None
    bit_equal: tuple[int, int] | None = None
    warning: Foreign | None = None
    neurons: Amount
    judged_by: str = "reference"
    inputs: int = 1
    gradient_bias: GradientBias | None = None

    def errors(self) -> dict[str, float]:
        """The errors that have a tolerance, by name: of an approximate method the output's alone."""
        gradients = ("gradient_error", "parameter_gradient_error", "largest_parameter_error", "state_gradient_error")
        found = {name: getattr(self, name) for name in (*(() if self.gradient_bias else gradients), "output_error")}
        return {name: error for name, error in found.items() if error is not None}

    def allowed(self, name: str) -> float:
        """What an error may be: the tolerance, or for a single parameter `ONE_PARAMETER` of them."""
        return self.tolerance * (ONE_PARAMETER if name == "largest_parameter_error" else 1)

    def beyond_tolerance(self) -> dict[str, float]:
        """The errors that exceed what is allowed, by name; NaN does."""
        return {name: error for name, error in self.errors().items() if not error <= self.allowed(name)}

    def worst_with(self, other: "FidelityRecord") -> "FidelityRecord":
        """The worse of each error, over the inputs of both; what is no error stays as it is here."""
        theirs = other.errors()
        worse = {  # a NaN of either is the worst
            name: theirs[name] for name, e in self.errors().items() if e == e and not theirs.get(name, e) <= e
        }
        return self.model_copy(update=worse | {"inputs": self.inputs + other.inputs})


class AccuracyRecord(_Frozen):
    """Test accuracy, in [0, 1], after a fixed budget of training on real data.

    Fields:
        stripped_accuracy: of the same network emitting binary spikes; None where its nodes carry nothing.
        accuracy_by_epoch, loss_by_epoch: test accuracy after, and mean training loss in, each epoch.
    """

    accuracy: Share
    stripped_accuracy: Share | None = None
    data: str
    epochs: int
    train_samples: int
    test_samples: int
    train_time_s: float
    accuracy_by_epoch: tuple[Share, ...] = ()
    loss_by_epoch: tuple[float, ...] = ()
    batch: int | None = None
    learning_rate: float | None = None


class TrialRecord(_Frozen):
    """What a study of `revsnn-bench tune` knows of a trial beside what was measured.

    Fields:
        number: of the trial; of what was trained again, of the trial that it repeats.
        params: what the sampler chose, by name.
        predicted_peak_bytes, predicted_flops: of a training step, before anything ran; None where that failed, or where
            the gradient was refused before.
        predicted_gradient_error: by a node that inverts its membrane; None for others.
        firing_rate: share of neurons and steps with a spike after the first epoch: mean over the layers, the lowest
            and the highest of them.
    """

    number: int
    params: dict[str, str | int | float | bool | None]
    predicted_peak_bytes: int | None = None
    predicted_flops: int | None = None
    predicted_gradient_error: float | None = None
    firing_rate: tuple[float, float, float] | None = None


class Conditions(_Frozen):
    """What may change from case to case on one machine: load, clocks, temperature, throttling."""

    load_before: float | None = None
    load_after: float | None = None
    gpu_before: dict[str, Any] | None = None
    gpu_after: dict[str, Any] | None = None


class Record(_Frozen):
    """One case, how it ended, and what was measured of it.

    Fields:
        compile_time_s: what the first step of a process takes beyond a later one, with nothing compiled on disk; None
            where that was not measured, as for what compiles nothing.
        uncounted: why operations were not counted: one of them has no formula; None where they were, or should not be.
        host: of the cluster, by its name in `Run.hosts`; None where the run has one machine, or nothing was measured.
    """

    case: Case
    status: Status
    reason: Foreign | None = None
    memory: MemoryRecord | None = None
    flops: FlopsRecord | None = None
    uncounted: Foreign | None = None
    compile_time_s: Seconds | None = None
    time: TimeRecord | None = None
    fidelity: FidelityRecord | None = None
    accuracy: AccuracyRecord | None = None
    trial: TrialRecord | None = None
    host: Foreign | None = None
    conditions: Conditions = Conditions()
    started_at: str
    duration_s: Seconds

    def model_post_init(self, context: Any) -> None:
        """Refuses a status that the errors beside it deny."""
        beyond = self.fidelity.beyond_tolerance() if self.fidelity else {}
        if beyond and self.status in (Status.OK, Status.APPROXIMATE):
            raise ValueError(
                f"`status` cannot be {self.status.value} where {', '.join(beyond)} is beyond its tolerance"
            )


class Environment(_Frozen):
    """Where a run took place; `system.environment.incomparable_fields` names what must agree to compare two runs.

    Fields:
        sources: digest of the code outside of installed packages: a clone of this program, and modules of the user's
            model and of `--preload` with those that they load from beside them; None in records from before.
    """

    torch: str
    python: str
    platform: str
    cpu_model: str
    cores: int
    threads: int
    memory_bytes: int
    package: str
    commit: str | None
    committed_at: Date | None = None
    dirty: bool | None
    sources: str | None = None
    packages: dict[str, str]
    cuda: str | None = None
    driver: str | None = None
    gpu: str | None = None
    deterministic: bool
    malloc: dict[str, Foreign]


class RunHeader(_Frozen):
    """First line of a journal: what was asked for, and where.

    Fields:
        environment: of a run on a cluster, that of one of its hosts: all agree in what exact values depend on.
        cluster: whether cases went to the hosts of a cluster, whose environments are in `Run.hosts`.
    """

    schema_version: int = SCHEMA_VERSION
    run_id: str
    started_at: Date
    command: tuple[Foreign, ...]
    environment: Environment
    settings: dict[str, Any]
    cluster: bool = False


class Plan(_Frozen):
    """A line of a journal: ids of cases that the run is to measure; a later one adds to those before it."""

    planned: tuple[str, ...]


class Host(_Frozen):
    """A line of a journal: a host of the cluster, written before the first record from there."""

    host: Foreign
    environment: Environment


class Run(_Frozen):
    """A header and its records, in the order in which the cases ended; of a finished run on a cluster, of the plan.

    Fields:
        hosts: environments of the hosts of a cluster that measured something, by name; empty for one machine.
        planned: ids of the cases that were to be measured, all parts of a sharded sweep together; None where that is
            not known.
        complete: whether every planned case has a record.
    """

    header: RunHeader
    hosts: dict[Foreign, Environment] = {}
    planned: tuple[str, ...] | None = None
    complete: bool = True
    records: tuple[Record, ...]

    @field_validator("records", mode="wrap")
    @classmethod
    def _read_each_once(cls, value: Any, read: Callable[[Any], tuple[Record, ...]]) -> tuple[Record, ...]:
        """Refuses a file that holds a case twice; of a run in memory the last record of a case counts."""
        records = read(value)
        ids = Counter(record.case.id for record in records)
        if len(ids) < len(records) and not all(isinstance(each, Record) for each in value):
            raise ValueError(f"holds the case {ids.most_common(1)[0][0][:100]!r} more than once")
        return records

    def model_post_init(self, context: Any) -> None:
        """Refuses a run that is said to be complete and is not."""
        if self.complete and (missing := self.missing):
            raise ValueError(f"`complete` must be false; {len(missing)} planned cases have no record")

    def __iter__(self) -> Iterator[Record]:  # type: ignore[override]
        return iter(self.records)

    @property
    def place(self) -> str:
        """Where it was measured: the GPU, or else the processor; of a cluster those of all hosts."""
        found = [each.gpu or each.cpu_model for each in (self.hosts or {"": self.header.environment}).values()]
        names = " and ".join(dict.fromkeys(found))
        return f"{len(found)} hosts ({names})" if self.header.cluster else names

    @property
    def missing(self) -> tuple[str, ...]:
        """Ids of the planned cases without a record."""
        return without_record(self.planned or (), self.records)

    @property
    def extent(self) -> str:
        """How much of the run there is, in words: `7 of 10 planned cases`."""
        if self.complete:
            return "all planned cases"
        if self.planned is None:
            return f"{len(self.records)} cases of a run that was not finished"
        return f"{len(set(self.planned)) - len(self.missing)} of {len(set(self.planned))} planned cases"


def without_record(planned: Sequence[str], records: Sequence[Record]) -> tuple[str, ...]:
    """The planned cases, by id, that no record is about."""
    done = {record.case.id for record in records}
    return tuple(case for case in dict.fromkeys(planned) if case not in done)


class NoOracle(Exception):
    """Nothing can judge the gradient of a case that names no reference; the message says why."""


class UnknownOperation(LookupError):
    """An operator ran that has no FLOPs formula; the message names it, and says how to register one."""


class SkipCase(Exception):
    """Raised by a measure function for a case that cannot run here; the message becomes the reason."""


def utc_now() -> str:
    """The time as records write it: ISO 8601, UTC, seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")
