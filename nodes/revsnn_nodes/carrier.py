"""CarrierLIF: the standard LIF whose output carries its input, so that nothing else is kept.

Equations: section "Carrier" of nodes/README.md. This node is our own. Contrast: the coupled nodes change the neuron to
make it reversible; this one leaves it as it is and hides the input in the fraction of the output.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from revsnn_nodes import equations as eq
from revsnn_nodes.base import SpikingNode, StepMode
from revsnn_nodes.kernels.autograd import FusedCarrier, Gradients, Saved, first_derivative_only, fused_lif
from revsnn_nodes.kernels.support import Backend
from revsnn_nodes.parameters import CarrierMode, CarrierParameters
from revsnn_nodes.surrogate import SurrogateFunction, in_transform


class ClampWarning(UserWarning):
    """Inputs of a carrier lie at its clamp or beyond: no gradient passes there."""


class _DecodeAndMultiply(torch.autograd.Function):
    """Keeps the output (an alias), and the state it started from where that was carried."""

    @staticmethod
    def forward(
        x_seq: Tensor, v: Tensor | None, neuron: CarrierParameters, surrogate: SurrogateFunction
    ) -> tuple[Tensor, Tensor]:
        """Output `[T, N, *]` and the last membrane `[N, *]`."""
        y_seq = torch.empty_like(x_seq)
        membrane: Tensor | float = neuron.rest if v is None else v
        for x, out in zip(x_seq.unbind(0), y_seq.unbind(0), strict=True):
            x = eq.clamp_input(x, neuron)
            spike, membrane = eq.lif_step(x.to(eq.state_dtype(x.dtype)), membrane, neuron, eq.fire)
            torch.add(spike.to(x.dtype), x, alpha=neuron.share, out=out)
        assert isinstance(membrane, Tensor)
        return y_seq, membrane

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """Keeps the output and the first membrane."""
        _, v, ctx.neuron, surrogate = inputs
        ctx.surrogate = surrogate.as_now()
        ctx.save_for_backward(output[0], v)
        ctx.set_materialize_grads(False)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, saved: Saved, ybar_seq: Tensor | None, vbar: Tensor | None) -> Gradients:
        """Gradients of the input and of the first membrane."""
        y_seq, v = saved
        neuron = ctx.neuron
        # The charges wait in the buffer of the input gradient until the gradient overwrites them, last step first.
        xbar_seq, dtype = torch.empty_like(y_seq), eq.state_dtype(y_seq.dtype)
        with record_function("recompute"):
            _regenerate_charges(y_seq, v, xbar_seq, neuron)
        del v
        for t in range(y_seq.shape[0] - 1, -1, -1):
            with record_function("recompute"):
                spike, carried = eq.decode_output(y_seq[t].to(dtype))
            ybar = torch.zeros_like(spike) if ybar_seq is None else ybar_seq[t].to(dtype)
            hbar = eq.lif_step_vjp(xbar_seq[t].to(dtype), spike, ybar, vbar, neuron, ctx.surrogate)
            xbar = torch.add(neuron.input_gain * hbar, ybar, alpha=neuron.share)
            xbar_seq[t] = eq.clamp_input_vjp(xbar, carried, neuron)
            vbar = hbar.mul_(neuron.keep)
        return xbar_seq, vbar if ctx.needs_input_grad[1] else None, None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x_seq: Tensor, v: Tensor | None, neuron: CarrierParameters,
        surrogate: SurrogateFunction,
    ) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:  # fmt: skip
        """The neuron is pointwise, so the mapped dimension is one more dimension of N."""
        x_dim, v_dim = in_dims[:2]
        x_seq = x_seq.unsqueeze(1) if x_dim is None else x_seq.movedim(x_dim, 1)
        x_seq = x_seq.expand(-1, info.batch_size, *x_seq.shape[2:])
        if v is not None:
            v = (v.unsqueeze(0) if v_dim is None else v.movedim(v_dim, 0)).expand_as(x_seq[0])
        return _DecodeAndMultiply.apply(x_seq, v, neuron, surrogate), (1, 0)


def _regenerate_charges(y_seq: Tensor, v: Tensor | None, charge_seq: Tensor, neuron: CarrierParameters) -> None:
    """Runs the neuron forward on decoded inputs and decoded spikes, and writes its charges above rest."""
    membrane = None if v is None else v - neuron.rest
    for y, out in zip(y_seq.unbind(0), charge_seq.unbind(0), strict=True):
        spike, carried = eq.decode_output(y.to(eq.state_dtype(y.dtype)))
        h, membrane = eq.recharge(carried.mul_(neuron.input_gain / neuron.share), membrane, spike, neuron)
        out.copy_(h)


class CarrierNode(SpikingNode[CarrierParameters]):
    """What the carrier nodes share: parameters, the forward by plain autograd, and what can be read from an output."""

    pointwise = True

    def __init__(
        self, tau: float = 2.0, decay_input: bool = True, v_threshold: float = 1.0, v_reset: float | None = 0.0,
        surrogate_function: Callable[[Tensor], Tensor] | None = None, detach_reset: bool = False,
        step_mode: StepMode = "s", backend: Backend = "auto", store_v_seq: bool = False, *,
        epsilon: float = 1 / 16, carrier: CarrierMode = "train",
    ) -> None:  # fmt: skip
        neuron = CarrierParameters(tau, decay_input, v_threshold, v_reset, detach_reset, epsilon, carrier)
        super().__init__(neuron, surrogate_function, step_mode, backend, store_v_seq)

    def torch_sequence(self, x_seq: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """Runs T steps under plain autograd; see `SpikingNode.torch_sequence`."""
        if not self.carries:
            return eq.lif_sequence(x_seq, v, self.neuron, self.surrogate_function)
        clamped = eq.clamp_input(x_seq, self.neuron)
        spike_seq, v_last = eq.lif_sequence(clamped, v, self.neuron, self.surrogate_function)
        return torch.add(spike_seq, clamped, alpha=self.neuron.share), v_last

    @property
    def carries(self) -> bool:
        """Whether the output carries the input now: in training, and always with `carrier="always"`."""
        return self.training or self.neuron.carrier == "always"

    def decode(self, y_seq: Tensor) -> tuple[Tensor, Tensor]:
        """The clamped input and the spikes of an output that carries, both of its shape."""
        spike_seq = eq.decode_spikes(y_seq)
        return eq.decode_input(y_seq, spike_seq, self.neuron.share), spike_seq

    def clamped_fraction(self, y_seq: Tensor) -> float:
        """The share of inputs that the clamp cut, read from an output that carries."""
        x_seq, _ = self.decode(y_seq)
        return (x_seq.abs() >= self.neuron.clamp).double().mean().item()

    def reference(self) -> SpikingNode[CarrierParameters]:
        """A `StoredCarrierLIF` with these parameters."""
        return self.fresh(StoredCarrierLIF)


class StoredCarrierLIF(CarrierNode):
    """The carrier's forward by plain autograd through time: the control for `CarrierLIF`.

    Args: see `CarrierParameters` and `SpikingNode`.
    Keeps for backward: every intermediate of every step, O(T).
    Exactness: its output equals that of `CarrierLIF` bit for bit; its gradient is autograd's.
    """


class CarrierLIF(CarrierNode):
    """The standard LIF that keeps nothing: its training output is spike + epsilon x, and gives the input back.

    In `eval()` it is `StandardLIF` (`carrier="train"`): spikes alone, no clamp, and what that keeps where a gradient is
    asked for. `decode_spikes(y)` gives the spikes of a training output. In training, inputs are clamped to [-c, c],
    c = (31/64) / epsilon = 7.75 by default, times the power of two at or above v_threshold - rest;
    `clamped_fraction(y)` tells how often, and the node warns of it once: it looks at the inputs of its training calls
    1, 2, 4, 8 and so on, outside of transforms, compilers and modes that count operations.

    Args:
        epsilon: scale of the carried input, a power of two.
        carrier: "train", or "always" to carry in `eval()` too.
        Others: see `LIFParameters` and `SpikingNode`.
    Keeps for backward: nothing but its output, as an alias; m N bytes where it started from a carried state.
        Transient in backward: O(N), since charges wait in the buffer of the input gradient.
    Exactness: relative gradient error at epsilon = 1/16, flat in T: about 2e-7 in float32. In float16 and bfloat16 2e-3
        and 2e-2 at tau = 2, where an input that fired comes back to half an ulp(1) / epsilon; at tau = 16 a fifth. With
        epsilon = 1/256 2.5e-2 and 0.16: in half precision keep 1/16.
    """

    fused_cpu_dtypes = (torch.float32, torch.float64, torch.bfloat16)

    _calls, _warned = 0, False

    def _warn_where_clamped(self, x_seq: Tensor) -> None:
        """Warns once where inputs lie at the clamp or beyond; looks at calls 1, 2, 4, 8 and so on."""
        if self._warned or torch.compiler.is_compiling() or in_transform() or torch._C._len_torch_dispatch_stack():
            return
        captured = x_seq.is_cuda and torch.cuda.is_current_stream_capturing()
        if captured or x_seq.is_meta or not x_seq.numel():
            return
        self._calls += 1
        if self._calls & (self._calls - 1):
            return
        clamp, x_seq = self.neuron.clamp, x_seq.detach()
        low, high = x_seq.aminmax()
        if not (low <= -clamp or high >= clamp):
            return
        self._warned = True
        fraction = (x_seq.abs() >= clamp).double().mean().item()
        warnings.warn(
            f"CarrierLIF clamps its input to [-{clamp:g}, {clamp:g}] in training, and {fraction:.2g} of it lies there "
            "or beyond, where no gradient passes. Put a norm before the node, or halve epsilon to double the range.",
            ClampWarning,
            stacklevel=2,
        )

    def torch_sequence(self, x_seq: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `SpikingNode.torch_sequence`."""
        # An exported program keeps the forward's operations, and no backward pass.
        if not self.carries or torch.compiler.is_exporting():
            return super().torch_sequence(x_seq, v)
        self._warn_where_clamped(x_seq)
        return _DecodeAndMultiply.apply(x_seq, v, self.neuron, self.surrogate_function)  # type: ignore[no-any-return]

    def fused_sequence(self, x_seq: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `SpikingNode.fused_sequence`."""
        if not self.carries:
            return fused_lif(x_seq, v, self.neuron, self.surrogate_function)
        self._warn_where_clamped(x_seq)
        return FusedCarrier.apply(x_seq, v, self.neuron, self.surrogate_function)  # type: ignore[no-any-return]
