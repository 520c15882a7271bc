"""Spiking VGG-11, 13, 16 and 19 for small images.

Layers: Simonyan and Zisserman 2015 (arXiv 1409.1556), table 1, A, B, D and E, with batch norm after every convolution
and one linear layer as classifier, as is usual on CIFAR. Pooling takes the average, as in the spiking literature (TET,
arXiv 2202.11946): it is linear, so it means the same for spikes and for an output that carries its input, of which a
maximum would pick the carried part.

Published counts for CIFAR-10 (kuangliu/pytorch-cifar and others): 9,231,114; 9,416,010; 14,728,266; 20,040,522. These
have a bias per convolution, which the batch norm behind it makes redundant; here there is none, so that 2,752; 2,944;
4,224 and 5,504 fewer remain.
"""

from torch import nn

from revsnn_bench.models.blocks import NodeMaker, ReadOut, TimeDistributed, conv_block

STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
CHANNELS = (64, 128, 256, 512, 512)


def vgg(
    depth: int,
    make_node: NodeMaker,
    shape: tuple[int, int, int] = (3, 32, 32),
    classes: int = 10,
    width: float = 1.0,
) -> nn.Sequential:
    """A VGG network: `[T, B, *shape]` to `[B, classes]`, the mean of the logits over time.

    The five stages are followed by a pooling each. On images below 32 a pooling that would halve a single pixel is left
    out; on larger ones the rest is averaged before the classifier. Pooling opens the block behind it, so that a block
    that recomputes can start from spikes.

    Args:
        depth: 11, 13, 16 or 19, layers with weights in the original.
        make_node: makes one node layer; a `Strategy` also says what blocks keep.
        shape: channels, height and width of the input.
        classes: number of classes.
        width: factor of all numbers of channels.
    Raises:
        ValueError: no such depth.
    """
    if depth not in STAGES:
        raise ValueError(f"`depth` must be one of {sorted(STAGES)}; got {depth}. These are the published networks.")
    channels_in, side = shape[0], min(shape[1:])
    blocks: list[nn.Module] = []
    pool: nn.Module | None = None
    for convolutions, channels in zip(STAGES[depth], CHANNELS, strict=True):
        channels_out = max(1, round(channels * width))
        for _ in range(convolutions):
            blocks.append(conv_block(channels_in, channels_out, make_node, pool=pool))
            channels_in, pool = channels_out, None
        if side > 1:
            pool, side = nn.AvgPool2d(2), side // 2
    return nn.Sequential(*blocks, TimeDistributed(nn.AdaptiveAvgPool2d(1)), ReadOut(channels_in, classes))
