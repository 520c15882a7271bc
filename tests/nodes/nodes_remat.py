"""Networks for the tests of `remat`, and one training step with and without it."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from nodes_cases import foreign_import_is_silent
from revsnn_nodes import StandardLIF, remat, surrogate
from torch import Tensor, nn

STEPS, BATCH = 3, 2


class PerStep(nn.Sequential):
    """Layers without time, over `[T, N, *]`."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def conv_norm(inputs: int, outputs: int) -> PerStep:
    """Convolution and batch norm."""
    return PerStep(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    """A SEW block, or one of the spiking ResNet, which adds in place before the second neuron."""

    def __init__(self, channels: int, sew: bool = True, backend: str = "auto") -> None:
        super().__init__()
        self.sew = sew
        self.one, self.two = conv_norm(channels, channels), conv_norm(channels, channels)
        self.sn1, self.sn2 = (StandardLIF(step_mode="m", backend=backend) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.two(self.sn1(self.one(x)))
        if self.sew:
            return self.sn2(y) + x
        y += x
        return self.sn2(y)


def residual_net(blocks: int = 2, channels: int = 4, sew: bool = True, backend: str = "auto") -> nn.Sequential:
    """Stem and residual blocks."""
    stem = (conv_norm(2, channels), StandardLIF(step_mode="m", backend=backend))
    return nn.Sequential(*stem, *(Residual(channels, sew, backend) for _ in range(blocks)))


def vgg(backend: str = "auto") -> nn.Sequential:
    """Convolution, norm, neuron, max pooling, twice; then a linear layer and a neuron."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((2, 4), (4, 8)):
        layers += [conv_norm(inputs, outputs), StandardLIF(step_mode="m", backend=backend), PerStep(nn.MaxPool2d(2))]
    return nn.Sequential(
        *layers, nn.Flatten(2), nn.Linear(8 * 4, 6, bias=False), StandardLIF(step_mode="m", backend=backend)
    )


NETWORKS: dict[str, Callable[..., nn.Sequential]] = {
    "sew": residual_net,
    "resnet": lambda backend="auto": residual_net(sew=False, backend=backend),
    "vgg": vgg,
}


def image_sequence(size: int = 8, seed: int = 0) -> Tensor:
    """Input `[T, N, 2, size, size]`."""
    return torch.randn(STEPS, BATCH, 2, size, size, generator=torch.Generator().manual_seed(seed))


def reset(net: nn.Module) -> None:
    """Puts every neuron to rest."""
    for module in net.modules():
        if isinstance(module, StandardLIF) or hasattr(module, "reset"):
            module.reset()


@dataclass
class Step:
    """What a training step gave: output, gradients of parameters, buffers, the context's handle."""

    y: Tensor
    gradients: dict[str, Tensor | None]
    buffers: dict[str, Tensor]
    saved: Any

    def assert_equals(self, other: "Step") -> None:
        assert torch.equal(self.y, other.y)
        assert_equal(self.gradients, other.gradients)
        assert_equal(self.buffers, other.buffers)


def assert_equal(ours: dict[str, Tensor | None], theirs: dict[str, Tensor | None]) -> None:
    """Tensors of the same names are equal to the bit."""
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        other = theirs[name]
        assert (tensor is None) == (other is None), name
        assert tensor is None or torch.equal(tensor, other), name


def train_step(net: nn.Module, x: Tensor, context: AbstractContextManager[Any] | None = None) -> Step:
    """Forward in a context, backward outside of it; the network starts from rest, without gradients."""
    reset(net)
    net.zero_grad()
    torch.manual_seed(1)
    with context or nullcontext() as saved:
        y = net(x)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).to(y.dtype)
    (y * weights).sum().backward()
    reset(net)
    gradients = {name: p.grad for name, p in net.named_parameters()}
    return Step(y.detach(), gradients, dict(net.named_buffers()), saved)


def assert_same_step(net: nn.Module, x: Tensor, **options: Any) -> Any:
    """A step with `remat` and one without give equal bits; returns the handle."""
    twin = copy.deepcopy(net)
    expected = train_step(twin, x)
    got = train_step(net, x, remat(**options))
    got.assert_equals(expected)
    return got.saved


def with_our_neurons(net: nn.Module) -> nn.Module:
    """Puts a StandardLIF in the place of every LIFNode of SpikingJelly, with its parameters."""
    neuron, _ = foreign_import_is_silent()
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, neuron.LIFNode):
                same = {key: getattr(child, key) for key in ("decay_input", "v_threshold", "v_reset", "detach_reset")}
                theirs = child.surrogate_function
                spike = getattr(surrogate, type(theirs).__name__)(theirs.alpha)
                setattr(module, name, StandardLIF(float(child.tau), surrogate_function=spike, step_mode="m", **same))
    return net
