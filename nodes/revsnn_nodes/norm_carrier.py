"""NormCarrierLIF: batch norm and LIF in one layer, whose output carries the normalised input.

Equations: section "Carrier with its norm" of nodes/README.md. This node is our own. Contrast: `CarrierLIF` after a
batch norm leaves the norm to keep its input; here the one output stands for both, and neither is kept.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import hardtanh
from torch.profiler import record_function

from revsnn_nodes.carrier import CarrierParameters, decode_input, decode_spikes, lif_step_vjp
from revsnn_nodes.lif import lif_step, neuronal_charge, neuronal_reset
from revsnn_nodes.stored_norm_carrier import NormCarrierNode, neuron_input, per_channel
from revsnn_nodes.surrogate import heaviside


class _DecodeNormAndMultiply(torch.autograd.Function):
    """Keeps the output (an alias), gamma, bias, 1/sigma, and what was given beside z: residual and carried state.

    Where the clamp bit, it keeps by how much and where: the norm's own gradient needs the value before the clamp.
    """

    @staticmethod
    def forward(
        ctx: Any,
        z_seq: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        v: Tensor | None,
        layer: NormCarrierNode,
    ) -> tuple[Tensor, Tensor]:
        neuron: CarrierParameters = layer.neuron
        mean, var, momentum = layer.update_of_statistics()
        flat, _, inverse_std = torch.native_batch_norm(
            z_seq.flatten(0, 1), None, None, mean, var, True, momentum, layer.eps
        )
        # The normalised input lies where the output will: each step is read, then overwritten.
        y_seq = flat.view_as(z_seq)
        beyond, excess = _cut_off(y_seq, neuron.clamp)
        gamma, shift = per_channel(weight, y_seq), per_channel(bias, y_seq)
        membrane: Tensor | float = neuron.rest if v is None else v
        residuals = [None] * len(y_seq) if residual is None else residual.unbind(0)
        for out, r in zip(y_seq.unbind(0), residuals, strict=True):
            n = hardtanh(out, -neuron.clamp, neuron.clamp)
            spike, membrane = lif_step(neuron_input(n, gamma, shift, r), membrane, neuron, heaviside)
            torch.add(spike, n, alpha=neuron.epsilon, out=out)
        assert isinstance(membrane, Tensor)
        ctx.neuron, ctx.surrogate = neuron, layer.surrogate_function
        ctx.save_for_backward(y_seq, weight, bias, residual, v, inverse_std, beyond, excess)
        ctx.set_materialize_grads(False)
        return y_seq, membrane

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, ybar_seq: Tensor | None, vbar: Tensor | None) -> tuple[Tensor | None, ...]:
        y_seq, weight, bias, residual, v, inverse_std, beyond, excess = ctx.saved_tensors
        neuron, needs = ctx.neuron, ctx.needs_input_grad
        gamma = per_channel(weight, y_seq)
        # The charges wait in the buffer of the input gradient until the gradient overwrites them, last step first.
        zbar_seq = torch.empty_like(y_seq)
        with record_function("recompute"):
            _regenerate_charges(y_seq, v, gamma, per_channel(bias, y_seq), residual, zbar_seq, neuron)
        residual_bar = torch.empty_like(y_seq) if residual is not None and needs[3] else None
        sums = _ChannelSums(y_seq)
        vbar = torch.zeros_like(y_seq[0]) if vbar is None else vbar
        for t in range(y_seq.shape[0] - 1, -1, -1):
            spike, n = _decoded(y_seq[t], neuron)
            ybar = torch.zeros_like(y_seq[t]) if ybar_seq is None else ybar_seq[t]
            hbar = lif_step_vjp(zbar_seq[t], spike, ybar, vbar, neuron, ctx.surrogate.derivative)
            vbar = neuron.keep * hbar
            xbar = neuron.input_gain * hbar
            if residual_bar is not None:
                residual_bar[t] = xbar
            if needs[1]:
                sums.add("weight", xbar * n)
            if needs[2]:
                sums.add("bias", xbar)
            nbar = ((xbar if gamma is None else gamma * xbar) + neuron.epsilon * ybar) * (n.abs() < neuron.clamp)
            sums.add("gradient", nbar)
            sums.add("slope", nbar * n)
            zbar_seq[t] = nbar
        _through_the_norm(zbar_seq, y_seq, sums, inverse_std, (beyond, excess), neuron)
        return (
            zbar_seq if needs[0] else None,
            sums.total("weight").to(weight.dtype) if needs[1] else None,
            sums.total("bias").to(bias.dtype) if needs[2] else None,
            residual_bar,
            vbar if needs[4] else None,
            None,
        )


class _ChannelSums:
    """Sums per channel over steps, batch and space, in at least float32."""

    def __init__(self, like: Tensor) -> None:
        self.dims = [dim for dim in range(like.dim() - 1) if dim != 1]
        self.dtype = torch.promote_types(like.dtype, torch.float32)
        self.count = like.numel() // like.shape[2]
        self.totals: dict[str, Tensor] = {}

    def add(self, name: str, step: Tensor) -> None:
        """Adds one step, `[N, C, *]`."""
        part = step.sum(self.dims, dtype=self.dtype)
        self.totals[name] = self.totals[name] + part if name in self.totals else part

    def total(self, name: str) -> Tensor:
        """The sum so far, `[C]`."""
        return self.totals[name]

    def mean(self, name: str) -> Tensor:
        """The sum so far over the number of values per channel, `[C]`."""
        return self.totals[name] / self.count


def _cut_off(n_seq: Tensor, clamp: float) -> tuple[Tensor | None, Tensor | None]:
    """Where normalised inputs lie beyond the clamp, `[k, dims]`, and by how much, `[k]`; None for nowhere."""
    low, high = n_seq.aminmax()
    if bool((low >= -clamp) & (high <= clamp)):
        return None, None
    beyond = ((n_seq > clamp) | (n_seq < -clamp)).nonzero()
    cut = n_seq[tuple(beyond.T)]
    return beyond, cut - cut.clamp(-clamp, clamp)


def _decoded(y: Tensor, neuron: CarrierParameters) -> tuple[Tensor, Tensor]:
    with record_function("recompute"):
        spike = decode_spikes(y)
        return spike, decode_input(y, spike, neuron.epsilon)


def _regenerate_charges(
    y_seq: Tensor,
    v: Tensor | None,
    gamma: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    charge_seq: Tensor,
    neuron: CarrierParameters,
) -> None:
    """Runs the neuron forward on decoded inputs and decoded spikes, and writes its charges: no spike can flip."""
    membrane: Tensor | float = neuron.rest if v is None else v
    for t, (y, out) in enumerate(zip(y_seq.unbind(0), charge_seq.unbind(0), strict=True)):
        spike = decode_spikes(y)
        x = neuron_input(
            decode_input(y, spike, neuron.epsilon), gamma, shift, None if residual is None else residual[t]
        )
        h = neuronal_charge(x, membrane, neuron)
        membrane = neuronal_reset(h, spike, neuron)
        out.copy_(h)


def _through_the_norm(
    nbar_seq: Tensor,
    y_seq: Tensor,
    sums: _ChannelSums,
    inverse_std: Tensor,
    cut_off: tuple[Tensor | None, Tensor | None],
    neuron: CarrierParameters,
) -> None:
    """Turns the gradient at the normalised input into that at z, in place."""
    sigma = inverse_std.to(sums.dtype)
    scale, mean, slope = (
        per_channel(each.to(y_seq.dtype), y_seq)
        for each in (sigma, sums.mean("gradient") * sigma, sums.mean("slope") * sigma)
    )
    for y, out in zip(y_seq.unbind(0), nbar_seq.unbind(0), strict=True):
        _, n = _decoded(y, neuron)
        out.mul_(scale).sub_(mean).sub_(n.mul_(slope))
    beyond, excess = cut_off
    if beyond is not None and excess is not None:
        nbar_seq.index_put_(tuple(beyond.T), -excess * slope.flatten()[beyond[:, 2]], accumulate=True)


class NormCarrierLIF(NormCarrierNode):
    """Batch norm followed by the LIF, keeping neither's input: the output is spike + epsilon n, n normalised.

    Takes the place of a batch norm and its node: `[T, N, C, *]` in and out, statistics over T, batch and space, running
    statistics updated once per forward. A layer convolution, norm, node then keeps one tensor, the input of the next
    convolution. In `eval()` it is batch norm with running statistics and a plain LIF, spikes alone.

    Args: see `NormCarrierNode`.
    Keeps for backward: nothing but its output, as an alias, and C values of 1/sigma; b N bytes more where it started
        from a carried state; its residual where one is given, as an alias; and 8 (dims) + b bytes for each input that
        the clamp cut, at 7.75 standard deviations by default. Transient in backward: O(N) beside the input gradient.
    Exactness: relative gradient error, flat in T: below 1e-5 in float32.
    """

    def multi_step_forward(
        self, x_seq: Tensor, v: Tensor | None, residual: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `NormCarrierNode.multi_step_forward`."""
        if not self.training:
            return self.stored_forward(x_seq, v, residual)
        return _DecodeNormAndMultiply.apply(x_seq, self.weight, self.bias, residual, v, self)  # type: ignore[no-any-return]

    def fused_sequence(self, x_seq: Tensor, v: Tensor | None, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See `SpikingNode.fused_sequence`; in `eval()` the neuron alone is fused."""
        from revsnn_nodes.kernels.functions import fused_lif
        from revsnn_nodes.kernels.norm_function import fused_norm_carrier

        if not self.training:
            return self.stored_forward(x_seq, v, residual, fused_lif)
        return fused_norm_carrier(x_seq, v, residual, self)

    def fused_obstacle(self, x_seq: Tensor) -> str:
        """See `SpikingNode.fused_obstacle`."""
        return "NormCarrierLIF has a fused kernel for the CPU alone" if x_seq.device.type == "cuda" else ""
