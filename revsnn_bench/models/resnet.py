"""Spiking ResNet-19, as in the literature on direct training, and ResNet-20 and 32 for CIFAR.

A residual block is convolution, norm, node, convolution, norm, plus shortcut, node: the sum enters the neuron (tdBN,
Zheng et al. 2021, arXiv 2011.05280). Where the size changes, the shortcut is a 1x1 convolution and a norm.

Published counts for CIFAR-10. ResNet-20: 272,474 and ResNet-32: 466,906 (He et al. 2016, arXiv 1512.03385, give 0.27 M
and 0.46 M; the exact numbers, with 1x1 shortcuts, are those of osmr/imgclsmob and others). ResNet-19: 12.63 M (table in
Spikformer, arXiv 2209.15425, for tdBN and TET alike); here 12,697,994 or 0.5 % more, with the 256 features before the
classifier that TET's code has.
"""

from torch import Tensor, nn

from revsnn_bench.models.blocks import NodeMaker, ReadOut, TimeDistributed, conv_block, linear_block

Stages = tuple[tuple[int, int], ...]
"""Number of residual blocks and of channels, stage by stage; every stage but the first starts with stride 2."""

RESNET19: Stages = ((3, 128), (3, 256), (2, 512))
HIDDEN = 256


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
    make_node: NodeMaker, shape: tuple[int, int, int] = (3, 32, 32), classes: int = 10, width: float = 1.0
) -> nn.Sequential:
    """ResNet-19: `[T, B, *shape]` to `[B, classes]`, the mean of the logits over time.

    Two hidden layers of the literature's classifier: 256 features with a node, then the classes.

    Args:
        make_node: makes one node layer; a `Strategy` also says what blocks keep.
        shape: channels, height and width of the input; any size from 4 up, what is left is averaged.
        classes: number of classes.
        width: factor of all numbers of channels.
    """
    body, channels = _body(RESNET19, make_node, shape[0], width)
    hidden = _scaled(HIDDEN, width)
    head = (nn.Flatten(2), linear_block(channels, hidden, make_node), ReadOut(hidden, classes))
    return nn.Sequential(*body, *head)


def resnet_cifar(
    depth: int,
    make_node: NodeMaker,
    shape: tuple[int, int, int] = (3, 32, 32),
    classes: int = 10,
    width: float = 1.0,
) -> nn.Sequential:
    """A ResNet of 6 n + 2 layers for CIFAR: `[T, B, *shape]` to `[B, classes]`, the mean of the logits over time.

    Args:
        depth: 20, 32 or another 6 n + 2.
        make_node, shape, classes, width: see `resnet19`.
    Raises:
        ValueError: a depth that is not 6 n + 2.
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


def _scaled(channels: int, width: float) -> int:
    return max(1, round(channels * width))
