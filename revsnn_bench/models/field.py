"""SpikingJelly's own networks as workloads: its modules as they come, with its neurons or ours.

    sj-vgg11             VGG-11 with batch norm; its ImageNet classifier (123 M parameters) is one linear layer here
    sj-sew-resnet18      SEW-ResNet-18, which adds spikes
    sj-resnet18          spiking ResNet-18, which adds in place in front of the neuron
    sj-spikformer        Spikformer, 4 blocks of 128 features, patches of 4 x 4

A node of this package comes in by `swap_neurons`, as it does for a user. What a strategy keeps is decided from outside,
too: `+remat` and `+save-on-cpu` are contexts around the forward, `+checkpoint` and `+bitpack` are SpikingJelly's
`optimize_memory` at level 1, the latter with binary inputs in bits: `spikingjelly+bitpack` is what it offers its users.
"""

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

import torch
from revsnn_nodes.parameters import LIFParameters
from torch import Tensor, nn

from revsnn_bench.case import Case
from revsnn_bench.models.peers import theirs

CLASSES = 10

LIF_FIELDS = frozenset(field.name for field in fields(LIFParameters))

Made = tuple[nn.Module, tuple[type[nn.Module], ...]]
"""A network of `LIFNode`s in step mode "m", and the classes of its blocks."""


class Stage(nn.Sequential):
    """Layers of a VGG up to a neuron: pooling, convolution, norm, neuron."""


def _theirs(name: str) -> Any:
    """A module of `spikingjelly.activation_based`.

    Its networks import torchvision for downloads. A torchvision that was built for another torch fails to load its
    operators, and then to describe two of them: these are declared, and it is imported once more.
    """
    name = f"spikingjelly.activation_based.{name}"
    try:
        return theirs(name)
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return theirs(name)


def _neuron(options: dict[str, Any]) -> dict[str, Any]:
    """How their builders are told which neuron to use."""
    surrogate_function = _theirs("surrogate").ATan()
    return {"spiking_neuron": _theirs("neuron").LIFNode, "surrogate_function": surrogate_function, **options}


def _vgg11(case: Case, options: dict[str, Any]) -> Made:
    """Layers of their VGG-11 in stages; a pooling that would halve a single pixel is left out."""
    vgg, layer, options = _theirs("model.spiking_vgg"), _theirs("layer"), _neuron(options)
    neuron = options.pop("spiking_neuron")
    stages: list[list[nn.Module]] = [[]]
    side = min(case.shape[1:])
    for each in vgg.SpikingVGG.make_layers(vgg.cfgs["A"], batch_norm=True, neuron=neuron, **options):
        if isinstance(each, layer.MaxPool2d):
            if side == 1:
                continue
            side //= 2
        stages[-1].append(each)
        if isinstance(each, neuron):
            stages.append([])
    head = (*stages.pop(), layer.AdaptiveAvgPool2d(1), layer.Flatten(), layer.Linear(512, CLASSES))
    return nn.Sequential(*(Stage(*each) for each in stages), *head), (Stage,)


def _resnet18(kind: str, case: Case, options: dict[str, Any], **more: Any) -> Made:
    resnet = _theirs(f"model.{kind}")
    return getattr(resnet, f"{kind}18")(num_classes=CLASSES, **more, **_neuron(options)), (resnet.BasicBlock,)


def _spikformer(case: Case, options: dict[str, Any]) -> Made:
    model = _theirs("model.spikformer")
    channels, height, width = case.shape
    size = {"in_channels": channels, "img_size_h": height, "img_size_w": width, "patch_size": 4}
    net = model.Spikformer(case.timesteps, **size, num_classes=CLASSES, embed_dims=128, depths=4, **options)
    return net, (model.SpikformerBlock, model.SpikformerConv2dBNLIF)


NETWORKS: dict[str, Callable[[Case, dict[str, Any]], Made]] = {
    "sj-vgg11": _vgg11,
    "sj-sew-resnet18": partial(_resnet18, "sew_resnet", cnf="ADD"),
    "sj-resnet18": partial(_resnet18, "spiking_resnet"),
    "sj-spikformer": _spikformer,
}
"""Their networks by the name of the workload: `[T, B, 3, H, W]` to `[T, B, 10]`."""


def field_network(case: Case, x_seq: Tensor) -> nn.Module:
    """The network of a case, with the case's node in the place of every neuron, and what its strategy wraps.

    Parameters of the LIF among the options of the case go to every neuron. Where blocks are checkpointed, the input
    shows which of theirs are binary. Raises `SkipCase` without SpikingJelly, and `ValueError` as `swap_neurons` does.
    """
    node, _, kind = case.node.partition("+")
    of_lif = {name: value for name, value in case.options.items() if name in LIF_FIELDS}
    net, blocks = NETWORKS[case.workload](case, of_lif)
    _theirs("functional").set_step_mode(net, "m")
    if node != "spikingjelly":
        from revsnn_nodes.spikingjelly import swap_neurons

        of_node = {name: value for name, value in case.options.items() if name not in LIF_FIELDS}
        # Whole networks are compared as users run them, unless a case names the reference backend.
        swap_neurons(net, to=node, **({"backend": "fused"} | of_node))
    net.to(case.device, getattr(torch, case.dtype))
    if kind in ("checkpoint", "bitpack"):
        with torch.no_grad():
            _theirs("memopt").optimize_memory(
                net, blocks, lambda model: model(x_seq), level=1, compress=kind == "bitpack"
            )
    return net
