"""The LIF step, and StandardLIF: plain autograd through the loop over time.

Equations: section "Standard LIF" of nodes/README.md. Forward values, argument names, defaults and gradients agree
with SpikingJelly's `LIFNode`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from revsnn_nodes.base import SpikingNode, StepMode
from revsnn_nodes.kernels.selection import DEFAULT_BACKEND, Backend
from revsnn_nodes.parameters import LIFParameters


def neuronal_charge(x: Tensor, v: Tensor | float, neuron: LIFParameters) -> Tensor:
    """Charge h = M from input x (or drive D) and membrane v; all `[N, *]`."""
    leak = v - neuron.rest if neuron.rest else v
    if neuron.decay_input:
        return v + (x - leak) / neuron.tau
    return v - leak / neuron.tau + x


def neuronal_reset(h: Tensor, spike: Tensor, neuron: LIFParameters) -> Tensor:
    """Membrane after firing, `[N, *]`: to v_reset where the neuron fired, or down by the threshold (soft)."""
    if neuron.detach_reset:
        spike = spike.detach()
    if neuron.v_reset is None:
        return h - spike * neuron.v_threshold
    v = (1.0 - spike) * h
    return v + spike * neuron.v_reset if neuron.v_reset else v


def lif_step(
    x: Tensor, v: Tensor | float, neuron: LIFParameters, fire: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """One step of the LIF: charge, fire, reset.

    Args:
        x: input current, `[N, *]`.
        v: membrane before the step, `[N, *]`, or the float it rests at.
        neuron: parameters.
        fire: spike function of charge minus threshold.
    Returns:
        Spikes and the membrane after the step, both `[N, *]`.
    """
    h = neuronal_charge(x, v, neuron)
    spike = fire(h - neuron.v_threshold)
    return spike, neuronal_reset(h, spike, neuron)


def lif_sequence(
    x_seq: Tensor, v: Tensor | None, neuron: LIFParameters, fire: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """T steps of the LIF under autograd: spikes `[T, N, *]` and the last membrane `[N, *]`."""
    spikes = []
    # unbind, not x_seq[t]: the backward of indexing fills one [T, N, *] with zeros at every step.
    steps = x_seq.unbind(0)
    membrane = torch.full_like(steps[0], neuron.rest) if v is None else v
    for x in steps:
        spike, membrane = lif_step(x, membrane, neuron, fire)
        spikes.append(spike)
    return torch.stack(spikes), membrane


class StandardLIF(SpikingNode[LIFParameters]):
    """Leaky integrate-and-fire layer, by plain autograd through time: the standard that others are held against.

    Args: see `LIFParameters` and `SpikingNode`.
    Keeps for backward: three tensors per step (h, h - v_threshold, 1 - s), 3 b N T bytes with itemsize b and N
        elements per step; 2 b N T with `detach_reset`, and 1 b N T with soft reset. Fused: h alone, 1 b N T.
    Exactness: it defines the forward; its gradient is autograd's. Fused: the same forward bit for bit, the gradient to
        rounding; it cannot be differentiated twice.
    """

    fused_cpu_dtypes = (torch.float32, torch.float64, torch.bfloat16)

    def __init__(
        self,
        tau: float = 2.0,
        decay_input: bool = True,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: Callable[[Tensor], Tensor] | None = None,
        detach_reset: bool = False,
        step_mode: StepMode = "m",
        backend: Backend = DEFAULT_BACKEND,
    ) -> None:
        neuron = LIFParameters(tau, decay_input, v_threshold, v_reset, detach_reset)
        super().__init__(neuron, surrogate_function, step_mode, backend)

    def multi_step_forward(self, x_seq: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `SpikingNode.multi_step_forward`."""
        return lif_sequence(x_seq, v, self.neuron, self.surrogate_function)

    def fused_sequence(self, x_seq: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `SpikingNode.fused_sequence`."""
        from revsnn_nodes.kernels.functions import fused_lif

        return fused_lif(x_seq, v, self.neuron, self.surrogate_function)

    def reference(self) -> "SpikingNode[LIFParameters]":
        """A fresh node like this one: the standard is its own reference."""
        return self.fresh(StandardLIF)
