"""What the peak is made of and where it happens; what each module leaves behind after forward.

The tracker's own peak agrees with the allocator's except for kernel scratch and wrapped Python numbers
(`tracker.py`).
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from revsnn_bench.memory_timeline import MemoryTimeline
from revsnn_bench.meters.course import timeline_of
from revsnn_bench.meters.storages import own_bytes
from revsnn_bench.meters.timeline import quiet_gc
from revsnn_bench.meters.tracker import OUTSIDE, StorageTracker
from revsnn_bench.step import TrainingStep

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
    now = peak = position = 0
    for index, entry in enumerate(tracker.log):
        nbytes = tracker.blocks[abs(entry) - 1].nbytes
        now += nbytes if entry > 0 else -nbytes
        if now > peak:
            peak, position = now, index + 1
    alive: set[int] = set()
    for entry in tracker.log[:position]:
        (alive.add if entry > 0 else alive.remove)(abs(entry) - 1)
    sizes: dict[str, int] = {}
    for serial in alive:
        category = roles.get(serial, TEMPORARY)
        sizes[category] = sizes.get(category, 0) + tracker.blocks[serial].nbytes
    last = tracker.blocks[tracker.log[position - 1] - 1] if position else None
    return Attribution(
        peak_bytes=peak,
        peak_by_category_bytes=dict(sorted(sizes.items())),
        peak_phase=last.phase if last else "forward",
        peak_module=last.module if last else OUTSIDE,
        timeline=timeline_of(
            tracker.log,
            [block.nbytes for block in tracker.blocks],
            lambda serial: roles.get(serial, TEMPORARY),
            forward_events,
        ),
    )
