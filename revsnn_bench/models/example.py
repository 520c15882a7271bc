"""A model as a user may have one: `--model revsnn_bench.models.example:make --input 4,8,3,32,32`."""

from itertools import pairwise

from revsnn_nodes import StandardLIF
from torch import Tensor, nn

from revsnn_bench.models.blocks import TimeDistributed


class Example(nn.Module):
    """Three convolutions with norm and neuron, pooling, a classifier of ten classes: `[T, B, 3, H, W]` to `[B, 10]`.

    Args:
        width: channels of the first convolution.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        sizes = (3, width, 2 * width, 4 * width)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [
                TimeDistributed(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)),
                StandardLIF(step_mode="m"),
                TimeDistributed(nn.AvgPool2d(2)),
            ]
        self.layers = nn.Sequential(*layers)
        self.classifier = nn.Linear(sizes[-1], 10)

    def forward(self, x_seq: Tensor) -> Tensor:
        """Averages the last spikes over time and place, and classifies."""
        y: Tensor = self.classifier(self.layers(x_seq).mean((0, 3, 4)))
        return y


def make() -> Example:
    """The model."""
    return Example()
