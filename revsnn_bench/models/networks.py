"""Spiking networks: a small one for digits, VGG, ResNet, and one for long sequences.

VGG-11, 13, 16 and 19: Simonyan and Zisserman 2015 (arXiv 1409.1556), table 1, A, B, D and E, with batch norm after
every convolution and one linear layer as classifier, as is usual on CIFAR. Pooling takes the average, as in TET
(arXiv 2202.11946): it is linear, so it means the same for spikes and for an output that carries its input.

ResNet-19, and ResNet-20 and 32 for CIFAR: the shortcut is added before the second neuron (tdBN, Zheng et al. 2021,
arXiv 2011.05280); where the size changes it is a 1x1 convolution and a norm. ResNet-19 has TET's 256 features before
the classifier.

The sequence network: causal convolutions over time, so that the last step sees all steps. Of the others the parameters
are as many as published, but for a bias per convolution of VGG, which batch norm makes redundant: `test_models.py`.
"""

import math
from itertools import pairwise

import torch
from revsnn_nodes import StandardLIF
from torch import Tensor, nn

from revsnn_bench.models.blocks import NodeMaker, ReadOut, TimeDistributed, conv_block, linear_block

CLASSES = 10

Shape = tuple[int, int, int]
"""Channels, height and width of an image."""


def _scaled(channels: int, width: float) -> int:
    return max(1, round(channels * width))


def digits_net(make_node: NodeMaker, channels: int, size: int, classes: int) -> nn.Sequential:
    """Two conv-norm-node blocks, average pooling, linear read-out: `[T, B, 1, size, size]`, even, to `[B, classes]`."""
    return nn.Sequential(
        conv_block(1, channels, make_node),
        conv_block(channels, 2 * channels, make_node),
        TimeDistributed(nn.AvgPool2d(2)),
        ReadOut(2 * channels * (size // 2) ** 2, classes),
    )


STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
CHANNELS = (64, 128, 256, 512, 512)


def vgg(
    depth: int, make_node: NodeMaker, shape: Shape = (3, 32, 32), classes: int = CLASSES, width: float = 1.0
) -> nn.Sequential:
    """A VGG network: `[T, B, *shape]` to `[B, classes]`, the mean of the logits over time.

    The five stages are followed by a pooling each. On images below 32 a pooling that would halve a single pixel is left
    out; on larger ones the rest is averaged before the classifier. Pooling opens the block behind it, so that a block
    that recomputes can start from spikes.

    Args:
        depth: 11, 13, 16 or 19, layers with weights in the original; another raises `ValueError`.
        make_node: makes one node layer; a `Strategy` also says what blocks keep.
        width: factor of all numbers of channels.
    """
    if depth not in STAGES:
        raise ValueError(f"`depth` must be one of {sorted(STAGES)}; got {depth}. These are the published networks.")
    channels_in, side = shape[0], min(shape[1:])
    blocks: list[nn.Module] = []
    pool: nn.Module | None = None
    for convolutions, channels in zip(STAGES[depth], CHANNELS, strict=True):
        channels_out = _scaled(channels, width)
        for _ in range(convolutions):
            blocks.append(conv_block(channels_in, channels_out, make_node, pool=pool))
            channels_in, pool = channels_out, None
        if side > 1:
            pool, side = nn.AvgPool2d(2), side // 2
    return nn.Sequential(*blocks, TimeDistributed(nn.AdaptiveAvgPool2d(1)), ReadOut(channels_in, classes))


Stages = tuple[tuple[int, int], ...]
"""Number of residual blocks and of channels, stage by stage; every stage but the first starts with stride 2."""


class Residual(nn.Module):
    """Two convolution blocks and a shortcut, whose sum enters the second node: `[T, B, C, H, W]` in and out."""

    def __init__(self, channels_in: int, channels_out: int, make_node: NodeMaker, stride: int) -> None:
        super().__init__()
        shortcut = None
        if stride != 1 or channels_in != channels_out:
            conv = nn.Conv2d(channels_in, channels_out, kernel_size=1, stride=stride, bias=False)
            shortcut = nn.Sequential(conv, nn.BatchNorm2d(channels_out))
        self.first = conv_block(channels_in, channels_out, make_node, stride=stride)
        self.second = conv_block(channels_out, channels_out, make_node, shortcut=shortcut)

    def forward(self, x_seq: Tensor) -> Tensor:
        """Runs both blocks."""
        y: Tensor = self.second(self.first(x_seq), x_seq)
        return y


def resnet19(
    make_node: NodeMaker, shape: Shape = (3, 32, 32), classes: int = CLASSES, width: float = 1.0
) -> nn.Sequential:
    """ResNet-19: `[T, B, *shape]`, of any size from 4 up, to `[B, classes]`, the mean of the logits over time.

    Two hidden layers of the literature's classifier: 256 features with a node, then the classes.
    """
    body, channels = _body(((3, 128), (3, 256), (2, 512)), make_node, shape[0], width)
    hidden = _scaled(256, width)
    head = (nn.Flatten(2), linear_block(channels, hidden, make_node), ReadOut(hidden, classes))
    return nn.Sequential(*body, *head)


def resnet_cifar(
    depth: int, make_node: NodeMaker, shape: Shape = (3, 32, 32), classes: int = CLASSES, width: float = 1.0
) -> nn.Sequential:
    """A ResNet of 6 n + 2 layers for CIFAR: `[T, B, *shape]` to `[B, classes]`, the mean of the logits over time.

    Another depth raises `ValueError`.
    """
    blocks, left = divmod(depth - 2, 6)
    if left or blocks < 1:
        raise ValueError(
            f"`depth` must be 6 n + 2; got {depth}. Three stages hold n blocks of two convolutions each. Pass 20 or 32."
        )
    body, channels = _body(((blocks, 16), (blocks, 32), (blocks, 64)), make_node, shape[0], width)
    return nn.Sequential(*body, ReadOut(channels, classes))


def _body(stages: Stages, make_node: NodeMaker, channels_in: int, width: float) -> tuple[list[nn.Module], int]:
    """Stem, stages and global average pooling, and the number of channels that they end with."""
    channels = _scaled(stages[0][1], width)
    layers: list[nn.Module] = [conv_block(channels_in, channels, make_node)]
    for stage, (blocks, of_stage) in enumerate(stages):
        for block in range(blocks):
            channels_in, channels = channels, _scaled(of_stage, width)
            stride = 2 if stage and not block else 1
            layers.append(Residual(channels_in, channels, make_node, stride))
    return [*layers, TimeDistributed(nn.AdaptiveAvgPool2d(1))], channels


TAPS = 4
"""Steps that one layer looks at, each `TAPS` times further apart than in the layer before."""

GAIN = 2.0
"""Factor of the usual spread of initial weights: a leaky membrane averages, and would hardly reach its threshold."""


class DelayedLinear(nn.Module):
    """Sum of linear maps of the present and of `TAPS - 1` past steps: `[T, B, features_in]` to `[T, B, features_out]`.

    It reads its input through views and keeps nothing else for backward, so that only the node decides what is kept.
    Taps are `delay` steps apart; one before the first step reads nothing.
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


def sequence_net(timesteps: int, make_node: NodeMaker, features: int, classes: int, width: float) -> nn.Sequential:
    """Classifies a sequence `[T, B, 1]` from its last step, which sees the first: 3 layers for 64 steps, 5 for 1024."""
    neurons = _scaled(features, width)
    depth = max(1, math.ceil(math.log(timesteps, TAPS) - 1e-9))
    layers: list[nn.Module] = []
    for layer, (size_in, size_out) in enumerate(pairwise([1, *[neurons] * depth])):
        layers += [DelayedLinear(size_in, size_out, TAPS**layer), make_node()]
    return nn.Sequential(*layers, LastStep(), ReadOut(neurons, classes))


class Example(nn.Module):
    """Three convolutions with norm and neuron, pooling, a classifier of ten classes: `[T, B, 3, H, W]` to `[B, 10]`."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise((3, 16, 32, 64)):
            layers += [
                TimeDistributed(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)),
                StandardLIF(step_mode="m"),
                TimeDistributed(nn.AvgPool2d(2)),
            ]
        self.layers = nn.Sequential(*layers)
        self.classifier = nn.Linear(64, 10)

    def forward(self, x_seq: Tensor) -> Tensor:
        """Averages the last spikes over time and place, and classifies."""
        y: Tensor = self.classifier(self.layers(x_seq).mean((0, 3, 4)))
        return y


def example() -> Example:
    """A model as a user may have one: `--model revsnn_bench.models.networks:example --input 4,8,3,32,32`."""
    return Example()
