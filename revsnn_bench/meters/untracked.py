"""What a step holds beyond the blocks of one step: tensors that it made before, and memory that is no tensor.

The memory meter reads a later step than the first, so a buffer that the first one made and keeps would cost nothing;
here it is found among all tensors that Python knows. Arrays, bytes, mappings, files and other processes are seen by
what malloc, the kernel and `write` say, beyond what live tensors explain; arrays that come and go within a step by
`tracemalloc`; and that operators ran in other threads, whose blocks the profiler does not see, by their names. That
is not exact, so it is no part of any quantity: it decides whether the quantities can be believed. docs/limits.md
lists what this cannot see.
"""

import gc
import importlib
import tracemalloc
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._C._profiler import _ExperimentalConfig
from torch.autograd.profiler import profile
from torch.multiprocessing.reductions import StorageWeakRef

from revsnn_bench.meters.leaks import held_by_module
from revsnn_bench.meters.step import TrainingStep, storage_of
from revsnn_bench.records import UntrackedBytes
from revsnn_bench.system.process import HostUse, all_objects, host_use, quiet_gc

_IMPORTED_BY_BACKWARD = ("torch._dynamo", "torch.distributed.fsdp")


class Older:
    """The tensors that Python knows now, before the first step, and the bytes of their storages.

    The weak references to storages keep an address from being used again. Those to tensors serve to ask each again, for
    the first step may resize it or give it another storage, and within `frozen_heap` no search of objects finds it.
    """

    def __init__(self) -> None:
        gc.collect()
        tensors = _tensors(all_objects())
        self._storages = {each._cdata: (StorageWeakRef(each), each.nbytes()) for each in _storages(tensors)}
        self._tensors = [weakref.ref(tensor) for tensor in tensors]

    def newer_storages(self) -> list[tuple[StorageWeakRef, int]]:
        """Storages of all tensors that are alive now, with the bytes that they have had since."""
        known = [tensor for reference in self._tensors if (tensor := reference()) is not None]
        found = {storage._cdata: storage for storage in _storages([*known, *_tensors(gc.get_objects())])}
        more = [(each, each.nbytes() - self._storages.get(key, (None, 0))[1]) for key, each in found.items()]
        return [(StorageWeakRef(storage), nbytes) for storage, nbytes in more if nbytes > 0]


@dataclass(frozen=True)
class Lasting:
    """What the first step left for good: what is not `older`, and by how much the process grew beyond tensors.

    `grown` is None where the system does not say.
    """

    older: Older
    grown: int | None


def first_step(step: TrainingStep, older: Older, rehearse: Callable[[], object]) -> Lasting:
    """Runs the first forward and backward of a step and prepares it again.

    Args:
        step: built, and not run yet.
        older: read just before.
        rehearse: runs an equal step, of another model, so that what is loaded and compiled once is not held against
            this one. Tensors that it leaves count.
    """
    for name in _IMPORTED_BY_BACKWARD:
        importlib.import_module(name)
    step.prepare()
    with quiet_gc():
        rehearse()
        gc.collect()
        kept = sum(nbytes for _, nbytes in older.newer_storages())
        before = host_use()
        step.backward(step.forward())
        step.prepare()
        gc.collect()
        after = host_use()
        if before is None or after is None:
            return Lasting(older, None)
        more = sum(nbytes for _, nbytes in older.newer_storages()) - kept
        return Lasting(older, _beyond(after - before, more))


def growth(step: TrainingStep, lasting: Lasting) -> tuple[int, str | None]:
    """Bytes by which the tensors of a step grow when it runs once more, and the module that holds most of them."""
    held = held_by_module(step.model)
    with quiet_gc():
        before = sum(nbytes for _, nbytes in lasting.older.newer_storages())
    step.backward(step.forward())
    step.prepare()
    with quiet_gc():
        grown = sum(nbytes for _, nbytes in lasting.older.newer_storages()) - before
    if grown <= 0:
        return 0, None
    more = {name: nbytes - held.get(name, 0) for name, nbytes in held_by_module(step.model).items()}
    most = max(more, key=more.__getitem__, default=None)
    return grown, most if most is not None and more[most] > 0 else None


def _tensors(objects: list[Any]) -> list[Tensor]:
    # By type: an `isinstance` would ask lazy proxies, which import what they stand for. Few types, many objects.
    types = {found for found in set(map(type, objects)) if issubclass(found, Tensor)}
    return [each for each in objects if type(each) in types]


def _storages(tensors: Iterable[Tensor]) -> Iterator[torch.UntypedStorage]:
    """Storages with memory.

    The wrappers of `torch.func` have none, nor have the fake tensors that a compiler keeps, which claim a device.
    """
    for each in tensors:
        if not torch._C._has_storage(each) or each.layout != torch.strided:
            continue
        if (storage := storage_of(each)).device.type != "meta":
            yield storage


def measure_untracked(step: TrainingStep, lasting: Lasting, live_bytes: int) -> tuple[int, int, UntrackedBytes | None]:
    """Reads what is held beyond the blocks of one step; leaves the step prepared.

    Args:
        step: has run before.
        lasting: from its first step.
        live_bytes: of the host tensors that its forward makes and leaves alive, the output among them.
    Returns:
        Bytes of older tensors of the step that are alive before it, and those of them that are so after forward; and
        memory that is no tensor, None where the system does not say.
    """
    step.prepare()
    with quiet_gc():
        kept = lasting.older.newer_storages()
        before = host_use()
        output = step.forward()
        after = host_use()
    after_forward = sum(nbytes for reference, nbytes in kept if not reference.expired())
    del output
    step.prepare()
    sizes = (sum(nbytes for _, nbytes in kept), after_forward)
    if before is None or after is None or lasting.grown is None:
        return *sizes, None
    use = after - before
    # Older tensors that the step lets go make room for new ones.
    tensors = live_bytes + after_forward - sizes[0]
    passing, elsewhere = _passing(step)
    record = UntrackedBytes(
        held=max(0, _beyond(use, tensors)),
        written=use.written_bytes,
        lasting=max(0, lasting.grown),
        passing=passing,
        elsewhere=elsewhere,
    )
    return *sizes, record


def _passing(step: TrainingStep) -> tuple[int, int]:
    """Most bytes of Python's objects and arrays at once in a step, and the operators that it ran in other threads."""
    step.prepare()
    was_tracing = tracemalloc.is_tracing()
    with quiet_gc(), profile(experimental_config=_ExperimentalConfig(profile_all_threads=True)) as prof:
        if not was_tracing:
            tracemalloc.start()
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        step.backward(step.forward())
        _, peak = tracemalloc.get_traced_memory()
        if not was_tracing:
            tracemalloc.stop()
    step.prepare()
    assert prof.kineto_results is not None
    threads = [event.start_thread_id() for event in prof.kineto_results.events() if event.name().startswith("aten::")]
    # The thread of the step runs the first operator: the copy of its input.
    return max(0, peak - before), sum(thread != threads[0] for thread in threads)


def _beyond(use: HostUse, tensors: int) -> int:
    """Bytes that tensors do not explain; mappings given back meanwhile do not pay for others."""
    return use.malloc_bytes - tensors + max(0, use.mapped_bytes)
