"""The small convolutional spiking network that the default run trains on digits."""

from torch import nn

from revsnn_bench.models.blocks import NodeMaker, ReadOut, TimeDistributed, conv_block

CLASSES = 10


def digits_net(make_node: NodeMaker, channels: int = 16, size: int = 8, classes: int = CLASSES) -> nn.Sequential:
    """Two conv-norm-node blocks, average pooling, linear read-out: `[T, B, 1, size, size]` to `[B, classes]`.

    Args:
        make_node: makes one node layer.
        channels: of the first block; the second has twice as many.
        size: height and width of the image; even.
        classes: number of classes.
    """
    return nn.Sequential(
        conv_block(1, channels, make_node),
        conv_block(channels, 2 * channels, make_node),
        TimeDistributed(nn.AvgPool2d(2)),
        ReadOut(2 * channels * (size // 2) ** 2, classes),
    )
