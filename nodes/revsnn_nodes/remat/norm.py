"""A neuron behind a batch norm: its spikes, and the gradient at its input, from the norm's input by one kernel each.

The statistics that the forward normalised by are used, so neither they nor normalised values nor charges are made again
in memory. The kernels can round as torch's batch norm does on most CPUs, and in the three ways that were found on CUDA
(`layout.FORMS`); which of them it is here is tried once for each device, type, layout and size. Where none is, norm and
neuron are run again one after the other.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.nn import functional
from torch.utils._python_dispatch import _disable_current_modes

from revsnn_nodes.kernels import ops  # noqa: F401  (defines torch.ops.revsnn)
from revsnn_nodes.kernels.layout import FORMS, numbers
from revsnn_nodes.parameters import LIFParameters
from revsnn_nodes.remat.functions import Function
from revsnn_nodes.remat.pack import Leaf
from revsnn_nodes.remat.recipes import Call, PoolWindows, Recipe, Ref, Value

_ADDITIONS = frozenset({torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__iadd__, Tensor.__radd__})


class NormedInput(NamedTuple):
    """A neuron's input as a batch norm's output, plus a residual, or those elements of it that a max pooling took."""

    z_seq: Tensor  # the norm's input, or its pooled elements, in the shape of the neuron's, [T, N, *], contiguous
    mean: Tensor  # of the batch, or the running one in evaluation, [C]
    inverse_std: Tensor  # as mean
    weight: Tensor | None  # the norm's, [C]
    bias: Tensor | None  # as weight
    residual_seq: Tensor | None  # what was added to the norm's output, [T, N, *]
    inner: int  # how many elements lie between two channels; 1 for channels_last
    form: int  # how the norm is rounded, an index of `layout.FORMS`


def normed_input(value: Value, x_seq: Tensor, note: Callable[..., None]) -> NormedInput | None:
    """What a neuron's input `[T, N, *]` was made from, if it is a batch norm's output that the kernels make to the bit.

    `value`: the contents of its storage; `note`: a recorder's, for the elements that a pooling took.
    """
    pool = _pooling_of_norm(value)
    normed, residual = _summands(value) if pool is None else (pool.args[0].value, None)
    recipe = None if normed is None else normed.recipe
    norm = None if recipe is None else recipe.norm
    if recipe is None or norm is None or not x_seq.is_contiguous():
        return None
    refs = (norm.z, norm.weight, norm.bias, norm.mean, norm.inverse_std, residual)
    found = [ref.value.tensor(ref.view) if isinstance(ref, Ref) else ref for ref in refs]
    z, weight, bias, mean, inverse_std, added = found
    if norm.running is not None:
        mean, inverse_std = running_statistics(*norm.running)
    gone = any(tensor is None for tensor, ref in zip(found, refs, strict=True) if ref is not None)
    if gone or z is None or mean is None or inverse_std is None:
        return None
    # Memory is read in its own order, which the norm's result and the residual must share: batch outermost.
    same = recipe.view.stride == z.stride() and (added is None or _is_dense(added))
    pooled = math.prod((recipe if pool is None else pool).view.size)
    if not same or pooled != x_seq.numel() or z.shape[0] % x_seq.shape[0] or z.dtype != x_seq.dtype:
        return None
    if not (z.is_contiguous() or z.movedim(1, -1).is_contiguous()):
        return None
    shape = z.shape if z.is_cuda else (3, *z.shape[1:])  # on CUDA the batch's size may choose the norm's kernel
    types = tuple(None if each is None else each.dtype for each in (weight, bias, mean))
    cudnn = (torch.backends.cudnn.enabled, torch.backends.cudnn.deterministic) if z.is_cuda else ()
    form = exact_form(NormKind(z.dtype, types, shape, z.stride()[1:], norm.running is None, z.device, cudnn))
    if form is None:
        return None
    if pool is not None:
        z = _taken(pool, norm.z, z, note)
    if z is None:
        return None
    inner = _between_channels(z.stride(), z.shape)
    z, added = (None if each is None else each.as_strided(x_seq.shape, x_seq.stride()) for each in (z, added))
    assert z is not None
    return NormedInput(z, mean, inverse_std, weight, bias, added, inner, form)


_is_dense: Any = torch.ops.aten.is_non_overlapping_and_dense


def _between_channels(stride: tuple[int, ...], shape: tuple[int, ...]) -> int:
    """How many elements of a dense tensor lie between two channels."""
    return stride[1] if shape[1] > 1 else math.prod(shape[2:])


def _summands(value: Value) -> tuple[Value | None, Ref | None]:
    """A value as a batch norm's output and what was added to it, of the same shape and type."""
    if value.recipe is None:
        return None, None
    if value.recipe.norm is not None:
        return value, None
    args, kwargs = value.recipe.args, value.recipe.kwargs
    if value.recipe.function in _ADDITIONS and not kwargs and all(isinstance(each, Ref) for each in args):
        for one, other in (args, args[::-1]):
            if one.value.recipe is not None and one.value.recipe.norm is not None and one.view == other.view:
                return one.value, other
    return None, None


def _pooling_of_norm(value: Value) -> Recipe | None:
    """How a value was made, if that is a max pooling of a batch norm's whole output, within its channels."""
    pool = value.recipe
    if pool is None or getattr(pool.function, "__func__", None) is not PoolWindows.values:
        return None
    windows: PoolWindows = pool.function.__self__  # type: ignore[attr-defined]
    x: Ref = pool.args[0]
    norm = x.value.recipe
    if norm is None or norm.norm is None or x.view != norm.view or len(x.view.size) != len(windows.sides) + 2:
        return None
    return pool


def _taken(pool: Recipe, z_ref: Ref, z: Tensor, note: Callable[..., None]) -> Tensor | None:
    """Those elements of a norm's input whose outputs a max pooling took, laid out as its result, with their recipe."""
    short: Ref = pool.args[1]
    places = short.value.tensor(short.view)
    if places is None:
        return None
    taken: Tensor = pool.function(z, places)
    if taken.stride() != pool.view.stride:
        taken = taken.new_empty_strided(pool.view.size, pool.view.stride).copy_(taken)
    refs = (z_ref, short)
    note(pool.function, Call(refs, {}, {each.value.address: each.value for each in refs}), taken, 1)
    return taken


def layout_of_norm(
    x: Value, pool: Function, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Value, Leaf] | None:
    """For a max pooling that saves its input x: x, and the norm's input that can stand for it, if x is a norm's output.

    That one has the size of x, and is kept anyway.
    """
    norm = None if x.recipe is None else x.recipe.norm
    if norm is None or not norm.z.value.keepers or norm.z.value.nbytes != x.nbytes:
        return None
    storage = norm.z.value.storage()
    if storage is None or not backward_reads_no_input(pool, args, kwargs):
        return None
    return x, (norm.z.value, storage)


_reads_none: dict[str, bool] = {}


def backward_reads_no_input(pool: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a max pooling's backward pass takes of its saved input the layout alone, and no number.

    Tried with other numbers in its place, once for each pooling and layout.
    """
    x, *rest = args
    how = repr((pool, rest, kwargs, x.shape[1:], x.stride()[1:], x.dtype, x.device))
    if how in _reads_none:
        return _reads_none[how]
    frame = x.shape[1:]
    with torch.enable_grad(), _disable_current_modes():
        tried = torch.empty_strided((1, *frame), (math.prod(frame), *x.stride()[1:]), dtype=x.dtype, device=x.device)
        tried.copy_(torch.randn(1, *frame, generator=torch.Generator().manual_seed(0))).requires_grad_()

        def gradient(read: Callable[[Tensor], Tensor]) -> Tensor:
            """Of the input, where saved tensors are read in some way."""
            with torch.autograd.graph.saved_tensors_hooks(Tensor.detach, read):
                y = pool(tried, *rest, **kwargs)[0]
                return torch.autograd.grad(y, tried, 1 + y.detach().cos())[0]

        def spoiled(saved: Tensor) -> Tensor:
            """Other numbers in the same layout, where it has numbers."""
            return torch.full_like(saved, math.nan) if saved.is_floating_point() else saved

        try:
            _reads_none[how] = torch.equal(gradient(Tensor.detach), gradient(spoiled))
        except RuntimeError:  # no deterministic backward pass, or no memory for a trial
            _reads_none[how] = False
    return _reads_none[how]


_NEVER_FIRES = LIFParameters(decay_input=False, v_threshold=1e30, v_reset=None)
"""In one step from rest its membrane becomes its input."""


class NormKind(NamedTuple):
    """What may decide how torch rounds a batch norm."""

    dtype: torch.dtype
    types: tuple[torch.dtype | None, ...]  # of weight, bias and running statistics; None without one
    shape: tuple[int, ...]  # of the norm's input, [N, C, *]
    stride: tuple[int, ...]  # of it, without the batch's
    training: bool  # whether it normalises by the statistics of the batch, else by running ones
    device: torch.device
    cudnn: tuple[bool, ...] = ()  # its switches, which may choose another kernel


_LEAST_CHANNELS = 64
"""Channels that are tried, at least: a rounding that differs may show in one of ten."""


@cache
@unset_fake_temporarily()  # also where a step is only predicted, on tensors without memory
def exact_form(kind: NormKind) -> int | None:
    """How torch's batch norm is rounded here, an index of `layout.FORMS`; None where the kernels give other bits."""
    forms: Sequence[int] = range(len(FORMS) if kind.device.type == "cuda" else 1)
    try:
        for seed in range(math.ceil(_LEAST_CHANNELS / max(kind.shape[1], 1))):
            forms = _exact_forms(kind, seed, forms)
    except torch.OutOfMemoryError:  # the trial takes a few tensors of the input's size
        return None
    return next(iter(forms), None)


def _exact_forms(kind: NormKind, seed: int, forms: Sequence[int]) -> list[int]:
    """Those of the forms that give torch's bits for the numbers of one seed."""
    dtype, types, shape, stride, training, device, _ = kind
    generator = torch.Generator().manual_seed(seed)
    z = torch.empty_strided(shape, (math.prod(shape[1:]), *stride), dtype=dtype, device=device)
    z.copy_(torch.randn(shape, generator=generator) * 3 + 1)
    weight, bias, running_mean = (
        None if each is None else torch.randn(shape[1], generator=generator).to(device, each) for each in types
    )
    running = None if training or running_mean is None else (running_mean, running_mean.square())
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(Tensor.detach, Tensor.detach):
        entered = (None, None) if running is None else running
        x = functional.batch_norm(z.requires_grad_(), entered[0], entered[1], weight, bias, running is None)
    with torch.no_grad():
        mean, inverse_std = saved_statistics(x) if running is None else running_statistics(*running, 1e-5)
        if mean is None or inverse_std is None or x.stride() != z.stride():
            return []
        order = (1, z.numel()), (z.numel(), 1)
        inner = _between_channels(z.stride(), shape)
        sources = (z.as_strided(*order), None, mean, inverse_std, weight, bias, None)

        def agrees(form: int) -> bool:
            """Whether the norm inside of the kernel has the bits of x: its membrane after a step without spikes."""
            made = torch.ops.revsnn.norm_lif_forward(*sources, numbers(_NEVER_FIRES), inner, form, False, True)
            return torch.equal(made[1], x.as_strided(*order)[0])

        return [form for form in forms if agrees(form)]


def saved_statistics(result: Any) -> tuple[Tensor | None, Tensor | None]:
    """Mean and 1 / sigma of the batch, which a batch norm saved with its result; None where autograd has others."""
    if type(result.grad_fn).__name__ in ("NativeBatchNormBackward0", "CudnnBatchNormBackward0"):
        return result.grad_fn._saved_result1, result.grad_fn._saved_result2
    return None, None


def running_statistics(mean: Tensor, var: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and 1 / sigma in evaluation, rounded as in torch's batch norm; `sqrt` is not, where MKL computes it."""
    return mean, (var + eps).rsqrt()
