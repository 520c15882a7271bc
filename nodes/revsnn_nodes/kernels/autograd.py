"""The fused backward passes are closed forms outside of autograd: a second derivative is refused, never left out.

The fused operators under autograd: forward, backward, and exactly what is kept between them.

`NormCarrierLIF` by its fused operators, under autograd: what is kept, and what becomes of running statistics.
"""

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from revsnn_nodes.equations import decode_input, decode_spikes
from revsnn_nodes.kernels import ops as operators  # noqa: F401  (defines torch.ops.revsnn)
from revsnn_nodes.kernels.layout import Numbers, numbers, surrogate_code
from revsnn_nodes.parameters import CarrierParameters, CoupledParameters, LIFParameters
from revsnn_nodes.surrogate import SurrogateFunction

if TYPE_CHECKING:
    from revsnn_nodes.norm_carrier import NormCarrierNode

Backward = Callable[..., tuple[Tensor | None, ...]]

_REFUSAL = (
    '`backend` must be "torch" for second derivatives; got "fused". The fused kernels give the first derivative alone, '
    'by a closed form outside of autograd. Pass backend="torch" to StandardLIF, or use StoredCarrierLIF, '
    "StoredCoupledLIF or StoredNormCarrierLIF."
)


class _Refuse(torch.autograd.Function):
    """Passes a gradient on, as something that cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, differentiable: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(_REFUSAL)


def first_derivative_only(backward: Backward) -> Backward:
    """Decorates a backward pass as `once_differentiable` does, with the way out in its error.

    Contrast: it also refuses where the arriving gradient is a constant, as in the penalty `grad(y.sum(), x,
    create_graph=True)`. There the result would otherwise be a constant too, and its part of the loss would have no
    gradient without a word.

    Raises:
        RuntimeError: when a gradient of the decorated pass's results is taken.
    """

    @wraps(backward)
    def once(ctx: Any, *arriving: Tensor | None) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            results = backward(ctx, *arriving)
        if not torch.is_grad_enabled():  # no create_graph
            return results
        differentiable = torch.empty(0, requires_grad=True)
        return tuple(None if each is None else _Refuse.apply(each, differentiable) for each in results)

    return once


_ops = torch.ops.revsnn


def _gradient_numbers(neuron: LIFParameters, surrogate: SurrogateFunction) -> tuple[Numbers, int]:
    code = surrogate_code(surrogate)
    assert code is not None, "the selection lets no other surrogate through"
    kind, height, scale = code
    return numbers(neuron, height, scale), kind


def _state_gradient(ctx: Any, gradient: Tensor) -> Tensor | None:
    return gradient if ctx.needs_input_grad[1] else None


class FusedLIF(torch.autograd.Function):
    """Keeps the charges: b N T bytes."""

    @staticmethod
    def forward(
        x_seq: Tensor, v: Tensor | None, neuron: LIFParameters, surrogate: SurrogateFunction, keep: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Spikes, the last membrane, and the charges (empty unless `keep`)."""
        soft = neuron.v_reset is None
        result: tuple[Tensor, Tensor, Tensor] = _ops.lif_forward(
            x_seq, v, numbers(neuron), neuron.decay_input, soft, keep
        )
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        """See the class."""
        _, _, ctx.neuron, ctx.surrogate, _ = inputs
        ctx.mark_non_differentiable(output[2])
        ctx.save_for_backward(output[2])
        ctx.set_materialize_grads(False)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, sbar_seq: Tensor | None, vbar: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        """Gradients of the input and of the first membrane."""
        (charge_seq,) = ctx.saved_tensors
        neuron = ctx.neuron
        p, kind = _gradient_numbers(neuron, ctx.surrogate)
        xbar_seq, vbar = _ops.lif_backward(
            charge_seq, sbar_seq, vbar, p, kind, neuron.v_reset is None, neuron.detach_reset, ctx.needs_input_grad[1]
        )
        return xbar_seq, _state_gradient(ctx, vbar), None, None, None


def fused_lif(
    x_seq: Tensor, v: Tensor | None, neuron: LIFParameters, surrogate: SurrogateFunction
) -> tuple[Tensor, Tensor]:
    """Spikes `[T, N, *]` and the last membrane; charges are kept where a gradient can be asked for."""
    keep = torch.is_grad_enabled() and (x_seq.requires_grad or (v is not None and v.requires_grad))
    spike_seq, v_last, _ = FusedLIF.apply(x_seq, v, neuron, surrogate, keep)
    return spike_seq, v_last


class FusedCarrier(torch.autograd.Function):
    """Keeps the output (an alias), and the state it started from where that was carried."""

    @staticmethod
    def forward(
        x_seq: Tensor, v: Tensor | None, neuron: LIFParameters, surrogate: SurrogateFunction
    ) -> tuple[Tensor, Tensor]:
        """Output and the last membrane."""
        soft = neuron.v_reset is None
        result: tuple[Tensor, Tensor] = _ops.carrier_forward(x_seq, v, numbers(neuron), neuron.decay_input, soft)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """See the class."""
        _, v, ctx.neuron, ctx.surrogate = inputs
        ctx.save_for_backward(output[0], v)
        ctx.set_materialize_grads(False)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, ybar_seq: Tensor | None, vbar: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of the input and of the first membrane."""
        y_seq, v = ctx.saved_tensors
        neuron = ctx.neuron
        p, kind = _gradient_numbers(neuron, ctx.surrogate)
        xbar_seq, vbar = _ops.carrier_backward(
            y_seq, v, ybar_seq, vbar, p, kind, neuron.v_reset is None, neuron.detach_reset, ctx.needs_input_grad[1]
        )
        return xbar_seq, _state_gradient(ctx, vbar), None, None


def _coupled(x_seq: Tensor, v: Tensor | None, neuron: CoupledParameters, every: int) -> tuple[Tensor, Tensor, Tensor]:
    result: tuple[Tensor, Tensor, Tensor] = _ops.coupled_forward(
        x_seq, v, numbers(neuron), neuron.decay_input, neuron.v_reset is None, neuron.reset_gate == "spike",
        neuron.groups, neuron.group_dim, every,
    )  # fmt: skip
    return result


class FusedInverse(torch.autograd.Function):
    """Keeps the output (an alias) and the last membrane: b N bytes."""

    @staticmethod
    def forward(
        x_seq: Tensor, v: Tensor | None, neuron: CoupledParameters, surrogate: SurrogateFunction
    ) -> tuple[Tensor, Tensor]:
        """Output and the last membrane."""
        y_seq, v_last, _ = _coupled(x_seq, v, neuron, x_seq.shape[0])
        return y_seq, v_last

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """See the class."""
        _, _, ctx.neuron, ctx.surrogate = inputs
        ctx.save_for_backward(*output)
        ctx.set_materialize_grads(False)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, ybar_seq: Tensor | None, vbar: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of the input and of the first membrane."""
        y_seq, v_last = ctx.saved_tensors
        neuron = ctx.neuron
        p, kind = _gradient_numbers(neuron, ctx.surrogate)
        xbar_seq, vbar = _ops.inverse_backward(
            y_seq, v_last, ybar_seq, vbar, p, kind, neuron.v_reset is None, neuron.detach_reset,
            neuron.groups, neuron.group_dim, ctx.needs_input_grad[1],
        )  # fmt: skip
        return xbar_seq, _state_gradient(ctx, vbar), None, None


class FusedAnchored(torch.autograd.Function):
    """Keeps the output (an alias), the state it started from if carried, and one membrane per later segment."""

    @staticmethod
    def forward(
        x_seq: Tensor, v: Tensor | None, neuron: CoupledParameters, surrogate: SurrogateFunction, every: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Output, the last membrane, and the anchors `[ceil(T / every) - 1, N, *]`."""
        return _coupled(x_seq, v, neuron, every)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        """See the class."""
        _, v, ctx.neuron, ctx.surrogate, ctx.every = inputs
        y_seq, _, anchors = output
        ctx.mark_non_differentiable(anchors)
        ctx.save_for_backward(y_seq, v, anchors)
        ctx.set_materialize_grads(False)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, ybar_seq: Tensor | None, vbar: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        """Gradients of the input and of the first membrane."""
        y_seq, v, anchors = ctx.saved_tensors
        neuron = ctx.neuron
        p, kind = _gradient_numbers(neuron, ctx.surrogate)
        xbar_seq, vbar = _ops.anchored_backward(
            y_seq, v, anchors, ybar_seq, vbar, p, kind, neuron.decay_input, neuron.v_reset is None,
            neuron.detach_reset, neuron.reset_gate == "spike", neuron.groups, neuron.group_dim, ctx.every,
            ctx.needs_input_grad[1],
        )  # fmt: skip
        return xbar_seq, _state_gradient(ctx, vbar), None, None, None


_ops_norm_function = torch.ops.revsnn


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
        y_seq, v_last, mean, var, inverse_std, cut = _ops_norm_function.norm_carrier_forward(
            z_seq,
            v,
            weight,
            bias,
            residual,
            numbers(neuron),
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
        zbar_seq, weight_bar, bias_bar, residual_bar, vbar0 = _ops_norm_function.norm_carrier_backward(
            y_seq, v, weight, bias, residual, inverse_std, beyond, excess, ybar_seq, vbar,
            numbers(neuron, height, scale), kind, neuron.v_reset is None, neuron.detach_reset, needs[3], needs[4],
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
