"""Bytes and operations of a training step without running it: on fake tensors, which have shapes and no memory.

A dispatch mode logs the life of every storage (`meters/attribution.py`). What it cannot see is the scratch memory
inside of convolutions, and of matrix products in half precision: oneDNN reorders tensors to layouts of its own. Each
distinct one is therefore run once for real. Scratch of a convolution grows in a line with the batch, which two runs of
at most `PROBE_ELEMENTS` elements give; that of a product stays the same from some size on. For a GPU blocks are rounded
to `CUDA_BLOCK_BYTES`, as its allocator does; not included are the driver's context, workspaces of cuDNN and cuBLAS, and
fragmentation.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode, unset_fake_temporarily
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

from revsnn_bench.case import Case, is_own
from revsnn_bench.meters.allocator import record_timeline
from revsnn_bench.meters.attribution import Scratch, attribute_peak, retained_by_module
from revsnn_bench.meters.flops import measure_flops
from revsnn_bench.meters.step import copied, unique_bytes
from revsnn_bench.models.own import ModelError, OwnStep, own_parts
from revsnn_bench.models.step import WorkloadStep, input_noise, reset_states
from revsnn_bench.models.workloads import build
from revsnn_bench.records import UnknownOperation

PROBE_ELEMENTS, PRODUCT_ELEMENTS = 1 << 20, 1 << 23
"""Elements, of its input, up to which an operator with a batch is run for its scratch; of all three, a product."""

_aten = torch.ops.aten
_BATCHED = {
    _aten.convolution.default: 1,
    _aten.convolution_backward.default: 2,
    _aten.native_batch_norm_backward.default: 2,  # makes its result twice
}
"""How many of their arguments, the first ones, have a batch."""
_PRODUCTS = (_aten.mm.default, _aten.addmm.default, _aten.bmm.default, _aten.baddbmm.default)

CUDA_BLOCK_BYTES = 512
"""What PyTorch's CUDA allocator rounds each block up to (`kMinBlockSize` in c10/cuda/CUDACachingAllocator.cpp)."""


@dataclass(frozen=True)
class Prediction:
    """What a training step would take; on a GPU `peak_bytes` is the `device_peak_bytes` of a `MemoryRecord`."""

    peak_bytes: int
    retained_bytes: int
    flops: int | None
    uncounted: str = ""  # why flops are None


def predict(case: Case) -> Prediction:
    """Peak, retained bytes and operations of a case, without allocating its tensors.

    Raises:
        ModelError: a user's model cannot run without values, such as one with data-dependent control flow.
        ValueError: as of `build`.
    """
    with fake_step(case) as step:
        unit_bytes = CUDA_BLOCK_BYTES if case.device == "cuda" else 1
        peak = attribute_peak(step, probe_for(case), unit_bytes).peak_bytes
        retained = sum(retained_by_module(step).values())
        try:
            flops = measure_flops(step, cross_check=False)
        except UnknownOperation as reason:
            return Prediction(peak, retained, None, str(reason))
    return Prediction(peak, retained, flops.forward.total + flops.backward.total + flops.recompute.total)


@contextmanager
def fake_step(case: Case) -> Iterator[WorkloadStep]:
    """The training step of a case on fake tensors, in a context in which they can be used."""
    on_cpu = case.model_copy(update={"device": "cpu"})
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    mode.cache_enabled = False  # the cache keeps storages alive
    if is_own(case.workload):
        model, inputs, loss, around = own_parts(on_cpu)
        _make_ready(model, on_cpu)
        features: tuple[int, ...] = case.shape
        dtype = getattr(torch, case.dtype) if inputs is None else inputs.dtype
    else:
        small = build(on_cpu.model_copy(update={"batch": min(case.batch, 2)}))
        model, features, labels, dtype = small.model, small.source.shape[2:], small.labels, small.source.dtype
    model = _fake_copy(model, mode)
    with mode:
        shape = (case.timesteps, case.batch, *features)
        source = torch.empty(shape, dtype=dtype, requires_grad=dtype.is_floating_point)
        if is_own(case.workload):
            yield OwnStep(model, source, loss, around)
        else:
            yield WorkloadStep(model, source, None if labels is None else torch.zeros(case.batch, dtype=labels.dtype))


def _make_ready(model: nn.Module, case: Case) -> None:
    """Gives lazy modules their parameters; raises `ModelError` for compiled ones, which take real tensors alone."""
    for name, module in model.named_modules():
        if isinstance(module, torch._dynamo.OptimizedModule):
            raise ModelError(
                f"{name or 'the model'} is compiled, and what a compiler keeps is known when it has run. Predict the "
                "model without torch.compile, or measure it: revsnn-bench run."
            )
    if any(map(is_lazy, model.parameters())):
        with torch.no_grad():
            model(input_noise(case.model_copy(update={"batch": min(case.batch, 2)})))
        reset_states(model)


def _fake_copy(model: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """A copy on fake tensors, where a module copies itself in its own way too, as sinabs' layers do."""
    with FakeCopyMode(mode):
        fake = copied(model)
    for name, module in model.named_modules():
        twin = fake.get_submodule(name)
        for key, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if getattr(twin, key).device != tensor.device:
                held: dict[str, Any] = twin._parameters if key in twin._parameters else twin._buffers
                held[key] = mode.from_tensor(tensor)
    return fake


_known: dict[str, int] = {}
"""Scratch by operator and layout of its arguments."""


def scratch_bytes(func: Any, args: tuple[Any, ...], out: Any) -> int:
    """What a call takes beyond what the tracker sees; 0 but for `_BATCHED`, products in half, and our own kernels."""
    if func.namespace == "revsnn":  # which copy what is not contiguous
        return sum(each.nbytes for each in args if isinstance(each, Tensor) and not each.is_contiguous())
    is_product = func in _PRODUCTS and args[-1].dtype in (torch.bfloat16, torch.float16)
    if func not in _BATCHED and not is_product:
        return 0
    layout = tree_map_only(Tensor, lambda tensor: (tuple(tensor.shape), tensor.stride(), tensor.dtype), args)
    key = str((func, layout))
    if key not in _known:
        _known[key] = _of_product(func, args) if is_product else _of_batch(func, args)
    return _known[key]


def _of_batch(func: Any, args: tuple[Any, ...]) -> int:
    """Scratch of an operator whose first arguments have a batch."""
    batched = _BATCHED[func]
    shapes = [tuple(each.shape) for each in args if isinstance(each, Tensor)]
    batch: int = shapes[batched - 1][0]
    most: int = max(2, PROBE_ELEMENTS // args[batched - 1][0].numel())

    def scratch(size: int) -> int:
        return _measured(func, args, [(size, *each[1:]) if i < batched else each for i, each in enumerate(shapes)])

    if batch <= most:
        return scratch(batch)
    half, full = scratch(most // 2), scratch(most)
    return max(0, round(full + (full - half) / (most - most // 2) * (batch - most)))


def _of_product(func: Any, args: tuple[Any, ...]) -> int:
    """Scratch of a product whose largest size is halved until all of it is small."""
    *rest, left, right = (each for each in args if isinstance(each, Tensor))
    sizes: list[int] = [*left.shape[-2:], right.shape[-1]]

    def elements() -> int:
        n, k, m = sizes
        return n * k + k * m + n * m

    while elements() > PRODUCT_ELEMENTS:
        sizes[sizes.index(max(sizes))] = max(sizes) // 2
    n, k, m = sizes
    several = [min(each, max(1, PRODUCT_ELEMENTS // max(1, elements()))) for each in left.shape[:-2]]
    summands = [(*several[: each.dim() - 2], n, m) if each.dim() > 1 else (m,) for each in rest]
    return _measured(func, args, [*summands, (*several, n, k), (*several, k, m)])


def _measured(func: Any, args: tuple[Any, ...], shapes: list[tuple[int, ...]]) -> int:
    """Highest bytes inside of a real call on tensors of these shapes, less its results."""
    ahead = iter(shapes)

    with _disable_current_modes(), unset_fake_temporarily(), torch.no_grad():
        tensors = [_real(each, next(ahead)) if isinstance(each, Tensor) else each for each in args]
        func(*tensors)
        results, timeline = record_timeline(lambda: func(*tensors))
        return timeline.peak_bytes - unique_bytes(each for each in tree_leaves(results) if isinstance(each, Tensor))


def _real(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """Zeros of a shape whose dimensions lie in memory in the order of those of a tensor; copies of one where its do."""
    strides, sizes = tensor.stride(), tensor.shape
    order = sorted(range(len(shape)), key=lambda dim: (-strides[dim], -sizes[dim]))
    held = torch.zeros([shape[dim] if strides[dim] else 1 for dim in order], dtype=tensor.dtype)
    return held.permute([order.index(dim) for dim in range(len(shape))]).expand(*shape)


def probe_for(case: Case) -> Scratch | None:
    """What measures scratch on the device of a case; None on a GPU, where it cannot be measured from here."""
    return scratch_bytes if case.device == "cpu" else None
