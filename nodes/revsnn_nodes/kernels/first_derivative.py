"""The fused backward passes are closed forms outside of autograd: a second derivative is refused, never left out."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

Backward = Callable[..., tuple[Tensor | None, ...]]

_REFUSAL = (
    '`backend` must be "torch" for second derivatives; got "fused". The fused kernels give the first derivative alone, '
    'by a closed form outside of autograd. Pass backend="torch" to StandardLIF, or use StoredCarrierLIF, '
    "StoredCoupledLIF or StoredNormCarrierLIF."
)


class _Refuse(torch.autograd.Function):
    """Passes a gradient on, as something that cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, differentiable: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(_REFUSAL)


def first_derivative_only(backward: Backward) -> Backward:
    """Decorates a backward pass as `once_differentiable` does, with the way out in its error.

    Contrast: it also refuses where the arriving gradient is a constant, as in the penalty `grad(y.sum(), x,
    create_graph=True)`. There the result would otherwise be a constant too, and its part of the loss would have no
    gradient without a word.

    Raises:
        RuntimeError: when a gradient of the decorated pass's results is taken.
    """

    @wraps(backward)
    def once(ctx: Any, *arriving: Tensor | None) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            results = backward(ctx, *arriving)
        if not torch.is_grad_enabled():  # no create_graph
            return results
        differentiable = torch.empty(0, requires_grad=True)
        return tuple(None if each is None else _Refuse.apply(each, differentiable) for each in results)

    return once
