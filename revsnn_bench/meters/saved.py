"""What autograd packs for backward, by whose storage it is.

This is the view of `saved_tensors_hooks`, reported beside the allocator's and never in its place: the hooks
do not see tensors kept as attributes of an autograd context or inside other objects, and they do count
graphs that die early.
"""

from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from revsnn_bench.meters.storages import storage_of
from revsnn_bench.meters.timeline import quiet_gc
from revsnn_bench.records import SavedBytes
from revsnn_bench.step import TrainingStep


def measure_saved(step: TrainingStep) -> SavedBytes:
    """Bytes of the distinct storages packed in one forward pass.

    `input` and `output` alias a tensor that the caller made or receives (views included); parameters, buffers
    and the source are alive anyway and are left out; everything else is `own`.
    """
    packed: dict[int, tuple[StorageWeakRef, int]] = {}
    inputs: dict[int, StorageWeakRef] = {}

    def pack(tensor: Tensor) -> Tensor:
        _note(packed, tensor)
        return tensor

    def unpack(tensor: Tensor) -> Tensor:
        return tensor

    def note_inputs(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor):
                inputs.setdefault(storage_of(value)._cdata, StorageWeakRef(storage_of(value)))

    step.prepare()
    older = (step.source, *step.model.parameters(), *step.model.buffers())
    alive_before = {storage_of(tensor)._cdata for tensor in older}
    handle = step.model.register_forward_pre_hook(note_inputs, with_kwargs=True)
    try:
        with quiet_gc(), torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            output = step.forward()
    finally:
        handle.remove()
    sizes = {"own": 0, "input": 0, "output": 0}
    for key, (_, nbytes) in packed.items():
        if key == storage_of(output)._cdata:
            sizes["output"] += nbytes
        elif key in inputs:
            sizes["input"] += nbytes
        elif key not in alive_before:
            sizes["own"] += nbytes
    del output
    step.prepare()
    return SavedBytes(**sizes)


def _note(packed: dict[int, tuple[StorageWeakRef, int]], tensor: Tensor) -> None:
    # The weak reference keeps the address from being reused by a later storage, and nothing else.
    storage = storage_of(tensor)
    if storage._cdata not in packed:
        packed[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
