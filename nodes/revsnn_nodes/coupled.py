"""The coupled (reversible) nodes: what they share, the four ways to the gradient, and the warning of drift.

Equations: section "Coupled LIF" of nodes/README.md; our reconstruction of Lei et al., arXiv 2308.08649.

    StoredCoupledLIF        plain autograd through time, the control
    ReversibleLIF           inverts the membrane in time; applies the closed-form product to what the inverse gives
    RevNetLIF               inverts too, then runs each step again under autograd (Gomez et al. 2017, arXiv 1707.04585)
    AnchoredReversibleLIF   regenerates the membrane forward in time, from anchors

A leaky membrane contracts forward. So its inverse expands errors, of which these nodes warn, and regeneration
contracts them: it is accurate at every T.
"""

import warnings
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.profiler import record_function

from revsnn_nodes import equations as eq
from revsnn_nodes.base import SpikingNode, StepMode, with_arguments_of
from revsnn_nodes.equations import Parts
from revsnn_nodes.kernels.autograd import FusedAnchored, FusedInverse, Gradients, Saved, first_derivative_only
from revsnn_nodes.kernels.support import Backend
from revsnn_nodes.parameters import CoupledParameters, ResetGate, is_number, require, require_word
from revsnn_nodes.surrogate import SurrogateFunction, heaviside

OnDrift = Literal["warn", "error", "ignore"]

GATE = 0.55
"""Effective opening of the reset's gate for a drive scaled by 1/tau."""

GATE_UNDECAYED = 0.67
"""The same where `decay_input=False`: the drive is tau times stronger, and gates are open more often."""


class DriftWarning(UserWarning):
    """The gradient of a node that inverts its membrane is typically wrong at this T."""


class DriftError(RuntimeError):
    """The same, where the node was told to raise."""


def predicted_gradient_error(timesteps: int, neuron: CoupledParameters, dtype: torch.dtype) -> float:
    """The relative L2 error of the input gradient that inverting `timesteps` steps typically has; no bound. At most 1.

    An error in V grows by 1 / ((1 - alpha g)(1 - 1/tau)) with every step back, g in [0, 1] being how far the reset's
    gate is open. Averaged over neurons this is (1 - alpha)^-gate / (1 - 1/tau), with an exponent `gate` near the mean
    of g. The constants, and the powers of tau, were fitted to the measured error over T, tau, alpha and dtype at input
    N(0.3, 1); tests/nodes/test_coupled.py measures it again.

    Args:
        timesteps: T of one call.
        neuron: parameters of a coupled node, its `node.neuron`: tau, alpha, soft or hard reset, and `decay_input`
            decide the growth.
        dtype: rounding, 2^-24 in float32, starts it.
    Raises:
        ValueError: something else than those parameters, such as the node.
    Exactness: the typical error of a layer of thousands of neurons with inputs around N(0.3, 1) in units of the
        threshold: measured errors are below it there. A spike that is decoded wrongly costs more than all rounding, and
        a larger layer is likelier to hold one: at up to 2^20 neurons and inputs of mean 1 or deviation 3, errors up to
        60 times the prediction were measured at T = 6, and 11 times from T = 8 on. Measure yours, with
        `ReversibleLIF.invert` or the benchmark.
    """
    require(
        isinstance(neuron, CoupledParameters), "neuron", "be the parameters of a coupled node", type(neuron).__name__,
        "They decide how an error grows.", "Pass `node.neuron`, or call `node.predicted_error(timesteps, dtype)`.",
    )  # fmt: skip
    gate = GATE if neuron.decay_input else GATE_UNDECAYED
    reset_growth = 1.0 if neuron.v_reset is None else (1.0 - neuron.alpha) ** -gate
    # The error of the first inverted step, in units of rounding: it grows with the share of the drive in the charge.
    onset = neuron.tau**-1.5 if neuron.decay_input else neuron.tau
    rounding = torch.finfo(dtype).eps / 2
    try:
        growth = (reset_growth / neuron.keep) ** timesteps
    except OverflowError:
        return 1.0
    return min(1.0, rounding * (1.0 + onset * growth))


class CoupledNode(SpikingNode[CoupledParameters]):
    """What the coupled nodes share: parameters and constructor; see `CoupledParameters` and `SpikingNode`."""

    fused_cpu_dtypes = (torch.float32, torch.float64, torch.bfloat16)
    reset_gate_choice = False

    def __init__(
        self, tau: float = 2.0, decay_input: bool = True, v_threshold: float = 1.0, v_reset: float | None = 0.0,
        surrogate_function: Callable[[Tensor], Tensor] | None = None, detach_reset: bool = False,
        step_mode: StepMode = "s", backend: Backend = "auto", store_v_seq: bool = False, *, groups: int = 2,
        group_dim: int = 1, alpha: float = 0.5, beta: float = 1.0, reset_gate: ResetGate = "output",
    ) -> None:  # fmt: skip
        neuron = CoupledParameters(
            tau, decay_input, v_threshold, v_reset, detach_reset, groups, group_dim, alpha, beta, reset_gate
        )
        super().__init__(neuron, surrogate_function, step_mode, backend, store_v_seq)

    def check_neuron(self, neuron: CoupledParameters) -> None:
        """See `SpikingNode.check_neuron`: a node that inverts its membrane has no other gate than the output."""
        require(
            self.reset_gate_choice or neuron.reset_gate == "output", "reset_gate",
            f'be "output" for {type(self).__name__}', neuron.reset_gate,
            "It inverts the reset from its output alone.",
            "Use AnchoredReversibleLIF, which never inverts the membrane.",
        )  # fmt: skip

    def torch_sequence(self, x_seq: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """Runs T steps under plain autograd; see `SpikingNode.torch_sequence`."""
        neuron, steps = self.neuron, x_seq.unbind(0)
        membranes: Parts = eq.split(eq.initial_membrane(steps[0], v, neuron), neuron)
        outputs = []
        for x in steps:
            y, membranes, _ = eq.coupled_step(eq.split(x, neuron), membranes, neuron, self.surrogate_function)
            outputs.append(eq.join(y, neuron))
        return torch.stack(outputs), eq.join(membranes, neuron)

    def spikes(self, x_seq: Tensor, y_seq: Tensor) -> Tensor:
        """The spikes in an output, given its input; both, and the result, `[T, N, *]`."""
        dim = self.neuron.group_dim + 1 if self.neuron.group_dim > 0 else self.neuron.group_dim
        first, *others = x_seq.chunk(self.neuron.groups, dim)
        carried = torch.cat([*others, first], dim)
        return (y_seq - self.neuron.beta * carried > 0.5).to(y_seq.dtype)

    def reference(self) -> SpikingNode[CoupledParameters]:
        """A `StoredCoupledLIF` with these parameters."""
        return self.fresh(StoredCoupledLIF)


class StoredCoupledLIF(CoupledNode):
    """The coupled dynamics by plain autograd through time: the control for the three reversible nodes.

    The output is real-valued: spikes plus `beta` times the partner group's input.

    Args: see `CoupledParameters` and `SpikingNode`.
    Keeps for backward: every intermediate of every step, O(T).
    Exactness: its output equals that of the reversible nodes bit for bit; its gradient is autograd's.
    """

    reset_gate_choice = True


def _run_forward(
    x_seq: Tensor, v: Tensor | None, neuron: CoupledParameters, every: int
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """T steps without a graph: output, last membrane, and the membranes before steps `every`, 2 `every` and so on."""
    y_seq = torch.empty_like(x_seq)
    membranes: Parts = eq.split(eq.initial_membrane(x_seq[0], v, neuron), neuron)
    anchors = []
    for t, (x, out) in enumerate(zip(x_seq.unbind(0), y_seq.unbind(0), strict=True)):
        if t and t % every == 0:
            anchors.append(eq.join(membranes, neuron))
        y, membranes, _ = eq.coupled_step(eq.split(x, neuron), membranes, neuron, heaviside)
        _write(out, y, neuron)
    return y_seq, eq.join(membranes, neuron), anchors


def _write(out: Tensor, parts: Parts, neuron: CoupledParameters) -> None:
    """Writes n parts into one step of a sequence."""
    for target, part in zip(eq.split(out, neuron), parts, strict=True):
        target.copy_(part)


class _Inverting(torch.autograd.Function):
    """The forward of the nodes that invert: keeps the output (an alias) and the last membrane."""

    @staticmethod
    def forward(
        x_seq: Tensor, v: Tensor | None, neuron: CoupledParameters, surrogate: SurrogateFunction
    ) -> tuple[Tensor, Tensor]:
        """Output and the last membrane."""
        y_seq, v_last, _ = _run_forward(x_seq, v, neuron, x_seq.shape[0])
        return y_seq, v_last

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """Keeps the output and the last membrane."""
        _, _, ctx.neuron, surrogate = inputs
        ctx.surrogate = surrogate.as_now()
        ctx.save_for_backward(*output)
        ctx.set_materialize_grads(False)


def _backward_in_time(
    ctx: Any, saved: Saved, ybar_seq: Tensor | None, vbar_last: Tensor | None,
    step_vjp: Callable[..., tuple[Parts, Parts]],
) -> Gradients:  # fmt: skip
    """Gradients of the input and of the first membrane: inverts step by step, and differentiates what was found.

    `step_vjp` gives those of the input and of the membrane before a step: see `_multiply`, `_rerun`.
    """
    y_seq, v_last = saved
    neuron = ctx.neuron
    ybar_seq = eq.arriving(ybar_seq, y_seq)
    xbar_seq, dtype = torch.empty_like(y_seq), v_last.dtype
    v: Parts = eq.split(v_last, neuron)
    vbar: Parts = eq.split(eq.arriving(vbar_last, v_last), neuron)
    del v_last
    for t in range(y_seq.shape[0] - 1, -1, -1):
        y = eq.split(y_seq[t].to(dtype), neuron)
        with record_function("recompute"):
            _, v, charges = eq.invert_membranes(y, v, neuron)
        xbar, vbar = step_vjp(y, v, charges, eq.split(ybar_seq[t], neuron), vbar, ctx)
        _write(xbar_seq[t], xbar, neuron)
    return xbar_seq, eq.join(vbar, neuron) if ctx.needs_input_grad[1] else None, None, None


def _multiply(y: Parts, v: Parts, charges: Parts, ybar: Parts, vbar: Parts, ctx: Any) -> tuple[Parts, Parts]:
    ybar = [part.to(vbar[0].dtype) for part in ybar]
    return eq.coupled_step_vjp(y, charges, ybar, vbar, ctx.neuron, ctx.surrogate.derivative)


def _rerun(y: Parts, v: Parts, charges: Parts, ybar: Parts, vbar: Parts, ctx: Any) -> tuple[Parts, Parts]:
    groups, dtype = ctx.neuron.groups, ybar[0].dtype

    def step(*before: Tensor) -> tuple[Tensor, ...]:
        """Outputs and membranes of a step, from its inputs and the membranes before it."""
        outputs, membranes, _ = eq.coupled_step(before[:groups], before[groups:], ctx.neuron, ctx.surrogate)
        return *outputs, *membranes

    with record_function("recompute"):
        x = [part.to(dtype) for part in eq.recover_inputs(y, charges, ctx.neuron)]
    if torch.compiler.is_compiling():  # it takes no autograd.grad here, and foreign surrogates no vjp
        grads = torch.func.vjp(step, *x, *v)[1]((*ybar, *vbar))
        return grads[:groups], grads[groups:]
    with record_function("recompute"), torch.enable_grad():
        leaves = [part.detach().requires_grad_() for part in (*x, *v)]
        after = step(*leaves)
    grads = torch.autograd.grad(after, leaves, (*ybar, *vbar))
    return grads[:groups], grads[groups:]


class _InvertAndMultiply(_Inverting):
    """The inverse gradient: each step is inverted, and its product is a closed form."""

    generate_vmap_rule = True

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, saved: Saved, ybar_seq: Tensor | None, vbar_last: Tensor | None) -> Gradients:
        """Gradients of the input and of the first membrane."""
        return _backward_in_time(ctx, saved, ybar_seq, vbar_last, _multiply)


class _InvertAndRerun(_Inverting):
    """Classic reversible backprop: each step is inverted, run again under autograd, and differentiated."""

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, saved: Saved, ybar_seq: Tensor | None, vbar_last: Tensor | None) -> Gradients:
        """Gradients of the input and of the first membrane."""
        return _backward_in_time(ctx, saved, ybar_seq, vbar_last, _rerun)


class InvertingNode(CoupledNode):
    """What the two nodes that invert the membrane share: the warning of drift, and the inverse itself.

    In half precision too the inverse starts from a float32 membrane, but no exactness follows from it: the first
    group's input comes back with the rounding of the output that carries it, and the inverse expands that. In bfloat16
    at tau = 2, alpha = 0.5 the gradient is wrong by 3e-3 at T = 4 and by 3e-2 at 8.

    Args:
        on_drift: what to do where the predicted gradient error exceeds the tolerance: "warn" (once per node),
            "error" or "ignore".
        drift_tolerance: largest typical relative gradient error that passes silently.
        Others: see `CoupledParameters` and `SpikingNode`.
    """

    function: ClassVar[type[_Inverting]]
    _warned = False

    @with_arguments_of(CoupledNode)
    def __init__(self, *args: Any, on_drift: OnDrift = "warn", drift_tolerance: float = 1e-3, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        why = "It says what to do where the inverse is predicted to give a wrong gradient."
        require_word("on_drift", ("warn", "error", "ignore"), on_drift, why, 'Pass "warn".')
        require(
            is_number(drift_tolerance) and 0.0 < drift_tolerance <= 1.0,
            "drift_tolerance", "lie in (0, 1]", drift_tolerance,
            "It is a relative error of the gradient.", "Pass for example 1e-3.",
        )  # fmt: skip
        self.on_drift, self.drift_tolerance = on_drift, drift_tolerance

    def torch_sequence(self, x_seq: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `SpikingNode.torch_sequence`.

        Raises:
            DriftError: the predicted gradient error exceeds the tolerance and `on_drift="error"`.
        """
        if torch.compiler.is_exporting():  # whose program keeps the forward's operations, and no backward pass
            return super().torch_sequence(x_seq, v)
        self._check_drift(x_seq, v)
        return self.function.apply(x_seq, v, self.neuron, self.surrogate_function)  # type: ignore[no-any-return]

    def _check_drift(self, x_seq: Tensor, v: Tensor | None) -> None:
        """Warns once, raises, or stays silent where the typical gradient error exceeds the tolerance.

        Silence is no guarantee: see `predicted_gradient_error` for how far beyond it errors were measured.
        """
        differentiable = x_seq.requires_grad or (v is not None and v.requires_grad)
        silent = self.on_drift == "ignore" or (self._warned and self.on_drift == "warn")
        if silent or not (torch.is_grad_enabled() and differentiable):
            return
        neuron, steps, dtype = self.neuron, x_seq.shape[0], x_seq.dtype
        predicted = predicted_gradient_error(steps, neuron, dtype)
        if predicted <= self.drift_tolerance:
            return
        message = (
            f"{type(self).__name__} inverts its membrane over T = {steps} steps; with tau = {neuron.tau:g}, alpha = "
            f"{neuron.alpha:g} and {str(dtype).removeprefix('torch.')} its gradient is predicted to be wrong by "
            f"{predicted:.0e} (relative), more than `drift_tolerance`, {self.drift_tolerance:g}. The inverse of a "
            "leaky membrane expands rounding errors. Use CarrierLIF or AnchoredReversibleLIF, which are right at every "
            'T, or a smaller T; on_drift="ignore" silences this.'
        )
        if self.on_drift == "error":
            raise DriftError(message)
        self._warned = True
        warnings.warn(message, DriftWarning, stacklevel=2)

    def predicted_error(self, timesteps: int, dtype: torch.dtype) -> float:
        """Relative gradient error that one call of `timesteps` steps typically has; see `predicted_gradient_error`."""
        return predicted_gradient_error(timesteps, self.neuron, dtype)

    @torch.no_grad()
    def invert(self, y_seq: Tensor, v_last: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Runs the inverse in time on an output, as the backward pass does.

        Args:
            y_seq: output of a forward pass, `[T, N, *]`.
            v_last: membrane after its last step; the carried state where None.
        Returns:
            The recovered input and spikes, `[T, N, *]`, and the membrane before the first step, `[N, *]`.
        """
        neuron = self.neuron
        carried = self.v if v_last is None else v_last
        require(
            isinstance(carried, Tensor), "v_last", "be the membrane after the last step of y_seq", carried,
            "The inverse starts there, and no state is carried now.", "Pass it, or call invert() before reset().",
        )  # fmt: skip
        assert isinstance(carried, Tensor)
        v: Parts = eq.split(carried.to(eq.state_dtype(y_seq.dtype)), neuron)
        x_seq, spike_seq = torch.empty_like(y_seq), torch.empty_like(y_seq)
        for t in range(y_seq.shape[0] - 1, -1, -1):
            y = eq.split(y_seq[t].to(v[0].dtype), neuron)
            _, v, charges = eq.invert_membranes(y, v, neuron)
            _write(x_seq[t], eq.recover_inputs(y, charges, neuron), neuron)
            _write(spike_seq[t], [heaviside(charge - neuron.v_threshold) for charge in charges], neuron)
        return x_seq, spike_seq, eq.join(v, neuron)


class ReversibleLIF(InvertingNode):
    """The paper's reversible node: keeps its last membrane, inverts the rest.

    The output is real-valued: spikes plus `beta` times the partner group's input. The inverse expands errors; beyond
    about a dozen steps in float32 its gradient is wrong, and it warns: see `on_drift`. For long sequences use
    `CarrierLIF` or `AnchoredReversibleLIF`.

    Args: see `InvertingNode`.
    Keeps for backward: the last membrane, m N bytes (m: its itemsize), whatever T is; its output as an alias.
    Exactness: relative gradient error in float32 at tau = 2, alpha = 0.5: 1e-7 at T = 4, 6e-6 at 8, 1e-3 at 12.
    Source: our reconstruction of Lei et al., arXiv 2308.08649.
    """

    function = _InvertAndMultiply

    def fused_sequence(self, x_seq: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `SpikingNode.fused_sequence`; raises what `torch_sequence` does."""
        self._check_drift(x_seq, v)
        eq.split(x_seq[0], self.neuron)  # refuses what does not divide into groups
        return FusedInverse.apply(x_seq, v, self.neuron, self.surrogate_function)  # type: ignore[no-any-return]


class RevNetLIF(InvertingNode):
    """The coupled dynamics with classic reversible backprop: what the paper's node is compared with.

    The output is real-valued: spikes plus `beta` times the partner group's input. It inverts as `ReversibleLIF` does
    and has the same limit in T.

    Args: see `InvertingNode`.
    Keeps for backward, and exactness: as `ReversibleLIF`. Transient in backward: the graph of one step.
    """

    function = _InvertAndRerun


class _RegenerateAndMultiply(torch.autograd.Function):
    """Keeps the output (an alias), the state it started from if carried, and one membrane per later segment."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x_seq: Tensor, v: Tensor | None, neuron: CoupledParameters, surrogate: SurrogateFunction, every: int
    ) -> tuple[Tensor, ...]:
        """Output `[T, N, *]`, the last membrane, and the membranes at the starts of later segments, each `[N, *]`."""
        y_seq, v_last, anchors = _run_forward(x_seq, v, neuron, every)
        return y_seq, v_last, *anchors

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keeps the output, the first membrane and the anchors."""
        _, v, ctx.neuron, surrogate, ctx.every = inputs
        ctx.surrogate = surrogate.as_now()
        y_seq, _, *anchors = output
        ctx.mark_non_differentiable(*anchors)
        ctx.save_for_backward(y_seq, v, *anchors)
        ctx.set_materialize_grads(False)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, saved: Saved, ybar_seq: Tensor | None, vbar_last: Tensor | None, *_: None) -> Gradients:
        """Gradients of the input and of the first membrane."""
        y_seq, v, *later = saved
        neuron, phi = ctx.neuron, ctx.surrogate.derivative
        ybar_seq = eq.arriving(ybar_seq, y_seq)
        # The charges of a segment wait in the buffer of the input gradient until the gradient overwrites them.
        xbar_seq = torch.empty_like(y_seq)
        anchors = [v, *later]
        dtype = eq.state_dtype(y_seq.dtype)
        vbar: Parts = eq.split(eq.arriving(vbar_last, y_seq[0], dtype), neuron)
        del v, later
        for start in range((len(anchors) - 1) * ctx.every, -1, -ctx.every):
            steps = range(start, min(start + ctx.every, y_seq.shape[0]))
            with record_function("recompute"):
                _regenerate_charges(y_seq, anchors.pop(), steps, xbar_seq, neuron)
            for t in reversed(steps):
                y, charges, ybar = (eq.split(each[t].to(dtype), neuron) for each in (y_seq, xbar_seq, ybar_seq))
                xbar, vbar = eq.coupled_step_vjp(y, charges, ybar, vbar, neuron, phi)
                _write(xbar_seq[t], xbar, neuron)
        return xbar_seq, eq.join(vbar, neuron) if ctx.needs_input_grad[1] else None, None, None, None


def _regenerate_charges(
    y_seq: Tensor, anchor: Tensor | None, steps: range, charge_seq: Tensor, neuron: CoupledParameters
) -> None:
    """Runs a segment forward from its anchor and the output, and writes its charges."""
    membranes: Parts = eq.split(eq.initial_membrane(y_seq[steps[0]], anchor, neuron), neuron)
    for t in steps:
        membranes, charges = eq.regenerate_step(eq.split(y_seq[t].to(membranes[0].dtype), neuron), membranes, neuron)
        kept = [eq.rounded_charge(charge, neuron, charge_seq.dtype) for charge in charges]
        _write(charge_seq[t], kept, neuron)


class AnchoredReversibleLIF(CoupledNode):
    """The coupled dynamics, with a backward pass that regenerates forward: right at every T.

    The output is real-valued: spikes plus `beta` times the partner group's input.

    Args:
        anchor_every: k, steps per segment; the membrane at the start of every segment but the first is kept. None
            for one segment that spans the whole sequence, which keeps nothing.
        reset_gate: "output" for the dynamics of the other coupled nodes; "spike" for the true hard reset, with which
            alpha = 1 is allowed.
        Others: see `CoupledParameters` and `SpikingNode`.
    Keeps for backward: m N (ceil(T/k) - 1) bytes with m bytes per number of a membrane, 4 for half precision; 0 for
        k >= T; m N more where it started from a carried state; its output as an alias.
        Transient in backward: O(N), since charges wait in the buffer of the input gradient.
    Exactness: relative gradient error of a few 1e-8 in float32 at every T; below 1e-3 in float16 and 8e-3 in bfloat16:
        the first group's input comes with the rounding of the output that carries it.
    """

    reset_gate_choice = True

    @with_arguments_of(CoupledNode)
    def __init__(self, *args: Any, anchor_every: int | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        require(
            anchor_every is None or (isinstance(anchor_every, int) and anchor_every >= 1),
            "anchor_every", "be a whole number of steps, at least 1", anchor_every,
            "It is the length of a segment.", "Leave it out to keep nothing.",
        )  # fmt: skip
        self.anchor_every = anchor_every

    def torch_sequence(self, x_seq: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `SpikingNode.torch_sequence`."""
        if torch.compiler.is_exporting():  # whose program keeps the forward's operations, and no backward pass
            return super().torch_sequence(x_seq, v)
        every = self.anchor_every or x_seq.shape[0]
        y_seq, v_last, *_ = _RegenerateAndMultiply.apply(x_seq, v, self.neuron, self.surrogate_function, every)
        return y_seq, v_last

    def fused_sequence(self, x_seq: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `SpikingNode.fused_sequence`."""
        eq.split(x_seq[0], self.neuron)  # refuses what does not divide into groups
        every = self.anchor_every or x_seq.shape[0]
        return FusedAnchored.apply(x_seq, v, self.neuron, self.surrogate_function, every)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """Parameters and segment length."""
        return f"{super().extra_repr()}, anchor_every={self.anchor_every}"
