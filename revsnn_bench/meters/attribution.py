"""What the peak is made of and where it happens; what each module leaves behind after forward.

`attribute_host_peak` reads the allocator's events, exact and with kernel scratch: marks (empty `record_function`
ranges) tie what Python knows, which tensor plays which part and which module runs, to the clock of the profiler.
`attribute_peak` and `retained_by_module` answer for any device, from the log of a `StorageTracker`: a dispatch mode
sees every storage that an op returns, and a finalizer sees it die. It does not see scratch inside kernels nor Python
numbers that become tensors, unless it is given what knows them; apart from these its peak agrees with the allocator's.

An active dispatch mode changes what it watches: autograd's engine adds gradients in place only while none is
active (`can_accumulate_inplace` in torch/csrc/autograd/input_buffer.cpp). Such an `add` is recognised by
its caller and its operand (`_engine_accumulates`); if the operand dies before the next op, then the sum is
booked in the operand's block, as the engine would have placed it.
"""

from __future__ import annotations

import weakref
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._C._profiler import RecordScope, _EventType
from torch.profiler import record_function
from torch.utils.weak import WeakIdKeyDictionary

from revsnn_bench.meters.allocator import Ledger, profiled_events
from revsnn_bench.meters.step import (
    EagerMode,
    TrainingStep,
    called_by_engine,
    own_bytes,
    storage_of,
    storages_of,
    tensors_in,
    watched,
)
from revsnn_bench.records import MemoryTimeline
from revsnn_bench.system.process import quiet_gc

OUTSIDE = "step"
"""Where code of the training step outside of any module is booked."""


class Block(NamedTuple):
    """One storage: its bytes, and the module and autograd node (-1: none) in which it was made."""

    nbytes: int
    module: str
    node: int


def hook_modules(model: nn.Module, enter: Callable[[str], None], leave: Callable[[], None]) -> list[Any]:
    """Calls `enter` with its name before each module's forward and `leave` after it, also where it raises.

    The model itself goes by its class. Inside of a compiled function none is called, and it is compiled as without.
    Returns the handles of the hooks.
    """

    def tell(call: Callable[..., None], *label: str) -> None:
        if not torch.compiler.is_compiling():
            call(*label)

    handles: list[Any] = []
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue  # takes no hooks
        label = name or type(model).__name__
        handles.append(module.register_forward_pre_hook(lambda *_, label=label: tell(enter, label), prepend=True))
        handles.append(module.register_forward_hook(lambda *_: tell(leave), always_call=True))
    return handles


class ModuleClock:
    """Which module is running, in forward by hooks; in backward by the sequence number of the graph node it made."""

    def __init__(self, model: nn.Module) -> None:
        self._stack = [OUTSIDE]
        self._starts = [-1]
        self._names = [OUTSIDE]
        self._last_in_backward = OUTSIDE
        self._handles = hook_modules(model, self._enter, self._leave)

    def close(self) -> None:
        """Removes the hooks."""
        for handle in self._handles:
            handle.remove()

    def now(self, node: Any) -> str:
        """The module that runs now, given the autograd node that runs now (None in forward)."""
        name = self._stack[-1]
        if name == OUTSIDE and node is not None:
            sequence, following = _sequence(node), torch._C._autograd._get_sequence_nr()
            if sequence < following:  # gradient accumulators have no number of their own
                self._last_in_backward = self.at(sequence)
            name = self._last_in_backward
            if torch.is_grad_enabled():  # nodes made by recomputation belong where the recomputing node does
                self._mark(following - 1, name)
        return name

    def at(self, sequence: int) -> str:
        """The module that made the graph node with this sequence number."""
        return self._names[bisect_right(self._starts, sequence) - 1]

    def _enter(self, label: str) -> None:
        self._stack.append(label)
        self._mark(torch._C._autograd._get_sequence_nr(), label)

    def _leave(self) -> None:
        self._stack.pop()
        self._mark(torch._C._autograd._get_sequence_nr(), self._stack[-1])

    def _mark(self, sequence: int, name: str) -> None:
        if name != self._names[-1] and sequence >= self._starts[-1]:
            self._starts.append(sequence)
            self._names.append(name)


Scratch = Callable[[Any, tuple[Any, ...], torch.dtype | None], int]

NUMBER_BYTES = 8
"""What a Python number takes as a tensor."""

_aten = torch.ops.aten
_SCALES = {_aten.mul.Tensor, _aten.mul_.Tensor, _aten.div.Tensor, _aten.div_.Tensor}
"""Operators for whose backward autograd keeps the number that they are given."""


class _Number:
    """Stands for the tensor of a number, which no mode sees."""


class StorageTracker(EagerMode):
    """Logs the life of every storage made while it is active.

    Args:
        scratch: from an operator, its arguments and its `dtype`, the bytes that it takes inside of itself; with it,
            numbers that autograd keeps count, too.
    Attributes:
        blocks: what was made, by serial number.
        log: +(serial + 1) where a block was made and -(serial + 1) where it died, in order; and what callers put there.
    """

    def __init__(self, model: nn.Module, scratch: Scratch | None = None) -> None:
        super().__init__()
        self._scratch = scratch
        self.blocks: list[Block] = []
        self.log: list[Any] = []
        self._clock = ModuleClock(model)
        self._serials: Any = WeakIdKeyDictionary()  # UntypedStorage -> serial, or None for what is older
        self._finalizers: list[Any] = []
        self._awaiting: tuple[int, weakref.ref[Any], int] | None = None
        self._scaled: tuple[weakref.ref[Tensor], Block] | None = None

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._settle()
        self._clock.close()
        for finalizer in self._finalizers:
            finalizer.detach()

    def serial(self, storage: torch.UntypedStorage) -> int | None:
        """The number of a storage; None if it is older than the tracker or unseen."""
        if self._scaled is not None:
            self._keep_number(*self._scaled)  # of the last product of a forward too
        found: int | None = self._serials.get(storage)
        return found

    def operator(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs an operator, and books the storages that it makes."""
        self._settle()
        for storage in storages_of(tensors_in((args, kwargs))):
            self._serials.setdefault(storage, None)
        out = func(*args, **kwargs)
        node = torch._C._current_autograd_node()
        replaced = self._engine_accumulates(func, args, node)
        module = self._clock.now(node)
        for storage in storages_of(tensors_in(out)):
            if storage not in self._serials:
                if func.is_view:  # a fake one, of a real tensor such as labels
                    self._serials[storage] = None
                else:
                    self._book(storage, module, node, replaced)
        if self._scratch is not None and (nbytes := self._scratch(func, args, kwargs.get("dtype"))):
            serial = len(self.blocks)
            self.blocks.append(Block(nbytes, module, _sequence(node)))
            self.log += [serial + 1, -(serial + 1)]
        if self._scratch is not None and func in _SCALES and torch.is_grad_enabled():
            x, number = args
            if x.requires_grad and not isinstance(number, Tensor):
                self._scaled = weakref.ref(out), Block(NUMBER_BYTES, module, _sequence(node))
        return out

    def _book(self, storage: torch.UntypedStorage, module: str, node: Any, replaced: int | None) -> None:
        if storage.nbytes() == 0:
            return
        serial = len(self.blocks)
        self.blocks.append(Block(storage.nbytes(), module, _sequence(node)))
        if replaced is not None:
            self._serials[storage] = serial
            self._awaiting = (replaced, weakref.ref(storage), len(self.log))
        else:
            self.log.append(serial + 1)
            self._watch(storage, serial)

    def _watch(self, storage: Any, serial: int) -> None:
        self._serials[storage] = serial
        self._finalizers.append(weakref.finalize(storage, self._died, serial))

    def _died(self, serial: int) -> None:
        if self._awaiting is not None and self._awaiting[0] == serial:
            _, result, _ = self._awaiting
            self._awaiting = None
            storage = result()
            if storage is not None:
                self._watch(storage, serial)  # the sum lives on in the operand's block
                return
        self.log.append(-(serial + 1))

    def _keep_number(self, product: Any, block: Block) -> None:
        """Books the tensor of a number that another was multiplied by, which lives until its node in the graph ran."""
        scaled = product()
        if scaled is not None and scaled.grad_fn is None:
            return  # autograd asks for its device before it gives it a node
        self._scaled = None
        if scaled is None:
            return
        held, serial = [_Number()], len(self.blocks)
        self.blocks.append(block)
        self.log.append(serial + 1)
        self._watch(held[0], serial)
        scaled.grad_fn.register_prehook(lambda _: held.clear())

    def _settle(self) -> None:
        """The operand of the last engine `add` outlived it: the engine would have made a new block too."""
        if self._scaled is not None:
            self._keep_number(*self._scaled)
        if self._awaiting is None:
            return
        _, result, position = self._awaiting
        self._awaiting = None
        storage = result()
        if storage is not None:
            serial: int = self._serials[storage]
            self.log.insert(position, serial + 1)
            self._watch(storage, serial)

    def _engine_accumulates(self, func: Any, args: tuple[Any, ...], node: Any) -> int | None:
        """The block to which the engine would have added in place; None if this op is no such addition.

        The engine adds right after a node ran, while that node still counts as the current one. Its
        addition comes from no Python code, and its left operand comes from another node, or from this one
        if it feeds one input twice. A node's own addition to its incoming gradient looks the same, but that
        gradient outlives it. To a view, such as the gradient of a linear layer's weight, which comes transposed, the
        engine does not add in place: what it is a view of holds the block too.
        """
        if node is None or func is not torch.ops.aten.add.Tensor or not called_by_engine():
            return None
        left, right = args[:2]
        if not all(isinstance(each, Tensor) and each.layout is torch.strided for each in (left, right)):
            return None
        serial = None if left._is_view() else self.serial(storage_of(left))
        if serial is None or storage_of(left) is storage_of(right):
            return None
        if self.blocks[serial].node == _sequence(node):
            fed = [edge for edge in node.next_functions if edge[0] is not None]
            if len(set(fed)) == len(fed):
                return None
        return serial


def _sequence(node: Any) -> int:
    return -1 if node is None else int(node._sequence_nr())


@dataclass(frozen=True)
class Attribution:
    """A peak: its kinds (they sum to `peak_bytes`), phase and module; and the way there, whose highest point it is.

    `lasting_bytes` are those that the step before left, still there after forward.
    """

    peak_bytes: int
    peak_by_category_bytes: dict[str, int]
    peak_phase: str
    peak_module: str
    timeline: MemoryTimeline
    lasting_bytes: int


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
    lasting: set[int] = field(default_factory=set)

    def begin(self) -> None:
        self.ledger.begin()
        self.lasting = set(self.ledger.live.values())
        self.parts = dict.fromkeys(self.lasting, "lasting")

    def play(self, key: Any, category: str) -> None:
        if key in self.ledger.live:
            self.parts.setdefault(self.ledger.live[key], category)

    def end_forward(self) -> None:
        self.retained = set(self.ledger.live.values())
        self.forward_events = len(self.ledger.log)
        self.phase = "backward"

    def category(self, number: int) -> str:
        return self.parts.get(number, "retained" if number in self.retained else "temporary")

    def attribution(self, phase: str, module: str) -> Attribution:
        sizes = Counter[str]()
        for number in self.ledger.at_peak:
            sizes[self.category(number)] += self.ledger.sizes[number]
        timeline = self.ledger.timeline(self.category, self.forward_events)
        lasting = sum(self.ledger.sizes[number] for number in self.lasting & self.retained)
        return Attribution(self.ledger.peak_bytes, dict(sorted(sizes.items())), phase, module, timeline, lasting)


Action = Callable[[_Replay], object]


@dataclass
class _Marks:
    """What is told of a training step while it runs, as actions that its replay does at the same places.

    `key_of` is what the replay's ledger calls the block of a storage, `last_of_forward` the number of the next node.
    """

    put: Callable[[Action], None]
    key_of: Callable[[torch.UntypedStorage], Any]
    last_of_forward: int = 0

    def note(self, category: str, *tensors: Tensor | None) -> None:
        """Tells the part of tensors that are alive now."""
        for key in [self.key_of(storage) for storage in storages_of(each for each in tensors if each is not None)]:
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
def _tracked(step: TrainingStep, scratch: Scratch | None) -> Iterator[tuple[StorageTracker, _Marks]]:
    """Watches the code of a `with` block; marks are entries of the tracker's log.

    On CUDA, autograd would run backward in a thread of its own, with sequence numbers and a stack of its own.
    """
    tracker = StorageTracker(step.model, scratch)
    marks = _Marks(tracker.log.append, tracker.serial)
    with watched(step.model, marks.note_inputs), quiet_gc(), torch.autograd.set_multithreading_enabled(False), tracker:
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


def attribute_peak(
    step: TrainingStep, scratch: Scratch | None = None, unit_bytes: int = 1, *, after_another: bool = False
) -> Attribution:
    """Tracks one forward and backward pass; the step is left prepared. For `scratch` see `StorageTracker`.

    Each block counts as the next multiple of `unit_bytes`. Parameters and the source are alive before the step and are
    in no category. `retained` is what was alive at the end of forward and plays no other part; `temporary` is the rest.
    `after_another` runs the step once before, and what that one leaves is `lasting`.
    """
    step.prepare()
    with _tracked(step, scratch) as (tracker, marks):
        if after_another:
            step.backward(step.forward())
            step.prepare()
            marks.put(_Replay.begin)
        marks.run(step)
    step.prepare()
    replay = _replayed(tracker, unit_bytes)
    return replay.attribution(*(replay.ledger.where or ("forward", OUTSIDE)))


def retained_by_module(step: TrainingStep, scratch: Scratch | None = None) -> dict[str, int]:
    """Bytes retained after forward by the name of the module that made them; the step is left prepared.

    The root goes by its class, an input that is kept alive by `input`, and code of the step outside of modules by
    `step`. The sum is the tracker's retained bytes.
    """
    step.prepare()
    with _tracked(step, scratch) as (tracker, marks):
        output = step.forward()
        of_output = tracker.serial(storage_of(output))
        marks.put(_Replay.end_forward)
        states = {*map(tracker.serial, storages_of(step.state_tensors()))}
        step.reset_state()
    replay = _replayed(tracker)
    sizes = Counter[str]()
    for number in sorted(replay.retained):
        serial = replay.ledger.keys[number]
        if serial in states and serial not in replay.ledger.live:
            continue
        block = tracker.blocks[serial]
        nbytes = block.nbytes - (own_bytes(output) if serial == of_output else 0)
        module = "input" if replay.parts.get(number) == "input" else block.module
        if nbytes:
            sizes[module] += nbytes
    del output
    step.prepare()
    return dict(sizes)


_MARK = "revsnn_bench:"
_ENGINE_RANGE = "autograd::engine::evaluate_function"


def attribute_host_peak(step: TrainingStep) -> Attribution:
    """Profiles one forward and backward pass; the step is left prepared.

    Categories, as of `attribute_peak`, sum to the allocator's peak to the byte. In backward the module is the one whose
    forward made the graph node that allocates.
    """
    actions: list[Action] = []

    def put(action: Action) -> None:
        with record_function(f"{_MARK}{len(actions)}"):
            actions.append(action)

    def enter(label: str) -> None:
        put(lambda replay: replay.stack.append(label))

    marks = _Marks(put, lambda storage: storage.data_ptr())
    step.prepare()
    clock = ModuleClock(step.model)
    with ExitStack() as hooks:
        hooks.callback(clock.close)
        hooks.enter_context(watched(step.model, marks.note_inputs))
        for hook in hook_modules(step.model, enter, lambda: put(lambda replay: replay.stack.pop())):
            hooks.enter_context(hook)
        _, events = profiled_events(lambda: marks.run(step), step.source.device.type)
    step.prepare()
    replay = _Replay()
    for event, block in events:
        if block is not None:
            replay.ledger.book(block, (replay.phase, replay.stack[-1], event))
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
