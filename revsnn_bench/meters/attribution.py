"""What the peak is made of and where it happens; what each module leaves behind after forward.

`attribute_host_peak` reads the allocator's events, exact and with kernel scratch: marks (empty `record_function`
ranges) tie what Python knows, which tensor plays which part and which module runs, to the clock of the profiler.
`attribute_peak` and `retained_by_module` answer for any device, from what a dispatch mode sees (`tracker.py`);
their peak agrees with the allocator's except for kernel scratch and wrapped Python numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._C._profiler import RecordScope, _EventType
from torch.profiler import record_function

from revsnn_bench.meters.allocator import Ledger, is_allocation, profiled_events, replay_event
from revsnn_bench.meters.step import TrainingStep, own_bytes, storage_of
from revsnn_bench.meters.tracker import OUTSIDE, ModuleClock, Scratch, StorageTracker, hook_modules
from revsnn_bench.records import MemoryTimeline
from revsnn_bench.system.process import quiet_gc


@dataclass(frozen=True)
class Attribution:
    """A peak: its kinds (they sum to `peak_bytes`), phase and module; and the way there, whose highest point it is."""

    peak_bytes: int
    peak_by_category_bytes: dict[str, int]
    peak_phase: str
    peak_module: str
    timeline: MemoryTimeline


@dataclass
class _Replay:
    """The blocks of a step, as they were made and freed, and what marks tell of them on the way.

    A block, by its number, plays the first part that is told of it; `retained` were alive at the end of forward.
    """

    ledger: Ledger = field(default_factory=Ledger)
    parts: dict[int, str] = field(default_factory=dict)
    stack: list[str] = field(default_factory=lambda: [OUTSIDE])
    phase: str = "forward"
    forward_events: int = 0
    retained: set[int] = field(default_factory=set)

    def play(self, key: Any, category: str) -> None:
        if key in self.ledger.live:
            self.parts.setdefault(self.ledger.live[key], category)

    def enter(self, label: str) -> None:
        self.stack.append(label)

    def leave(self) -> None:
        self.stack.pop()

    def end_forward(self) -> None:
        self.retained = set(self.ledger.live.values())
        self.forward_events = len(self.ledger.log)
        self.phase = "backward"

    def category(self, number: int) -> str:
        return self.parts.get(number, "retained" if number in self.retained else "temporary")

    def attribution(self, phase: str, module: str) -> Attribution:
        sizes: dict[str, int] = {}
        for number in self.ledger.at_peak:
            category = self.category(number)
            sizes[category] = sizes.get(category, 0) + self.ledger.sizes[number]
        timeline = self.ledger.timeline(self.category, self.forward_events)
        return Attribution(self.ledger.peak_bytes, dict(sorted(sizes.items())), phase, module, timeline)


@dataclass
class _Marks:
    """What is told of a training step while it runs, as actions that its replay does at the same places.

    Fields:
        key_of: what the ledger of the replay calls the block of a tensor.
        last_of_forward: sequence number of the first graph node made after forward.
    """

    put: Callable[[Callable[[_Replay], None]], None]
    key_of: Callable[[Tensor], Any]
    last_of_forward: int = 0

    def note(self, category: str, *tensors: Tensor | None) -> None:
        """Tells the part of tensors that are alive now."""
        for key in [self.key_of(tensor) for tensor in tensors if tensor is not None]:
            self.put(partial(_Replay.play, key=key, category=category))

    def note_inputs(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor):
                self.note("input", value)
                if value.requires_grad:
                    value.register_hook(partial(self.note, "input gradient"))

    def run(self, step: TrainingStep) -> None:
        """Runs one forward and backward pass and notes what is seen from outside of the model."""
        output = step.forward()
        self.note("output", output)
        self.note("state", *step.state_tensors())
        self.put(_Replay.end_forward)
        self.last_of_forward = torch._C._autograd._get_sequence_nr()
        if output.requires_grad:
            output.register_hook(partial(self.note, "output gradient"))
        step.backward(output)
        self.note("parameter gradient", *(parameter.grad for parameter in step.model.parameters()))
        self.note("input gradient", step.source.grad)
        self.note("state", *step.state_tensors())


@contextmanager
def _tracked(step: TrainingStep, scratch: Scratch | None = None) -> Iterator[tuple[StorageTracker, _Marks]]:
    """Watches the code of a `with` block; marks are entries of the tracker's log.

    On CUDA, autograd would run backward in a thread of its own, with sequence numbers and a stack of its own.
    """
    tracker = StorageTracker(step.model, scratch)
    marks = _Marks(tracker.log.append, tracker.serial)
    hook = step.model.register_forward_pre_hook(marks.note_inputs, with_kwargs=True)
    with hook, quiet_gc(), torch.autograd.set_multithreading_enabled(False), tracker:
        yield tracker, marks


def _replayed(tracker: StorageTracker, unit_bytes: int = 1) -> _Replay:
    replay = _Replay()
    for entry in tracker.log:
        if callable(entry):
            entry(replay)
        elif entry > 0:
            block = tracker.blocks[entry - 1]
            nbytes = -(-block.nbytes // unit_bytes) * unit_bytes
            replay.ledger.allocate(entry - 1, nbytes, (replay.phase, block.module))
        else:
            replay.ledger.free(-entry - 1)
    replay.ledger.settle()
    return replay


def attribute_peak(step: TrainingStep, scratch: Scratch | None = None, unit_bytes: int = 1) -> Attribution:
    """Tracks one forward and backward pass; the step is left prepared. For `scratch` see `StorageTracker`.

    Each block counts as the next multiple of `unit_bytes`.

    Parameters and the source are alive before the step and are in no category. `retained` is what was alive
    at the end of forward and plays no other part; `temporary` is the rest.
    """
    step.prepare()
    with _tracked(step, scratch) as (tracker, marks):
        marks.run(step)
    step.prepare()
    replay = _replayed(tracker, unit_bytes)
    return replay.attribution(*(replay.ledger.where or ("forward", OUTSIDE)))


def retained_by_module(step: TrainingStep) -> dict[str, int]:
    """Bytes retained after forward by the module that made them; the step is left prepared.

    Returns:
        Bytes by qualified module name. The root goes by its class, an input that is kept alive by `input`,
        and code of the step outside of modules by `step`. The sum is the tracker's retained bytes.
    """
    step.prepare()
    with _tracked(step) as (tracker, marks):
        output = step.forward()
        marks.put(_Replay.end_forward)
        states, of_output = set(map(tracker.serial, step.state_tensors())), tracker.serial(output)
        step.reset_state()
    replay = _replayed(tracker)
    sizes: dict[str, int] = {}
    for number in sorted(replay.retained):
        serial = replay.ledger.keys[number]
        if serial in states and serial not in replay.ledger.live:
            continue
        block = tracker.blocks[serial]
        nbytes = block.nbytes - (own_bytes(output) if serial == of_output else 0)
        module = "input" if replay.parts.get(number) == "input" else block.module
        if nbytes:
            sizes[module] = sizes.get(module, 0) + nbytes
    del output
    step.prepare()
    return sizes


_MARK = "revsnn_bench:"
_ENGINE_RANGE = "autograd::engine::evaluate_function"


def attribute_host_peak(step: TrainingStep) -> Attribution:
    """Profiles one forward and backward pass; the step is left prepared.

    Returns:
        Categories as of `attribute_peak`, which sum to the allocator's peak to the byte. In backward the
        module is the one whose forward made the graph node that allocates.
    """
    actions: list[Callable[[_Replay], None]] = []

    def put(action: Callable[[_Replay], None]) -> None:
        with record_function(f"{_MARK}{len(actions)}"):
            actions.append(action)

    def enter(label: str) -> None:
        put(partial(_Replay.enter, label=label))

    marks = _Marks(put, lambda tensor: storage_of(tensor).data_ptr())
    step.prepare()
    clock = ModuleClock(step.model)
    with ExitStack() as hooks:
        hooks.callback(clock.close)
        hooks.enter_context(step.model.register_forward_pre_hook(marks.note_inputs, with_kwargs=True))
        for hook in hook_modules(
            step.model, lambda label: put(partial(_Replay.enter, label=label)), lambda: put(_Replay.leave)
        ):
            hooks.enter_context(hook)
        _, events = profiled_events(lambda: marks.run(step), step.source.device.type)
    step.prepare()
    replay = _Replay()
    for event in events:
        if is_allocation(event):
            replay_event(replay.ledger, event, (replay.phase, replay.stack[-1], event))
        elif event.name.startswith(_MARK):
            actions[int(event.name.removeprefix(_MARK))](replay)
    replay.ledger.settle()
    phase, module, event = replay.ledger.where or ("forward", OUTSIDE, None)
    if module == OUTSIDE and phase == "backward":
        module = _module_of_node(event, clock, marks.last_of_forward)
    return replay.attribution(phase, module)


def _module_of_node(event: Any, clock: ModuleClock, last_of_forward: int) -> str:
    """The module of the innermost graph node around the event that forward made, not recomputation."""
    while (event := event.parent) is not None:
        fields = event.extra_fields
        # The engine's own range is around the node's: it covers additions and reductions after the node ran.
        of_node = event.tag == _EventType.TorchOp and (
            fields.scope == RecordScope.BACKWARD_FUNCTION or event.name.startswith(_ENGINE_RANGE)
        )
        if of_node and 0 <= fields.sequence_number < last_of_forward:
            return clock.at(fields.sequence_number)
    return OUTSIDE
