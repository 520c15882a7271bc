"""The coupled (reversible) step, its inverse in time and its vector-Jacobian product, as pure functions.

Equations: section "Coupled LIF" of nodes/README.md: our reconstruction of the data flow summarised in Lei et al.,
arXiv 2308.08649. A step's tensors are sequences of n parts, one per group, each a slice of `[N, *]`.

What the carrier nodes read from their output, and the LIF step run again and differentiated from it.

Equations: section "Carrier" of nodes/README.md.

The LIF step and its gradient in buffers that one sequence reuses: on a CPU these stay in its cache.

Same equations as `decoding.py` and `lif.py`, for the layers that no `torch.func` transform passes through.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import hardtanh

from revsnn_nodes.lif import neuronal_charge
from revsnn_nodes.parameters import CoupledParameters, LIFParameters, require
from revsnn_nodes.surrogate import SurrogateFunction, heaviside

Parts = Sequence[Tensor]


def split(x: Tensor, neuron: CoupledParameters) -> tuple[Tensor, ...]:
    """The n parts of a step `[N, *]` along `group_dim`, as views.

    Raises:
        ValueError: `group_dim` is the batch or does not exist, or its size is not a multiple of `groups`.
    """
    dims = x.dim()
    require(
        -dims < neuron.group_dim < dims,
        "group_dim",
        f"name a feature dimension of a step [N, *] with {dims} dimensions",
        neuron.group_dim,
        "Dimension 0 is the batch, and samples must stay independent.",
        "Pass 1 for channels or -1 for the last dimension.",
    )
    size = x.shape[neuron.group_dim]
    if size % neuron.groups:  # the divisors of a large size take longer to list than the step takes to compute
        divisors = [n for n in range(2, size + 1) if size % n == 0][:8]
        require(
            False,
            "groups",
            f"divide the size {size} of dimension {neuron.group_dim}",
            neuron.groups,
            "Each part's output carries an equal part of the input.",
            f"Pass one of {divisors or 'another group_dim'}.",
        )
    return x.chunk(neuron.groups, neuron.group_dim)


def join(parts: Parts, neuron: CoupledParameters) -> Tensor:
    """The step `[N, *]` of its n parts."""
    return torch.cat(tuple(parts), neuron.group_dim)


def output_gate(y: Tensor) -> Tensor:
    """How far output y opens the reset: g(y) = clamp(y, 0, 1), with derivative 0 < y < 1 (both strict)."""
    # hardtanh, not clamp: its derivative is 0 at both borders, where outputs of binary inputs lie.
    return hardtanh(y, 0.0, 1.0)


def coupled_step(
    x: Parts, v: Parts, neuron: CoupledParameters, fire: Callable[[Tensor], Tensor]
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """One step forward, for the groups in order: charge, fire, output, reset.

    Args:
        x: input, n parts.
        v: membrane before the step, n parts.
        neuron: parameters.
        fire: spike function of charge minus threshold.
    Returns:
        Output Y, membrane after the step, and charge M, n parts each.
    """
    outputs: list[Tensor] = []
    membranes: list[Tensor] = []
    charges: list[Tensor] = []
    for i in range(neuron.groups):
        charge = neuronal_charge(x[0] if i == 0 else outputs[i - 1], v[i], neuron)
        spike = fire(charge - neuron.v_threshold)
        y = spike + neuron.beta * x[(i + 1) % neuron.groups]
        gate = spike if neuron.reset_gate == "spike" else output_gate(y)
        if neuron.detach_reset:
            gate = gate.detach()
        outputs.append(y)
        membranes.append(_reset(charge, gate, neuron))
        charges.append(charge)
    return outputs, membranes, charges


def _reset(charge: Tensor, gate: Tensor, neuron: CoupledParameters) -> Tensor:
    if neuron.v_reset is None:
        return charge - (neuron.alpha * neuron.v_threshold) * gate
    above = charge - neuron.v_reset if neuron.v_reset else charge
    return charge - neuron.alpha * gate * above


def invert_membranes(y: Parts, v_next: Parts, neuron: CoupledParameters) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """One step back in time: what the vector-Jacobian product needs of it.

    Args:
        y: output of the step, n parts.
        v_next: membrane after the step, n parts.
        neuron: parameters, with `reset_gate="output"`.
    Returns:
        The first input part X_1, the membrane before the step, and the charge M (n parts each).
    Exactness: an error in V grows by 1 / ((1 - alpha g)(1 - 1/tau)) per step; see `revsnn_nodes.coupled`.
    """
    n = neuron.groups
    charges = [_undo_reset(v_next[i], y[i], neuron) for i in range(n)]
    x_first = _carried_input(y[n - 1], charges[n - 1], neuron)
    drives = [x_first, *y[: n - 1]]
    return x_first, [_undo_charge(charges[i], drives[i], neuron) for i in range(n)], charges


def recover_inputs(y: Parts, charges: Parts, neuron: CoupledParameters) -> list[Tensor]:
    """The input, n parts, that output y carries, given the charges: X_(i+1) = (Y_i - S_i) / beta."""
    carried = [_carried_input(y[i], charges[i], neuron) for i in range(neuron.groups)]
    return [carried[-1], *carried[:-1]]


def regenerate_step(y: Parts, v: Parts, neuron: CoupledParameters) -> tuple[list[Tensor], list[Tensor]]:
    """One step forward in time from the output: Y gives every drive, and X_1 once M_n is known.

    Args:
        y: output of the step, n parts.
        v: membrane before the step, n parts.
        neuron: parameters.
    Returns:
        The membrane after the step and the charge M, n parts each.
    Exactness: the charges of groups 2..n are those of the forward to the bit, so X_1 is decoded with the right spike;
        only its rounding enters M_1, and the leak contracts it.
    """
    charges = [neuronal_charge(y[i - 1], v[i], neuron) for i in range(1, neuron.groups)]
    x_first = _carried_input(y[-1], charges[-1], neuron)
    charges.insert(0, neuronal_charge(x_first, v[0], neuron))
    by_spike = neuron.reset_gate == "spike"
    gates = [
        heaviside(charge - neuron.v_threshold) if by_spike else output_gate(out)
        for charge, out in zip(charges, y, strict=True)
    ]
    return [_reset(charge, gate, neuron) for charge, gate in zip(charges, gates, strict=True)], charges


def _carried_input(y: Tensor, charge: Tensor, neuron: CoupledParameters) -> Tensor:
    return (y - heaviside(charge - neuron.v_threshold)) / neuron.beta


def _undo_reset(v_next: Tensor, y: Tensor, neuron: CoupledParameters) -> Tensor:
    gate = output_gate(y)
    if neuron.v_reset is None:
        return v_next + (neuron.alpha * neuron.v_threshold) * gate
    opened = neuron.alpha * gate
    below = v_next - opened * neuron.v_reset if neuron.v_reset else v_next
    return below / (1.0 - opened)


def _undo_charge(charge: Tensor, drive: Tensor, neuron: CoupledParameters) -> Tensor:
    undriven = charge - neuron.input_gain * drive
    if neuron.rest:
        undriven = undriven - neuron.rest / neuron.tau
    return undriven / neuron.keep


def coupled_step_vjp(
    y: Parts,
    charges: Parts,
    ybar: Parts,
    vbar_next: Parts,
    neuron: CoupledParameters,
    phi: Callable[[Tensor], Tensor],
) -> tuple[list[Tensor], list[Tensor]]:
    """Vector-Jacobian product of one step, for the groups from last to first; nothing of the forward is run again.

    Args:
        y: output of the step, n parts.
        charges: its charges M, n parts.
        ybar: gradient that arrives at the output, n parts.
        vbar_next: gradient that arrives at the membrane after the step, n parts.
        neuron: parameters.
        phi: surrogate derivative of charge minus threshold.
    Returns:
        Gradients of the input and of the membrane before the step, n parts each.
    """
    n = neuron.groups
    xbar: list[Tensor] = [torch.empty(0)] * n
    vbar: list[Tensor] = [torch.empty(0)] * n
    to_output: Tensor | None = None
    for i in range(n - 1, -1, -1):
        ybar_i = ybar[i] if to_output is None else ybar[i] + to_output
        through_output, mbar = _reset_vjp(y[i], charges[i], ybar_i, vbar_next[i], neuron, phi)
        vbar[i] = neuron.keep * mbar
        xbar[(i + 1) % n] = neuron.beta * through_output
        to_output = neuron.input_gain * mbar
    assert to_output is not None
    xbar[0] = xbar[0] + to_output
    return xbar, vbar


def _reset_vjp(
    y: Tensor,
    charge: Tensor,
    ybar: Tensor,
    vbar_next: Tensor,
    neuron: CoupledParameters,
    phi: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Gradient at the output with the reset's share added, and gradient at the charge."""
    by_spike = neuron.reset_gate == "spike"
    z = charge - neuron.v_threshold
    gate = heaviside(z) if by_spike else output_gate(y)
    into_gate: Tensor | None = None
    if not neuron.detach_reset:
        if neuron.v_reset is None:
            into_gate = (neuron.alpha * neuron.v_threshold) * vbar_next
        else:
            above = charge - neuron.v_reset if neuron.v_reset else charge
            into_gate = neuron.alpha * vbar_next * above
    if into_gate is not None and not by_spike:
        ybar = ybar - into_gate * ((y > 0) & (y < 1))
    into_spike = ybar - into_gate if into_gate is not None and by_spike else ybar
    kept = vbar_next if neuron.v_reset is None else vbar_next * (1.0 - neuron.alpha * gate)
    return ybar, kept + into_spike * phi(z)


def initial_membrane(x: Tensor, v: Tensor | None, neuron: CoupledParameters) -> Tensor:
    """The membrane before the first step, `[N, *]`: the carried one, or rest."""
    return torch.full_like(x, neuron.rest, requires_grad=False) if v is None else v


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
