"""Batch norm and LIF in one layer whose output carries the normalised input: NormCarrierLIF, and its control.

Equations: section "Carrier with its norm" of nodes/README.md. This node is our own. Contrast: `CarrierLIF` after a
batch norm leaves the norm to keep its input; here the one output stands for both, and neither is kept. Names and
state_dict are `torch.nn.BatchNorm2d`'s, so that weights move between these nodes and an ordinary norm.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm
from torch.profiler import record_function

from revsnn_nodes import equations as eq
from revsnn_nodes.base import StepMode, require_tensor, with_arguments_of
from revsnn_nodes.carrier import CarrierNode
from revsnn_nodes.kernels.autograd import FusedNormCarrier, Gradients, Saved, first_derivative_only, fused_lif
from revsnn_nodes.parameters import CarrierParameters, NormCarrierParameters, require

SETTINGS = ("num_features", "eps", "momentum", "affine", "track_running_stats")
"""The arguments of a batch norm."""


def per_channel(values: Tensor | None, like: Tensor, dtype: torch.dtype | None = None) -> Any:
    """Values `[C]`, or None, in a shape that spreads over the steps of a sequence `[T, N, C, *]`.

    Their type becomes that of the sequence, or the one that is given.
    """
    return None if values is None else values.to(dtype or like.dtype).reshape(-1, *[1] * (like.dim() - 3))


def neuron_input(
    n: Tensor, gamma: Tensor | None, shift: Tensor | None, residual: Tensor | None, out: Tensor | None = None
) -> Tensor:
    """The neuron's input gamma n + shift + residual; rounded once per operation, so equal for a step and a sequence.

    Args:
        n: normalised and clamped, `[N, C, *]` or `[T, N, C, *]`.
        gamma, shift: from `per_channel`; None for 1 and 0.
        residual: of the shape of n; None for 0.
        out: where it goes; allocated, or n itself, where None.
    """
    x = torch.mul(n, gamma, out=out) if gamma is not None else n if out is None else out.copy_(n)
    for each in (shift, residual):
        x = x if each is None else torch.add(x, each, out=out)
    return x


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

    @with_arguments_of(CarrierNode)
    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1, affine: bool = True,
        track_running_stats: bool = True, *args: Any, **kwargs: Any,
    ) -> None:  # fmt: skip
        require(
            isinstance(num_features, int) and num_features >= 1, "num_features", "be a whole number, at least 1",
            num_features, "Each channel has a mean and a variance.", "Pass C of [T, N, C, *].",
        )  # fmt: skip
        super().__init__(*args, **kwargs)
        self.neuron = NormCarrierParameters(**asdict(self.neuron))
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        self.register_parameter("weight", nn.Parameter(torch.ones(num_features)) if affine else None)
        self.register_parameter("bias", nn.Parameter(torch.zeros(num_features)) if affine else None)
        self.register_buffer("running_mean", torch.zeros(num_features) if track_running_stats else None)
        self.register_buffer("running_var", torch.ones(num_features) if track_running_stats else None)
        self.register_buffer("num_batches_tracked", torch.tensor(0) if track_running_stats else None)

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
            isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d), "norm",
            "be a BatchNorm1d, BatchNorm2d or BatchNorm3d", type(norm).__name__,
            "The layer normalises by the statistics of its own process and batch.",
            "Keep another norm (SyncBatchNorm among them) as it is, and put a CarrierLIF behind it.",
        )  # fmt: skip
        return cls(**{name: getattr(norm, name) for name in SETTINGS}, **neuron)._with_values_of(norm)

    def reference(self) -> "StoredNormCarrierLIF":
        """A `StoredNormCarrierLIF` with these parameters and statistics, in storage of its own."""
        settings = {name: getattr(self, name) for name in SETTINGS}
        return self.fresh(StoredNormCarrierLIF, **settings)._with_values_of(self)

    def forward(self, z: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalises, adds a residual where one is given, and runs the neuron.

        Args:
            z: `[T, N, C, *]`, or `[N, C, *]` in step mode "s".
            residual: added to the normalised input before the neuron, of the shape of z.
        Raises:
            ValueError: no tensor, wrong shape or dtype, a carried state that does not fit, one value per channel in
                training, or `backend="fused"` where there are no fused kernels for the case.
        """
        require_tensor("z", z)
        if residual is not None:
            require_tensor("residual", residual)
        require(
            residual is None or residual.shape == z.shape, "residual", f"have the shape of z {tuple(z.shape)}",
            None if residual is None else tuple(residual.shape), "It is added neuron by neuron.",
            "Expand it, or pass it through a shortcut of the right shape.",
        )  # fmt: skip
        run = self.single_step_forward if self.step_mode == "s" else self.multi_step_forward
        return run(z, residual)

    def torch_sequence(
        self, x_seq: Tensor, v: Tensor | None, residual: Tensor | None = None,
        run_neuron: Callable[..., tuple[Tensor, Tensor]] = eq.lif_sequence,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Runs T steps under plain autograd, in training and in `eval()`; see `SpikingNode.torch_sequence`.

        Args:
            x_seq: what the norm takes, `[T, N, C, *]`.
            residual: added to the normalised input, of the shape of x_seq.
            run_neuron: what runs on their sum.
        """
        affine = (None, None) if self.carries else (self.weight, self.bias)
        mean, var, momentum = self.running_mean, self.running_var, 0.0
        if self.training:
            mean, var, momentum = self.update_of_statistics()
        by_batch = self.training or mean is None
        n_seq = batch_norm(x_seq.flatten(0, 1), mean, var, *affine, by_batch, momentum, self.eps).view_as(x_seq)
        if not self.carries:
            return run_neuron(neuron_input(n_seq, None, None, residual), v, self.neuron, self.surrogate_function)
        n_seq = eq.clamp_input(n_seq, self.neuron)
        x_seq = neuron_input(n_seq, per_channel(self.weight, n_seq), per_channel(self.bias, n_seq), residual)
        spike_seq, v_last = run_neuron(x_seq, v, self.neuron, self.surrogate_function)
        return torch.add(spike_seq, n_seq, alpha=self.neuron.share), v_last

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

    def _check_input(self, mode: StepMode, x_seq: Tensor) -> None:
        super()._check_input(mode, x_seq)
        given = tuple(x_seq.shape[1:] if mode == "s" else x_seq.shape)
        require(
            not (self.store_v_seq and mode == "m" and self.training), "store_v_seq", "be False in training", True,
            "Membranes are kept step by step, and the norm's statistics are those of all steps.",
            "Use a norm and a CarrierLIF with store_v_seq, or read v_seq in eval().",
        )  # fmt: skip
        require(
            x_seq.dim() >= 3 and x_seq.shape[2] == self.num_features, "z",
            f"have num_features = {self.num_features} channels after time and batch", given,
            "Each channel has a mean and a variance of its own.", 'Pass [T, N, C, *], or [N, C, *] in step mode "s".',
        )  # fmt: skip
        require(
            not self.training or x_seq.numel() > self.num_features, "z",
            "hold more than 1 value per channel when training", given,
            "Expected more than 1 value per channel when training: the variance of one value is 0.",
            "Use more steps, samples or positions, or eval().",
        )  # fmt: skip


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
        ctx: Any, z_seq: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None,
        v: Tensor | None, layer: NormCarrierNode,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Output `[T, N, C, *]` and the last membrane; enters the batch in the layer's running statistics."""
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
        x, dtype = torch.empty_like(y_seq[0]), eq.state_dtype(y_seq.dtype)
        spike, membrane = (torch.empty_like(x, dtype=dtype) for _ in range(2))
        for t, out in enumerate(y_seq.unbind(0)):
            neuron_input(out, gamma, shift, None if residual is None else residual[t], out=x)
            _, before = eq.lif_step(x.to(dtype), before, neuron, eq.fire, out=(spike, membrane))
            torch.add(spike, out, alpha=neuron.share, out=out)
        ctx.neuron, ctx.surrogate = neuron, layer.surrogate_function.as_now()
        ctx.save_for_backward(y_seq, weight, bias, residual, v, inverse_std, beyond, excess)
        ctx.set_materialize_grads(False)
        return y_seq, membrane

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, saved: Saved, ybar_seq: Tensor | None, vbar: Tensor | None) -> Gradients:
        """Makes the charges again, goes back through the neuron step by step, then through the norm at once.

        Equations: section "Carrier with its norm" of nodes/README.md.
        """
        y_seq, weight, bias, residual, v, inverse_std, beyond, excess = saved
        neuron, needs = ctx.neuron, ctx.needs_input_grad
        # The charges wait in the buffer of the input gradient until the gradient overwrites them, last step first.
        zbar_seq = torch.empty_like(y_seq)
        with record_function("recompute"):
            _regenerate_charges(y_seq, v, weight, bias, residual, zbar_seq, neuron)
        residual_bar = torch.empty_like(y_seq) if residual is not None and needs[3] else None
        sums = _ChannelSums(y_seq)
        dtype = eq.state_dtype(y_seq.dtype)
        spike, carried, hbar, other = (torch.empty_like(y_seq[0], dtype=dtype) for _ in range(4))
        gain = neuron.input_gain if weight is None else per_channel(weight * neuron.input_gain, y_seq, dtype)
        for t in range(y_seq.shape[0] - 1, -1, -1):
            with record_function("recompute"):
                eq.decode_output(y_seq[t].to(dtype), out=(spike, carried))
            ybar = torch.zeros_like(hbar) if ybar_seq is None else ybar_seq[t].to(dtype)
            charge = zbar_seq[t].to(dtype)  # itself but in half precision
            eq.lif_step_vjp(charge, spike, ybar, vbar, neuron, ctx.surrogate, out=hbar)
            if residual_bar is not None:
                torch.mul(hbar, neuron.input_gain, out=residual_bar[t])
            if needs[1]:
                sums.add("weight", torch.mul(hbar, carried, out=spike))
            if needs[2]:
                sums.add("bias", hbar)
            nbar = torch.mul(hbar, gain, out=charge).add_(ybar, alpha=neuron.share)
            if beyond is not None:
                eq.clamp_input_vjp(nbar, carried, neuron, out=nbar)
            _bring(nbar, zbar_seq[t])
            sums.add("gradient", nbar)
            sums.add("slope", carried.mul_(nbar))
            vbar = hbar.mul_(neuron.keep)
            hbar, other = other, hbar
        del hbar, other
        _through_the_norm(zbar_seq, y_seq, sums, inverse_std, (beyond, excess), neuron)
        # Sums of charge gradients and of what is carried: the input is that times gain, the value that over epsilon.
        to_weight, to_bias = neuron.input_gain / neuron.share, neuron.input_gain
        return (
            zbar_seq if needs[0] else None,
            (sums.totals["weight"] * to_weight).to(weight.dtype) if needs[1] else None,
            (sums.totals["bias"] * to_bias).to(bias.dtype) if needs[2] else None,
            residual_bar,
            vbar if needs[4] else None,
            None,
        )


def _bring(values: Tensor, target: Tensor) -> None:
    """Writes values that were computed beside their target, as in half precision."""
    if values.dtype != target.dtype:
        target.copy_(values)


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

    def mean(self, name: str) -> Tensor:
        """The sum so far over the number of values per channel, `[C]`."""
        return self.totals[name] / self.count


def _cut(n_seq: Tensor, clamp: float) -> tuple[Tensor | None, Tensor | None]:
    """Clamps in place; where values lay at the clamp or beyond, `[k, dims]`, and by how much, `[k]`, or None."""
    low, high = n_seq.aminmax()
    if bool((low > -clamp) & (high < clamp)):
        return None, None
    beyond = ((n_seq >= clamp) | (n_seq <= -clamp)).nonzero()
    cut = n_seq[tuple(beyond.T)]
    n_seq.clamp_(-clamp, clamp)
    return beyond, cut - cut.clamp(-clamp, clamp)


def _regenerate_charges(
    y_seq: Tensor, v: Tensor | None, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None,
    charge_seq: Tensor, neuron: CarrierParameters,
) -> None:  # fmt: skip
    """Runs the neuron forward on decoded inputs and decoded spikes, and writes its charges above rest."""
    gain, dtype = neuron.input_gain / neuron.share, eq.state_dtype(y_seq.dtype)
    scale = gain if weight is None else per_channel(weight * gain, y_seq, dtype)
    shift = None if bias is None else per_channel(bias * neuron.input_gain, y_seq, dtype)
    before = None if v is None else v - neuron.rest
    spike, membrane = (torch.empty_like(y_seq[0], dtype=dtype) for _ in range(2))
    for t, (y, out) in enumerate(zip(y_seq.unbind(0), charge_seq.unbind(0), strict=True)):
        x = out.to(dtype)  # itself but in half precision
        eq.decode_output(y.to(dtype), out=(spike, x))
        x.mul_(scale)
        if shift is not None:
            x.add_(shift)
        if residual is not None:
            x.add_(residual[t], alpha=neuron.input_gain)
        h, before = eq.recharge(x, before, spike, neuron, out=membrane)
        _bring(h, out)


def _through_the_norm(
    nbar_seq: Tensor, y_seq: Tensor, sums: _ChannelSums, inverse_std: Tensor,
    cut: tuple[Tensor | None, Tensor | None], neuron: CarrierParameters,
) -> None:  # fmt: skip
    """Turns the gradient at the normalised input into that at z, in place."""
    sigma, dtype = inverse_std.to(sums.dtype), eq.state_dtype(y_seq.dtype)
    # One factor 1 / epsilon for the carried value inside the sum, one for that in the product.
    slope = sums.mean("slope") * sigma / neuron.share
    scale, mean, of_carried = (
        per_channel(each, y_seq, dtype) for each in (sigma, sums.mean("gradient") * sigma, slope / neuron.share)
    )
    spike, carried = (torch.empty_like(y_seq[0], dtype=dtype) for _ in range(2))
    for y, out in zip(y_seq.unbind(0), nbar_seq.unbind(0), strict=True):
        with record_function("recompute"):
            eq.decode_output(y.to(dtype), out=(spike, carried))
        zbar = out.to(dtype).mul_(scale).sub_(carried.mul_(of_carried).add_(mean))
        _bring(zbar, out)
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
    Keeps for backward: nothing but its output, as an alias, and C values of 1/sigma; one state more where it started
        from a carried state; its residual where one is given, as an alias; and 8 (dims) + b bytes for each input that
        the clamp cut, at 7.75 standard deviations by default. Transient in backward: O(N) beside the input gradient.
    Exactness: relative gradient error, flat in T: below 1e-5 in float32. Fused: output and gradients to rounding; batch
        statistics are summed in float64, and do not depend on the number of threads.
    """

    def torch_sequence(  # type: ignore[override]
        self, x_seq: Tensor, v: Tensor | None, residual: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `NormCarrierNode.torch_sequence`."""
        # What is kept depends on the values where the clamp bit: no compiler knows it, and no tensor without values.
        if not self.training or torch.compiler.is_compiling() or x_seq.is_meta:
            return super().torch_sequence(x_seq, v, residual)
        return _DecodeNormAndMultiply.apply(x_seq, self.weight, self.bias, residual, v, self)  # type: ignore[no-any-return]

    def fused_sequence(self, x_seq: Tensor, v: Tensor | None, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See `SpikingNode.fused_sequence`; in `eval()` the neuron alone is fused."""
        if not self.training:
            return super().torch_sequence(x_seq, v, residual, fused_lif)
        return FusedNormCarrier.apply(x_seq, self.weight, self.bias, residual, v, self)  # type: ignore[no-any-return]

    def fused_obstacle(self, x_seq: Tensor) -> str:
        """See `SpikingNode.fused_obstacle`."""
        if torch.compiler.is_compiling():
            return "inside torch.compile, which does not know what NormCarrierLIF keeps where its clamp bites"
        return "NormCarrierLIF has a fused kernel for the CPU alone" if x_seq.device.type == "cuda" else ""
