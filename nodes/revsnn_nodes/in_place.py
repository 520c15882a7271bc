"""The LIF step and its gradient in buffers that one sequence reuses: on a CPU these stay in its cache.

Same equations as `decoding.py` and `lif.py`, for the layers that no `torch.func` transform passes through.
"""

import torch
from torch import Tensor

from revsnn_nodes.parameters import LIFParameters
from revsnn_nodes.surrogate import SurrogateFunction


def step_into(spike: Tensor, after: Tensor, x: Tensor, v: Tensor | float, neuron: LIFParameters) -> None:
    """One step of the LIF, to the bit that of `lif_step`.

    Args:
        spike: where its spikes go, `[N, *]`.
        after: where the membrane after the step goes; may be the storage of `v`.
        x: input current; overwritten by the charge.
        v: membrane before the step, or the float that it rests at.
        neuron: parameters.
    """
    leak = v - neuron.rest if neuron.rest else v
    if neuron.decay_input:
        x.sub_(leak).div_(neuron.tau).add_(v)
    else:
        x.add_(v - leak / neuron.tau)
    torch.sub(x, neuron.v_threshold, out=spike).ge_(0)
    if neuron.v_reset is None:
        torch.sub(x, spike, alpha=neuron.v_threshold, out=after)
        return
    torch.sub(torch.ones((), dtype=x.dtype, device=x.device), spike, out=after).mul_(x)
    if neuron.v_reset:
        after.add_(spike, alpha=neuron.v_reset)


def recharge_into(after: Tensor, drive: Tensor, v: Tensor | None, spike: Tensor, neuron: LIFParameters) -> None:
    """One LIF step whose spikes are known: none can flip. Charge and membrane count from rest.

    Args:
        after: where the membrane after the step goes; may be the storage of `v`.
        drive: `input_gain` times the input, `[N, *]`; overwritten by the charge.
        v: membrane before the step; None for rest.
        spike: spikes of the step.
        neuron: parameters.
    """
    if v is not None:
        drive.add_(v, alpha=neuron.keep)
    if neuron.v_reset is None:
        torch.sub(drive, spike, alpha=neuron.v_threshold, out=after)
    else:
        torch.mul(drive, spike, out=after)
        torch.sub(drive, after, out=after)


def lif_step_vjp_into(
    hbar: Tensor,
    h: Tensor,
    spike: Tensor,
    sbar: Tensor,
    vbar: Tensor | None,
    neuron: LIFParameters,
    surrogate: SurrogateFunction,
) -> None:
    """Gradient at the charge of one LIF step; see `lif_step_vjp`.

    Args:
        hbar: where it goes, `[N, *]`.
        h: charge above rest; overwritten.
        spike: spikes of the step; overwritten.
        sbar, vbar: gradients that arrive at the spikes and at the membrane after the step; None for none of the latter.
        neuron: parameters.
        surrogate: spike function.
    """
    soft = neuron.v_reset is None
    if vbar is None or neuron.detach_reset:
        hbar.copy_(sbar)
    elif soft:
        torch.sub(sbar, vbar, alpha=neuron.v_threshold, out=hbar)
    else:
        torch.sub(sbar, torch.mul(vbar, h, out=hbar), out=hbar)
    surrogate.multiply_by_derivative_(hbar, h.sub_(neuron.v_threshold - neuron.rest))
    if vbar is not None:
        # (1 - spike) vbar is subtracted as (spike - 1) vbar.
        hbar.add_(vbar) if soft else hbar.sub_(spike.sub_(1.0).mul_(vbar))
