"""Batch norm and LIF in one layer: what both nodes of this kind share, and the one by plain autograd.

Equations: section "Carrier with its norm" of nodes/README.md. Names and state_dict are `torch.nn.BatchNorm2d`'s, so
that weights move between these nodes and an ordinary norm.

NormCarrierLIF: batch norm and LIF in one layer, whose output carries the normalised input.

Equations: section "Carrier with its norm" of nodes/README.md. This node is our own. Contrast: `CarrierLIF` after a
batch norm leaves the norm to keep its input; here the one output stands for both, and neither is kept.
"""

import copy
from collections.abc import Callable
from dataclasses import fields
from typing import Any, Self, overload

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import batch_norm, hardtanh
from torch.profiler import record_function

from revsnn_nodes.base import StepMode
from revsnn_nodes.carrier import CarrierMode, CarrierNode, CarrierParameters
from revsnn_nodes.equations import lif_step_vjp_into, recharge_into, step_into
from revsnn_nodes.kernels.support import DEFAULT_BACKEND, Backend, choose_backend
from revsnn_nodes.lif import lif_sequence
from revsnn_nodes.parameters import require


@overload
def per_channel(values: Tensor, like: Tensor) -> Tensor: ...
@overload
def per_channel(values: None, like: Tensor) -> None: ...
@overload
def per_channel(values: Tensor | None, like: Tensor) -> Tensor | None: ...
def per_channel(values: Tensor | None, like: Tensor) -> Tensor | None:
    """Values `[C]` in the dtype of a sequence `[T, N, C, *]`, in a shape that spreads over its steps."""
    return None if values is None else values.to(like.dtype).reshape(-1, *[1] * (like.dim() - 3))


def neuron_input(n: Tensor, gamma: Tensor | None, shift: Tensor | None, residual: Tensor | None) -> Tensor:
    """The neuron's input gamma n + shift + residual; rounded once per operation, so equal for a step and a sequence.

    Args:
        n: normalised and clamped, `[N, C, *]` or `[T, N, C, *]`.
        gamma, shift: from `per_channel`; None for 1 and 0.
        residual: of the shape of n; None for 0.
    """
    x = n if gamma is None else n * gamma
    x = x if shift is None else x + shift
    return x if residual is None else x + residual


class NormCarrierNode(CarrierNode):
    """A batch norm followed by a LIF whose training output carries the normalised input.

    Args:
        num_features: C, size of dimension 2 of `[T, N, C, *]`.
        eps, momentum, affine, track_running_stats: as in `torch.nn.BatchNorm2d`; momentum None for a cumulative mean.
        epsilon: scale of the carried input, a power of two; normalised inputs are clamped to (31/64) / epsilon.
        carrier: "train", or "always" to carry in `eval()` too.
        Others: see `LIFParameters` and `SpikingNode`. With step_mode "s" each step is normalised by itself.
    Attributes:
        weight, bias, running_mean, running_var, num_batches_tracked: as in `torch.nn.BatchNorm2d`. Statistics are of
            this process alone: under data parallelism they behave as BatchNorm does, not as SyncBatchNorm.
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        tau: float = 2.0,
        decay_input: bool = True,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: Callable[[Tensor], Tensor] | None = None,
        detach_reset: bool = False,
        step_mode: StepMode = "m",
        epsilon: float = 1 / 16,
        carrier: CarrierMode = "train",
        backend: Backend = DEFAULT_BACKEND,
    ) -> None:
        neuron = (tau, decay_input, v_threshold, v_reset, surrogate_function, detach_reset)
        super().__init__(*neuron, step_mode, epsilon, carrier, backend)
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        self.register_parameter("weight", nn.Parameter(torch.ones(num_features)) if affine else None)
        self.register_parameter("bias", nn.Parameter(torch.zeros(num_features)) if affine else None)
        track = track_running_stats
        self.register_buffer("running_mean", torch.zeros(num_features) if track else None)
        self.register_buffer("running_var", torch.ones(num_features) if track else None)
        self.register_buffer("num_batches_tracked", torch.tensor(0) if track else None)

    @classmethod
    def from_norm(cls, norm: nn.Module, **neuron: Any) -> Self:
        """A layer with the settings, weights and statistics of a batch norm.

        Args:
            norm: BatchNorm1d, 2d or 3d.
            neuron: keywords of the neuron, such as `tau`.
        Raises:
            ValueError: another module; SyncBatchNorm among them, whose statistics span processes.
        """
        require(
            isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d),
            "norm",
            "be a BatchNorm1d, BatchNorm2d or BatchNorm3d",
            type(norm).__name__,
            "The layer normalises by the statistics of its own process and batch.",
            "Keep another norm (SyncBatchNorm among them) as it is, and put a CarrierLIF behind it.",
        )
        assert isinstance(norm, nn.BatchNorm2d | nn.BatchNorm1d | nn.BatchNorm3d)
        settings = (norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        return cls(norm.num_features, *settings, **neuron)._with_values_of(norm)

    def reference(self) -> "StoredNormCarrierLIF":
        """A `StoredNormCarrierLIF` with these parameters and statistics, in storage of its own."""
        neuron = {field.name: getattr(self.neuron, field.name) for field in fields(self.neuron)}
        settings = {name: getattr(self, name) for name in ("eps", "momentum", "affine", "track_running_stats")}
        surrogate = copy.deepcopy(self.surrogate_function)
        node = StoredNormCarrierLIF(
            self.num_features, **settings, **neuron, surrogate_function=surrogate, step_mode=self.step_mode
        )
        return node._with_values_of(self)

    def forward(self, z: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalises, adds a residual where one is given, and runs the neuron.

        Args:
            z: `[T, N, C, *]`, or `[N, C, *]` in step mode "s".
            residual: added to the normalised input before the neuron, of the shape of z.
        Raises:
            ValueError: wrong shape or dtype, a carried state that does not fit, one value per channel in training, or
                `backend="fused"` where there are no fused kernels for the case.
        """
        single = self.step_mode == "s"
        z_seq = z.unsqueeze(0) if single else z
        self._check_input(z_seq, z)
        self._check_channels(z_seq, z)
        require(
            residual is None or residual.shape == z.shape,
            "residual",
            f"have the shape of z {tuple(z.shape)}",
            None if residual is None else tuple(residual.shape),
            "It is added neuron by neuron.",
            "Expand it, or pass it through a shortcut of the right shape.",
        )
        self.backend_in_use, self.backend_reason = choose_backend(self, z_seq)
        residual_seq = residual.unsqueeze(0) if single and residual is not None else residual
        run: Callable[..., tuple[Tensor, Tensor]] = (
            self.fused_sequence if self.backend_in_use == "fused" else self.multi_step_forward
        )
        y_seq, self.v = run(z_seq, self._carried_state(z_seq), residual_seq)
        return y_seq.squeeze(0) if single else y_seq

    def multi_step_forward(
        self, x_seq: Tensor, v: Tensor | None, residual: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Runs T steps.

        Args:
            x_seq: what the norm takes, `[T, N, C, *]`.
            v: the membrane to start from, `[N, C, *]`; None for rest.
            residual: added to the normalised input, of the shape of x_seq.
        Returns:
            The output and the last membrane.
        """
        return self.stored_forward(x_seq, v, residual)

    def stored_forward(
        self,
        x_seq: Tensor,
        v: Tensor | None,
        residual: Tensor | None,
        run_neuron: Callable[..., tuple[Tensor, Tensor]] = lif_sequence,
    ) -> tuple[Tensor, Tensor]:
        """The forward by plain autograd, in training and in `eval()`; see `multi_step_forward`."""
        affine = (None, None) if self.carries else (self.weight, self.bias)
        mean, var, momentum = self.running_mean, self.running_var, 0.0
        if self.training:
            mean, var, momentum = self.update_of_statistics()
        by_batch = self.training or mean is None
        n_seq = batch_norm(x_seq.flatten(0, 1), mean, var, *affine, by_batch, momentum, self.eps).view_as(x_seq)
        if not self.carries:
            return run_neuron(neuron_input(n_seq, None, None, residual), v, self.neuron, self.surrogate_function)
        # hardtanh, not clamp: no gradient passes at the borders, as in the closed form.
        n_seq = hardtanh(n_seq, -self.neuron.clamp, self.neuron.clamp)
        x_seq = neuron_input(n_seq, per_channel(self.weight, n_seq), per_channel(self.bias, n_seq), residual)
        spike_seq, v_last = run_neuron(x_seq, v, self.neuron, self.surrogate_function)
        return torch.add(spike_seq, n_seq, alpha=self.neuron.epsilon), v_last

    def update_of_statistics(self) -> tuple[Tensor | None, Tensor | None, float]:
        """Counts this batch; returns the running statistics that it enters, and with which weight."""
        if self.num_batches_tracked is None:
            return None, None, 0.0
        self.num_batches_tracked.add_(1)
        weight = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        return self.running_mean, self.running_var, weight

    def extra_repr(self) -> str:
        """Norm and neuron, as they are passed to the constructor."""
        norm = f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}"
        return f"{norm}, track_running_stats={self.track_running_stats}, {super().extra_repr()}"

    def _with_values_of(self, norm: nn.Module) -> Self:
        """Takes over values, dtype, device, frozen parameters and training mode of a norm or a node like this."""
        state = {name: value.clone() for name, value in norm.state_dict().items()}
        self.load_state_dict(state, assign=True)
        for name, parameter in norm.named_parameters(recurse=False):
            self.get_parameter(name).requires_grad_(parameter.requires_grad)
        return self.train(norm.training)

    def _check_channels(self, z_seq: Tensor, given: Tensor) -> None:
        require(
            z_seq.dim() >= 3 and z_seq.shape[2] == self.num_features,
            "z",
            f"have num_features = {self.num_features} channels after time and batch",
            tuple(given.shape),
            "Each channel has a mean and a variance of its own.",
            'Pass [T, N, C, *], or [N, C, *] in step mode "s".',
        )
        require(
            not self.training or z_seq.numel() > self.num_features,
            "z",
            "hold more than 1 value per channel when training",
            tuple(given.shape),
            "Expected more than 1 value per channel when training: the variance of one value is 0.",
            "Use more steps, samples or positions, or eval().",
        )


class StoredNormCarrierLIF(NormCarrierNode):
    """Batch norm, clamp and LIF by plain autograd: the control for `NormCarrierLIF`.

    Args: see `NormCarrierNode`.
    Keeps for backward: every intermediate, O(T).
    Exactness: its output equals that of `NormCarrierLIF` bit for bit; its gradient is autograd's.
    """


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
        from revsnn_nodes.kernels.autograd import fused_lif, fused_norm_carrier

        if not self.training:
            return self.stored_forward(x_seq, v, residual, fused_lif)
        return fused_norm_carrier(x_seq, v, residual, self)

    def fused_obstacle(self, x_seq: Tensor) -> str:
        """See `SpikingNode.fused_obstacle`."""
        return "NormCarrierLIF has a fused kernel for the CPU alone" if x_seq.device.type == "cuda" else ""
