"""NormCarrierLIF: batch norm and LIF in one layer, whose output carries the normalised input.

Equations: section "Carrier with its norm" of nodes/README.md. This node is our own. Contrast: `CarrierLIF` after a
batch norm leaves the norm to keep its input; here the one output stands for both, and neither is kept.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.profiler import record_function

from revsnn_nodes.carrier import CarrierParameters
from revsnn_nodes.in_place import lif_step_vjp_into, recharge_into, step_into
from revsnn_nodes.stored_norm_carrier import NormCarrierNode, per_channel


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
        beyond, excess = _cut(y_seq, neuron.clamp)
        gamma, shift = per_channel(weight, y_seq), per_channel(bias, y_seq)
        before: Tensor | float = neuron.rest if v is None else v
        x, spike, membrane = (torch.empty_like(y_seq[0]) for _ in range(3))
        for t, out in enumerate(y_seq.unbind(0)):
            _input_into(x, out, gamma, shift, None if residual is None else residual[t])
            step_into(spike, membrane, x, before, neuron)
            torch.add(spike, out, alpha=neuron.epsilon, out=out)
            before = membrane
        ctx.neuron, ctx.surrogate = neuron, layer.surrogate_function
        ctx.save_for_backward(y_seq, weight, bias, residual, v, inverse_std, beyond, excess)
        ctx.set_materialize_grads(False)
        return y_seq, membrane

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, ybar_seq: Tensor | None, vbar: Tensor | None) -> tuple[Tensor | None, ...]:
        y_seq, weight, bias, residual, v, inverse_std, beyond, excess = ctx.saved_tensors
        neuron, needs = ctx.neuron, ctx.needs_input_grad
        # The charges wait in the buffer of the input gradient until the gradient overwrites them, last step first.
        zbar_seq = torch.empty_like(y_seq)
        with record_function("recompute"):
            _regenerate_charges(y_seq, v, weight, bias, residual, zbar_seq, neuron)
        residual_bar = torch.empty_like(y_seq) if residual is not None and needs[3] else None
        sums = _ChannelSums(y_seq)
        gain = neuron.input_gain if weight is None else per_channel(weight * neuron.input_gain, y_seq)
        spike, carried, hbar, other = (torch.empty_like(y_seq[0]) for _ in range(4))
        for t in range(y_seq.shape[0] - 1, -1, -1):
            _decode_into(spike, carried, y_seq[t])
            ybar = torch.zeros_like(hbar) if ybar_seq is None else ybar_seq[t]
            lif_step_vjp_into(hbar, zbar_seq[t], spike, ybar, vbar, neuron, ctx.surrogate)
            if residual_bar is not None:
                torch.mul(hbar, neuron.input_gain, out=residual_bar[t])
            if needs[1]:
                sums.add("weight", torch.mul(hbar, carried, out=spike))
            if needs[2]:
                sums.add("bias", hbar)
            nbar = torch.mul(hbar, gain, out=zbar_seq[t]).add_(ybar, alpha=neuron.epsilon)
            if beyond is not None:
                _stop_at_the_clamp(nbar, carried, neuron)
            sums.add("gradient", nbar)
            sums.add("slope", carried.mul_(nbar))
            vbar = hbar.mul_(neuron.keep)
            hbar, other = other, hbar
        del hbar, other
        _through_the_norm(zbar_seq, y_seq, sums, inverse_std, (beyond, excess), neuron)
        # Sums of charge gradients and of what is carried: the input is that times gain, the value that over epsilon.
        to_weight, to_bias = neuron.input_gain / neuron.epsilon, neuron.input_gain
        return (
            zbar_seq if needs[0] else None,
            (sums.total("weight") * to_weight).to(weight.dtype) if needs[1] else None,
            (sums.total("bias") * to_bias).to(bias.dtype) if needs[2] else None,
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
        self.totals[name] = self.totals[name].add_(part) if name in self.totals else part

    def total(self, name: str) -> Tensor:
        """The sum so far, `[C]`."""
        return self.totals[name]

    def mean(self, name: str) -> Tensor:
        """The sum so far over the number of values per channel, `[C]`."""
        return self.totals[name] / self.count


def _cut(n_seq: Tensor, clamp: float) -> tuple[Tensor | None, Tensor | None]:
    """Clamps normalised inputs in place.

    Returns:
        Where they lay at the clamp or beyond, `[k, dims]`, and by how much, `[k]`; None for nowhere.
    """
    low, high = n_seq.aminmax()
    if bool((low > -clamp) & (high < clamp)):
        return None, None
    beyond = ((n_seq >= clamp) | (n_seq <= -clamp)).nonzero()
    cut = n_seq[tuple(beyond.T)]
    n_seq.clamp_(-clamp, clamp)
    return beyond, cut - cut.clamp(-clamp, clamp)


def _stop_at_the_clamp(nbar: Tensor, carried: Tensor, neuron: CarrierParameters) -> None:
    """Sets a gradient to zero, in place, where what is carried lies at the clamp."""
    border = neuron.clamp * neuron.epsilon
    torch.ops.aten.hardtanh_backward.grad_input(nbar, carried, -border, border, grad_input=nbar)


def _input_into(x: Tensor, n: Tensor, gamma: Tensor | None, shift: Tensor | None, residual: Tensor | None) -> None:
    """Writes `neuron_input` to x, to the bit."""
    x.copy_(n) if gamma is None else torch.mul(n, gamma, out=x)
    for each in (shift, residual):
        if each is not None:
            x.add_(each)


def _decode_into(spike: Tensor, carried: Tensor, y: Tensor) -> None:
    """Writes the spikes of an output, and what it carries beside them: epsilon times the normalised input."""
    with record_function("recompute"):
        # What is carried stays below 1/2.
        torch.round(y, out=spike)
        torch.sub(y, spike, out=carried)


def _regenerate_charges(
    y_seq: Tensor,
    v: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    charge_seq: Tensor,
    neuron: CarrierParameters,
) -> None:
    """Runs the neuron forward on decoded inputs and decoded spikes, and writes its charges above rest."""
    gain = neuron.input_gain / neuron.epsilon
    scale = gain if weight is None else per_channel(weight * gain, y_seq)
    shift = None if bias is None else per_channel(bias * neuron.input_gain, y_seq)
    before = None if v is None else v - neuron.rest
    spike, membrane = torch.empty_like(y_seq[0]), torch.empty_like(y_seq[0])
    for t, (y, out) in enumerate(zip(y_seq.unbind(0), charge_seq.unbind(0), strict=True)):
        _decode_into(spike, out, y)
        out.mul_(scale)
        if shift is not None:
            out.add_(shift)
        if residual is not None:
            out.add_(residual[t], alpha=neuron.input_gain)
        recharge_into(membrane, out, before, spike, neuron)
        before = membrane


def _through_the_norm(
    nbar_seq: Tensor,
    y_seq: Tensor,
    sums: _ChannelSums,
    inverse_std: Tensor,
    cut: tuple[Tensor | None, Tensor | None],
    neuron: CarrierParameters,
) -> None:
    """Turns the gradient at the normalised input into that at z, in place."""
    sigma = inverse_std.to(sums.dtype)
    # One factor 1 / epsilon for the carried value inside the sum, one for that in the product.
    slope = sums.mean("slope") * sigma / neuron.epsilon
    scale, mean, of_carried = (
        per_channel(each, y_seq) for each in (sigma, sums.mean("gradient") * sigma, slope / neuron.epsilon)
    )
    spike, carried = torch.empty_like(y_seq[0]), torch.empty_like(y_seq[0])
    for y, out in zip(y_seq.unbind(0), nbar_seq.unbind(0), strict=True):
        _decode_into(spike, carried, y)
        out.mul_(scale).sub_(carried.mul_(of_carried).add_(mean))
    beyond, excess = cut
    if beyond is not None and excess is not None:
        shift = -excess * slope.to(excess.dtype)[beyond[:, 2]]
        nbar_seq.index_put_(tuple(beyond.T), shift, accumulate=True)


class NormCarrierLIF(NormCarrierNode):
    """Batch norm followed by the LIF, keeping neither's input: the output is spike + epsilon n, n normalised.

    Takes the place of a batch norm and its node: `[T, N, C, *]` in and out, statistics over T, batch and space, running
    statistics updated once per forward. A layer convolution, norm, node then keeps one tensor, the input of the next
    convolution. In `eval()` it is batch norm with running statistics and a plain LIF, spikes alone.

    Args: see `NormCarrierNode`.
    Keeps for backward: nothing but its output, as an alias, and C values of 1/sigma; b N bytes more where it started
        from a carried state; its residual where one is given, as an alias; and 8 (dims) + b bytes for each input that
        the clamp cut, at 7.75 standard deviations by default. Transient in backward: O(N) beside the input gradient.
    Exactness: relative gradient error, flat in T: below 1e-5 in float32. Fused: output and gradients to rounding; batch
        statistics are summed in float64, and do not depend on the number of threads.
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
