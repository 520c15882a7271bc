"""What the peak is made of and where it happens; what each module leaves behind after forward.

`attribute_host_peak` reads the allocator's events, exact and with kernel scratch: marks (empty `record_function`
ranges) tie what Python knows, which tensor plays which part and which module runs, to the clock of the profiler.
`attribute_peak` and `retained_by_module` answer for any device, from what a dispatch mode sees (`tracker.py`);
their peak agrees with the allocator's except for kernel scratch and wrapped Python numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._profiler import RecordScope, _EventType
from torch.profiler import record_function

from revsnn_bench.meters.allocator import Ledger, profiled_events, quiet_gc
from revsnn_bench.meters.step import TrainingStep, own_bytes, storage_of
from revsnn_bench.meters.tracker import OUTSIDE, ModuleClock, StorageTracker
from revsnn_bench.records import MemoryTimeline

MOST_EVENTS = 128
"""Events kept of one step: more than a figure shows, few enough for every record of a sweep."""


def timeline_of(
    log: Sequence[int], sizes: Sequence[int], category: Callable[[int], str], forward_events: int
) -> MemoryTimeline:
    """Adds up the life of every block, event by event.

    Args:
        log: +(serial + 1) where a block was made and -(serial + 1) where it was freed, in order.
        sizes: bytes of each block, by serial number.
        category: names the part that a block plays, by serial number.
        forward_events: how many events of the log are forward's.
    """
    kept = _kept(log, sizes, forward_events)
    now: dict[str, int] = {}
    changes: dict[str, list[tuple[int, int]]] = {}
    for event, entry in enumerate(log, start=1):
        serial = abs(entry) - 1
        name = category(serial)
        now[name] = now.get(name, 0) + (sizes[serial] if entry > 0 else -sizes[serial])
        if event in kept:
            for known, nbytes in now.items():
                course = changes.setdefault(known, [])
                if nbytes != (course[-1][1] if course else 0):
                    course.append((event, nbytes))
    live = {name: tuple(course) for name, course in sorted(changes.items()) if course}
    return MemoryTimeline(events=len(log), forward_events=forward_events, live_bytes=live)


def _kept(log: Sequence[int], sizes: Sequence[int], forward_events: int) -> set[int]:
    """The highest event of each stretch of equal length, and the last one of forward and of the step."""
    totals, now = [0], 0
    for entry in log:
        now += sizes[abs(entry) - 1] if entry > 0 else -sizes[abs(entry) - 1]
        totals.append(now)
    # No stretch reaches from forward into backward, so there may be one more of each; the two ends are added.
    length = max(1, -(-len(log) // (MOST_EVENTS - 4)))
    kept = {forward_events, len(log)} - {0}
    for first, last in ((1, forward_events), (forward_events + 1, len(log))):
        for start in range(first, last + 1, length):
            kept.add(max(range(start, min(start + length, last + 1)), key=totals.__getitem__))
    return kept


INPUT = "input"
OUTPUT = "output"
STATE = "state"
PARAMETER_GRADIENT = "parameter gradient"
INPUT_GRADIENT = "input gradient"
OUTPUT_GRADIENT = "output gradient"
RETAINED = "retained"
TEMPORARY = "temporary"


@dataclass(frozen=True)
class Attribution:
    """A peak: its kinds (they sum to `peak_bytes`), phase and module; and the way there, whose highest point it is."""

    peak_bytes: int
    peak_by_category_bytes: dict[str, int]
    peak_phase: str
    peak_module: str
    timeline: MemoryTimeline


class _Roles:
    """Which block plays which part; the first part that is noted stays."""

    def __init__(self, tracker: StorageTracker) -> None:
        self.of: dict[int, str] = {}
        self._tracker = tracker

    def note(self, category: str, *tensors: Tensor | None) -> None:
        for tensor in tensors:
            serial = None if tensor is None else self._tracker.serial(tensor)
            if serial is not None:
                self.of.setdefault(serial, category)

    def note_inputs(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor):
                self.note(INPUT, value)
                if value.requires_grad:
                    value.register_hook(self.on_gradient(INPUT_GRADIENT))

    def on_gradient(self, category: str) -> Any:
        return lambda gradient: self.note(category, gradient)


def attribute_peak(step: TrainingStep) -> Attribution:
    """Tracks one forward and backward pass; the step is left prepared.

    Parameters and the source are alive before the step and are in no category. `retained` is what was alive
    at the end of forward and plays no other part; `temporary` is the rest.
    """
    step.prepare()
    tracker = StorageTracker(step.model)
    roles = _Roles(tracker)
    handle = step.model.register_forward_pre_hook(roles.note_inputs, with_kwargs=True)
    try:
        with quiet_gc(), tracker:
            output = step.forward()
            roles.note(OUTPUT, output)
            roles.note(STATE, *step.state_tensors())
            after_forward, forward_events = tracker.live(), len(tracker.log)
            if output.requires_grad:
                output.register_hook(roles.on_gradient(OUTPUT_GRADIENT))
            tracker.phase = "backward"
            step.backward(output)
            roles.note(PARAMETER_GRADIENT, *(parameter.grad for parameter in step.model.parameters()))
            roles.note(INPUT_GRADIENT, step.source.grad)
            roles.note(STATE, *step.state_tensors())
            del output
    finally:
        handle.remove()
    step.prepare()
    for serial in after_forward:
        roles.of.setdefault(serial, RETAINED)
    return _attribute(tracker, roles.of, forward_events)


def retained_by_module(step: TrainingStep) -> dict[str, int]:
    """Bytes retained after forward by the module that made them; the step is left prepared.

    Returns:
        Bytes by qualified module name. The root goes by its class, an input that is kept alive by `input`,
        and code of the step outside of modules by `step`. The sum is the tracker's retained bytes.
    """
    step.prepare()
    tracker = StorageTracker(step.model)
    roles = _Roles(tracker)
    handle = step.model.register_forward_pre_hook(roles.note_inputs, with_kwargs=True)
    try:
        with quiet_gc(), tracker:
            output = step.forward()
            step.reset_state()
            alive, kept_for_output = tracker.live(), tracker.serial(output)
    finally:
        handle.remove()
    sizes: dict[str, int] = {}
    for serial in sorted(alive):
        block = tracker.blocks[serial]
        nbytes = block.nbytes - (own_bytes(output) if serial == kept_for_output else 0)
        module = INPUT if roles.of.get(serial) == INPUT else block.module
        if nbytes:
            sizes[module] = sizes.get(module, 0) + nbytes
    del output
    step.prepare()
    return sizes


def _attribute(tracker: StorageTracker, roles: dict[int, str], forward_events: int) -> Attribution:
    ledger = Ledger()
    for entry in tracker.log:
        serial = abs(entry) - 1
        block = tracker.blocks[serial]
        ledger.allocate(serial, block.nbytes, block) if entry > 0 else ledger.free(serial)
    ledger.settle()
    last = ledger.where

    def category(number: int) -> str:
        return roles.get(ledger.keys[number], TEMPORARY)

    phase, module = (last.phase, last.module) if last else ("forward", OUTSIDE)
    return _attribution(ledger, category, phase, module, forward_events)


def _attribution(
    ledger: Ledger, category: Callable[[int], str], phase: str, module: str, forward_events: int
) -> Attribution:
    sizes: dict[str, int] = {}
    for number in ledger.at_peak:
        sizes[category(number)] = sizes.get(category(number), 0) + ledger.sizes[number]
    timeline = timeline_of(ledger.log, ledger.sizes, category, forward_events)
    return Attribution(ledger.peak, dict(sorted(sizes.items())), phase, module, timeline)


_MARK = "revsnn_bench:"
_ENGINE_RANGE = "autograd::engine::evaluate_function"


class _Marks:
    """Marks on the profiler's clock, each with an action for the replay."""

    def __init__(self) -> None:
        self._actions: list[Callable[[_Replay], None]] = []

    def put(self, action: Callable[[_Replay], None]) -> None:
        with record_function(f"{_MARK}{len(self._actions)}"):
            self._actions.append(action)

    def note(self, category: str, *tensors: Tensor | None) -> None:
        for address in [storage_of(tensor).data_ptr() for tensor in tensors if tensor is not None]:
            self.put(lambda replay, address=address: replay.play(address, category))  # type: ignore[misc]

    def note_inputs(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor):
                self.note(INPUT, value)
                if value.requires_grad:
                    value.register_hook(lambda gradient: self.note(INPUT_GRADIENT, gradient))

    def action(self, name: str) -> Callable[[_Replay], None] | None:
        return self._actions[int(name.removeprefix(_MARK))] if name.startswith(_MARK) else None


@dataclass
class _Replay:
    """The allocator's blocks beside what the marks say: parts of blocks, the running module, the phase."""

    ledger: Ledger = field(default_factory=Ledger)
    parts: dict[int, str] = field(default_factory=dict)
    stack: list[str] = field(default_factory=lambda: [OUTSIDE])
    phase: str = "forward"
    forward_events: int = 0
    retained: set[int] = field(default_factory=set)

    def play(self, address: int, category: str) -> None:
        if address in self.ledger.live:
            self.parts.setdefault(self.ledger.live[address], category)

    def leave(self) -> None:
        self.stack.pop()

    def end_forward(self) -> None:
        self.retained = set(self.ledger.live.values())
        self.forward_events = len(self.ledger.log)
        self.phase = "backward"

    def category(self, number: int) -> str:
        return self.parts.get(number, RETAINED if number in self.retained else TEMPORARY)


def attribute_host_peak(step: TrainingStep) -> Attribution:
    """Profiles one forward and backward pass; the step is left prepared.

    Returns:
        Categories as of `attribute_peak`, which sum to the allocator's peak to the byte. In backward the
        module is the one whose forward made the graph node that allocates.
    """
    marks = _Marks()
    step.prepare()
    clock = ModuleClock(step.model)
    handles = [step.model.register_forward_pre_hook(marks.note_inputs, with_kwargs=True)]
    handles += _mark_modules(step.model, marks)
    try:
        last_of_forward, events = profiled_events(lambda: _marked_pass(step, marks))
    finally:
        clock.close()
        for handle in handles:
            handle.remove()
    step.prepare()
    replay = _Replay()
    for event in events:
        if event.tag == _EventType.Allocation:
            replay.ledger.replay(event, (replay.phase, replay.stack[-1], event))
        elif (action := marks.action(event.name)) is not None:
            action(replay)
    replay.ledger.settle()
    phase, module, event = replay.ledger.where or ("forward", OUTSIDE, None)
    if module == OUTSIDE and phase == "backward":
        module = _module_of_node(event, clock, last_of_forward)
    return _attribution(replay.ledger, replay.category, phase, module, replay.forward_events)


def _marked_pass(step: TrainingStep, marks: _Marks) -> int:
    output = step.forward()
    marks.note(OUTPUT, output)
    marks.note(STATE, *step.state_tensors())
    marks.put(_Replay.end_forward)
    last_of_forward: int = torch._C._autograd._get_sequence_nr()
    if output.requires_grad:
        output.register_hook(lambda gradient: marks.note(OUTPUT_GRADIENT, gradient))
    step.backward(output)
    marks.note(PARAMETER_GRADIENT, *(parameter.grad for parameter in step.model.parameters()))
    marks.note(INPUT_GRADIENT, step.source.grad)
    marks.note(STATE, *step.state_tensors())
    return last_of_forward


def _mark_modules(model: nn.Module, marks: _Marks) -> list[Any]:
    handles = []
    for name, module in model.named_modules():
        label = name or type(model).__name__

        def enter(*_: Any, label: str = label) -> None:
            marks.put(lambda replay: replay.stack.append(label))

        def leave(*_: Any) -> None:
            marks.put(_Replay.leave)

        handles.append(module.register_forward_pre_hook(enter, prepend=True))
        handles.append(module.register_forward_hook(leave, always_call=True))
    return handles


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
