"""Blocks of spiking networks: everything but the node sees the time steps as one large batch."""

from collections.abc import Callable

from torch import Tensor, nn

NodeMaker = Callable[[], nn.Module]


class TimeDistributed(nn.Module):
    """Applies modules that know no time to every step at once: `[T, B, *]` in and out.

    Batch norm inside takes its statistics over time and batch, as in the literature on deep spiking networks.
    """

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.inner = modules[0] if len(modules) == 1 else nn.Sequential(*modules)

    def forward(self, x_seq: Tensor) -> Tensor:
        """Folds time into the batch, applies the modules, unfolds."""
        steps, batch = x_seq.shape[:2]
        y: Tensor = self.inner(x_seq.flatten(0, 1))
        return y.view(steps, batch, *y.shape[1:])


def linear_block(features_in: int, features_out: int, make_node: NodeMaker) -> nn.Sequential:
    """Linear, node: `[T, B, features_in]` to `[T, B, features_out]`."""
    return nn.Sequential(TimeDistributed(nn.Linear(features_in, features_out)), make_node())


def conv_block(channels_in: int, channels_out: int, make_node: NodeMaker) -> nn.Sequential:
    """3x3 convolution, batch norm, node: `[T, B, C, H, W]`, height and width kept."""
    conv = nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1, bias=False)
    return nn.Sequential(TimeDistributed(conv, nn.BatchNorm2d(channels_out)), make_node())


class ReadOut(nn.Module):
    """Linear classifier on the mean of its features over time: `[T, B, *]` to `[B, classes]`."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, classes)

    def forward(self, x_seq: Tensor) -> Tensor:
        """Averages over time, flattens, classifies."""
        y: Tensor = self.linear(x_seq.mean(0).flatten(1))
        return y
