"""A spiking network for long sequences: causal convolutions over time, so that the last step sees all of them."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from revsnn_bench.models.blocks import NodeMaker, ReadOut

TAPS = 4
"""Steps that one layer looks at, each `TAPS` times further apart than in the layer before."""

GAIN = 2.0
"""Factor of the usual spread of initial weights: a leaky membrane averages, and would hardly reach its threshold."""


class DelayedLinear(nn.Module):
    """Sum of linear maps of the present and of `TAPS - 1` past steps: `[T, B, features_in]` to `[T, B, features_out]`.

    It reads its input through views and keeps nothing else for backward, so that only the node decides what is kept.

    Args:
        features_in, features_out: sizes.
        delay: steps between taps; a tap before the first step reads nothing.
    """

    def __init__(self, features_in: int, features_out: int, delay: int) -> None:
        super().__init__()
        self.delay = delay
        spread = GAIN / math.sqrt(TAPS * features_in)
        self.weight = nn.Parameter(torch.randn(TAPS, features_out, features_in) * spread)
        self.bias = nn.Parameter(torch.zeros(features_out))

    def forward(self, x_seq: Tensor) -> Tensor:
        """Applies the taps; step t reads steps t, t - delay, t - 2 delay and so on."""
        steps = x_seq.shape[0]
        y_seq = nn.functional.linear(x_seq, self.weight[0], self.bias)
        for tap in range(1, TAPS):
            past = tap * self.delay
            if past < steps:
                y_seq[past:] += nn.functional.linear(x_seq[: steps - past], self.weight[tap])
        return y_seq


class LastStep(nn.Module):
    """The last step of a sequence, as a sequence of one: `[T, *]` to `[1, *]`."""

    def forward(self, x_seq: Tensor) -> Tensor:
        """Takes it."""
        return x_seq[-1:]


def sequence_net(
    timesteps: int, make_node: NodeMaker, features: int, classes: int = 10, width: float = 1.0
) -> nn.Sequential:
    """Classifies a sequence `[T, B, 1]` from its last step alone: `[B, classes]`.

    As many layers as it takes for the last step to see the first: 3 for 64 steps, 5 for 1024.

    Args:
        timesteps: T.
        make_node: makes one node layer.
        features: neurons per layer.
        classes: number of classes.
        width: factor of the neurons per layer.
    """
    neurons = max(1, round(features * width))
    depth = max(1, math.ceil(math.log(timesteps, TAPS) - 1e-9))
    layers: list[nn.Module] = []
    for layer, (size_in, size_out) in enumerate(pairwise([1, *[neurons] * depth])):
        layers += [DelayedLinear(size_in, size_out, TAPS**layer), make_node()]
    return nn.Sequential(*layers, LastStep(), ReadOut(neurons, classes))
