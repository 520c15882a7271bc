"""Trains a small SEW-ResNet of SpikingJelly's layers on scikit-learn's digits, with and without `remat`.

    python examples/remat_digits.py                # accuracy, equality of parameters, both peaks

Needs, in a clone of this repository: pip install ".[cpu,peers]".
"""

import argparse
import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from revsnn_nodes import StandardLIF, remat
from revsnn_nodes.spikingjelly import swap_neurons
from sklearn.datasets import load_digits
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn

from revsnn_bench.meters.allocator import record_timeline

STEPS = 4
Context = Callable[[], AbstractContextManager[Any]]


def spiking() -> nn.Module:
    """A neuron of SpikingJelly."""
    return neuron.LIFNode(surrogate_function=surrogate.ATan())


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Convolution, norm, neuron."""
    return nn.Sequential(layer.Conv2d(inputs, outputs, 3, stride, 1, bias=False), layer.BatchNorm2d(outputs), spiking())


class Block(nn.Module):
    """SEW block: two convolutions, and the sum of spikes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one, self.two = conv(channels, channels), conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Adds the input to the spikes."""
        return self.two(self.one(x)) + x


def network(inputs: int = 1) -> nn.Module:
    """Stem, two stages of two blocks, mean over space, ten classes."""
    stages = [conv(inputs, 16), Block(16), Block(16), conv(16, 32, 2), Block(32), Block(32)]
    net = nn.Sequential(*stages, layer.AdaptiveAvgPool2d(1), layer.Flatten(), layer.Linear(32, 10))
    functional.set_step_mode(net, "m")
    return net


def with_fused_neurons(net: nn.Module) -> nn.Module:
    """A copy with our StandardLIF in place of every LIFNode."""
    net = copy.deepcopy(net)
    swap_neurons(net)
    return net


def reset(net: nn.Module) -> None:
    """Puts all neurons to rest."""
    for module in net.modules():
        if isinstance(module, neuron.LIFNode | StandardLIF):
            module.reset()


def step(net: nn.Module, images: Tensor, labels: Tensor, context: Context, steps: int = STEPS) -> None:
    """One forward in the context, and its backward."""
    net.zero_grad()
    with context():
        y = net(images.expand(steps, *images.shape))
        loss = nn.functional.cross_entropy(y.mean(0) if y.ndim == 3 else y, labels)  # some take the mean themselves
    loss.backward()
    reset(net)


def peak_bytes(net: nn.Module, images: Tensor, labels: Tensor, context: Context, steps: int = STEPS) -> int:
    """Highest bytes alive in a step, parameter gradients included."""
    step(net, images, labels, context, steps)
    net.zero_grad()
    return record_timeline(lambda: step(net, images, labels, context, steps))[1].peak_bytes


def kept_bytes(net: nn.Module, images: Tensor, context: Context, steps: int = STEPS) -> int:
    """Bytes alive between forward and backward."""

    def forward() -> Tensor:
        with context():
            y = net(images.expand(steps, *images.shape))
        reset(net)
        return y

    return record_timeline(forward)[1].live_bytes


def train(net: nn.Module, images: Tensor, labels: Tensor, epochs: int, batch: int, context: Context) -> None:
    """Adam over shuffled batches, the same for every network."""
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    order = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for indices in torch.randperm(len(images), generator=order).split(batch):
            step(net, images[indices], labels[indices], context)
            optimizer.step()


def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images that are classified right, in evaluation mode."""
    with torch.no_grad():
        y = net.eval()(images.expand(STEPS, *images.shape)).mean(0)
    reset(net.train())
    return (y.argmax(1) == labels).float().mean().item()


def compare_training(net: nn.Module, images: Tensor, labels: Tensor, epochs: int, batch: int) -> None:
    """Trains the network with and without `remat`, and prints what differs: the peak."""
    held_out, nets = 300, (with_fused_neurons(net), with_fused_neurons(net))
    for name, each, context in zip(("without", "with"), nets, (nullcontext, remat), strict=True):
        peak = peak_bytes(each, images[:batch], labels[:batch], context)
        each.load_state_dict(with_fused_neurons(net).state_dict())
        train(each, images[held_out:], labels[held_out:], epochs, batch, context)
        right = accuracy(each, images[:held_out], labels[:held_out])
        print(f"{name:>7} remat: peak of a step {peak / 2**20:6.2f} MiB, accuracy {right:.3f}")
    equal = all(map(torch.equal, nets[0].state_dict().values(), nets[1].state_dict().values()))
    print(f"all parameters and buffers equal to the bit: {equal}")
    with remat() as saved:
        nets[1](images[:batch].expand(STEPS, batch, *images.shape[1:]))
    print(saved)


def main() -> None:
    """Reads the command line and runs the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=16, help="side of the images, scaled up from 8")
    options = parser.parse_args()
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    images = nn.functional.interpolate(images, size=options.size)
    labels = torch.tensor(digits.target)
    compare_training(network(), images, labels, options.epochs, options.batch)


if __name__ == "__main__":
    main()
