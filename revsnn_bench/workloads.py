"""From a case to a training step: one node layer, a stack of blocks, or a network on real data."""

from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from revsnn_bench.case import Case
from revsnn_bench.data.digits import SIDE, digits
from revsnn_bench.data.encoding import direct_encoding
from revsnn_bench.models.blocks import ConvBlock, Strategy, conv_block, linear_block
from revsnn_bench.models.digits_net import digits_net
from revsnn_bench.models.resnet import resnet19, resnet_cifar
from revsnn_bench.models.strategies import strategy
from revsnn_bench.models.vgg import vgg
from revsnn_bench.step import ModuleStep

Build = Callable[[Case, Strategy], "WorkloadStep"]
Network = Callable[..., nn.Module]
INPUT_MEAN, INPUT_STD = 0.3, 1.0


class WorkloadStep(ModuleStep):
    """The training step of a spiking model: neurons carry state, and the output's gradient is fixed noise.

    Args:
        model: takes `[T, B, *]`.
        source: leaf input, `[T, B, *]`.
        labels: class of each sample, `[B]`; the output is then the cross-entropy loss. None for the model's own
            output, with a fixed random gradient.
    """

    def __init__(self, model: nn.Module, source: Tensor, labels: Tensor | None = None) -> None:
        super().__init__(model, source)
        self.labels = labels
        self.upstream: Tensor | None = None
        if labels is None:
            with torch.no_grad():
                shape = model(source).shape
            self.upstream = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(source)
        self.prepare()

    def run(self, x: Tensor) -> Tensor:
        """Runs the model, and the loss where there are labels."""
        output = super().run(x)
        return output if self.labels is None else cross_entropy(output, self.labels)

    def output_gradient(self, output: Tensor) -> Tensor:
        """A copy of the fixed gradient; 1 for a loss."""
        return torch.ones_like(output) if self.upstream is None else self.upstream.clone()

    def reset_state(self) -> None:
        """Resets every neuron."""
        for module in self.model.modules():
            if is_neuron(module):
                module.reset()  # type: ignore[operator]

    def state_tensors(self) -> list[Tensor]:
        """The membranes that the neurons carry to the next call."""
        states = [module.v for module in self.model.modules() if is_neuron(module)]
        return [v for v in states if isinstance(v, Tensor)]


def is_neuron(module: Any) -> bool:
    """Whether a module keeps a membrane `v` until `reset()`, as SpikingJelly's and this project's nodes do."""
    return callable(getattr(module, "reset", None)) and hasattr(module, "v")


def _noise(case: Case) -> Tensor:
    generator = torch.Generator().manual_seed(case.seed)
    x = torch.randn(case.timesteps, case.batch, *case.shape, generator=generator) * INPUT_STD + INPUT_MEAN
    return x.to(getattr(torch, case.dtype)).to(case.device).requires_grad_()


def _layer(case: Case, make: Strategy) -> WorkloadStep:
    _refuse_blocks(case, make)
    return WorkloadStep(make(), _noise(case))


def _linear_blocks(case: Case, make: Strategy) -> WorkloadStep:
    _refuse_blocks(case, make)
    (features,) = _shape_of(case, "one size, such as (256,)", 1)
    model = nn.Sequential(*[linear_block(features, features, make) for _ in range(case.depth)])
    return WorkloadStep(_placed(model, case), _noise(case))


def _conv_blocks(case: Case, make: Strategy) -> WorkloadStep:
    channels, _, _ = _shape_of(case, "channels, height and width, such as (16, 8, 8)", 3)
    model = nn.Sequential(*[conv_block(channels, channels, make) for _ in range(case.depth)])
    return WorkloadStep(_placed(model, case), _noise(case))


def _digits_net(case: Case, make: Strategy) -> WorkloadStep:
    _, size, _ = _shape_of(case, "(1, 8, 8), the shape of a digit", 3)
    data = digits()
    images = direct_encoding(data.train_images[: case.batch], case.timesteps)
    source = images.to(getattr(torch, case.dtype)).to(case.device).contiguous().requires_grad_()
    model = _placed(digits_net(make, size=size), case)
    return WorkloadStep(model, source, data.train_labels[: case.batch].to(case.device))


def _network(make_network: Network, case: Case, make: Strategy) -> WorkloadStep:
    """A published network on digits, enlarged and repeated to the case's shape; `name@width` scales its channels."""
    channels, height, width = _shape_of(case, "channels, height and width, such as (3, 32, 32)", 3)
    if height != width or height < SIDE:
        raise ValueError(
            f"`shape` must be square with a side of {SIDE} or more; got {case.shape}. The network runs on digits, "
            "which are enlarged and never reduced. Pass for example (3, 32, 32)."
        )
    data = digits(size=height, channels=channels)
    images = direct_encoding(data.train_images[: case.batch], case.timesteps)
    source = images.to(getattr(torch, case.dtype)).to(case.device).contiguous().requires_grad_()
    scale = float(case.workload.partition("@")[2] or 1.0)
    model = _placed(make_network(make_node=make, shape=(channels, height, width), width=scale), case)
    return WorkloadStep(model, source, data.train_labels[: case.batch].to(case.device))


def _placed(model: nn.Module, case: Case) -> nn.Module:
    return model.to(case.device, getattr(torch, case.dtype))


def _shape_of(case: Case, rule: str, sizes: int) -> tuple[int, ...]:
    if len(case.shape) != sizes:
        raise ValueError(
            f"`shape` must be {rule}; got {case.shape}. The workload {case.workload!r} reads it so. "
            "Pass it with --shape."
        )
    return case.shape


def _refuse_blocks(case: Case, make: Strategy) -> None:
    if make.block is not ConvBlock:
        raise ValueError(
            f"`node` must be a plain node in the workload {case.workload!r}; got {case.node!r}. It names what "
            "convolution blocks keep, and there are none. Pass conv-blocks, digits-net or a network."
        )


WORKLOADS: dict[str, Build] = {
    "layer": _layer,
    "linear-blocks": _linear_blocks,
    "conv-blocks": _conv_blocks,
    "digits-net": _digits_net,
    **{f"vgg{depth}": partial(_network, partial(vgg, depth)) for depth in (11, 13, 16, 19)},
    "resnet19": partial(_network, resnet19),
    **{f"resnet{depth}": partial(_network, partial(resnet_cifar, depth)) for depth in (20, 32)},
}
"""Workloads by name. A network's name may be followed by @ and a factor of its channels: `vgg11@0.25`."""


def build(case: Case, node: str | None = None) -> WorkloadStep:
    """The training step of a case, with parameters and data set by its seed.

    Args:
        case: what to build.
        node: name to take in place of the case's node, without its options.
    Raises:
        ValueError: no such workload, node or strategy, a shape that the workload cannot read, or options that the node
            refuses.
    """
    name, at, width = case.workload.partition("@")
    if name not in WORKLOADS or (at and not _is_width(name, width)):
        near = get_close_matches(case.workload, WORKLOADS, 3) or list(WORKLOADS)
        raise ValueError(
            f"`workload` must be a registered name; got {case.workload!r}. It says what the node is put into. "
            f"Did you mean {' or '.join(near)}?"
        )
    torch.manual_seed(case.seed)
    make = strategy(case.node, **case.options) if node is None else strategy(node)
    return WORKLOADS[name](case, make)


def _is_width(workload: str, width: str) -> bool:
    """Whether a workload is a network, and what follows its @ a positive number."""
    digits_and_point = width.replace(".", "", 1).isascii() and width.replace(".", "", 1).isdigit()
    return workload.startswith(("vgg", "resnet")) and digits_and_point and float(width) > 0
