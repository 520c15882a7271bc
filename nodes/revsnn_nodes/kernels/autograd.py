"""The fused operators under autograd: forward, backward, and exactly what each keeps between them.

Backward passes are closed forms outside of autograd: a second derivative is refused, never left out.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from revsnn_nodes.equations import decode_input, decode_spikes
from revsnn_nodes.kernels import ops  # noqa: F401  (defines torch.ops.revsnn)
from revsnn_nodes.kernels.layout import Numbers, numbers, surrogate_code
from revsnn_nodes.parameters import CoupledParameters, LIFParameters
from revsnn_nodes.surrogate import SurrogateFunction

Gradients = tuple[Tensor | None, ...]
Saved = tuple[Any, ...]
"""What a backward pass gets of its forward: tensors, None among them."""

Backward = Callable[..., Gradients]

_REFUSAL = (
    "`create_graph` must not lead to second derivatives of this node; got a gradient of its gradient. Its backward "
    'pass is a closed form outside of autograd, as that of all fused kernels. Pass backend="torch" to StandardLIF, or '
    "use StoredCarrierLIF, StoredCoupledLIF or StoredNormCarrierLIF."
)


class _Refuse(torch.autograd.Function):
    """Passes a gradient on, as something that cannot be differentiated."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gradient: Tensor, *differentiable: Tensor) -> Tensor:
        """The gradient itself, as a result of this function and of the tensors behind it."""
        return gradient.view_as(gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Keeps nothing."""

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Refuses, and names what can be differentiated twice."""
        raise RuntimeError(_REFUSAL)


_DIFFERENTIABLE = torch.empty(0, requires_grad=True)
"""What makes the results of `_Refuse` ask for it; made outside of any transform of `torch.func`."""


def first_derivative_only(backward: Backward) -> Backward:
    """Decorates a backward pass as `once_differentiable` does, with the way out in its error. It gets what was saved.

    Contrast: it also refuses where the arriving gradient is a constant, as in the penalty `grad(y.sum(), x,
    create_graph=True)`. There the result would otherwise be a constant too, and its part of the loss would have no
    gradient without a word.

    Raises:
        RuntimeError: when a gradient of the decorated pass's results is taken.
    """

    @wraps(backward)
    def once(ctx: Any, *arriving: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradients, from which no second derivative leads on."""
        if _nested_transforms() > 1:
            raise RuntimeError(_REFUSAL)
        saved = ctx.saved_tensors  # once: a checkpoint that leads on refuses a second time
        with torch.no_grad():
            results = backward(ctx, saved, *arriving)
        if not torch.is_grad_enabled():  # no create_graph
            return results
        # An output among the saved tensors leads from the gradients to the inputs: autograd then comes past here. So
        # does each saved input, to itself.
        leading = [each for each in saved if each is not None and each.requires_grad] or [_DIFFERENTIABLE]
        return tuple(None if each is None else _Refuse.apply(each, *leading) for each in results)

    return once


def _nested_transforms() -> int:
    """How many `torch.func.grad`, one in the other, are at work."""
    if torch.compiler.is_compiling():
        return 0
    levels = torch._C._functorch.get_interpreter_stack() or ()
    return sum(level.key() == torch._C._functorch.TransformType.Grad for level in levels)


_ops = torch.ops.revsnn


class _Fused(torch.autograd.Function):
    """What the fused functions share."""

    @staticmethod
    def keep(ctx: Any, neuron: LIFParameters, surrogate: SurrogateFunction, *tensors: Tensor | None) -> None:
        """Keeps what the backward pass needs; a gradient that does not arrive is None there, not zeros."""
        ctx.neuron, ctx.code = neuron, surrogate_code(surrogate)  # now: alpha may be assigned before backward
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def constants(ctx: Any) -> tuple[Numbers, int]:
        """`p` and `kind` of a backward operator."""
        assert ctx.code is not None, "`support.fused_obstacle` lets no other surrogate through"
        kind, height, scale = ctx.code
        return numbers(ctx.neuron, height, scale), kind


def _is_soft(neuron: LIFParameters) -> bool:
    return neuron.v_reset is None


class FusedLIF(_Fused):
    """Keeps the charges, b N T bytes, unless told that no gradient can be asked for.

    Where 1/tau is learned, it keeps that and the state it started from as well.
    """

    @staticmethod
    def forward(
        ctx: Any, x_seq: Tensor, v: Tensor | None, rate: Tensor | None, neuron: LIFParameters,
        surrogate: SurrogateFunction, keep: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Spikes, the last membrane, and an empty output that is kept: see `first_derivative_only`."""
        spike_seq, v_last, charge_seq = _ops.lif_forward(
            x_seq, v, rate, numbers(neuron), neuron.decay_input, _is_soft(neuron), keep
        )
        link = spike_seq.new_empty(0)
        FusedLIF.keep(ctx, neuron, surrogate, charge_seq, None if rate is None else v, rate, link)
        return spike_seq, v_last, link

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, saved: Saved, sbar_seq: Tensor | None, vbar: Tensor | None, _: Tensor | None) -> Gradients:
        """Gradients of the input, of the first membrane and of 1/tau."""
        (charge_seq, v, rate, _), neuron = saved, ctx.neuron
        _, need_v, need_rate, *_ = ctx.needs_input_grad
        xbar_seq, vbar0, ratebar = _ops.lif_backward(
            charge_seq, sbar_seq, vbar, v, rate, *FusedLIF.constants(ctx), neuron.decay_input, _is_soft(neuron),
            neuron.detach_reset, need_v, need_rate,
        )  # fmt: skip
        total = ratebar.sum(dtype=torch.float64).to(rate) if need_rate else None
        return xbar_seq, vbar0 if need_v else None, total, None, None, None


def fused_lif(
    x_seq: Tensor, v: Tensor | None, neuron: LIFParameters, surrogate: SurrogateFunction, rate: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Spikes `[T, N, *]` and the last membrane; charges are kept where a gradient can be asked for.

    `rate` is a learned 1/tau, of one element.
    """
    differentiable = any(each is not None and each.requires_grad for each in (x_seq, v, rate))
    keep = torch.is_grad_enabled() and differentiable
    spike_seq, v_last, _ = FusedLIF.apply(x_seq, v, rate, neuron, surrogate, keep)
    return spike_seq, v_last


class FusedNormLIF(_Fused):
    """The LIF behind a batch norm: keeps the norm's input and statistics in place of charges."""

    @staticmethod
    def forward(
        ctx: Any, x_seq: Tensor, v: Tensor | None, z_seq: Tensor, mean: Tensor, inverse_std: Tensor,
        weight: Tensor | None, bias: Tensor | None, residual_seq: Tensor | None, inner: int, form: int,
        neuron: LIFParameters, surrogate: SurrogateFunction,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Spikes and the last membrane, from the norm's output; what follows is what that was made from."""
        spike_seq, v_last, _ = _ops.lif_forward(
            x_seq, v, None, numbers(neuron), neuron.decay_input, _is_soft(neuron), False
        )
        FusedNormLIF.keep(ctx, neuron, surrogate, z_seq, v, mean, inverse_std, weight, bias, residual_seq)
        ctx.inner, ctx.form = inner, form
        return spike_seq, v_last

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, saved: Saved, sbar_seq: Tensor | None, vbar: Tensor | None) -> Gradients:
        """Gradients of the neuron's input and of the first membrane."""
        neuron, need_v = ctx.neuron, ctx.needs_input_grad[1]
        xbar_seq, vbar0 = _ops.norm_lif_backward(
            *saved, sbar_seq, vbar, *FusedNormLIF.constants(ctx), ctx.inner, ctx.form,
            neuron.decay_input, _is_soft(neuron), neuron.detach_reset, need_v,
        )  # fmt: skip
        return xbar_seq, vbar0 if need_v else None, *(None,) * 10


def norm_lif_spikes(
    v: Tensor | None, z_seq: Tensor, *norm: Any, inner: int, form: int, neuron: LIFParameters
) -> Tensor:
    """Spikes of a LIF behind a batch norm; `norm`: what `FusedNormLIF` takes between `z_seq` and `inner`."""
    spike_seq: Tensor
    spike_seq, _ = _ops.norm_lif_forward(
        z_seq, v, *norm, numbers(neuron), inner, form, neuron.decay_input, _is_soft(neuron)
    )
    return spike_seq


class FusedCarrier(_Fused):
    """Keeps the output (an alias), and the state it started from where that was carried."""

    @staticmethod
    def forward(
        ctx: Any, x_seq: Tensor, v: Tensor | None, neuron: LIFParameters, surrogate: SurrogateFunction
    ) -> tuple[Tensor, Tensor]:
        """Output and the last membrane."""
        y_seq, v_last = _ops.carrier_forward(x_seq, v, numbers(neuron), neuron.decay_input, _is_soft(neuron))
        FusedCarrier.keep(ctx, neuron, surrogate, y_seq, v)
        return y_seq, v_last

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, saved: Saved, ybar_seq: Tensor | None, vbar: Tensor | None) -> Gradients:
        """Gradients of the input and of the first membrane."""
        (y_seq, v), neuron, need_v = saved, ctx.neuron, ctx.needs_input_grad[1]
        xbar_seq, vbar0 = _ops.carrier_backward(
            y_seq, v, ybar_seq, vbar, *FusedCarrier.constants(ctx), _is_soft(neuron), neuron.detach_reset, need_v
        )
        return xbar_seq, vbar0 if need_v else None, None, None


def _coupled(x_seq: Tensor, v: Tensor | None, neuron: CoupledParameters, every: int) -> tuple[Tensor, Tensor, Tensor]:
    result: tuple[Tensor, Tensor, Tensor] = _ops.coupled_forward(
        x_seq, v, numbers(neuron), neuron.decay_input, _is_soft(neuron), neuron.reset_gate == "spike",
        neuron.groups, neuron.group_dim, every,
    )  # fmt: skip
    return result


class FusedInverse(_Fused):
    """Keeps the output (an alias) and the last membrane."""

    @staticmethod
    def forward(
        ctx: Any, x_seq: Tensor, v: Tensor | None, neuron: CoupledParameters, surrogate: SurrogateFunction
    ) -> tuple[Tensor, Tensor]:
        """Output and the last membrane."""
        y_seq, v_last, _ = _coupled(x_seq, v, neuron, x_seq.shape[0])
        FusedInverse.keep(ctx, neuron, surrogate, y_seq, v_last)
        return y_seq, v_last

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, saved: Saved, ybar_seq: Tensor | None, vbar: Tensor | None) -> Gradients:
        """Gradients of the input and of the first membrane."""
        (y_seq, v_last), neuron, need_v = saved, ctx.neuron, ctx.needs_input_grad[1]
        xbar_seq, vbar0 = _ops.inverse_backward(
            y_seq, v_last, ybar_seq, vbar, *FusedInverse.constants(ctx), _is_soft(neuron), neuron.detach_reset,
            neuron.groups, neuron.group_dim, need_v,
        )  # fmt: skip
        return xbar_seq, vbar0 if need_v else None, None, None


class FusedAnchored(_Fused):
    """Keeps the output (an alias), the state it started from if carried, and one membrane per later segment."""

    @staticmethod
    def forward(
        ctx: Any, x_seq: Tensor, v: Tensor | None, neuron: CoupledParameters, surrogate: SurrogateFunction, every: int
    ) -> tuple[Tensor, Tensor]:
        """Output and the last membrane; keeps anchors `[ceil(T / every) - 1, N, *]`."""
        y_seq, v_last, anchors = _coupled(x_seq, v, neuron, every)
        FusedAnchored.keep(ctx, neuron, surrogate, y_seq, v, anchors)
        ctx.every = every
        return y_seq, v_last

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, saved: Saved, ybar_seq: Tensor | None, vbar: Tensor | None) -> Gradients:
        """Gradients of the input and of the first membrane."""
        (y_seq, v, anchors), neuron, need_v = saved, ctx.neuron, ctx.needs_input_grad[1]
        xbar_seq, vbar0 = _ops.anchored_backward(
            y_seq, v, anchors, ybar_seq, vbar, *FusedAnchored.constants(ctx), neuron.decay_input, _is_soft(neuron),
            neuron.detach_reset, neuron.reset_gate == "spike", neuron.groups, neuron.group_dim, ctx.every, need_v,
        )  # fmt: skip
        return xbar_seq, vbar0 if need_v else None, None, None, None


class FusedNormCarrier(_Fused):
    """Keeps the output, residual and given state as they are, 1/sigma per channel, and what the clamp cut off."""

    @staticmethod
    def forward(
        ctx: Any, z_seq: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, v: Tensor | None,
        layer: Any,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Output and the last membrane of a `NormCarrierNode`; enters the batch in its running statistics."""
        neuron = layer.neuron
        y_seq, v_last, mean, var, inverse_std, cut = _ops.norm_carrier_forward(
            z_seq, v, weight, bias, residual, numbers(neuron), layer.eps, neuron.decay_input, _is_soft(neuron)
        )
        count = z_seq.numel() // z_seq.shape[2]
        running_mean, running_var, momentum = layer.update_of_statistics()
        for running, batch in ((running_mean, mean), (running_var, var * (count / (count - 1)))):
            if running is not None:
                running.mul_(1 - momentum).add_(batch.to(running.dtype), alpha=momentum)
        clipped = _cut_off(z_seq, y_seq, mean, inverse_std, neuron) if cut.item() else (None, None)
        FusedNormCarrier.keep(
            ctx, neuron, layer.surrogate_function, y_seq, v, weight, bias, residual, inverse_std, *clipped
        )
        return y_seq, v_last

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, saved: Saved, ybar_seq: Tensor | None, vbar: Tensor | None) -> Gradients:
        """Gradients of the input, gamma, bias, residual and first membrane."""
        neuron, needs = ctx.neuron, ctx.needs_input_grad
        gradients = _ops.norm_carrier_backward(
            *saved, ybar_seq, vbar, *FusedNormCarrier.constants(ctx), _is_soft(neuron),
            neuron.detach_reset, needs[3], needs[4],
        )  # fmt: skip
        return *(each if needed else None for each, needed in zip(gradients, needs, strict=False)), None


def _cut_off(z_seq: Tensor, y_seq: Tensor, mean: Tensor, inverse_std: Tensor, neuron: Any) -> tuple[Tensor, Tensor]:
    """Where the clamp bit, `[k, dims]`, and how much it cut off, `[k]`."""
    places, parts = [], []
    for t, (z, y) in enumerate(zip(z_seq, y_seq, strict=True)):
        n = decode_input(y, decode_spikes(y), neuron.share)
        at = (n.abs() >= neuron.clamp).nonzero()
        step = tuple(at.T)
        parts.append((z[step] - mean[at[:, 1]]) * inverse_std[at[:, 1]] - n[step])
        places.append(torch.cat([torch.full_like(at[:, :1], t), at], 1))
    return torch.cat(places), torch.cat(parts)
