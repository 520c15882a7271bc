"""The training step of a spiking model on fixed data: what every workload is turned into."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from revsnn_nodes import reset
from revsnn_nodes.plan import is_neuron, neurons_of
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parameter import is_lazy

from revsnn_bench.case import Case
from revsnn_bench.meters.step import TrainingStep, copied
from revsnn_bench.records import NoOracle

INPUT_MEAN, INPUT_STD = 0.3, 1.0


class WorkloadStep(TrainingStep):
    """The training step of a spiking model: neurons carry state, and the output's gradient is fixed noise.

    Args:
        source: leaf input, `[T, B, *]`.
        labels: class of each sample, `[B]`; the output is then the cross-entropy loss.
        around: makes the context that model and loss run in.
    """

    def __init__(
        self,
        model: nn.Module,
        source: Tensor,
        labels: Tensor | None = None,
        around: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        super().__init__(model, source)
        self.labels, self.around = labels, around
        self.upstream: Tensor | None = None
        if labels is None:
            noise = torch.randn(self.gradient_shape(), generator=torch.Generator().manual_seed(1))
            self.upstream = noise.to(source if source.is_floating_point() else source.device)
        self.prepare()

    def run(self, x: Tensor) -> Tensor:
        """Runs the model, and the loss where there are labels."""
        with self.around():
            output = super().run(x)
            return output if self.labels is None else cross_entropy(output, self.labels)

    def output_gradient(self, output: Tensor) -> Tensor:
        """A copy of the fixed gradient; 1 for a loss."""
        return torch.ones_like(output) if self.upstream is None else self.upstream.clone()

    def gradient_shape(self) -> torch.Size:
        """Shape of the output."""
        if is_neuron(self.model):
            return self.source.shape
        with torch.no_grad():
            output: Tensor = copy_to_try(self.model)(self.source)
        return output.shape

    def reset_state(self) -> None:
        """Resets every neuron, see `revsnn_nodes.reset`."""
        reset(self.model)

    def state_tensors(self) -> list[Tensor]:
        """The membranes that the neurons carry to the next call, and what other layers of SpikingJelly carry."""
        carried: list[Any] = [neuron.v for neuron in neurons_of(self.model)]
        for layer in self.model.modules():
            if not is_neuron(layer):
                carried += vars(layer).get("_memories", {}).values()
        return [each for each in carried if isinstance(each, Tensor)]


class StepwiseStep(WorkloadStep):
    """The training step of a `methods.Stepwise` network, which takes the labels; its input is alive before it."""

    def make_input(self) -> Tensor:
        """The source: nothing is written to it, and no gradient leads to it."""
        return self.source

    def run(self, x: Tensor) -> Tensor:
        """The loss, by the model's method."""
        with self.around():
            loss: Tensor = self.model(x, self.labels)
        return loss


def copy_to_try(model: nn.Module) -> nn.Module:
    """A copy that may run before the model is measured, for what a first call makes is the model's first step's.

    The model itself where it cannot be copied, or gets its parameters from its first call.
    """
    if any(map(is_lazy, model.parameters())):
        return model
    try:
        return copied(model)
    except NoOracle:
        return model


def input_noise(case: Case) -> Tensor:
    """A leaf input of a case, `[T, B, *]`, by its seed."""
    generator = torch.Generator().manual_seed(case.seed)
    x = torch.randn(case.timesteps, case.batch, *case.shape, generator=generator) * INPUT_STD + INPUT_MEAN
    return x.to(getattr(torch, case.dtype)).to(case.device).requires_grad_()
