"""What the carrier nodes read from their output, and the LIF step run again and differentiated from it.

Equations: section "Carrier" of nodes/README.md.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from revsnn_nodes.parameters import LIFParameters


def decode_spikes(y: Tensor) -> Tensor:
    """The spikes of a carrier output (or of plain spikes), any shape, in the dtype of y; exact."""
    # What is carried stays below 1/2. A comparison gives bools, whose conversion costs ten times as much on a CPU.
    return y.detach().round()


def decode_input(y: Tensor, spike: Tensor, epsilon: float) -> Tensor:
    """The clamped input that a carrier output holds, of its shape.

    Exactness: to half an ulp(1) / epsilon where the neuron fired; to the bit where it did not, unless epsilon x is
        subnormal (in float16 below 6e-5).
    """
    return (y - spike) * (1.0 / epsilon)


def fire(z: Tensor) -> Tensor:
    """Spikes: 1 where z >= 0, else 0, in the dtype and the storage of z; to the bit those of `heaviside`."""
    return z.ge_(0)


def recharge(drive: Tensor, membrane: Tensor | None, spike: Tensor, neuron: LIFParameters) -> tuple[Tensor, Tensor]:
    """One LIF step whose spikes are known: none can flip. Charge and membrane count from rest, `[N, *]`.

    Args:
        drive: `input_gain` times the input; overwritten.
        membrane: before the step; None for rest.
        spike: spikes of the step.
        neuron: parameters.
    Returns:
        The charge, in the storage of `drive`, and the membrane after the step.
    """
    h = drive if membrane is None else drive.add_(membrane, alpha=neuron.keep)
    if neuron.v_reset is None:
        return h, torch.sub(h, spike, alpha=neuron.v_threshold)
    return h, (1.0 - spike).mul_(h)


def lif_step_vjp(
    h: Tensor,
    spike: Tensor,
    sbar: Tensor,
    vbar: Tensor | None,
    neuron: LIFParameters,
    phi: Callable[[Tensor], Tensor],
) -> Tensor:
    """Gradient at the charge of one LIF step, `[N, *]`, in storage of its own.

    Args:
        h: charge above rest.
        spike: spikes of the step.
        sbar: gradient that arrives at the spikes.
        vbar: gradient that arrives at the membrane after the step; None for none.
        neuron: parameters.
        phi: surrogate derivative of charge minus threshold.
    """
    slope = phi(h - (neuron.v_threshold - neuron.rest))
    if vbar is None:
        return sbar * slope
    soft = neuron.v_reset is None
    if not neuron.detach_reset:
        sbar = torch.sub(sbar, vbar, alpha=neuron.v_threshold) if soft else sbar - vbar * h
    return (sbar * slope).add_(vbar if soft else (1.0 - spike) * vbar)
