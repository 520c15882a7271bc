"""Bytes and operations of a training step without running it: on fake tensors, which have shapes and no memory.

A dispatch mode logs the life of every storage (`meters/attribution.py`). What it cannot see is the scratch memory
in convolutions, LSTMs, attention, and products in half precision: layouts of oneDNN's own, blocks of each thread.
Each distinct one is therefore run once for real. Scratch of a convolution grows in a line with the batch, which two
runs of at most `PROBE_ELEMENTS` elements give; that of a product stays the same from some size on. For a GPU blocks are
rounded to `CUDA_BLOCK_BYTES`, as its allocator does; not included are the driver's context, workspaces of cuDNN and
cuBLAS, and fragmentation.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from revsnn_nodes import reset
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch._prims_common import suggest_memory_format
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map_only

from revsnn_bench.case import Case, is_own
from revsnn_bench.meters.allocator import record_timeline
from revsnn_bench.meters.attribution import Scratch, attribute_peak, retained_by_module
from revsnn_bench.meters.flops import measure_flops
from revsnn_bench.meters.step import copied, tensors_in, unique_bytes
from revsnn_bench.models.own import WITHOUT_VALUES, ModelError, OwnStep, asks_for_numbers, own_parts
from revsnn_bench.models.step import WorkloadStep, input_noise
from revsnn_bench.models.workloads import build
from revsnn_bench.records import NoOracle, UnknownOperation

PROBE_ELEMENTS, PRODUCT_ELEMENTS, LOOP_ELEMENTS = 1 << 20, 1 << 23, 1 << 17
"""Elements, of its input, up to which an operator with a batch is run for its scratch; of all three, a product, and one
in half precision that oneDNN does not have for the processor: torch's own loops took a minute for as many.
"""

_aten = torch.ops.aten
_BATCHED = {
    _aten.convolution.default: 1,
    _aten.convolution_backward.default: 2,
    _aten.native_batch_norm_backward.default: 2,  # makes its result twice
    _aten._scaled_dot_product_flash_attention_for_cpu.default: 3,  # blocks of each thread, and copies of strided inputs
    _aten._scaled_dot_product_flash_attention_for_cpu_backward.default: 6,
}
"""How many of their arguments, the first ones, have a batch."""
_ERRORS = (_aten.mse_loss.default, _aten.smooth_l1_loss.default)
_LOSSES = (*_ERRORS, _aten.binary_cross_entropy.default, _aten.soft_margin_loss.default)
"""Losses whose mean or sum keeps the memory of all terms; of the first two, the terms are there once more meanwhile."""
_SUMS, _MEANS = (_aten.sum.default, _aten.sum.dim_IntList), (_aten.mean.default, _aten.mean.dim)
_LSTM, _LSTM_BACKWARD = _aten.mkldnn_rnn_layer.default, _aten.mkldnn_rnn_layer_backward.default
_NORM = _aten.native_batch_norm.default
_NORMS = {_NORM: 0, _aten.native_batch_norm_backward.default: 1}
"""Where their input stands. Real results are contiguous or channels_last, fake ones have the strides of the input."""
_WITH_STATISTICS = (_NORM, _aten.native_layer_norm.default, _aten.native_group_norm.default)
"""Real statistics of an input in half precision have the type of what the norm learns, fake ones that of the input."""
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
        peak = attribute_peak(step, probe_for(case), unit_bytes, after_another=True)
        retained = sum(retained_by_module(step, probe_for(case)).values()) + peak.lasting_bytes
        cast("FakeTensor", step.source).fake_mode.cache_enabled = True  # operations ask for no lifetimes
        try:
            flops = measure_flops(step, cross_check=False)
        except UnknownOperation as reason:
            return Prediction(peak.peak_bytes, retained, None, str(reason))
    return Prediction(peak.peak_bytes, retained, flops.forward.total + flops.backward.total + flops.recompute.total)


class _Fake(FakeTensorMode):
    """Fake tensors, with what torch gives them no bytes or another layout for: LSTMs of oneDNN, losses, batch norms."""

    supports_higher_order_operators = True

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See `FakeTensorMode`."""
        if isinstance(func, HigherOrderOperator):
            raise NotImplementedError(
                f"what `{func}` runs and keeps of its functions is known when it has run. Measure it: revsnn-bench run."
            )
        out: Any = super().dispatch(func, types, args, kwargs)
        if func is _LSTM and torch.is_grad_enabled():
            with self:
                out = (*out[:3], torch.empty(_lstm_bytes(args)[0], dtype=torch.uint8))
        if func in _LOSSES and out.numel() < (terms := _terms(args)):
            with self:
                out = torch.empty(terms, dtype=out.dtype, device=out.device)[0]
        if func in _NORMS and out[0] is not None:
            with self:
                layout = suggest_memory_format(args[_NORMS[func]])
                out = (out[0].contiguous(memory_format=layout), *out[1:])
        if func in _WITH_STATISTICS:
            learned = next((each.dtype for each in args[1:5] if isinstance(each, Tensor)), out[0].dtype)
            with self:
                out = (out[0], *(each.to(learned) for each in out[1:]))  # under autocast
        return out


@contextmanager
def fake_step(case: Case) -> Iterator[WorkloadStep]:
    """The training step of a case on fake tensors, in a context in which they can be used."""
    on_cpu = case.model_copy(update={"device": "cpu"})
    mode = (_Fake if case.device == "cpu" else FakeTensorMode)(allow_non_fake_inputs=True)
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
    if is_own(case.workload) and isinstance(loss, nn.Module):
        loss = _fake_copy(loss, mode)
    with torch.compiler.set_stance("force_eager"), mode, _random_states() if case.device == "cpu" else nullcontext():
        shape = (case.timesteps, case.batch, *features)
        source = torch.empty(shape, dtype=dtype, requires_grad=dtype.is_floating_point)
        if not is_own(case.workload):
            yield WorkloadStep(model, source, None if labels is None else torch.zeros(case.batch, dtype=labels.dtype))
            return
        try:
            yield OwnStep(model, source, loss, around, case.workload)
        except WITHOUT_VALUES as error:
            raise asks_for_numbers(f"the backward pass of {case.workload}", error) from error


@contextmanager
def _random_states() -> Iterator[None]:
    """Counts the generator's state, which each `torch.utils.checkpoint` keeps and no dispatch mode sees."""
    state_of = torch.get_rng_state

    def counted() -> Tensor:
        state: Any = state_of()
        state.fake = torch.empty(state.nbytes, dtype=torch.uint8)  # lives as long
        return state  # type: ignore[no-any-return]

    torch.get_rng_state = counted
    try:
        yield
    finally:
        torch.get_rng_state = state_of


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
        reset(model)


def _fake_copy(model: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """A copy on fake tensors, where a module copies itself in its own way too, as sinabs' layers do."""
    try:
        with FakeCopyMode(mode):
            fake = copied(model)
    except NoOracle as error:
        raise ModelError(f"a prediction needs a copy of the model; {error}. Measure it: revsnn-bench run.") from error
    for name, module in model.named_modules():
        twin = fake.get_submodule(name)
        for key, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if getattr(twin, key).device != tensor.device:
                held: dict[str, Any] = twin._parameters if key in twin._parameters else twin._buffers
                held[key] = mode.from_tensor(tensor)
    return fake


_known: dict[str, int] = {}
"""Scratch by operator and layout of its arguments."""


def scratch_bytes(func: Any, args: tuple[Any, ...], dtype: torch.dtype | None = None) -> int:
    """What a call takes beyond what the tracker sees; 0 but for `_BATCHED`, products in half, and our own kernels.

    `dtype` is that of a sum, which copies what has another; a mean in half precision sums in float32.
    """
    if func in _MEANS and args[0].itemsize == 2 and dtype is not torch.float64:
        x, over = args[0], (args[1] if func is _MEANS[1] else None) or range(args[0].dim())
        return int(4 * (x.numel() + x.numel() // max(1, math.prod(x.shape[dim] for dim in over))))
    if func in _SUMS:
        into = dtype or (args[0].dtype if args[0].dtype.is_floating_point or args[0].is_complex() else torch.int64)
        return 0 if into is args[0].dtype else args[0].numel() * into.itemsize
    if func.namespace == "revsnn":  # which copy what is not contiguous
        return sum(each.nbytes for each in args if isinstance(each, Tensor) and not each.is_contiguous())
    if func in _ERRORS and args[2:3] != (0,):
        return int(_terms(args) * args[0].itemsize)
    if func is _aten.soft_margin_loss_backward.default:
        return int(2 * _terms(args[1:]) * args[1].itemsize)
    if func is _aten.native_group_norm_backward.default:  # two sums for each sample and channel
        return int(2 * args[5] * args[6] * max(4, args[1].itemsize))
    if func in (_LSTM, _LSTM_BACKWARD):
        return _lstm_bytes(args)[1 if func is _LSTM else 2]
    is_product = func in _PRODUCTS and args[-1].dtype in (torch.bfloat16, torch.float16)
    if func not in _BATCHED and not is_product:
        return 0
    key = _key(func, args)
    if key not in _known:
        _known[key] = _of_product(func, args) if is_product else _of_batch(func, args)
    return _known[key]


def _terms(args: tuple[Any, ...]) -> int:
    """How many terms a loss has."""
    return math.prod(torch.broadcast_shapes(args[0].shape, args[1].shape))


def _key(func: Any, args: tuple[Any, ...]) -> str:
    layout = tree_map_only(Tensor, lambda tensor: (tuple(tensor.shape), tensor.stride(), tensor.dtype), args)
    return str((func, layout))


def _of_batch(func: Any, args: tuple[Any, ...]) -> int:
    """Scratch of an operator whose first arguments have a batch."""
    batched = _BATCHED[func]
    shapes = [tuple(each.shape) for each in args if isinstance(each, Tensor)]
    batch: int = shapes[batched - 1][0]
    most: int = max(2, PROBE_ELEMENTS // max(each[0].numel() for each in args[:batched]))

    def scratch(size: int) -> int:
        return _measured(func, args, [(size, *each[1:]) if i < batched else each for i, each in enumerate(shapes)])

    if batch <= most:
        return scratch(batch)
    return _on_line(batch, most, scratch(most // 2), scratch(most))


def _on_line(batch: int, most: int, half: int, full: int) -> int:
    """Bytes at a batch, from those at a smaller one and at half of that."""
    return max(0, round(full + (full - half) / (most - most // 2) * (batch - most)))


_lstms: dict[str, tuple[int, int, int]] = {}
"""What `_lstm_bytes` found, by layout."""


def _lstm_bytes(args: tuple[Any, ...]) -> tuple[int, int, int]:
    """What an LSTM of oneDNN keeps, and its scratch in forward and in backward.

    The first seven arguments of both operators are the same, and forward comes first.
    """
    key = _key(_LSTM, args[:7])
    if key not in _lstms:
        batch, most = args[5].shape[0], max(2, PROBE_ELEMENTS // args[0][:, 0].numel())
        if batch <= most:
            _lstms[key] = _of_lstm(args, batch)
        else:
            both = zip(_of_lstm(args, most // 2), _of_lstm(args, most), strict=True)
            kept, forward, backward = (_on_line(batch, most, *each) for each in both)
            _lstms[key] = kept, forward, backward
    return _lstms[key]


def _of_lstm(args: tuple[Any, ...], batch: int) -> tuple[int, int, int]:
    """`_lstm_bytes` of a real LSTM with another batch, forward and backward."""
    x, *weights, h, c = args[:7]
    reverse, sizes, mode, hidden, layers, biases, both, first, train = args[7:]
    shapes = [(x.shape[0], batch, x.shape[2]), *(each.shape for each in weights), *[(batch, h.shape[1])] * 2]
    with _disable_current_modes(), unset_fake_temporarily(), torch.enable_grad():  # without, it keeps nothing
        given = [_real(*each) for each in zip((x, *weights, h, c), shapes, strict=True)]
        results, forward = _recorded(lambda: _LSTM(*given, *args[7:]))
        flags = (reverse, mode, hidden, layers, biases, train, both, sizes, first)
        arriving = (torch.zeros_like(results[0]), None, None)
        _, backward = _recorded(lambda: _LSTM_BACKWARD(*given, *results[:3], *arriving, *flags, results[3]))
    return results[3].nbytes, forward, backward


def _recorded(work: Callable[[], Any]) -> tuple[Any, int]:
    """What a real call returns, and its highest bytes less those; it has run before, to load what it needs."""
    work()
    results, timeline = record_timeline(work)
    return results, timeline.peak_bytes - unique_bytes(tensors_in(results))


def _of_product(func: Any, args: tuple[Any, ...]) -> int:
    """Scratch of a product whose largest size is halved until all of it is small."""
    *rest, left, right = (each for each in args if isinstance(each, Tensor))
    sizes: list[int] = [*left.shape[-2:], right.shape[-1]]
    has_bfloat16, has_float16 = torch.ops.mkldnn._is_mkldnn_bf16_supported, torch.ops.mkldnn._is_mkldnn_fp16_supported
    by_onednn = has_bfloat16() if left.dtype is torch.bfloat16 else has_float16()
    most = PRODUCT_ELEMENTS if by_onednn else LOOP_ELEMENTS

    def elements() -> int:
        n, k, m = sizes
        return n * k + k * m + n * m

    while elements() > most:
        sizes[sizes.index(max(sizes))] = max(sizes) // 2
    n, k, m = sizes
    several = [min(each, max(1, most // max(1, elements()))) for each in left.shape[:-2]]
    summands = [(*several[: each.dim() - 2], n, m) if each.dim() > 1 else (m,) for each in rest]
    return _measured(func, args, [*summands, (*several, n, k), (*several, k, m)])


def _measured(func: Any, args: tuple[Any, ...], shapes: list[tuple[int, ...]]) -> int:
    """Highest bytes inside of a real call on tensors of these shapes, less its results."""
    ahead = iter(shapes)

    with _disable_current_modes(), unset_fake_temporarily(), torch.no_grad():
        tensors = [_real(each, next(ahead)) if isinstance(each, Tensor) else each for each in args]
        return _recorded(lambda: func(*tensors))[1]


def _real(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """Zeros of a shape whose dimensions lie in memory in the order of those of a tensor; copies of one where its do."""
    strides, sizes = tensor.stride(), tensor.shape
    order = sorted(range(len(shape)), key=lambda dim: (-strides[dim], -sizes[dim]))
    held = torch.zeros([shape[dim] if strides[dim] else 1 for dim in order], dtype=tensor.dtype)
    return held.permute([order.index(dim) for dim in range(len(shape))]).expand(*shape)


def probe_for(case: Case) -> Scratch | None:
    """What measures scratch on the device of a case; None on a GPU, where it cannot be measured from here."""
    return scratch_bytes if case.device == "cpu" else None
