"""ReversibleLIF: the backward pass inverts the membrane in time and applies the closed-form product.

Contrast: `RevNetLIF` inverts too, but re-runs each step under autograd; `AnchoredReversibleLIF` regenerates forward,
which is accurate at every T. Source: our reconstruction of Lei et al., arXiv 2308.08649 (see nodes/README.md).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.profiler import record_function

from revsnn_nodes.coupling import (
    Parts,
    coupled_step,
    coupled_step_vjp,
    initial_membrane,
    invert_membranes,
    join,
    recover_inputs,
    split,
)
from revsnn_nodes.drift import DriftGuard, OnDrift, predicted_gradient_error
from revsnn_nodes.parameters import CoupledParameters, require
from revsnn_nodes.stored_coupled import CoupledNode
from revsnn_nodes.surrogate import SurrogateFunction, heaviside


def run_forward(x_seq: Tensor, v: Tensor | None, neuron: CoupledParameters) -> tuple[Tensor, Tensor]:
    """T steps without a graph: output `[T, N, *]` and the last membrane `[N, *]`, nothing else allocated for long."""
    y_seq = torch.empty_like(x_seq)
    membranes: Parts = split(initial_membrane(x_seq[0], v, neuron), neuron)
    for x, out in zip(x_seq.unbind(0), y_seq.unbind(0), strict=True):
        y, membranes, _ = coupled_step(split(x, neuron), membranes, neuron, heaviside)
        write(out, y, neuron)
    return y_seq, join(membranes, neuron)


def write(out: Tensor, parts: Parts, neuron: CoupledParameters) -> None:
    """Writes n parts into one step of a sequence."""
    for target, part in zip(split(out, neuron), parts, strict=True):
        target.copy_(part)


def arriving(grad: Tensor | None, like: Tensor) -> Tensor:
    """A gradient that arrived, or zeros where none did."""
    return torch.zeros_like(like) if grad is None else grad


class InvertingFunction(torch.autograd.Function):
    """The forward of the nodes that invert: keeps the output (an alias) and the last membrane."""

    @staticmethod
    def forward(
        x_seq: Tensor, v: Tensor | None, neuron: CoupledParameters, surrogate: SurrogateFunction
    ) -> tuple[Tensor, Tensor]:
        """Output and the last membrane."""
        return run_forward(x_seq, v, neuron)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """See the class."""
        _, _, ctx.neuron, ctx.surrogate = inputs
        ctx.save_for_backward(*output)
        ctx.set_materialize_grads(False)


class _InvertAndMultiply(InvertingFunction):
    """Inverts step by step, and multiplies with what the inverse has found."""

    generate_vmap_rule = True

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, ybar_seq: Tensor | None, vbar_last: Tensor | None) -> tuple[Tensor | None, ...]:
        y_seq, v_last = ctx.saved_tensors
        neuron, phi = ctx.neuron, ctx.surrogate.derivative
        ybar_seq = arriving(ybar_seq, y_seq)
        xbar_seq = torch.empty_like(y_seq)
        v: Parts = split(v_last, neuron)
        vbar: Parts = split(arriving(vbar_last, v_last), neuron)
        del v_last
        for t in range(y_seq.shape[0] - 1, -1, -1):
            y = split(y_seq[t], neuron)
            with record_function("recompute"):
                _, v, charges = invert_membranes(y, v, neuron)
            xbar, vbar = coupled_step_vjp(y, charges, split(ybar_seq[t], neuron), vbar, neuron, phi)
            write(xbar_seq[t], xbar, neuron)
        return xbar_seq, join(vbar, neuron) if ctx.needs_input_grad[1] else None, None, None


class InvertingNode(CoupledNode):
    """What the two nodes that invert the membrane share: the drift guard, and the inverse itself.

    Args:
        on_drift: what to do where the predicted gradient error exceeds the tolerance: "warn" (once per node),
            "error" or "ignore".
        drift_tolerance: largest relative gradient error that passes silently.
        Others: see `CoupledParameters` and `SpikingNode`.
    """

    def __init__(
        self,
        *args: Any,
        on_drift: OnDrift = "warn",
        drift_tolerance: float = 1e-3,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.drift_guard = DriftGuard(on_drift, drift_tolerance)

    def multi_step_forward(self, x_seq: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `SpikingNode.multi_step_forward`.

        Raises:
            DriftError: the predicted gradient error exceeds the tolerance and `on_drift="error"`.
        """
        self._check_drift(x_seq, v)
        return self.reversible_sequence(x_seq, v)

    def _check_drift(self, x_seq: Tensor, v: Tensor | None) -> None:
        if torch.is_grad_enabled() and (x_seq.requires_grad or (v is not None and v.requires_grad)):
            self.drift_guard.check(x_seq.shape[0], self.neuron, x_seq.dtype, type(self).__name__)

    def reversible_sequence(self, x_seq: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """T steps through this node's autograd Function."""
        raise NotImplementedError

    def predicted_error(self, timesteps: int, dtype: torch.dtype) -> float:
        """Relative gradient error predicted for one call of `timesteps` steps; see `revsnn_nodes.drift`."""
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
            isinstance(carried, Tensor),
            "v_last",
            "be the membrane after the last step of y_seq",
            carried,
            "The inverse starts there, and no state is carried now.",
            "Pass it, or call invert() before reset().",
        )
        assert isinstance(carried, Tensor)
        v: Parts = split(carried, neuron)
        x_seq, spike_seq = torch.empty_like(y_seq), torch.empty_like(y_seq)
        for t in range(y_seq.shape[0] - 1, -1, -1):
            y = split(y_seq[t], neuron)
            _, v, charges = invert_membranes(y, v, neuron)
            write(x_seq[t], recover_inputs(y, charges, neuron), neuron)
            write(spike_seq[t], [heaviside(charge - neuron.v_threshold) for charge in charges], neuron)
        return x_seq, spike_seq, join(v, neuron)


class ReversibleLIF(InvertingNode):
    """The paper's reversible node: keeps its last membrane, inverts the rest.

    The output is real-valued: spikes plus `beta` times the partner group's input. The inverse expands errors; beyond
    about a dozen steps in float32 its gradient is wrong, and it warns: see `on_drift`. For long sequences use
    `CarrierLIF` or `AnchoredReversibleLIF`.

    Args: see `InvertingNode`.
    Keeps for backward: the last membrane, b N bytes, whatever T is; its output as an alias.
    Exactness: relative gradient error in float32 at tau = 2, alpha = 0.5: 1e-7 at T = 4, 6e-6 at 8, 1e-3 at 12.
    Source: our reconstruction of Lei et al., arXiv 2308.08649.
    """

    def reversible_sequence(self, x_seq: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `InvertingNode.reversible_sequence`."""
        return _InvertAndMultiply.apply(x_seq, v, self.neuron, self.surrogate_function)  # type: ignore[no-any-return]

    def fused_sequence(self, x_seq: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `SpikingNode.fused_sequence`; raises what `multi_step_forward` does."""
        from revsnn_nodes.kernels.functions import FusedInverse

        self._check_drift(x_seq, v)
        split(x_seq[0], self.neuron)  # refuses what does not divide into groups
        return FusedInverse.apply(x_seq, v, self.neuron, self.surrogate_function)  # type: ignore[no-any-return]
