"""RevNetLIF: classic RevNet backprop through the coupled dynamics.

Every step is inverted, run forward again under grad, and differentiated by autograd. Contrast: `ReversibleLIF`
applies the closed-form product to what the inverse has just produced and runs nothing again.
Source: Gomez et al. 2017, arXiv 1707.04585, applied to the dynamics of coupling.py.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.profiler import record_function

from revsnn_nodes.coupling import Parts, coupled_step, invert_membranes, join, recover_inputs, split
from revsnn_nodes.parameters import CoupledParameters
from revsnn_nodes.reversible import InvertingFunction, InvertingNode, arriving, write
from revsnn_nodes.surrogate import SurrogateFunction


class _InvertAndRerun(InvertingFunction):
    """Inverts step by step, re-runs each step under grad, differentiates."""

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, ybar_seq: Tensor | None, vbar_last: Tensor | None) -> tuple[Tensor | None, ...]:
        y_seq, v_last = ctx.saved_tensors
        neuron: CoupledParameters = ctx.neuron
        ybar_seq = arriving(ybar_seq, y_seq)
        xbar_seq = torch.empty_like(y_seq)
        v: Parts = split(v_last, neuron)
        vbar: Parts = split(arriving(vbar_last, v_last), neuron)
        del v_last
        for t in range(y_seq.shape[0] - 1, -1, -1):
            y = split(y_seq[t], neuron)
            with record_function("recompute"):
                _, v, charges = invert_membranes(y, v, neuron)
                x = recover_inputs(y, charges, neuron)
            xbar, vbar = _rerun_and_differentiate(x, v, split(ybar_seq[t], neuron), vbar, neuron, ctx.surrogate)
            write(xbar_seq[t], xbar, neuron)
        return xbar_seq, join(vbar, neuron) if ctx.needs_input_grad[1] else None, None, None


def _rerun_and_differentiate(
    x: Parts, v: Parts, ybar: Parts, vbar: Parts, neuron: CoupledParameters, surrogate: SurrogateFunction
) -> tuple[Parts, Parts]:
    with record_function("recompute"), torch.enable_grad():
        leaves = [part.detach().requires_grad_() for part in (*x, *v)]
        inputs, membranes = leaves[: neuron.groups], leaves[neuron.groups :]
        y, v_next, _ = coupled_step(inputs, membranes, neuron, surrogate)
    grads = torch.autograd.grad((*y, *v_next), leaves, (*ybar, *vbar))
    return grads[: neuron.groups], grads[neuron.groups :]


class RevNetLIF(InvertingNode):
    """The coupled dynamics with classic reversible backprop: what the paper's node is compared with.

    The output is real-valued: spikes plus `beta` times the partner group's input. It inverts as `ReversibleLIF` does
    and has the same limit in T.

    Args: see `InvertingNode`.
    Keeps for backward: the last membrane, b N bytes, whatever T is; its output as an alias.
        Transient in backward: the graph of one step.
    Exactness: as `ReversibleLIF`.
    """

    def reversible_sequence(self, x_seq: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `InvertingNode.reversible_sequence`."""
        return _InvertAndRerun.apply(x_seq, v, self.neuron, self.surrogate_function)  # type: ignore[no-any-return]
