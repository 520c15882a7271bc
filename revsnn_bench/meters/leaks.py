"""What stays: does a model hold more after every training step, and what does a step hold beyond its own blocks?

A spiking network leaks where a state is never reset or never cut from its graph: each step then keeps the graphs of
all earlier ones. The growth comes from the allocator and is exact; the module is the one from whose attributes the
memory can be reached.

The memory meter reads a later step than the first, so a buffer that the first one made and keeps would cost nothing;
here it is found among all tensors that Python knows. Other memory is what malloc, the kernel, `write` and, within a
step, `tracemalloc` say beyond live tensors; operators of other threads, whose blocks the profiler does not see, are
known by their names. That is not exact: it decides whether the quantities can be believed. See docs/limits.md.
"""

import gc
import importlib
import tracemalloc
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._C._profiler import _ExperimentalConfig
from torch.autograd.profiler import profile
from torch.multiprocessing.reductions import StorageWeakRef

from revsnn_bench.meters.allocator import record_timeline
from revsnn_bench.meters.step import TrainingStep, change_input, storages_of
from revsnn_bench.records import UntrackedBytes
from revsnn_bench.system.process import ChildUse, HostUse, all_tensors, host_use, quiet_gc, tensors_among


@dataclass(frozen=True)
class Leaks:
    """What grows from step to step.

    Fields:
        bytes_per_step: by which live tensor bytes grow with one more step; 0 where nothing leaks.
        by_module: the same by the module that holds it, as far as it can be reached from one; the root is "".
        carried_graphs: modules that carry a state with the graph that made it from one step to the next.
        stopped: whether backward failed because it met the graph of an earlier step.
    """

    bytes_per_step: int
    by_module: dict[str, int]
    carried_graphs: tuple[str, ...]
    stopped: bool = False

    def __bool__(self) -> bool:
        return bool(self.bytes_per_step or self.stopped)

    def __str__(self) -> str:
        holders = ", ".join(repr(name) for name in self.carried_graphs)
        fix = f"{holders} carry state with its graph: reset or detach it between steps." if holders else ""
        if self.stopped:
            return f"Backward met the graph of an earlier step. {fix}".rstrip()
        if not self.bytes_per_step:
            return "No leak: live tensor bytes are the same after every step."
        parts = ", ".join(f"{nbytes:,} B in {name!r}" for name, nbytes in self.by_module.items())
        where = f": {parts}" if parts else ""
        return f"Live tensors grow by {self.bytes_per_step:,} B with every step{where}. {fix}".rstrip()


def find_leaks(model: nn.Module, train_step: Callable[[], object]) -> Leaks:
    """Runs a training step five times and tells what grows.

    Args:
        model: whose modules are searched for what holds the memory.
        train_step: one whole step as the training loop does it: forward, loss, backward, optimizer, reset if any.
    Returns:
        What grows; false where nothing does.
    Raises:
        RuntimeError: whatever `train_step` raises, but for a backward through an earlier step's graph.
    """
    try:
        train_step()
        train_step()
        before = held_by_module(model)
        _, once = record_timeline(train_step)
        by_module = _grown_modules(model, before)
        _, twice = record_timeline(lambda: (train_step(), train_step()))
    except RuntimeError as error:
        if "backward through the graph a second time" not in str(error):
            raise
        return Leaks(0, {}, _carried_graphs(model), stopped=True)
    growth = max(0, twice.live_bytes - once.live_bytes)
    return Leaks(growth, by_module if growth else {}, _carried_graphs(model) if growth else ())


def held_by_module(model: nn.Module) -> dict[str, int]:
    """Bytes of the storages that can be reached from the attributes of each module, graphs included.

    Parameters are left out. A storage counts for the first module that reaches it.
    """
    seen_storages = {storage._cdata for storage in storages_of(model.parameters())}
    seen_nodes: set[Any] = set()
    sizes: dict[str, int] = {}
    for name, module in model.named_modules():
        for tensor in _carried(module):
            for storage in storages_of((tensor, *_saved(tensor, seen_nodes))):
                if storage._cdata not in seen_storages:
                    seen_storages.add(storage._cdata)
                    sizes[name] = sizes.get(name, 0) + storage.nbytes()
    return sizes


def _grown_modules(model: nn.Module, before: dict[str, int]) -> dict[str, int]:
    """By how many bytes modules hold more than `before`, those that grew most first."""
    grown = {name: nbytes - before.get(name, 0) for name, nbytes in held_by_module(model).items()}
    return dict(sorted(((name, more) for name, more in grown.items() if more > 0), key=lambda pair: -pair[1]))


def _carried_graphs(model: nn.Module) -> tuple[str, ...]:
    return tuple(
        name for name, module in model.named_modules() if any(each.grad_fn is not None for each in _carried(module))
    )


def _carried(module: nn.Module) -> Iterator[Tensor]:
    """Tensors in the attributes of a module, without its parameters and submodules."""
    return _tensors([value for name, value in vars(module).items() if name not in ("_parameters", "_modules")])


def _tensors(value: Any, depth: int = 4) -> Iterator[Tensor]:
    """Tensors in a value and, to some depth, in the containers that it is made of."""
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, dict):
        yield from _tensors(list(value.values()), depth - 1)
    elif depth and isinstance(value, list | tuple | set | frozenset):
        for each in value:
            yield from _tensors(each, depth - 1)


def _saved(tensor: Tensor, seen: set[Any]) -> Iterator[Tensor]:
    """What the graph behind a tensor saved, as far as autograd shows it."""
    pending = [tensor.grad_fn]
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        pending.extend(following for following, _ in node.next_functions)
        for name in ["saved_tensors", *(each for each in dir(node) if each.startswith("_saved_"))]:
            try:
                yield from _tensors(getattr(node, name, None))
            except Exception:  # freed by a backward pass, or to be made by a function that cannot run here
                continue


class Older:
    """The tensors that Python knows now, before the first step, and the bytes of their storages.

    Weak references to storages keep an address from being used again. By those to tensors each is asked again: the
    first step may resize it or give it another storage, and within `frozen_heap` no search of objects finds it.

    Args:
        newer: storages that are there, and count as newer: what a trial of the step left.
    """

    def __init__(self, newer: Iterable[StorageWeakRef] = ()) -> None:
        gc.collect()
        tensors, keys = _with_gradients(all_tensors()), {reference.cdata for reference in newer}
        self._storages = {
            each._cdata: (StorageWeakRef(each), 0 if each._cdata in keys else each.nbytes())
            for each in (*_storages(tensors), *_bare_storages(gc.get_objects()))
        }
        self._tensors = [weakref.ref(tensor) for tensor in tensors]

    def newer_storages(self) -> list[tuple[StorageWeakRef, int]]:
        """Storages that are alive now, of tensors or bare, with the bytes that they have had since."""
        known = [tensor for reference in self._tensors if (tensor := reference()) is not None]
        objects = gc.get_objects()
        tensors = _with_gradients([*known, *tensors_among(objects)])
        found = {storage._cdata: storage for storage in (*_storages(tensors), *_bare_storages(objects))}
        more = [(each, each.nbytes() - self._storages.get(key, (None, 0))[1]) for key, each in found.items()]
        return [(StorageWeakRef(storage), nbytes) for storage, nbytes in more if nbytes > 0]

    def newer_bytes(self) -> int:
        """Bytes of `newer_storages` together."""
        return sum(nbytes for _, nbytes in self.newer_storages())


def _with_gradients(tensors: list[Tensor]) -> list[Tensor]:
    """Tensors and what `grad` of each holds, which Python does not know before it is asked for."""
    with torch._C.DisableTorchFunction():
        leaves = [each for each in tensors if each.requires_grad and each.is_leaf]
        return tensors + [each.grad for each in leaves if each.grad is not None]


class Before(NamedTuple):
    """What a process held just before a first step, and by how much it had grown beyond tensors just after it."""

    use: HostUse
    tensor_bytes: int
    grown_bytes: int


def first_step(step: TrainingStep, older: Older, rehearse: Callable[[], object]) -> Before | None:
    """Runs the first forward and backward of a step, just after `older` was read, and prepares it again.

    Returns what tells how much the process grew for good beyond tensors; None where the system does not say. Tensors
    that `rehearse` leaves count, see `measure_memory`.
    """
    for imported_by_backward in ("torch._dynamo", "torch.distributed.fsdp"):
        importlib.import_module(imported_by_backward)
    step.prepare()
    with quiet_gc():
        rehearse()
        gc.collect()
        kept = older.newer_bytes()
        before = host_use()
        step.backward(step.forward())
        step.prepare()
        gc.collect()
        after = host_use()
        if before is None or after is None:
            return None
        return Before(before, kept, _beyond(after - before, older.newer_bytes() - kept))


def growth(step: TrainingStep, older: Older) -> tuple[int, str | None]:
    """Bytes by which the tensors of a step grow when it runs once more, and the module that holds most of them.

    The mean of two steps, for what is kept in every second one.
    """
    with quiet_gc():
        before = older.newer_bytes()
    held = held_by_module(step.model)  # asks for saved tensors, upon which what `remat` holds for them is let go
    for _ in range(2):
        change_input(step)
        step.backward(step.forward())
        step.prepare()
    with quiet_gc():
        grown = (older.newer_bytes() - before) // 2
    if grown <= 0:
        return 0, None
    return grown, next(iter(_grown_modules(step.model, held)), None)


def _storages(tensors: Iterable[Tensor]) -> Iterator[torch.UntypedStorage]:
    """Storages with memory: not wrappers of `torch.func`, nor a compiler's fake tensors, which claim a device."""
    return (storage for storage in storages_of(tensors) if storage.device.type != "meta")


def _bare_storages(objects: list[Any]) -> Iterator[torch.UntypedStorage]:
    """Storages that Python holds without a tensor, as `remat` does until a backward pass."""
    return (each for each in objects if type(each) is torch.UntypedStorage and each.device.type != "meta")


def measure_untracked(
    step: TrainingStep, older: Older, first: Before | None, live_bytes: int
) -> tuple[int, int, UntrackedBytes | None]:
    """Reads what is held beyond the blocks of one step; leaves it prepared.

    Args:
        older, first: as its `first_step` took and returned them. What the process has grown by for good is still there
            now: a single reading of the C library may be off by what it gives back.
        live_bytes: of the host tensors that its forward makes and leaves alive, the output among them.
    Returns:
        Bytes of older tensors of the step that are alive before it, and those of them that are so after forward; and
        memory that is no tensor, None where the system does not say or the step runs on a device.
    """
    change_input(step)
    step.prepare()
    with quiet_gc():
        kept = older.newer_storages()
        before = host_use()
        output = step.forward()
        after = host_use()
    after_forward = sum(nbytes for reference, nbytes in kept if not reference.expired())
    del output
    step.prepare()
    sizes = (sum(nbytes for _, nbytes in kept), after_forward)
    if before is None or after is None or first is None or step.source.device.type != "cpu":
        return *sizes, None
    use = after - before
    # Older tensors that the step lets go make room for new ones.
    tensors = live_bytes + after_forward - sizes[0]
    children = ChildUse()
    passing, elsewhere = _passing(step)
    record = UntrackedBytes(
        held=max(0, _beyond(use, tensors)),
        written=use.written_bytes,
        lasting=max(0, min(first.grown_bytes, _beyond(before - first.use, sizes[0] - first.tensor_bytes))),
        passing=passing,
        elsewhere=elsewhere,
        children=children.touched_bytes(),
    )
    return *sizes, record


def _passing(step: TrainingStep) -> tuple[int, int]:
    """Most bytes of Python's objects and arrays at once in a step, and the operators that it ran in other threads."""
    change_input(step)
    step.prepare()
    was_tracing = tracemalloc.is_tracing()
    with quiet_gc(), profile(experimental_config=_ExperimentalConfig(profile_all_threads=True)) as prof:
        if not was_tracing:
            tracemalloc.start()
        try:
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            step.backward(step.forward())
            if not tracemalloc.is_tracing():
                raise RuntimeError(
                    "`tracemalloc` must not be stopped inside of what is measured; it was. What it has counted of "
                    "arrays is lost. Take it out of there."
                )
            _, peak = tracemalloc.get_traced_memory()
        finally:
            if not was_tracing:
                tracemalloc.stop()
    step.prepare()
    assert prof.kineto_results is not None
    threads = [event.start_thread_id() for event in prof.kineto_results.events() if event.name().startswith("aten::")]
    # The thread of the step runs the first operator: the copy of its input.
    return max(0, peak - before), sum(thread != threads[0] for thread in threads[1:])


def _beyond(use: HostUse, tensors: int) -> int:
    """Bytes that tensors do not explain; mappings given back meanwhile do not pay for others."""
    return use.malloc_bytes - tensors + max(0, use.mapped_bytes)
