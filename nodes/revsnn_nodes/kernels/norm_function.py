"""`NormCarrierLIF` by its fused operators, under autograd: what is kept, and what becomes of running statistics."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from revsnn_nodes.carrier import CarrierParameters
from revsnn_nodes.decoding import decode_input, decode_spikes
from revsnn_nodes.kernels import operators  # noqa: F401  (defines torch.ops.revsnn)
from revsnn_nodes.kernels.coefficients import coefficients, surrogate_code
from revsnn_nodes.kernels.first_derivative import first_derivative_only

if TYPE_CHECKING:
    from revsnn_nodes.stored_norm_carrier import NormCarrierNode

_ops = torch.ops.revsnn


class FusedNormCarrier(torch.autograd.Function):
    """Keeps the output, residual and given state as they are, 1/sigma per channel, and what the clamp cut off."""

    @staticmethod
    def forward(
        ctx: Any,
        z_seq: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        v: Tensor | None,
        layer: "NormCarrierNode",
    ) -> tuple[Tensor, Tensor]:
        """Output and the last membrane; enters the batch in the layer's running statistics."""
        neuron = layer.neuron
        y_seq, v_last, mean, var, inverse_std, cut = _ops.norm_carrier_forward(
            z_seq,
            v,
            weight,
            bias,
            residual,
            coefficients(neuron),
            layer.eps,
            neuron.decay_input,
            neuron.v_reset is None,
        )
        _enter_statistics(layer, mean, var, z_seq.numel() // z_seq.shape[2])
        beyond, excess = (None, None)
        if cut.item():
            beyond, excess = _cut_off(z_seq, y_seq, mean, inverse_std, neuron)
        ctx.neuron, ctx.surrogate = neuron, layer.surrogate_function
        ctx.save_for_backward(y_seq, weight, bias, residual, v, inverse_std, beyond, excess)
        ctx.set_materialize_grads(False)
        return y_seq, v_last

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, ybar_seq: Tensor | None, vbar: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of the input, gamma, bias, residual and first membrane."""
        y_seq, weight, bias, residual, v, inverse_std, beyond, excess = ctx.saved_tensors
        neuron, needs = ctx.neuron, ctx.needs_input_grad
        kind, height, scale = surrogate_code(ctx.surrogate) or (0, 0.0, 0.0)
        zbar_seq, weight_bar, bias_bar, residual_bar, vbar0 = _ops.norm_carrier_backward(
            y_seq, v, weight, bias, residual, inverse_std, beyond, excess, ybar_seq, vbar,
            coefficients(neuron, height, scale), kind, neuron.v_reset is None, neuron.detach_reset, needs[3], needs[4],
        )  # fmt: skip
        return (
            zbar_seq if needs[0] else None,
            weight_bar if needs[1] else None,
            bias_bar if needs[2] else None,
            residual_bar if needs[3] else None,
            vbar0 if needs[4] else None,
            None,
        )


def fused_norm_carrier(
    z_seq: Tensor, v: Tensor | None, residual: Tensor | None, layer: "NormCarrierNode"
) -> tuple[Tensor, Tensor]:
    """Output `[T, N, C, *]` and the last membrane of a layer in training."""
    result: tuple[Tensor, Tensor] = FusedNormCarrier.apply(z_seq, layer.weight, layer.bias, residual, v, layer)
    return result


def _enter_statistics(layer: "NormCarrierNode", mean: Tensor, var: Tensor, count: int) -> None:
    running_mean, running_var, momentum = layer.update_of_statistics()
    for running, batch in ((running_mean, mean), (running_var, var * (count / (count - 1)))):
        if running is not None:
            running.mul_(1 - momentum).add_(batch.to(running.dtype), alpha=momentum)


def _cut_off(
    z_seq: Tensor, y_seq: Tensor, mean: Tensor, inverse_std: Tensor, neuron: CarrierParameters
) -> tuple[Tensor, Tensor]:
    """Where the clamp bit, `[k, dims]`, and how much it cut off, `[k]`."""
    places, parts = [], []
    for t, (z, y) in enumerate(zip(z_seq, y_seq, strict=True)):
        n = decode_input(y, decode_spikes(y), neuron.epsilon)
        at = (n.abs() >= neuron.clamp).nonzero()
        step = tuple(at.T)
        parts.append((z[step] - mean[at[:, 1]]) * inverse_std[at[:, 1]] - n[step])
        places.append(torch.cat([torch.full_like(at[:, :1], t), at], 1))
    return torch.cat(places), torch.cat(parts)
