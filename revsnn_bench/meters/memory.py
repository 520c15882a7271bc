"""Bytes of one training step: retained after forward, peak in forward and backward, and what autograd packs.

On CPU the profiler's timeline is the truth (`allocator.py`); on CUDA the caching allocator's statistics are.
Each quantity is read in a pass of its own, from the same prepared state. What `saved_tensors_hooks` see is reported
beside the allocator's reading and never in its place: the hooks do not see tensors kept as attributes of an autograd
context or inside other objects, and they do count graphs that die early.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from revsnn_nodes.remat.pack import trials_rest
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from revsnn_bench.meters.allocator import record_timeline
from revsnn_bench.meters.attribution import Attribution, attribute_host_peak, attribute_peak, retained_by_module
from revsnn_bench.meters.leaks import Older, first_step, growth, measure_untracked
from revsnn_bench.meters.step import (
    TrainingStep,
    change_input,
    is_compiled,
    own_bytes,
    storage_of,
    storages_of,
    unique_bytes,
    watched,
)
from revsnn_bench.records import MemoryRecord, SavedBytes
from revsnn_bench.system.gpu import process_gpu_bytes
from revsnn_bench.system.process import frozen_heap, process_peak_bytes, quiet_gc


def measure_saved(step: TrainingStep) -> SavedBytes | None:
    """Bytes of the distinct storages packed in one forward pass; None where `torch.func` refuses to be watched.

    `input` and `output` alias a tensor that the caller made or receives (views included); parameters, buffers
    and the source are alive anyway and are left out; everything else is `own`.
    """
    packed: dict[int, tuple[StorageWeakRef, int]] = {}
    inputs: dict[int, StorageWeakRef] = {}

    def pack(tensor: Tensor) -> Tensor:
        for storage in storages_of([tensor]):
            if storage._cdata not in packed:
                # The weak reference keeps the address from being reused by a later storage, and nothing else.
                packed[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        # The tensor itself would hold the graph that holds it: a cycle that is never freed.
        return tensor.detach()

    def note_inputs(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for storage in storages_of(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)):
            inputs.setdefault(storage._cdata, StorageWeakRef(storage))

    step.prepare()
    older = (step.source, *step.model.parameters(), *step.model.buffers())
    alive_before = {storage._cdata for storage in storages_of(older)}
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    try:
        with watched(step.model, note_inputs), quiet_gc(), hooks:
            output = step.forward()
    except RuntimeError as error:
        if "don't yet support saved tensor hooks" not in str(error):
            raise
        step.prepare()
        return None
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


def measure_memory(step: TrainingStep, rehearse: Callable[[], object] = lambda: None) -> MemoryRecord:
    """Measures one training step, which is left prepared.

    The first forward and backward are not measured: caches and thread pools that are made once belong to the process.
    Tensors that they leave for good count as retained, in every category the `lasting` ones. The process's high-water
    mark comes next, before any profiler fills the heap. Each step that is measured has another input: a model that
    keeps results by their inputs computes them, and grows.

    Args:
        rehearse: runs an equal step, of another model, so that what is loaded and compiled once counts for nobody.
    Returns:
        The record. Its categories sum to `peak_bytes`, its modules to `retained_bytes`; on CUDA, where both come from a
        dispatch mode, `unattributed` is what that does not see. All but `process_peak_bytes` repeat to the byte on CPU.
    Raises:
        ValueError: the source is neither on the CPU nor on a CUDA device.
    """
    device = step.source.device
    if device.type not in ("cpu", "cuda"):
        raise ValueError(
            f"`step.source` must be on cpu or cuda; got {device}. No exact allocator reading is known for "
            "other devices. Move the case to one of these."
        )
    older = Older(step.left_by_trial)
    fields: dict[str, Any]
    with frozen_heap(), trials_rest():
        first = first_step(step, older, rehearse)
        fields = _measure_cpu(step) if device.type == "cpu" else _measure_cuda(step, device)
        live = fields.pop("live_bytes", 0)
        change_input(step)
        saved = measure_saved(step)
        modules, categories, attribution = _taken_apart(step, fields)
        growth_bytes, growth_module = growth(step, older)
        lasting, after_forward, untracked = measure_untracked(step, older, first, live)
    if lasting:
        if device.type == "cpu":
            peak = max(fields["peak_bytes"], _peak_after_another(step, lasting))
        else:  # not exact: forward may let go of some of it before its peak
            peak = fields["peak_bytes"] + lasting
        categories["lasting"], modules["lasting"] = peak - fields["peak_bytes"], after_forward
        fields |= {"peak_bytes": peak, "retained_bytes": fields["retained_bytes"] + after_forward}
    return MemoryRecord(
        **fields,
        lasting_bytes=lasting,
        growth_bytes=growth_bytes,
        growth_module=growth_module,
        untracked_bytes=untracked,
        saved_bytes=saved,
        peak_by_category_bytes=categories,
        peak_phase=attribution.peak_phase,
        peak_module=attribution.peak_module,
        retained_by_module_bytes=modules,
        timeline=attribution.timeline,
    )


def _taken_apart(step: TrainingStep, fields: dict[str, Any]) -> tuple[dict[str, int], dict[str, int], Attribution]:
    """What is retained by module, and the peak by category; `unsteady_bytes` of the fields has what these exceed."""
    is_host = step.source.device.type == "cpu"
    retained, peak = fields["retained_bytes"], fields["peak_bytes"]
    change_input(step)
    modules = retained_by_module(step)
    # Whole steps come last: a forward pass alone leaves the graph that a backward pass would have freed.
    change_input(step)
    attribution = attribute_host_peak(step) if is_host else attribute_peak(step)
    categories = attribution.peak_by_category_bytes
    if is_host and not is_compiled(step.model):  # which is taken apart as it is written, and may keep more so
        beyond = sum(modules.values()) - retained, sum(categories.values()) - peak
        fields["unsteady_bytes"] = max(fields["unsteady_bytes"], *beyond)
    return _parts_of(retained, modules), _parts_of(peak, categories), attribution


def _parts_of(whole: int, parts: Mapping[str, int]) -> dict[str, int]:
    """Parts that sum to the whole: what is unseen is `unattributed`.

    All of it is where they exceed it.
    """
    unseen = whole - sum(parts.values())
    return {"unattributed": whole} if unseen < 0 else dict(parts) | ({"unattributed": unseen} if unseen else {})


def peak_bytes(step: TrainingStep) -> int:
    """Highest live bytes of the step's device in forward and backward, less what was alive before: exact."""
    step.prepare()
    _, timeline = record_timeline(lambda: _forward_backward(step), step.source.device.type)
    step.prepare()
    return timeline.peak_bytes


def _peak_after_another(step: TrainingStep, lasting_bytes: int) -> int:
    """Highest live bytes of a step that begins with what all before it left, until it lets go of it: exact.

    A profile does not tell when older blocks are freed. So one of two steps tells of those that the first made, such as
    a state that the second one replaces; to the rest of what lasts nothing happens, or a step would have to make it.
    """

    def run(steps: int) -> None:
        for _ in range(steps):
            step.prepare()
            change_input(step)
            _forward_backward(step)
            step.prepare()

    _, one = record_timeline(partial(run, 1))
    _, two = record_timeline(partial(run, 2))
    return two.peak_bytes + max(0, lasting_bytes - one.live_bytes)


def retained_bytes(step: TrainingStep) -> tuple[int, int, int]:
    """(retained, state, output) bytes of host tensors after one forward pass; see `_after_forward`."""
    sizes = _after_forward(step)
    return sizes["retained_bytes"], sizes["state_bytes"], sizes["output_bytes"]


def _after_forward(step: TrainingStep) -> dict[str, int]:
    """Bytes of host tensors after one forward pass, and its peak; exact.

    Read while the state is carried, as in a training loop that resets after backward: what `reset()` would drop is
    retained, unless it is the state itself. An output that is a view is charged its own elements; the rest of its
    storage is retained memory.
    """
    step.prepare()
    output, timeline = record_timeline(step.forward)
    state = unique_bytes(step.state_tensors())
    carried = sum(nbytes for pointer, nbytes in dropped_state(step) if pointer in timeline.live)
    made_here = storage_of(output).data_ptr() in timeline.live
    sizes = {
        "retained_bytes": timeline.live_bytes - carried - (own_bytes(output) if made_here else 0),
        "state_bytes": state,
        "output_bytes": own_bytes(output),
        "live_bytes": timeline.live_bytes,
        "forward_peak_bytes": timeline.peak_bytes,
    }
    del output
    step.prepare()
    return sizes


def dropped_state(step: TrainingStep) -> list[tuple[int, int]]:
    """Resets the state; address and bytes of each of its storages that nothing else holds, neither graph nor output."""
    storages = [*storages_of(step.state_tensors())]
    held = {storage._cdata: (StorageWeakRef(storage), storage.data_ptr(), storage.nbytes()) for storage in storages}
    del storages
    step.reset_state()
    return [(pointer, nbytes) for reference, pointer, nbytes in held.values() if reference.expired()]


def _measure_cpu(step: TrainingStep) -> dict[str, Any]:
    """Reads what the process took, what stays after forward, and the peak, each of a step with another input."""
    change_input(step)
    with quiet_gc():
        process = process_peak_bytes(lambda: _forward_backward(step))
    forwards, peaks = [], []
    for _ in range(2):  # one after the other: a step may be another in every second run
        change_input(step)
        forwards.append(_after_forward(step))
    for _ in range(2):
        change_input(step)
        peaks.append(peak_bytes(step))
    kept, ahead = ([each[name] for each in forwards] for name in ("retained_bytes", "forward_peak_bytes"))
    unsteady = max(max(each) - min(each) for each in (kept, ahead, peaks))
    most = max(forwards, key=lambda each: each["retained_bytes"])
    del most["forward_peak_bytes"]
    return most | {"process_peak_bytes": process, "peak_bytes": max(peaks), "unsteady_bytes": unsteady}


def _measure_cuda(step: TrainingStep, device: torch.device) -> dict[str, Any]:
    """Reads the caching allocator; `requested_bytes` leaves out its rounding, `allocated_bytes` has it."""
    change_input(step)
    step.prepare()
    with quiet_gc():
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_stats(device)
        output = step.forward()
        forward = torch.cuda.memory_stats(device)
        state = unique_bytes(step.state_tensors())
        carried = sum(nbytes for _, nbytes in dropped_state(step))
        output_size = own_bytes(output)
        del output
        change_input(step)
        step.prepare()
        torch.cuda.reset_peak_memory_stats(device)
        _forward_backward(step)
        torch.cuda.synchronize(device)
        after = torch.cuda.memory_stats(device)
        driver = process_gpu_bytes(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    step.prepare()
    requested, allocated = "requested_bytes.all", "allocated_bytes.all"
    return {
        "retained_bytes": forward[f"{requested}.current"] - before[f"{requested}.current"] - output_size - carried,
        "state_bytes": state,
        "output_bytes": output_size,
        "peak_bytes": after[f"{requested}.peak"] - before[f"{requested}.current"],
        "device_peak_bytes": after[f"{allocated}.peak"] - before[f"{allocated}.current"],
        "device_reserved_bytes": after["reserved_bytes.all.peak"],
        "driver_peak_bytes": driver,
    }


def _forward_backward(step: TrainingStep) -> None:
    step.backward(step.forward())
