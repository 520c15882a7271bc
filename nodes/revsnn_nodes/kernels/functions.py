"""The fused operators under autograd: forward, backward, and exactly what is kept between them."""

from typing import Any

import torch
from torch import Tensor

from revsnn_nodes.kernels import operators  # noqa: F401  (defines torch.ops.revsnn)
from revsnn_nodes.kernels.coefficients import coefficients, surrogate_code
from revsnn_nodes.kernels.first_derivative import first_derivative_only
from revsnn_nodes.parameters import CoupledParameters, LIFParameters
from revsnn_nodes.surrogate import SurrogateFunction

_ops = torch.ops.revsnn


def _gradient_numbers(neuron: LIFParameters, surrogate: SurrogateFunction) -> tuple[list[float], int]:
    code = surrogate_code(surrogate)
    assert code is not None, "the selection lets no other surrogate through"
    kind, height, scale = code
    return coefficients(neuron, height, scale), kind


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
            x_seq, v, coefficients(neuron), neuron.decay_input, soft, keep
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
        result: tuple[Tensor, Tensor] = _ops.carrier_forward(x_seq, v, coefficients(neuron), neuron.decay_input, soft)
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
        x_seq, v, coefficients(neuron), neuron.decay_input, neuron.v_reset is None, neuron.reset_gate == "spike",
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
