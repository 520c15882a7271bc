"""Residual blocks that are inverted in the backward pass: a chain of them keeps its output alone, at any depth.

    Y1 = X1 + F(X2)        X2 = Y2 - G(Y1)
    Y2 = X2 + G(Y1)        X1 = Y1 - F(X2)

X1 and X2 are halves of the features, F and G a linear map and neurons. This is another network than a stack without
shortcuts, and its gradient is that of its own backpropagation, as far as the subtraction gives back what was added:
where it rounds, a neuron near its threshold may fire otherwise. Source: RevNet, Gomez et al. 2017, arXiv 1707.04585; in
spiking networks Zhang and Zhang, AAAI 2024. Contrast: `revsnn_nodes.coupled` inverts neurons in time, not in depth.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.profiler import record_function

from revsnn_bench.meters.step import learned
from revsnn_bench.models.blocks import NodeMaker, State, linear_block, set_states, states_of
from revsnn_bench.models.networks import GAIN


class RevBlock(nn.Module):
    """One block: halves `[T, B, n]` in and out, by modules F and G whose neurons carry membranes."""

    def __init__(self, f: nn.Module, g: nn.Module) -> None:
        super().__init__()
        self.f, self.g = f, g

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        """Y1 and Y2."""
        y1 = x1 + self.f(x2)
        return y1, x2 + self.g(y1)


class RevChain(nn.Module):
    """Blocks one after the other: `[T, B, 2 n]` in and out.

    Args:
        inverts: whether the backward pass inverts them; otherwise autograd keeps what it keeps.
    Keeps for backward: where it inverts, the halves of its output, and membranes that it started from if not at rest.
    """

    def __init__(self, blocks: Sequence[RevBlock], inverts: bool) -> None:
        super().__init__()
        self.blocks, self.inverts = nn.ModuleList(blocks), inverts

    def plain(self) -> "RevChain":
        """The same blocks by plain autograd."""
        return RevChain([*self.blocks], inverts=False).train(self.training)

    def forward(self, x_seq: Tensor) -> Tensor:
        """Runs every block."""
        x1, x2 = x_seq.chunk(2, 2)
        if not (self.inverts and torch.is_grad_enabled()):
            for block in self.blocks:
                x1, x2 = block(x1, x2)
            return torch.cat((x1, x2), 2)
        states, parameters = states_of(self), learned(self)
        y1, y2, *after = _Inverted.apply(self, len(states), x1, x2, *states, *parameters)
        set_states(self, after)
        return torch.cat((y1, y2), 2)


def rev_chain(make_node: NodeMaker, features: int, depth: int, inverts: bool) -> RevChain:
    """A chain of `depth` blocks whose F and G are linear, node; raises `ValueError` for an odd number of features."""
    half, odd = divmod(features, 2)
    if odd:
        raise ValueError(f"`shape` must be even; got {features}. A block works on halves. Pass {features + 1}.")
    chain = RevChain(
        [RevBlock(*(linear_block(half, half, make_node) for _ in range(2))) for _ in range(depth)], inverts
    )
    for weight in chain.parameters():
        if weight.dim() > 1:
            nn.init.normal_(weight, std=GAIN / math.sqrt(half))
    return chain


class _Inverted(torch.autograd.Function):
    """The chain as one function of halves, membranes and parameters."""

    @staticmethod
    def forward(ctx: Any, chain: RevChain, count: int, x1: Tensor, x2: Tensor, *given: Any) -> tuple[Any, ...]:
        for block in chain.blocks:
            x1, x2 = block(x1, x2)
        ctx.chain, ctx.starts = chain, [None if isinstance(v, Tensor) else v for v in given[:count]]
        ctx.save_for_backward(x1, x2, *(v for v in given[:count] if isinstance(v, Tensor)))
        return x1, x2, *states_of(chain)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d1: Tensor, d2: Tensor, *d_states: Tensor) -> tuple[Any, ...]:
        y1, y2, *given = ctx.saved_tensors
        saved = iter(given)
        starts = [next(saved) if v is None else v for v in ctx.starts]
        carried, at = states_of(ctx.chain), len(starts)
        of_states: list[Any] = []
        of_parameters: list[Tensor] = []
        for block in reversed(ctx.chain.blocks):
            for name in ("g", "f"):
                part = getattr(block, name)
                first = at - len(states_of(part))
                # Y2 - G(Y1), then Y1 - F(X2): the half that was added to comes back, the other one was the argument.
                y2, d1, states, parameters = _undo(part, y1, y2, d1, d2, starts[first:at], d_states[first:at])
                y1, y2, d1, d2, at = y2, y1, d2, d1, first
                of_states, of_parameters = states + of_states, parameters + of_parameters
        set_states(ctx.chain, carried)
        return None, None, d1, d2, *of_states, *of_parameters


def _undo(
    part: nn.Module, argument: Tensor, summed: Tensor, d_argument: Tensor, d_summed: Tensor,
    starts: Sequence[State], d_states: Sequence[Tensor],
) -> tuple[Tensor, Tensor, list[Any], list[Tensor]]:  # fmt: skip
    """Takes `part(argument)` off a sum, from the membranes at which it started.

    Returns what it was added to, the gradient of the argument, and those of the membranes and the parameters.
    """
    leaves = [v.detach().requires_grad_() if isinstance(v, Tensor) else v for v in starts]
    parameters = learned(part)
    given = argument.detach().requires_grad_()
    with record_function("recompute"), torch.enable_grad():
        set_states(part, leaves)
        added = part(given)
        before = summed - added.detach()
    tensors = [v for v in leaves if isinstance(v, Tensor)]
    of_argument, *found = torch.autograd.grad(
        [added, *states_of(part)], [given, *tensors, *parameters], [d_summed, *d_states]
    )
    of_states = [found.pop(0) if isinstance(v, Tensor) else None for v in leaves]
    return before, d_argument + of_argument, of_states, found
