"""What a step holds beyond the blocks of one step: tensors that it made before, and memory that is no tensor.

The memory meter reads a later step than the first, so a buffer that the first one made and keeps would cost nothing;
here it is found among all tensors that Python knows. Arrays, bytes, mappings, files and other processes are seen by
what malloc, the kernel and `write` say, beyond what live tensors explain. That is not exact, so it is no part of any
quantity: it decides whether the quantities can be believed. docs/limits.md lists what this cannot see.
"""

import gc
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from revsnn_bench.meters.leaks import held_by_module
from revsnn_bench.meters.step import TrainingStep, storage_of
from revsnn_bench.records import UntrackedBytes
from revsnn_bench.system.process import HostUse, host_use, quiet_gc

_IMPORTED_BY_BACKWARD = ("torch._dynamo", "torch.distributed.fsdp")


@dataclass(frozen=True)
class Lasting:
    """What the first step left for good.

    Fields:
        older: storages from before it, by address; the weak references keep an address from being used again.
        grown: by how much the process grew beyond tensors; None where the system does not say.
    """

    older: dict[int, StorageWeakRef]
    grown: int | None

    def storages(self) -> list[tuple[StorageWeakRef, int]]:
        """Storages of all tensors that are alive now and were made since, with their bytes."""
        found = {storage._cdata: storage for storage in _storages() if storage._cdata not in self.older}
        return [(StorageWeakRef(storage), storage.nbytes()) for storage in found.values()]


def first_step(step: TrainingStep, rehearse: Callable[[], object]) -> Lasting:
    """Runs the first forward and backward of a step and prepares it again.

    Args:
        step: built, and not run yet.
        rehearse: runs an equal step, of another model, so that what is loaded and compiled once is not held against
            this one. Tensors that it leaves count.
    """
    for name in _IMPORTED_BY_BACKWARD:
        importlib.import_module(name)
    step.prepare()
    with quiet_gc():
        older = {storage._cdata: StorageWeakRef(storage) for storage in _storages()}
        rehearse()
        gc.collect()
        kept = sum(nbytes for _, nbytes in Lasting(older, None).storages())
        before = host_use()
        step.backward(step.forward())
        step.prepare()
        gc.collect()
        after = host_use()
        lasting = Lasting(older, None)
        if before is None or after is None:
            return lasting
        more = sum(nbytes for _, nbytes in lasting.storages()) - kept
        return Lasting(older, _beyond(after - before, more))


def growth(step: TrainingStep, lasting: Lasting) -> tuple[int, str | None]:
    """Bytes by which the tensors of a step grow when it runs once more, and the module that holds most of them."""
    held = held_by_module(step.model)
    with quiet_gc():
        before = sum(nbytes for _, nbytes in lasting.storages())
    step.backward(step.forward())
    step.prepare()
    with quiet_gc():
        grown = sum(nbytes for _, nbytes in lasting.storages()) - before
    if grown <= 0:
        return 0, None
    more = {name: nbytes - held.get(name, 0) for name, nbytes in held_by_module(step.model).items()}
    most = max(more, key=more.__getitem__, default=None)
    return grown, most if most is not None and more[most] > 0 else None


def _storages() -> Iterator[torch.UntypedStorage]:
    """Storages with memory of all tensors that Python knows.

    The wrappers of `torch.func` have none, nor have the fake tensors that a compiler keeps, which claim a device.
    """
    for each in gc.get_objects():
        # By type: an `isinstance` would ask lazy proxies, which import what they stand for.
        if not issubclass(type(each), Tensor) or not torch._C._has_storage(each):
            continue
        if each.layout == torch.strided and (storage := storage_of(each)).device.type != "meta":
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
        kept = lasting.storages()
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
    record = UntrackedBytes(
        held=max(0, _beyond(use, tensors)), written=use.written_bytes, lasting=max(0, lasting.grown)
    )
    return *sizes, record


def _beyond(use: HostUse, tensors: int) -> int:
    """Bytes that tensors do not explain; mappings given back meanwhile do not pay for others."""
    return use.malloc_bytes - tensors + max(0, use.mapped_bytes)
