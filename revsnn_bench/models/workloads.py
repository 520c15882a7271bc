"""From a case to a training step: one node layer, a stack of blocks, or a network on real data."""

import math
from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from itertools import chain, repeat

import torch
from torch import nn

from revsnn_bench.case import Case, is_own
from revsnn_bench.models import field
from revsnn_bench.models.blocks import ConvBlock, Strategy, conv_block, linear_block
from revsnn_bench.models.data import digits_of, encoded, is_sequence, shape_of
from revsnn_bench.models.methods import Stepwise, mlp
from revsnn_bench.models.networks import CLASSES, digits_net, resnet19, resnet_cifar, sequence_net, vgg
from revsnn_bench.models.own import build_own, refuse_offload
from revsnn_bench.models.reversible import rev_chain
from revsnn_bench.models.step import StepwiseStep, WorkloadStep, input_noise
from revsnn_bench.models.strategies import strategy
from revsnn_bench.records import SkipCase

Network = Callable[..., nn.Module]


def _on_noise(make_model: Callable[[Case, Strategy], nn.Module], case: Case, make: Strategy) -> WorkloadStep:
    return WorkloadStep(make_model(case, make), input_noise(case), around=make.around)


def _linear_blocks(case: Case, make: Strategy) -> nn.Module:
    (features,) = shape_of(case, "one size, such as (256,)", 1)
    return _placed(nn.Sequential(*[linear_block(features, features, make) for _ in range(case.depth)]), case)


def _rev_blocks(case: Case, make: Strategy) -> nn.Module:
    """A chain of reversible blocks; `node+rev-block` inverts them, any other node keeps what autograd keeps."""
    (features,) = shape_of(case, "one even size, such as (256,)", 1)
    return _placed(rev_chain(make, features, case.depth, make.inverts), case)


def _conv_blocks(case: Case, make: Strategy) -> nn.Module:
    channels, _, _ = shape_of(case, "channels, height and width, such as (16, 8, 8)", 3)
    return _placed(nn.Sequential(*[conv_block(channels, channels, make) for _ in range(case.depth)]), case)


def _field(case: Case, make: Strategy) -> nn.Module:
    """A network of SpikingJelly."""
    shape_of(case, "3 channels, height and width, such as (3, 64, 64)", 3)
    return field.field_network(case, input_noise(case))


def _on_digits(make_network: Network, case: Case, make: Strategy) -> WorkloadStep:
    """A network on digits, in the case's size; `name@width` scales its channels."""
    data = digits_of(case)
    source = encoded(case, data.train_images[: case.batch], case.seed).contiguous()
    model = _made(make_network, case, make, CLASSES)
    stepwise = isinstance(model, Stepwise)
    step = StepwiseStep if stepwise else WorkloadStep
    labels = data.train_labels[: case.batch].to(case.device)
    return step(model, source.requires_grad_(not stepwise), labels, make.around)


def _made(make_network: Network, case: Case, make: Strategy, classes: int) -> nn.Module:
    width = float(case.workload.partition("@")[2] or 1.0)
    return _placed(make_network(case=case, make_node=make, classes=classes, width=width), case)


def _small(case: Case, make_node: Strategy, classes: int, width: float) -> nn.Module:
    channels, size, _ = shape_of(case, "(1, 8, 8), the shape of a digit", 3)
    if channels != 1:
        raise ValueError(
            f"`shape` must have one channel, such as (1, 8, 8); got {case.shape}. The workload {case.workload!r} reads "
            "grey digits. Pass --shape 1x8x8, or take a network that reads colours, such as --workload vgg11."
        )
    return digits_net(make_node, channels=round(16 * width), size=size, classes=classes)


def _stepwise(case: Case, make_node: Strategy, classes: int, width: float) -> Stepwise:
    number = None if make_node.method is None else make_node.method.number
    if number is not None and number >= case.timesteps:
        raise SkipCase(f"{case.node} must have a number below T = {case.timesteps}: there is nothing to cut")
    if is_sequence(case):
        shape_of(case, "one size with the encoding 'pixels', the latest pixels that a step shows, such as (1,)", 1)
    return mlp(make_node, math.prod(case.shape), case.depth, classes, width)


def _published(make_network: Network, case: Case, make_node: Strategy, classes: int, width: float) -> nn.Module:
    shape = shape_of(case, "channels, height and width, such as (3, 32, 32)", 3)
    return make_network(make_node=make_node, shape=shape, classes=classes, width=width)


def _one_swapped(make_network: Network, case: Case, make_node: Strategy, classes: int, width: float) -> nn.Module:
    """A network of standard LIF, with the case's node in its first layer alone."""
    shared = {name: option for name, option in case.options.items() if name in {*field.LIF_FIELDS, "backend"}}
    makers = chain([make_node.make_node], repeat(strategy("lif", **shared).make_node))
    return _published(make_network, case, Strategy(lambda: next(makers)()), classes, width)


def _pixels(case: Case, make_node: Strategy, classes: int, width: float) -> nn.Module:
    (features,) = shape_of(case, "one size, the neurons per layer, such as (64,)", 1)
    return sequence_net(case.timesteps, make_node, features, classes, width)


def _placed(model: nn.Module, case: Case) -> nn.Module:
    return model.to(case.device, getattr(torch, case.dtype))


STEPWISE = ("mlp",)
"""Networks with a loss at every step, whose gradient over time may be got by a method of `models/methods.py`."""

NETWORKS: dict[str, Network] = {
    "digits-net": _small,
    "pixels": _pixels,
    "mlp": _stepwise,
    **{f"vgg{depth}": partial(_published, partial(vgg, depth)) for depth in (11, 13, 16, 19)},
    "vgg11-one": partial(_one_swapped, partial(vgg, 11)),
    "resnet19": partial(_published, resnet19),
    **{f"resnet{depth}": partial(_published, partial(resnet_cifar, depth)) for depth in (20, 32)},
}
"""Networks that classify, by name. The name may be followed by @ and a factor of its channels: `vgg11@0.25`."""

WORKLOADS: dict[str, Callable[[Case, Strategy], WorkloadStep]] = {
    "layer": partial(_on_noise, lambda case, make: _placed(make(), case)),
    "linear-blocks": partial(_on_noise, _linear_blocks),
    "conv-blocks": partial(_on_noise, _conv_blocks),
    "rev-blocks": partial(_on_noise, _rev_blocks),
    **dict.fromkeys(field.NETWORKS, partial(_on_noise, _field)),
    **{name: partial(_on_digits, make_network) for name, make_network in NETWORKS.items()},
}
"""Workloads by name: what a node is put into."""

STACKED = ("linear-blocks", "conv-blocks", "rev-blocks", "mlp")
"""Workloads of `Case.depth` blocks; the depth of any other is its own."""

WITHOUT_BLOCKS = ("layer", "linear-blocks", "rev-blocks", "mlp", "pixels", "vgg11-one")
"""Workloads that take plain nodes alone, since a strategy for convolution blocks finds none in them, or not its own."""


def network(case: Case, classes: int) -> nn.Module:
    """The network of a case, for images of any data set, with parameters set by its seed; raises as `build`."""
    name = case.workload.partition("@")[0]
    if name not in NETWORKS:
        raise ValueError(
            f"`workload` must be a network that classifies; got {case.workload!r}. Only these can be trained. Pass "
            f"one of {', '.join(NETWORKS)}."
        )
    return _made(NETWORKS[name], case, _strategy(case), classes)


def require_workload(workload: str) -> str:
    """The registered name of a workload, without its width: `vgg11` of `vgg11@0.25`; or a `ValueError`."""
    name, at, width = workload.partition("@")
    digits = width.replace(".", "", 1)
    is_width = name in NETWORKS and digits.isascii() and digits.isdigit() and float(width) > 0
    if name not in WORKLOADS or (at and not is_width):
        near = get_close_matches(workload, WORKLOADS, 3)
        fix = f"Did you mean {' or '.join(near)}?" if near else f"Pass one of {', '.join(WORKLOADS)}."
        raise ValueError(
            f"`workload` must be a registered name; got {workload!r}. It says what the node is put into. {fix}"
        )
    return name


def stacks(workload: str) -> bool:
    """Whether a workload is made of as many blocks as the case says."""
    return workload.partition("@")[0] in STACKED


def build(case: Case) -> WorkloadStep:
    """The training step of a case, with parameters and data set by its seed.

    Raises:
        ValueError: no such workload, node, strategy or option, a shape, depth or encoding that the workload cannot
            read, or a model of the user that cannot be measured.
    """
    if case.depth > 1 and not stacks(case.workload):
        raise ValueError(
            f"`depth` must be 1 in the workload {case.workload!r}; got {case.depth}. It has a depth of its own, and "
            f"would be measured under a name that promises another. Leave it out, or pass {', '.join(STACKED)}."
        )
    if is_own(case.workload):
        return build_own(case)
    return WORKLOADS[require_workload(case.workload)](case, _strategy(case))


def _strategy(case: Case) -> Strategy:
    """The strategy of a case, once the workload is known to take it and its encoding; sets the seed of parameters."""
    name = case.workload.partition("@")[0]
    _refuse_encoding(case, name)
    refuse_offload(case)
    make = strategy(case.node, **case.options)
    if make.inverts and name != "rev-blocks":
        raise ValueError(
            f"`node` must not be {case.node!r} in the workload {case.workload!r}. It has no blocks that add one half "
            "of the features to the other, and others cannot be inverted. Pass the workload rev-blocks."
        )
    if make.method is not None and name not in STEPWISE:
        why = "It has no loss at every step"
        if name in {*NETWORKS, "conv-blocks", *field.NETWORKS} - {"pixels"}:
            why = "Its batch norms take their statistics over all T steps at once, and some steps at a time have others"
        raise ValueError(
            f"`node` must not name a method over time in the workload {case.workload!r}; got {case.node!r}. {why}. "
            f"Pass the workload {' or '.join(STEPWISE)}."
        )
    if make.block is not ConvBlock and name in WITHOUT_BLOCKS:
        raise ValueError(
            f"`node` must be a plain node in the workload {case.workload!r}; got {case.node!r}. It names what "
            "convolution blocks keep, and there are none. Pass conv-blocks, digits-net or a network."
        )
    torch.manual_seed(case.seed)
    return make


def _refuse_encoding(case: Case, name: str) -> None:
    """A network may be shown whole images, and one with a loss at every step their pixels, too."""
    choices, why = ["direct"], "It reads noise, or each pixel once, and encodes no image"
    if name in NETWORKS and name != "pixels":
        choices, why = ["direct", "poisson"], "It reads whole images at every step"
    if name in STEPWISE:
        choices.append("pixels")
    if case.encoding not in choices:
        rule = f"{'one of ' if choices[1:] else ''}{', '.join(map(repr, choices))}"
        raise ValueError(
            f"`encoding` must be {rule} in the workload {case.workload!r}; got {case.encoding!r}. {why}. Leave it out, "
            "or pass mlp, which reads any."
        )
