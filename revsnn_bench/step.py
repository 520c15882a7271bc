"""One training step, cut where the meters look: the only thing that meters know of a workload."""

from typing import Protocol

from torch import Tensor, nn


class TrainingStep(Protocol):
    """Forward and backward of one case, on fixed data, repeatable any number of times.

    The input is a non-leaf that `forward` makes and drops before it returns, so that a model that keeps its
    input alive is charged for it. Gradients arrive in `source.grad` and in the parameters.
    """

    model: nn.Module
    source: Tensor
    """Leaf that the input is made from; alive before the step, so never charged to it."""

    def prepare(self) -> None:
        """Resets every neuron and clears every gradient: the state in which a step begins."""

    def make_input(self) -> Tensor:
        """Returns a fresh non-leaf input with storage of its own, connected to `source`."""

    def forward(self) -> Tensor:
        """Runs the model on a fresh input, drops the input and returns the output."""

    def backward(self, output: Tensor) -> None:
        """Makes the output's gradient and runs backward through the step."""

    def reset_state(self) -> None:
        """Drops the neuron state that is carried between calls, and nothing else."""

    def state_tensors(self) -> list[Tensor]:
        """The neuron state that is carried to the next call."""
