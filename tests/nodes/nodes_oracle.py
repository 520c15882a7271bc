"""The nodes once more, in float64, as plain loops over time: what every node's outputs and gradients are held against.

Written from the equations of nodes/README.md and from nothing of the package: its own spike function, its own surrogate
derivatives, its own borders of the clamps. Given recorded spikes, a loop does not threshold: so a run in float32 is
compared with the exact gradient of the very same spike train.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

CARRIER_FRACTION = 31 / 64

PHI: dict[str, tuple[float, Callable[[Tensor, float], Tensor]]] = {
    "Sigmoid": (4.0, lambda z, a: a / (2.0 + torch.exp(a * z) + torch.exp(-a * z))),
    "ATan": (2.0, lambda z, a: a / (2.0 * (1.0 + (math.pi * a * z / 2.0) ** 2))),
    "PiecewiseQuadratic": (1.0, lambda z, a: torch.where(z.abs() <= 1 / a, a - a * a * z.abs(), 0.0)),
    "PiecewiseExp": (1.0, lambda z, a: a / 2.0 * torch.exp(-a * z.abs())),
    "SoftSign": (2.0, lambda z, a: a / (2.0 * (1.0 + a * z.abs()) ** 2)),
    "SuperSpike": (1.0, lambda z, a: a / (1.0 + z.abs()) ** 2),
    "Erf": (2.0, lambda z, a: a / math.sqrt(math.pi) * torch.exp(-((a * z) ** 2))),
    "Rect": (1.0, lambda z, a: a * (z.abs() < 1 / (2 * a)).to(z)),
}
"""Default sharpness and derivative of each surrogate, by the name it has in SpikingJelly too."""


class _Threshold(torch.autograd.Function):
    """1 where z >= 0 (or the spikes given instead) forward, phi(z) backward."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, spikes: Tensor | None, name: str) -> Tensor:
        ctx.save_for_backward(z)
        ctx.name = name
        return torch.where(z >= 0, 1.0, 0.0).to(z) if spikes is None else spikes.to(z)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (z,) = ctx.saved_tensors
        sharpness, phi = PHI[ctx.name]
        return grad * phi(z, sharpness), None, None


def _charge(drive: Tensor, v: Tensor, tau: float | Tensor, rest: float, decay_input: bool) -> Tensor:
    if decay_input:
        return v + (drive - (v - rest)) / tau
    return v - (v - rest) / tau + drive


def lif(
    x_seq: Tensor,
    v: Tensor | None = None,
    *,
    tau: float | Tensor = 2.0,
    decay_input: bool = True,
    v_threshold: float = 1.0,
    v_reset: float | None = 0.0,
    detach_reset: bool = False,
    phi: str = "Sigmoid",
    spike_seq: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Spikes `[T, N, *]` and the last membrane of the standard LIF; infinite tau: no leak."""
    rest = 0.0 if v_reset is None else v_reset
    v = torch.full_like(x_seq[0], rest) if v is None else v
    spikes = []
    for t in range(x_seq.shape[0]):
        h = _charge(x_seq[t], v, tau, rest, decay_input)
        s = _Threshold.apply(h - v_threshold, None if spike_seq is None else spike_seq[t], phi)
        spikes.append(s)
        s = s.detach() if detach_reset else s
        v = h - s * v_threshold if v_reset is None else (1 - s) * h + s * v_reset
    return torch.stack(spikes), v


def carrier(x_seq: Tensor, v: Tensor | None = None, *, epsilon: float = 1 / 16, **neuron: Any) -> tuple[Tensor, Tensor]:
    """Spikes plus epsilon times the clamped input, and the last membrane; no gradient where the clamp bites."""
    span = abs(neuron.get("v_threshold", 1.0) - (neuron.get("v_reset", 0.0) or 0.0))
    epsilon = epsilon / 2.0 ** math.ceil(math.log2(span)) if span else epsilon
    border = CARRIER_FRACTION / epsilon
    clamped = torch.where(x_seq.abs() < border, x_seq, border * torch.sign(x_seq.detach()))
    spikes, v = lif(clamped, v, **neuron)
    return spikes + epsilon * clamped, v


def coupled(
    x_seq: Tensor,
    v: Tensor | None = None,
    *,
    tau: float = 2.0,
    decay_input: bool = True,
    v_threshold: float = 1.0,
    v_reset: float | None = 0.0,
    detach_reset: bool = False,
    groups: int = 2,
    group_dim: int = 1,
    alpha: float = 0.5,
    beta: float = 1.0,
    reset_gate: str = "output",
    phi: str = "Sigmoid",
    spike_seq: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Real-valued output `[T, N, *]` and the last membrane of the coupled dynamics."""
    rest = 0.0 if v_reset is None else v_reset
    v = torch.full_like(x_seq[0], rest) if v is None else v
    size = x_seq[0].shape[group_dim] // groups
    dim = group_dim % x_seq[0].dim()

    def group(step: Tensor, i: int) -> Tensor:
        return step.narrow(dim, (i % groups) * size, size)

    membranes = [group(v, i) for i in range(groups)]
    outputs = []
    for t in range(x_seq.shape[0]):
        y: list[Tensor] = []
        for i in range(groups):
            drive = group(x_seq[t], 0) if i == 0 else y[i - 1]
            m = _charge(drive, membranes[i], tau, rest, decay_input)
            s = _Threshold.apply(m - v_threshold, None if spike_seq is None else group(spike_seq[t], i), phi)
            y.append(s + beta * group(x_seq[t], i + 1))
            gate = s if reset_gate == "spike" else _unit_clamp(y[i])
            gate = gate.detach() if detach_reset else gate
            membranes[i] = m - alpha * gate * (v_threshold if v_reset is None else m - v_reset)
        outputs.append(torch.cat(y, dim))
    return torch.stack(outputs), torch.cat(membranes, dim)


def _unit_clamp(y: Tensor) -> Tensor:
    return torch.where((y > 0) & (y < 1), y, torch.where(y >= 1, 1.0, 0.0).to(y))


def spikes_in_coupled_output(y_seq: Tensor, x_seq: Tensor, groups: int, group_dim: int, beta: float) -> Tensor:
    """The spikes S_i = Y_i - beta X_(i+1) of a recorded forward: exact, whatever the precision of the recording."""
    dim = group_dim if group_dim < 0 else group_dim + 1  # of a sequence: time comes first
    x_parts = x_seq.double().chunk(groups, dim)
    partner = torch.cat([*x_parts[1:], x_parts[0]], dim)
    return torch.where(y_seq.double() - beta * partner > 0.5, 1.0, 0.0).double()
