"""A neuron behind a batch norm: its spikes, and the gradient at its input, from the norm's input by one kernel each.

The norm's own statistics of the forward are used, so neither they nor normalised values nor charges are made again in
memory. The kernels compute what torch's batch norm does on most CPUs, x = fma(z, weight / sigma, shift); whether it
does here is tried once for each type and size. Elsewhere the norm and the neuron are run again one after the other.
"""

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from revsnn_nodes.kernels.layout import numbers
from revsnn_nodes.parameters import LIFParameters
from revsnn_nodes.remat.recipes import Ref, Value

_ADDITIONS = frozenset({torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__iadd__, Tensor.__radd__})


class NormedInput(NamedTuple):
    """A neuron's input as a batch norm's output, plus a residual.

    Fields:
        z_seq: the norm's input in the shape of the neuron's, `[T, N, *]`, contiguous.
        mean, inverse_std: of the batch, `[C]`.
        weight, bias: the norm's, `[C]`, or None.
        residual_seq: what was added to the norm's output, `[T, N, *]`, or None.
        inner: how many elements lie between two channels.
    """

    z_seq: Tensor
    mean: Tensor
    inverse_std: Tensor
    weight: Tensor | None
    bias: Tensor | None
    residual_seq: Tensor | None
    inner: int


def normed_input(value: Value, x_seq: Tensor) -> NormedInput | None:
    """What a neuron's input was made from, if it is a batch norm's output that the kernels make with the same bits.

    Args:
        value: contents of the storage of x_seq.
        x_seq: the neuron's input, `[T, N, *]`.
    """
    normed, residual = _summands(value)
    norm = None if normed is None or normed.recipe is None else normed.recipe.norm
    if norm is None or x_seq.device.type != "cpu" or not x_seq.is_contiguous():
        return None
    z, mean, inverse_std, weight, bias, added = (
        None if ref is None else ref.value.tensor(ref.view)
        for ref in (norm.z, norm.mean, norm.inverse_std, norm.weight, norm.bias, residual)
    )
    gone = any(tensor is None for tensor in (z, mean, inverse_std)) or (added is None and residual is not None)
    if gone or (weight is None) != (norm.weight is None) or (bias is None) != (norm.bias is None):
        return None
    assert z is not None
    assert mean is not None
    assert inverse_std is not None
    whole = z.numel() == x_seq.numel() and z.is_contiguous() and (added is None or added.is_contiguous())
    if not whole or z.dtype != x_seq.dtype or z.shape[0] % x_seq.shape[0]:
        return None
    types = tuple(None if each is None else each.dtype for each in (weight, bias))
    if not kernels_are_exact(z.dtype, types, z.shape[1:]):
        return None
    added = None if added is None else added.view(x_seq.shape)
    return NormedInput(z.view(x_seq.shape), mean, inverse_std, weight, bias, added, z[0, 0].numel())


def _summands(value: Value) -> tuple[Value | None, Ref | None]:
    """A value as a batch norm's output and what was added to it, of the same shape and type."""
    if value.recipe is None:
        return None, None
    if value.recipe.norm is not None:
        return value, None
    args, kwargs = value.recipe.arguments
    if value.recipe.function in _ADDITIONS and not kwargs and all(isinstance(each, Ref) for each in args):
        for one, other in (args, args[::-1]):
            if one.value.recipe is not None and one.value.recipe.norm is not None and one.view == other.view:
                return one.value, other
    return None, None


_NEVER_FIRES = LIFParameters(decay_input=False, v_threshold=1e30, v_reset=None)
"""In one step from rest its membrane becomes its input."""


@cache
def kernels_are_exact(dtype: torch.dtype, types: tuple[torch.dtype | None, ...], shape: torch.Size) -> bool:
    """Whether the kernels give the bits of torch's batch norm here.

    Args:
        dtype: of the norm's input, contiguous.
        types: of weight and bias; None without one.
        shape: of the norm's input but for its batch, `[C, *]`.
    """
    from revsnn_nodes.kernels import ops  # noqa: F401  (defines torch.ops.revsnn)

    generator = torch.Generator().manual_seed(0)
    z = (torch.randn((3, *shape), generator=generator) * 3 + 1).to(dtype)
    weight, bias = (
        None if each is None else torch.randn(shape[:1], generator=generator).to(each).requires_grad_()
        for each in types
    )
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(Tensor.detach, Tensor.detach):
        x: Any = functional.batch_norm(z.requires_grad_(), None, None, weight, bias, True)
        mean, inverse_std = x.grad_fn._saved_result1, x.grad_fn._saved_result2
    with torch.no_grad():
        made = torch.ops.revsnn.norm_lif_forward(
            z[None], None, mean, inverse_std, weight, bias, None, numbers(_NEVER_FIRES), z[0, 0].numel(), False, True
        )
    return torch.equal(made[1], x)
