"""What the coupled nodes share, and the one that stores: plain autograd through the coupled steps.

Equations: section "Coupled LIF" of nodes/README.md.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from revsnn_nodes.base import SpikingNode, StepMode
from revsnn_nodes.coupling import Parts, coupled_step, initial_membrane, join, split
from revsnn_nodes.kernels.selection import DEFAULT_BACKEND, Backend
from revsnn_nodes.parameters import CoupledParameters, ResetGate, require


class CoupledNode(SpikingNode[CoupledParameters]):
    """What the coupled nodes share: parameters and constructor.

    The output is real-valued: spikes plus `beta` times the partner group's input.

    Args: see `CoupledParameters` and `SpikingNode`.
    """

    fused_cpu_dtypes = (torch.float32, torch.float64, torch.bfloat16)
    reset_gate_choice = False

    def __init__(
        self,
        tau: float = 2.0,
        decay_input: bool = True,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: Callable[[Tensor], Tensor] | None = None,
        detach_reset: bool = False,
        step_mode: StepMode = "m",
        groups: int = 2,
        group_dim: int = -1,
        alpha: float = 0.5,
        beta: float = 1.0,
        reset_gate: ResetGate = "output",
        backend: Backend = DEFAULT_BACKEND,
    ) -> None:
        neuron = CoupledParameters(
            tau, decay_input, v_threshold, v_reset, detach_reset, groups, group_dim, alpha, beta, reset_gate
        )
        super().__init__(neuron, surrogate_function, step_mode, backend)

    def check_neuron(self, neuron: CoupledParameters) -> None:
        """See `SpikingNode.check_neuron`: a node that inverts its membrane has no other gate than the output."""
        require(
            self.reset_gate_choice or neuron.reset_gate == "output",
            "reset_gate",
            f'be "output" for {type(self).__name__}',
            neuron.reset_gate,
            "It inverts the reset from its output alone.",
            "Use AnchoredReversibleLIF, which never inverts the membrane.",
        )

    def spikes(self, x_seq: Tensor, y_seq: Tensor) -> Tensor:
        """The spikes in an output, given its input; both, and the result, `[T, N, *]`."""
        dim = self.neuron.group_dim + 1 if self.neuron.group_dim > 0 else self.neuron.group_dim
        first, *others = x_seq.chunk(self.neuron.groups, dim)
        carried = torch.cat([*others, first], dim)
        return (y_seq - self.neuron.beta * carried > 0.5).to(y_seq.dtype)

    def reference(self) -> SpikingNode[CoupledParameters]:
        """A `StoredCoupledLIF` with these parameters."""
        return self.fresh(StoredCoupledLIF)


def coupled_sequence(
    x_seq: Tensor, v: Tensor | None, neuron: CoupledParameters, fire: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """T steps under autograd: output `[T, N, *]` and the last membrane `[N, *]`."""
    steps = x_seq.unbind(0)
    membranes: Parts = split(initial_membrane(steps[0], v, neuron), neuron)
    outputs = []
    for x in steps:
        y, membranes, _ = coupled_step(split(x, neuron), membranes, neuron, fire)
        outputs.append(join(y, neuron))
    return torch.stack(outputs), join(membranes, neuron)


class StoredCoupledLIF(CoupledNode):
    """The coupled dynamics by plain autograd through time: the control for the three reversible nodes.

    The output is real-valued: spikes plus `beta` times the partner group's input.

    Args: see `CoupledParameters` and `SpikingNode`.
    Keeps for backward: every intermediate of every step, O(T).
    Exactness: its output equals that of the reversible nodes bit for bit; its gradient is autograd's.
    """

    reset_gate_choice = True

    def multi_step_forward(self, x_seq: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `SpikingNode.multi_step_forward`."""
        return coupled_sequence(x_seq, v, self.neuron, self.surrogate_function)
