"""What the host peak is made of and where it happens, exact: from the allocator's events, with kernel scratch.

Marks (empty `record_function` ranges) tie what Python knows, which tensor plays which part and which module
runs, to the clock of the profiler. `attribution.py` answers the same for any device, from what a dispatch
mode can see.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._profiler import RecordScope, _EventType
from torch.profiler import record_function

from revsnn_bench.meters import attribution as kinds
from revsnn_bench.meters.attribution import Attribution
from revsnn_bench.meters.course import timeline_of
from revsnn_bench.meters.storages import storage_of
from revsnn_bench.meters.timeline import profiled_events
from revsnn_bench.meters.tracker import OUTSIDE, ModuleClock
from revsnn_bench.step import TrainingStep

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
                self.note(kinds.INPUT, value)
                if value.requires_grad:
                    value.register_hook(lambda gradient: self.note(kinds.INPUT_GRADIENT, gradient))

    def action(self, name: str) -> Callable[[_Replay], None] | None:
        return self._actions[int(name.removeprefix(_MARK))] if name.startswith(_MARK) else None


@dataclass
class _Replay:
    """The life of every block, in order of time."""

    sizes: list[int] = field(default_factory=list)
    log: list[int] = field(default_factory=list)
    forward_events: int = 0
    live: dict[int, int] = field(default_factory=dict)
    parts: dict[int, str] = field(default_factory=dict)
    stack: list[str] = field(default_factory=lambda: [OUTSIDE])
    phase: str = "forward"
    retained: set[int] = field(default_factory=set)
    now: int = 0
    peak: int = 0
    at_peak: set[int] = field(default_factory=set)
    where: tuple[str, str, Any] = ("forward", OUTSIDE, None)
    rising: tuple[str, str, Any] | None = None

    def play(self, address: int, category: str) -> None:
        if address in self.live:
            self.parts.setdefault(self.live[address], category)

    def leave(self) -> None:
        self.stack.pop()

    def end_forward(self) -> None:
        self.retained = set(self.live.values())
        self.forward_events = len(self.log)
        self.phase = "backward"

    def allocate(self, address: int, nbytes: int, event: Any) -> None:
        self.live[address] = len(self.sizes)
        self.sizes.append(nbytes)
        self.log.append(len(self.sizes))
        self.now += nbytes
        if self.now > self.peak:
            self.peak = self.now
            self.rising = (self.phase, self.stack[-1], event)

    def free(self, address: int) -> None:
        if address in self.live:
            self.settle()
            serial = self.live.pop(address)
            self.log.append(-(serial + 1))
            self.now -= self.sizes[serial]

    def settle(self) -> None:
        # The set at a peak is copied once per rise, at the first free after it, not at every allocation.
        if self.rising is not None:
            self.at_peak, self.where, self.rising = set(self.live.values()), self.rising, None

    def category(self, serial: int) -> str:
        return self.parts.get(serial, kinds.RETAINED if serial in self.retained else kinds.TEMPORARY)


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
            if event.extra_fields.alloc_size > 0:
                replay.allocate(event.extra_fields.ptr, event.extra_fields.alloc_size, event)
            else:
                replay.free(event.extra_fields.ptr)
        elif (action := marks.action(event.name)) is not None:
            action(replay)
    replay.settle()
    phase, module, event = replay.where
    if module == OUTSIDE and phase == "backward":
        module = _module_of_node(event, clock, last_of_forward)
    timeline = timeline_of(replay.log, replay.sizes, replay.category, replay.forward_events)
    return Attribution(replay.peak, _by_category(replay), phase, module, timeline)


def _marked_pass(step: TrainingStep, marks: _Marks) -> int:
    output = step.forward()
    marks.note(kinds.OUTPUT, output)
    marks.note(kinds.STATE, *step.state_tensors())
    marks.put(_Replay.end_forward)
    last_of_forward: int = torch._C._autograd._get_sequence_nr()
    if output.requires_grad:
        output.register_hook(lambda gradient: marks.note(kinds.OUTPUT_GRADIENT, gradient))
    step.backward(output)
    marks.note(kinds.PARAMETER_GRADIENT, *(parameter.grad for parameter in step.model.parameters()))
    marks.note(kinds.INPUT_GRADIENT, step.source.grad)
    marks.note(kinds.STATE, *step.state_tensors())
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


def _by_category(replay: _Replay) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for serial in replay.at_peak:
        category = replay.category(serial)
        sizes[category] = sizes.get(category, 0) + replay.sizes[serial]
    return dict(sorted(sizes.items()))
