"""Blocks of spiking networks: everything but the node sees the time steps as one large batch."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Self

from revsnn_nodes.plan import neurons_of
from torch import Tensor, nn

NodeMaker = Callable[[], nn.Module]

State = Tensor | float
"""A membrane `[B, *]`; a float at rest."""


def states_of(module: nn.Module) -> list[State]:
    """The membranes that its neurons carry."""
    return [neuron.v for neuron in neurons_of(module)]


def set_states(module: nn.Module, states: Sequence[State]) -> None:
    """Makes its neurons start from these."""
    for neuron, v in zip(neurons_of(module), states, strict=True):
        neuron.v = v


class TimeDistributed(nn.Module):
    """Applies modules that know no time to every step at once: `[T, B, *]` in and out.

    Batch norm inside takes its statistics over time and batch, as in the literature on deep spiking networks.
    """

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.inner = modules[0] if len(modules) == 1 else nn.Sequential(*modules)

    def forward(self, x_seq: Tensor) -> Tensor:
        """See `over_time`."""
        return over_time(x_seq, self.inner)


def over_time(x_seq: Tensor, *functions: Callable[[Tensor], Tensor]) -> Tensor:
    """Applies functions that know no time, one after the other: `[T, B, *]` in and out."""
    y = x_seq.flatten(0, 1)
    for function in functions:
        y = function(y)
    return y.view(*x_seq.shape[:2], *y.shape[1:])


class ConvBlock(nn.Module):
    """Pooling, convolution, norm, shortcut, node: `[T, B, C, H, W]` in and out; keeps what autograd keeps.

    Subclasses compute the same and keep less; their state_dict keys are the same.

    Args:
        pool: what the input passes first; None for nothing.
        shortcut: what the block's second input passes before it is added to the norm's output; None for nothing.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        norm: nn.Module,
        node: nn.Module | None,
        pool: nn.Module | None = None,
        shortcut: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.pool = nn.Identity() if pool is None else pool
        self.conv, self.norm = conv, norm
        self.shortcut = nn.Identity() if shortcut is None else shortcut
        self.node: Any = node

    @classmethod
    def assemble(
        cls, conv: nn.Conv2d, make_node: NodeMaker, pool: nn.Module | None, shortcut: nn.Module | None
    ) -> Self:
        """A block of this kind around a convolution, with a node of `make_node`."""
        return cls(conv, nn.BatchNorm2d(conv.out_channels), make_node(), pool, shortcut)

    def plain(self) -> "ConvBlock":
        """The block that computes the same by plain autograd, with the same modules."""
        return ConvBlock(self.conv, self.norm, self.node, self.pool, self.shortcut).train(self.training)

    def current(self, x_seq: Tensor, skip: Tensor | None = None) -> Tensor:
        """What the node takes: the normalised convolution of `x_seq`, plus the shortcut of `skip`."""
        z_seq = over_time(x_seq, self.pool, self.conv, self.norm)
        return z_seq if skip is None else z_seq + over_time(skip, self.shortcut)

    def forward(self, x_seq: Tensor, skip: Tensor | None = None) -> Tensor:
        """`[T, B, C_in, H, W]` to `[T, B, C_out, H', W']`; `skip` is given to blocks that end a residual branch."""
        y: Tensor = self.node(self.current(x_seq, skip))
        return y


@dataclass(frozen=True)
class Method:
    """How a network with a loss at every step gets its gradient over time; see `models/methods.py`.

    Args:
        of: the loss with its graph, from network, input `[T, B, *]`, labels `[B]`, and the number where there is one.
        exact: whether the gradient is that of backpropagation through time.
        number: what K stands for in the method's name; None where it has none.
    """

    of: Callable[..., Tensor]
    exact: bool
    number: int | None = None

    def loss(self, net: nn.Module, x_seq: Tensor, labels: Tensor) -> Tensor:
        """The loss, whose backward pass gives the gradient."""
        return self.of(net, x_seq, labels, *([] if self.number is None else [self.number]))


@dataclass(frozen=True)
class Strategy:
    """How to build a network: which node, in which kind of block. Calling it makes a node, as any node maker does.

    Args:
        block: what convolutions with a node become.
        around: makes the context that the network's forward runs in.
        method: how a network with a loss at every step gets its gradient over time; None for backpropagation.
        inverts: whether the blocks of a reversible chain are inverted in the backward pass; see `models/reversible.py`.
    """

    make_node: NodeMaker
    block: type[ConvBlock] = ConvBlock
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    method: Method | None = None
    inverts: bool = False

    def __call__(self) -> nn.Module:
        """Makes one node layer."""
        return self.make_node()


def linear_block(features_in: int, features_out: int, make_node: NodeMaker) -> nn.Sequential:
    """Linear, node: `[T, B, features_in]` to `[T, B, features_out]`."""
    return nn.Sequential(TimeDistributed(nn.Linear(features_in, features_out)), make_node())


def conv_block(
    channels_in: int,
    channels_out: int,
    make_node: NodeMaker,
    stride: int = 1,
    pool: nn.Module | None = None,
    shortcut: nn.Module | None = None,
) -> ConvBlock:
    """3x3 convolution, batch norm, node: `[T, B, C, H, W]`, height and width divided by the stride; see `ConvBlock`.

    Where `make_node` is a `Strategy`, it says which kind of block it is.
    """
    conv = nn.Conv2d(channels_in, channels_out, kernel_size=3, stride=stride, padding=1, bias=False)
    kind = make_node.block if isinstance(make_node, Strategy) else ConvBlock
    return kind.assemble(conv, make_node, pool, shortcut)


class ReadOut(nn.Module):
    """Linear classifier on the mean of its features over time: `[T, B, *]` to `[B, classes]`."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, classes)

    def forward(self, x_seq: Tensor) -> Tensor:
        """Averages over time, flattens, classifies."""
        y: Tensor = self.linear(x_seq.mean(0).flatten(1))
        return y
