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


class _Notes:
    """What is noted of a training step while it runs: which part its tensors play, and where forward ends."""

    def note(self, category: str, *tensors: Tensor | None) -> None:
        """Tells the part of tensors that are alive now; the first part that is noted of a block stays."""
        raise NotImplementedError

    def end_forward(self) -> None:
        raise NotImplementedError

    def note_inputs(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor):
                self.note(INPUT, value)
                if value.requires_grad:
                    value.register_hook(partial(self.note, INPUT_GRADIENT))

    def run(self, step: TrainingStep) -> None:
        """Runs one forward and backward pass and notes what is seen from outside of the model."""
        output = step.forward()
        self.note(OUTPUT, output)
        self.note(STATE, *step.state_tensors())
        self.end_forward()
        if output.requires_grad:
            output.register_hook(partial(self.note, OUTPUT_GRADIENT))
        step.backward(output)
        self.note(PARAMETER_GRADIENT, *(parameter.grad for parameter in step.model.parameters()))
        self.note(INPUT_GRADIENT, step.source.grad)
        self.note(STATE, *step.state_tensors())


def _attribution(
    ledger: Ledger, category: Callable[[int], str], phase: str, module: str, forward_events: int
) -> Attribution:
    sizes: dict[str, int] = {}
    for number in ledger.at_peak:
        sizes[category(number)] = sizes.get(category(number), 0) + ledger.sizes[number]
    timeline = ledger.timeline(category, forward_events)
    return Attribution(ledger.peak, dict(sorted(sizes.items())), phase, module, timeline)


class _TrackerNotes(_Notes):
    """Notes by the serial numbers of a tracker, which is active for `watching`."""

    def __init__(self, step: TrainingStep, scratch: Scratch | None = None) -> None:
        self.tracker = StorageTracker(step.model, scratch)
        self.parts: dict[int, str] = {}
        self.retained: set[int] = set()
        self.forward_events = 0

    @contextmanager
    def watching(self, step: TrainingStep) -> Iterator[None]:
        """Watches the code of a `with` block.

        On CUDA, autograd would run backward in a thread of its own, with sequence numbers and a stack of its own.
        """
        hook = step.model.register_forward_pre_hook(self.note_inputs, with_kwargs=True)
        with hook, quiet_gc(), torch.autograd.set_multithreading_enabled(False), self.tracker:
            yield

    def note(self, category: str, *tensors: Tensor | None) -> None:
        for tensor in tensors:
            serial = None if tensor is None else self.tracker.serial(tensor)
            if serial is not None:
                self.parts.setdefault(serial, category)

    def end_forward(self) -> None:
        self.retained, self.forward_events = self.tracker.live(), len(self.tracker.log)
        self.tracker.phase = "backward"

    def category(self, serial: int) -> str:
        return self.parts.get(serial, RETAINED if serial in self.retained else TEMPORARY)


def attribute_peak(step: TrainingStep, scratch: Scratch | None = None, unit_bytes: int = 1) -> Attribution:
    """Tracks one forward and backward pass; the step is left prepared. For `scratch` see `StorageTracker`.

    Each block counts as the next multiple of `unit_bytes`.

    Parameters and the source are alive before the step and are in no category. `retained` is what was alive
    at the end of forward and plays no other part; `temporary` is the rest.
    """
    step.prepare()
    notes = _TrackerNotes(step, scratch)
    with notes.watching(step):
        notes.run(step)
    step.prepare()
    ledger, blocks = Ledger(), notes.tracker.blocks
    for entry in notes.tracker.log:
        serial = abs(entry) - 1
        nbytes = -(-blocks[serial].nbytes // unit_bytes) * unit_bytes
        ledger.allocate(serial, nbytes, blocks[serial]) if entry > 0 else ledger.free(serial)
    ledger.settle()
    phase, module = (ledger.where.phase, ledger.where.module) if ledger.where else ("forward", OUTSIDE)
    return _attribution(ledger, lambda number: notes.category(ledger.keys[number]), phase, module, notes.forward_events)


def retained_by_module(step: TrainingStep) -> dict[str, int]:
    """Bytes retained after forward by the module that made them; the step is left prepared.

    Returns:
        Bytes by qualified module name. The root goes by its class, an input that is kept alive by `input`,
        and code of the step outside of modules by `step`. The sum is the tracker's retained bytes.
    """
    step.prepare()
    notes = _TrackerNotes(step)
    with notes.watching(step):
        output = step.forward()
        alive, kept_for_output = notes.tracker.live(), notes.tracker.serial(output)
        states = {notes.tracker.serial(tensor) for tensor in step.state_tensors()}
        step.reset_state()
        carried = states - notes.tracker.live()
    sizes: dict[str, int] = {}
    for serial in sorted(alive - carried):
        block = notes.tracker.blocks[serial]
        nbytes = block.nbytes - (own_bytes(output) if serial == kept_for_output else 0)
        module = INPUT if notes.parts.get(serial) == INPUT else block.module
        if nbytes:
            sizes[module] = sizes.get(module, 0) + nbytes
    del output
    step.prepare()
    return sizes


_MARK = "revsnn_bench:"
_ENGINE_RANGE = "autograd::engine::evaluate_function"


class _Marks(_Notes):
    """Notes as marks on the profiler's clock, each with an action for the replay.

    Attributes:
        last_of_forward: sequence number of the first graph node made after forward.
    """

    last_of_forward = 0

    def __init__(self) -> None:
        self._actions: list[Callable[[_Replay], None]] = []

    def put(self, action: Callable[[_Replay], None]) -> None:
        with record_function(f"{_MARK}{len(self._actions)}"):
            self._actions.append(action)

    def note(self, category: str, *tensors: Tensor | None) -> None:
        for address in [storage_of(tensor).data_ptr() for tensor in tensors if tensor is not None]:
            self.put(partial(_Replay.play, address=address, category=category))

    def end_forward(self) -> None:
        self.put(_Replay.end_forward)
        self.last_of_forward = torch._C._autograd._get_sequence_nr()

    def enter(self, label: str) -> None:
        self.put(lambda replay: replay.stack.append(label))

    def leave(self) -> None:
        self.put(_Replay.leave)

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
    with ExitStack() as hooks:
        hooks.callback(clock.close)
        hooks.enter_context(step.model.register_forward_pre_hook(marks.note_inputs, with_kwargs=True))
        for hook in hook_modules(step.model, marks.enter, marks.leave):
            hooks.enter_context(hook)
        _, events = profiled_events(lambda: marks.run(step), step.source.device.type)
    step.prepare()
    replay = _Replay()
    for event in events:
        if is_allocation(event):
            replay_event(replay.ledger, event, (replay.phase, replay.stack[-1], event))
        elif (action := marks.action(event.name)) is not None:
            action(replay)
    replay.ledger.settle()
    phase, module, event = replay.ledger.where or ("forward", OUTSIDE, None)
    if module == OUTSIDE and phase == "backward":
        module = _module_of_node(event, clock, marks.last_of_forward)
    return _attribution(replay.ledger, replay.category, phase, module, replay.forward_events)


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
