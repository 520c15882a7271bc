"""AnchoredReversibleLIF: the backward pass regenerates the membrane forward in time, from anchors.

Contrast: `ReversibleLIF` inverts, which expands errors; regeneration contracts them, and is accurate at every T.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.profiler import record_function

from revsnn_nodes.base import StepMode
from revsnn_nodes.coupling import (
    Parts,
    coupled_step,
    coupled_step_vjp,
    initial_membrane,
    join,
    regenerate_step,
    split,
)
from revsnn_nodes.kernels.selection import DEFAULT_BACKEND, Backend
from revsnn_nodes.parameters import CoupledParameters, ResetGate, require
from revsnn_nodes.reversible import arriving, write
from revsnn_nodes.stored_coupled import CoupledNode
from revsnn_nodes.surrogate import SurrogateFunction, heaviside


class _RegenerateAndMultiply(torch.autograd.Function):
    """Keeps the output (an alias), the state it started from if carried, and one membrane per later segment."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x_seq: Tensor, v: Tensor | None, neuron: CoupledParameters, surrogate: SurrogateFunction, every: int
    ) -> tuple[Tensor, ...]:
        """Output `[T, N, *]`, the last membrane, and the membranes at the starts of later segments, each `[N, *]`."""
        y_seq = torch.empty_like(x_seq)
        membranes: Parts = split(initial_membrane(x_seq[0], v, neuron), neuron)
        anchors = []
        for t, (x, out) in enumerate(zip(x_seq.unbind(0), y_seq.unbind(0), strict=True)):
            if t and t % every == 0:
                anchors.append(join(membranes, neuron))
            y, membranes, _ = coupled_step(split(x, neuron), membranes, neuron, heaviside)
            write(out, y, neuron)
        return y_seq, join(membranes, neuron), *anchors

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """See the class."""
        _, v, ctx.neuron, ctx.surrogate, ctx.every = inputs
        y_seq, _, *anchors = output
        ctx.mark_non_differentiable(*anchors)
        ctx.save_for_backward(y_seq, v, *anchors)
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, ybar_seq: Tensor | None, vbar_last: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        """Gradients of the input and of the first membrane."""
        y_seq, v, *later = ctx.saved_tensors
        neuron, phi = ctx.neuron, ctx.surrogate.derivative
        ybar_seq = arriving(ybar_seq, y_seq)
        # The charges of a segment wait in the buffer of the input gradient until the gradient overwrites them.
        xbar_seq = torch.empty_like(y_seq)
        anchors = [v, *later]
        vbar: Parts = split(arriving(vbar_last, y_seq[0]), neuron)
        del v, later
        for start in range((len(anchors) - 1) * ctx.every, -1, -ctx.every):
            steps = range(start, min(start + ctx.every, y_seq.shape[0]))
            with record_function("recompute"):
                _regenerate_charges(y_seq, anchors.pop(), steps, xbar_seq, neuron)
            for t in reversed(steps):
                y, charges = split(y_seq[t], neuron), split(xbar_seq[t], neuron)
                xbar, vbar = coupled_step_vjp(y, charges, split(ybar_seq[t], neuron), vbar, neuron, phi)
                write(xbar_seq[t], xbar, neuron)
        return xbar_seq, join(vbar, neuron) if ctx.needs_input_grad[1] else None, None, None, None


def _regenerate_charges(
    y_seq: Tensor, anchor: Tensor | None, steps: range, charge_seq: Tensor, neuron: CoupledParameters
) -> None:
    """Runs a segment forward from its anchor and the output, and writes its charges."""
    membranes: Parts = split(initial_membrane(y_seq[steps[0]], anchor, neuron), neuron)
    for t in steps:
        membranes, charges = regenerate_step(split(y_seq[t], neuron), membranes, neuron)
        write(charge_seq[t], charges, neuron)


class AnchoredReversibleLIF(CoupledNode):
    """The coupled dynamics, with a backward pass that regenerates forward: right at every T.

    The output is real-valued: spikes plus `beta` times the partner group's input.

    Args:
        anchor_every: k, steps per segment; the membrane at the start of every segment but the first is kept. None
            for one segment that spans the whole sequence, which keeps nothing.
        reset_gate: "output" for the dynamics of the other coupled nodes; "spike" for the true hard reset, with which
            alpha = 1 is allowed.
        Others: see `CoupledParameters` and `SpikingNode`.
    Keeps for backward: b N (ceil(T/k) - 1) bytes, 0 for k >= T; b N more where it started from a carried state; its
        output as an alias. Transient in backward: O(N), since charges wait in the buffer of the input gradient.
    Exactness: relative gradient error of a few 1e-8 in float32 at every T.
    """

    reset_gate_choice = True

    def __init__(
        self,
        tau: float = 2.0,
        decay_input: bool = True,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: Callable[[Tensor], Tensor] | None = None,
        detach_reset: bool = False,
        step_mode: StepMode = "m",
        groups: int = 2,
        group_dim: int = -1,
        alpha: float = 0.5,
        beta: float = 1.0,
        reset_gate: ResetGate = "output",
        anchor_every: int | None = None,
        backend: Backend = DEFAULT_BACKEND,
    ) -> None:
        super().__init__(
            tau, decay_input, v_threshold, v_reset, surrogate_function, detach_reset, step_mode,
            groups, group_dim, alpha, beta, reset_gate, backend,
        )  # fmt: skip
        require(
            anchor_every is None or anchor_every >= 1,
            "anchor_every",
            "be at least 1 step",
            anchor_every,
            "It is the length of a segment.",
            "Leave it out to keep nothing.",
        )
        self.anchor_every = anchor_every

    def multi_step_forward(self, x_seq: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `SpikingNode.multi_step_forward`."""
        every = self.anchor_every or x_seq.shape[0]
        y_seq, v_last, *_ = _RegenerateAndMultiply.apply(x_seq, v, self.neuron, self.surrogate_function, every)
        return y_seq, v_last

    def fused_sequence(self, x_seq: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `SpikingNode.fused_sequence`."""
        from revsnn_nodes.kernels.functions import FusedAnchored

        split(x_seq[0], self.neuron)  # refuses what does not divide into groups
        every = self.anchor_every or x_seq.shape[0]
        y_seq, v_last, _ = FusedAnchored.apply(x_seq, v, self.neuron, self.surrogate_function, every)
        return y_seq, v_last

    def extra_repr(self) -> str:
        """Parameters and segment length."""
        return f"{super().extra_repr()}, anchor_every={self.anchor_every}"
