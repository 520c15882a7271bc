"""A function that saves its inputs alone, and is run again under grad in the backward pass.

For neurons: they keep their input, which often has a recipe, and not their charges. Contrast: `torch.utils.checkpoint`
keeps hold of everything that the function refers to, and draws random numbers again; here it is one function without
randomness.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from revsnn_nodes.remat.pack import LABEL, paused
from revsnn_nodes.remat.recipes import Autocast

Outputs = Tensor | tuple[Tensor, ...]


class Rerun(torch.autograd.Function):
    """Runs `call(*tensors)`, and again in the backward pass.

    Keeps for backward: its tensors.
    Exactness: gradients have the bits of `call`'s own; second derivatives are `call`'s, or its error.
    """

    @staticmethod
    def forward(ctx: Any, call: Callable[..., Outputs], *tensors: Tensor | None) -> Outputs:
        """The outputs of `call`."""
        ctx.call = call
        given = next(tensor for tensor in tensors if tensor is not None)
        ctx.autocast = Autocast.now(given.device.type)
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        with torch._C.DisableTorchFunction():
            return call(*tensors)

    @staticmethod
    def backward(ctx: Any, *arriving: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of the tensors."""
        twice = torch.is_grad_enabled()  # create_graph
        needs = ctx.needs_input_grad[1:]
        with torch._C.DisableTorchFunction(), torch.enable_grad(), paused():
            tensors = ctx.saved_tensors if twice else _apart(ctx.saved_tensors, needs)
            with record_function(LABEL), ctx.autocast.again():
                made = ctx.call(*tensors)
            outputs = made if isinstance(made, tuple) else (made,)
            reached = [pair for pair in zip(outputs, arriving, strict=True) if pair[1] is not None]
            wanted = [tensor for tensor, need in zip(tensors, needs, strict=True) if need]
            found = _gradients(reached, wanted, twice)
        gradients = iter(found)
        return None, *(next(gradients) if need else None for need in needs)


def _apart(tensors: tuple[Tensor | None, ...], needs: tuple[bool, ...]) -> list[Tensor | None]:
    """The tensors as leaves of a graph of their own."""
    return [
        None if tensor is None else tensor.detach().requires_grad_(need)
        for tensor, need in zip(tensors, needs, strict=True)
    ]


def _gradients(
    reached: list[tuple[Tensor, Tensor | None]], wanted: list[Tensor], twice: bool
) -> tuple[Tensor | None, ...]:
    reached = [(output, gradient) for output, gradient in reached if output.requires_grad]
    if not reached:
        return (None,) * len(wanted)
    outputs, gradients = zip(*reached, strict=True)
    return torch.autograd.grad(outputs, wanted, gradients, create_graph=twice, allow_unused=True)
