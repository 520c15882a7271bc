"""Every step, its inverse and its vector-Jacobian product, as pure functions of tensors: each equation once.

Sections "Standard LIF", "Carrier" and "Coupled LIF" of nodes/README.md, in this order. The coupled dynamics are our
reconstruction of the data flow summarised in Lei et al., arXiv 2308.08649.

**Precision.** A membrane is never rounded to half precision: it and what is computed with it have the type
`state_dtype` of the input's, and only what leaves a step (spikes, outputs, gradients of inputs) has the input's type.

A function that takes `out` serves autograd without it, and allocates its results. With it, it writes results to the
given buffers and overwrites the arguments that it names: one sequence then reuses buffers that stay in a CPU's cache.
No transform of `torch.func` passes through that.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import hardtanh

from revsnn_nodes.parameters import CarrierParameters, CoupledParameters, LIFParameters, require
from revsnn_nodes.surrogate import SurrogateFunction, heaviside

Parts = Sequence[Tensor]
"""A step `[N, *]` of the coupled dynamics as n parts, one per group; what these functions take and return."""

Spike = Callable[[Tensor], Tensor]
"""Spike function of charge minus threshold."""


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of membranes, charges and anchors for inputs of a type: float32 for float16 and bfloat16, else that.

    Rounded to the input's type at every step, a slow membrane (tau = 16 in bfloat16) would stop where what a step adds
    is below half a unit in its last place.
    """
    return torch.promote_types(dtype, torch.float32)


def fire(z: Tensor) -> Tensor:
    """Spikes: 1 where z >= 0, else 0, in the dtype and the storage of z; to the bit those of `heaviside`."""
    return z.ge_(0)


def neuronal_charge(
    x: Tensor, v: Tensor | float, neuron: LIFParameters, out: Tensor | None = None, rate: Tensor | None = None
) -> Tensor:
    """Charge h = M from input x (or drive D) and membrane v; all `[N, *]`. `out` may be the storage of x.

    `rate` is a learned 1/tau, of one element, in place of the neuron's tau.
    """
    if neuron.tau == math.inf:  # not math.isinf, which torch.compile knows no symbols for
        return torch.add(x, v, out=out)
    above = v - neuron.rest if neuron.rest else v
    if rate is not None:
        return v + (x - above) * rate if neuron.decay_input else v - above * rate + x
    if neuron.decay_input:
        return torch.add(torch.div(torch.sub(x, above, out=out), neuron.tau, out=out), v, out=out)
    return torch.add(x, v - above / neuron.tau, out=out)


def neuronal_reset(h: Tensor, spike: Tensor, neuron: LIFParameters, out: Tensor | None = None) -> Tensor:
    """Membrane after firing, `[N, *]`: to v_reset where the neuron fired, or down by the threshold (soft)."""
    if neuron.detach_reset:
        spike = spike.detach()
    if neuron.v_reset is None:
        return torch.sub(h, torch.mul(spike, neuron.v_threshold, out=out), out=out)
    v = torch.mul(_silent(spike, out), h, out=out)
    return torch.add(v, spike * neuron.v_reset, out=out) if neuron.v_reset else v


def _silent(spike: Tensor, out: Tensor | None) -> Tensor:
    """1 - s: 1 where the neuron did not fire. `out` may be the storage of the spikes."""
    return 1.0 - spike if out is None else torch.eq(spike, 0.0, out=out)


def lif_step(
    x: Tensor, v: Tensor | float, neuron: LIFParameters, fire: Spike, out: tuple[Tensor, Tensor] | None = None,
    rate: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """One step of the LIF: charge, fire, reset.

    Args:
        x: input current, `[N, *]`, in `state_dtype`; with `out` overwritten by the charge.
        v: membrane before the step, `[N, *]`, or the float it rests at.
        fire: spike function of charge minus threshold; with `out` one that works in place.
        out: where the spikes and the membrane after the step go; the latter may be the storage of v.
        rate: a learned 1/tau, without `out`; see `neuronal_charge`.
    Returns:
        Spikes and the membrane after the step, both `[N, *]`.
    """
    to_spike, to_v = out or (None, None)
    h = neuronal_charge(x, v, neuron, x if out else None, rate)
    spike = fire(torch.sub(h, neuron.v_threshold, out=to_spike))
    return spike, neuronal_reset(h, spike, neuron, to_v)


def lif_sequence(
    x_seq: Tensor, v: Tensor | None, neuron: LIFParameters, fire: Spike, rate: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """T steps of the LIF under autograd, 1/tau perhaps learned.

    Spikes `[T, N, *]` in the type of x_seq, and the last membrane `[N, *]` in that of v, by default its `state_dtype`.
    """
    spikes = []
    # unbind, not x_seq[t]: the backward of indexing fills one [T, N, *] with zeros at every step.
    steps = x_seq.unbind(0)
    membrane = initial_membrane(steps[0], v, neuron)
    for x in steps:
        spike, membrane = lif_step(x.to(membrane.dtype), membrane, neuron, fire, rate=rate)
        spikes.append(spike.to(x.dtype))
    return torch.stack(spikes), membrane


def initial_membrane(x: Tensor, v: Tensor | None, neuron: LIFParameters) -> Tensor:
    """The membrane before the first step, `[N, *]`, in `state_dtype`: the carried one, or rest."""
    dtype = state_dtype(x.dtype)
    return torch.full_like(x, neuron.rest, dtype=dtype, requires_grad=False) if v is None else v


def recharge(
    drive: Tensor, v: Tensor | None, spike: Tensor, neuron: LIFParameters, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One LIF step whose spikes are known: none can flip. Charge and membrane count from rest, `[N, *]`.

    Args:
        drive: `input_gain` times the input; overwritten by the charge.
        v: membrane before the step; None for rest.
        out: where the membrane after the step goes; may be the storage of v.
    Returns:
        The charge, in the storage of `drive`, and the membrane after the step.
    """
    h = drive if v is None else drive.add_(v, alpha=neuron.keep)
    if neuron.v_reset is None:
        return h, torch.sub(h, spike, alpha=neuron.v_threshold, out=out)
    return h, _silent(spike, out).mul_(h)


def lif_step_vjp(
    h: Tensor, spike: Tensor, sbar: Tensor, vbar: Tensor | None, neuron: LIFParameters, surrogate: SurrogateFunction,
    out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Vector-Jacobian product of one LIF step, outside of autograd.

    Args:
        h: charge above rest, `[N, *]`; with `out` overwritten.
        spike: spikes of the step; with `out` overwritten.
        sbar: gradient that arrives at the spikes.
        vbar: gradient that arrives at the membrane after the step; None for none.
        out: where the result goes.
    Returns:
        Gradient at the charge, in storage of its own.
    """
    in_h, in_spike = (None, None) if out is None else (h, spike)
    z = torch.sub(h, neuron.v_threshold - neuron.rest, out=out)
    slope = surrogate.derivative(z) if out is None else surrogate.derivative_(z)
    del z
    soft = neuron.v_reset is None
    if vbar is None:
        return torch.mul(sbar, slope, out=out)
    if not neuron.detach_reset:
        if soft:
            sbar = torch.sub(sbar, vbar, alpha=neuron.v_threshold, out=in_h)
        else:
            sbar = torch.sub(sbar, torch.mul(vbar, h, out=in_h), out=in_h)
    hbar = torch.mul(sbar, slope, out=out)
    return hbar.add_(vbar if soft else torch.mul(_silent(spike, in_spike), vbar, out=in_spike))


def decode_output(y: Tensor, out: tuple[Tensor, Tensor] | tuple[None, None] = (None, None)) -> tuple[Tensor, Tensor]:
    """The spikes of a carrier output, and what it carries beside them: epsilon times the clamped input."""
    spike = torch.round(y, out=out[0])  # exact: what is carried stays below 1/2
    return spike, torch.sub(y, spike, out=out[1])


def decode_spikes(y: Tensor) -> Tensor:
    """The spikes of a carrier output (or of plain spikes), any shape, in the dtype of y; exact."""
    # A comparison would give bools, whose conversion costs ten times as much on a CPU.
    return y.detach().round()


def decode_input(y: Tensor, spike: Tensor, epsilon: float) -> Tensor:
    """The clamped input that a carrier output holds, of its shape.

    Exactness: to half an ulp(1) / epsilon where the neuron fired; to the bit where it did not, unless epsilon x is
        subnormal (in float16 below 6e-5).
    """
    return (y - spike) * (1.0 / epsilon)


def clamp_input(x: Tensor, neuron: CarrierParameters) -> Tensor:
    """The input that a carrier neuron works with: clamped to [-c, c]; no gradient passes at the borders or beyond."""
    most = torch.finfo(x.dtype).max
    require(
        neuron.clamp <= most, "x", f"be of a type that holds the carrier's clamp, {neuron.clamp:g}", x.dtype,
        f"Its largest number is {most:g}; the clamp grows with v_threshold and falls with epsilon.",
        "Scale input and v_threshold down, or take bfloat16.",
    )  # fmt: skip
    # hardtanh, not clamp: its derivative is 0 at both borders, where what is carried does not tell them from beyond.
    return hardtanh(x, -neuron.clamp, neuron.clamp)


def clamp_input_vjp(xbar: Tensor, carried: Tensor, neuron: CarrierParameters, out: Tensor | None = None) -> Tensor:
    """Gradient at the input before the clamp, from that behind it and what is carried. `out` may be the former."""
    border = neuron.clamp * neuron.share
    if out is None:
        return torch.ops.aten.hardtanh_backward(xbar, carried, -border, border)  # type: ignore[no-any-return]
    torch.ops.aten.hardtanh_backward.grad_input(xbar, carried, -border, border, grad_input=out)
    return out


def arriving(grad: Tensor | None, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A gradient that arrived, or zeros where none did, of the type of `like` or of another."""
    return torch.zeros_like(like, dtype=dtype) if grad is None else grad


@cache
def sides_of(threshold: float, dtype: torch.dtype) -> tuple[float, float]:
    """The two numbers of a type next to a threshold: the least that fires, and the greatest that does not."""
    near = torch.tensor(threshold, dtype=torch.float64).to(dtype)
    up, down = _neighbour(near, True), _neighbour(near, False)
    return (near.item(), down) if near.item() >= threshold else (up, near.item())


def _neighbour(number: Tensor, up: bool) -> float:
    """The next number of the type of a scalar, up or down; torch's `nextafter` knows no float16."""
    bits = number.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[number.itemsize])
    if number.item() == 0.0:
        smallest = torch.ones_like(bits).view(number.dtype).item()
        return smallest if up else -smallest
    return (bits + (1 if (number.item() > 0) == up else -1)).view(number.dtype).item()


def rounded_charge(h: Tensor, neuron: LIFParameters, dtype: torch.dtype) -> Tensor:
    """A charge in another type, rounded so that it stays on its side of the threshold: no spike flips."""
    if h.dtype == dtype:
        return h
    least, greatest = sides_of(neuron.v_threshold, dtype)
    return torch.where(h - neuron.v_threshold >= 0, h.to(dtype).clamp(min=least), h.to(dtype).clamp(max=greatest))


def split(x: Tensor, neuron: CoupledParameters) -> tuple[Tensor, ...]:
    """The n parts of a step `[N, *]` along `group_dim`, as views.

    Raises:
        ValueError: `group_dim` is the batch or does not exist, or its size is not a multiple of `groups`.
    """
    dims = x.dim()
    require(
        -dims < neuron.group_dim < dims, "group_dim",
        f"name a feature dimension of a step [N, *] with {dims} dimensions", neuron.group_dim,
        "Dimension 0 is the batch, and samples must stay independent.",
        "Pass 1 for channels or -1 for the last dimension.",
    )  # fmt: skip
    size = x.shape[neuron.group_dim]
    if size % neuron.groups:  # the divisors of a large size take longer to list than the step takes to compute
        divisors = [n for n in range(2, size + 1) if size % n == 0][:8]
        require(
            False, "groups", f"divide the size {size} of dimension {neuron.group_dim}", neuron.groups,
            "Each part's output carries an equal part of the input.",
            f"Pass one of {divisors or 'another group_dim'}.",
        )  # fmt: skip
    return x.chunk(neuron.groups, neuron.group_dim)


def join(parts: Parts, neuron: CoupledParameters) -> Tensor:
    """The step `[N, *]` of its n parts."""
    return torch.cat(tuple(parts), neuron.group_dim)


def output_gate(y: Tensor) -> Tensor:
    """How far output y opens the reset: g(y) = clamp(y, 0, 1), with derivative 0 < y < 1 (both strict)."""
    # hardtanh, not clamp: its derivative is 0 at both borders, where outputs of binary inputs lie.
    return hardtanh(y, 0.0, 1.0)


def coupled_step(
    x: Parts, v: Parts, neuron: CoupledParameters, fire: Spike
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """One step forward, for the groups in order: charge, fire, output, reset.

    An output drives the next group and opens the reset as it leaves the step, with the rounding of its type.

    Args:
        x: input.
        v: membrane before the step, in `state_dtype`.
    Returns:
        Output Y in the type of x, membrane after the step and charge M in that of v.
    """
    outputs, membranes, charges = [], [], []
    given = [part.to(v[0].dtype) for part in x]
    drive = given[0]
    for i in range(neuron.groups):
        charge = neuronal_charge(drive, v[i], neuron)
        spike = fire(charge - neuron.v_threshold)
        y = (spike + neuron.beta * given[(i + 1) % neuron.groups]).to(x[0].dtype)
        drive = y.to(charge.dtype)
        gate = spike if neuron.reset_gate == "spike" else output_gate(drive)
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
        y: output of the step, in `state_dtype`, here and below.
        v_next: membrane after the step.
        neuron: parameters, with `reset_gate="output"`.
    Returns:
        The first input part X_1, the membrane before the step, and the charge M.
    Exactness: an error in V grows by 1 / ((1 - alpha g)(1 - 1/tau)) per step; see `coupled.predicted_gradient_error`.
    """
    charges = [_undo_reset(after, out, neuron) for after, out in zip(v_next, y, strict=True)]
    x_first = _carried_input(y[-1], charges[-1], neuron)
    drives = [x_first, *y[:-1]]
    v = [_undo_charge(charge, drive, neuron) for charge, drive in zip(charges, drives, strict=True)]
    return x_first, v, charges


def recover_inputs(y: Parts, charges: Parts, neuron: CoupledParameters) -> list[Tensor]:
    """The input that output y carries, given the charges: X_(i+1) = (Y_i - S_i) / beta."""
    carried = [_carried_input(y[i], charges[i], neuron) for i in range(neuron.groups)]
    return [carried[-1], *carried[:-1]]


def regenerate_step(y: Parts, v: Parts, neuron: CoupledParameters) -> tuple[list[Tensor], list[Tensor]]:
    """One step forward in time from its output y and the membrane before it: the membrane after it, and the charge M.

    Y gives every drive, and X_1 once M_n is known.

    Exactness: the charges of groups 2..n are those of the forward to the bit, so X_1 is decoded with the right spike;
        only its rounding enters M_1, and the leak contracts it.
    """
    charges = [neuronal_charge(y[i - 1], v[i], neuron) for i in range(1, neuron.groups)]
    x_first = _carried_input(y[-1], charges[-1], neuron)
    charges.insert(0, neuronal_charge(x_first, v[0], neuron))
    membranes = []
    for charge, out in zip(charges, y, strict=True):
        gate = heaviside(charge - neuron.v_threshold) if neuron.reset_gate == "spike" else output_gate(out)
        membranes.append(_reset(charge, gate, neuron))
    return membranes, charges


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
    y: Parts, charges: Parts, ybar: Parts, vbar_next: Parts, neuron: CoupledParameters,
    phi: Callable[[Tensor], Tensor],
) -> tuple[list[Tensor], list[Tensor]]:  # fmt: skip
    """Vector-Jacobian product of one step, for the groups from last to first; nothing of the forward is run again.

    Args:
        y, charges: output of the step, and its charges M.
        ybar, vbar_next: gradients that arrive at the output, and at the membrane after the step.
        phi: surrogate derivative of charge minus threshold.
    Returns:
        Gradients of the input and of the membrane before the step.
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
    y: Tensor, charge: Tensor, ybar: Tensor, vbar_next: Tensor, neuron: CoupledParameters,
    phi: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradient at the output with the reset's share added, and gradient at the charge."""
    by_spike = neuron.reset_gate == "spike"
    z = charge - neuron.v_threshold
    soft, sbar = neuron.v_reset is None, ybar
    if not neuron.detach_reset:
        above = charge - neuron.v_reset if neuron.v_reset else charge
        into_gate = (neuron.alpha * neuron.v_threshold) * vbar_next if soft else neuron.alpha * vbar_next * above
        if by_spike:
            sbar = ybar - into_gate
        else:
            ybar = sbar = ybar - into_gate * ((y > 0) & (y < 1))
    gate = heaviside(z) if by_spike else output_gate(y)
    kept = vbar_next if soft else vbar_next * (1.0 - neuron.alpha * gate)
    return ybar, kept + sbar * phi(z)
