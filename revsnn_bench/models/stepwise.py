"""Networks with a loss at every step, which run some steps at a time, and the training step of one on data.

The methods of `models/methods.py` say how such a network gets its gradient. Each of them is made of `Stepwise.steps`.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, is_grad_enabled, nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm

from revsnn_bench.models.blocks import Method, NodeMaker, State, Strategy, TimeDistributed, set_states, states_of
from revsnn_bench.models.step import WorkloadStep

HIDDEN = 256

GAIN = 4.0
"""Spread of a hidden layer's initial weights, times the root of its inputs: spikes are few, and a membrane leaks."""


class Stepwise(nn.Module):
    """A network in which nothing but its neurons knows time, trained on the mean of one loss per step:

        L = (1 / T) sum_t CE(o[t], y)

    which is TET (Deng et al. 2022, arXiv 2202.11946) without its second term.

    Args:
        net: `[t, B, *]` to logits `[t, B, classes]`, for any number of steps t, from the membranes that it carries.
        method: how it gets its gradient; None for backpropagation through time.
    Raises:
        ValueError: a batch norm, whose statistics span all steps that it sees at once.
    """

    def __init__(self, net: nn.Module, method: Method | None = None) -> None:
        super().__init__()
        if any(isinstance(module, _BatchNorm) for module in net.modules()):
            raise ValueError(
                "`net` must have no batch norm; got one. Its statistics span all T steps at once, and a method that "
                "runs some steps at a time would take others. Leave it out, or standardise the weights."
            )
        self.net, self.method = net, method

    def plain(self) -> "Stepwise":
        """The same network by backpropagation through time, with the same modules."""
        return Stepwise(self.net).train(self.training)

    def steps(self, x_seq: Tensor, labels: Tensor, of: int, *states: State) -> tuple[Any, ...]:
        """Runs some steps from given membranes.

        Args:
            x_seq: their inputs, `[t, B, *]`.
        Returns:
            The share of these steps in the loss, and the membranes after them.
        """
        set_states(self.net, states)
        logits = self.net(x_seq).flatten(0, 1)
        loss = cross_entropy(logits, labels.repeat(len(x_seq)), reduction="sum") / (of * len(labels))
        return loss, *states_of(self.net)

    def forward(self, x_seq: Tensor, labels: Tensor | None = None) -> Tensor:
        """The loss of `[T, B, *]`, from the membranes carried; without labels the mean logits `[B, classes]`."""
        if labels is None:
            y: Tensor = self.net(x_seq).mean(0)
            return y
        if self.method is not None and is_grad_enabled():
            return self.method.loss(self, x_seq, labels)
        loss: Tensor = self.steps(x_seq, labels, len(x_seq), *states_of(self.net))[0]
        return loss


class StepwiseStep(WorkloadStep):
    """The training step of a `Stepwise` network on data: its input takes no gradient, and is alive before the step.

    Args: see `WorkloadStep`; the model takes the labels.
    """

    def __init__(
        self,
        model: nn.Module,
        source: Tensor,
        labels: Tensor,
        around: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        super().__init__(model, source.detach(), labels, around)

    def make_input(self) -> Tensor:
        """The source: nothing is written to it, and no gradient leads to it."""
        return self.source

    def run(self, x: Tensor) -> Tensor:
        """The loss, by the model's method."""
        with self.around():
            loss: Tensor = self.model(x, self.labels)
        return loss


def mlp(make_node: NodeMaker, features: int, depth: int, classes: int, width: float = 1.0) -> Stepwise:
    """Hidden layers of weights and neurons and a linear read-out at every step: `[T, B, *]`.

    Hidden layers have no bias, so that each weight is one of the equations of `models/methods.py`.

    Args:
        make_node: makes one node layer; a `Strategy` also says how the gradient is got.
        width: factor of the `HIDDEN` neurons per layer.
    """
    layers: list[nn.Module] = [nn.Flatten(2)]
    hidden = max(1, round(HIDDEN * width))
    for _ in range(depth):
        linear = nn.Linear(features, hidden, bias=False)
        nn.init.normal_(linear.weight, std=GAIN / math.sqrt(features))
        layers += [TimeDistributed(linear), make_node()]
        features = hidden
    method = make_node.method if isinstance(make_node, Strategy) else None
    return Stepwise(nn.Sequential(*layers, TimeDistributed(nn.Linear(features, classes))), method)
