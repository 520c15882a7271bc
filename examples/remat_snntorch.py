"""A training step of two networks of snnTorch, a loop over time as its tutorials write it, with and without `remat`.

    python examples/remat_snntorch.py --rounds 9

Nothing is exchanged: neurons are snnTorch's `Leaky` with its default reset. Steps are interleaved; times are medians.
Needs, in a clone of this repository: pip install ".[cpu,peers]".
"""

import argparse
from contextlib import nullcontext
from functools import partial

import snntorch
import torch
from remat_digits import kept_bytes, peak_bytes, step
from remat_networks import interleaved, show
from revsnn_nodes import remat
from snntorch import surrogate
from torch import Tensor, nn


class Loop(nn.Module):
    """Layers of weights, each followed by leaky neurons, run step by step; `[T, B, *]` to spikes `[T, B, 10]`."""

    def __init__(self, layers: list[nn.Module], beta: float) -> None:
        super().__init__()
        spike = surrogate.fast_sigmoid(slope=25)
        self.layers = nn.ModuleList(layers)
        self.neurons = nn.ModuleList(snntorch.Leaky(beta=beta, spike_grad=spike) for _ in layers)

    def forward(self, x_seq: Tensor) -> Tensor:
        """Spikes of the last layer."""
        membranes = [neuron.init_leaky() for neuron in self.neurons]
        outputs = []
        for x in x_seq:
            for layer, (weights, neuron) in enumerate(zip(self.layers, self.neurons, strict=True)):
                x, membranes[layer] = neuron(weights(x), membranes[layer])
            outputs.append(x)
        return torch.stack(outputs)


def fully_connected() -> Loop:
    """784 - 1000 - 10."""
    return Loop([nn.Sequential(nn.Flatten(), nn.Linear(784, 1000)), nn.Linear(1000, 10)], 0.95)


def convolutional() -> Loop:
    """12C5 - MP2 - 64C5 - MP2 - 10."""
    first = nn.Sequential(nn.Conv2d(1, 12, 5), nn.MaxPool2d(2))
    second = nn.Sequential(nn.Conv2d(12, 64, 5), nn.MaxPool2d(2))
    return Loop([first, second, nn.Sequential(nn.Flatten(), nn.Linear(64 * 4 * 4, 10))], 0.5)


def main() -> None:
    """Reads the command line, measures, prints a table for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("--batch", 128), ("--steps", 25), ("--rounds", 5)):
        parser.add_argument(name, type=int, default=default)
    options = parser.parse_args()
    for make in (fully_connected, convolutional):
        torch.manual_seed(0)
        net = make()
        images, labels = torch.randn(options.batch, 1, 28, 28), torch.randint(0, 10, (options.batch,))
        ways = {"as it is": nullcontext, "inside remat": remat}
        kept = {name: kept_bytes(net, images, way, options.steps) for name, way in ways.items()}
        peak = {name: peak_bytes(net, images, labels, way, options.steps) for name, way in ways.items()}
        runs = {name: partial(step, net, images, labels, way, options.steps) for name, way in ways.items()}
        print(make.__doc__)
        show("time", kept, peak, interleaved(runs, options.rounds))


if __name__ == "__main__":
    main()
