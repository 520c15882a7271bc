"""SpikingJelly's model zoo at sizes that train in a second: every architecture that runs without a GPU."""

import warnings
from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch
from nodes_cases import foreign_import_is_silent
from torch import Tensor, nn

STEPS, BATCH = 3, 2


def their(name: str) -> Any:
    """A module of `spikingjelly.activation_based.model`.

    They import torchvision, which may not match torch: two operators that it misses are then defined.
    """
    foreign_import_is_silent()
    name = f"spikingjelly.activation_based.model.{name}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return import_module(name)
        except RuntimeError:
            library = torch.library.Library("torchvision", "FRAGMENT")
            for operator in ("nms", "qnms"):
                library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            return import_module(name)


def _small_vgg(norm: bool) -> Callable[..., nn.Module]:
    """Their VGG with three convolutions and two linear layers; theirs have 10^8 weights."""

    def build(*, spiking_neuron: Any, **neuron: Any) -> nn.Module:
        from spikingjelly.activation_based import layer

        vgg = their("spiking_vgg").SpikingVGG
        with torch.device("meta"):
            net = vgg([4], norm, layer.BatchNorm2d, 3, False, spiking_neuron, **neuron)
        net.features = vgg.make_layers([4, "M", 8, 8], norm, layer.BatchNorm2d, spiking_neuron, **neuron)
        net.avgpool = layer.AdaptiveAvgPool2d(2)
        fire = spiking_neuron(**neuron)
        net.classifier = nn.Sequential(layer.Linear(32, 16), fire, layer.Dropout(), layer.Linear(16, 3))
        return net

    return build


def _resnet(module: str, block: str, **options: Any) -> Callable[..., nn.Module]:
    def build(**neuron: Any) -> nn.Module:
        models = their(module)
        net = {"spiking_resnet": "SpikingResNet", "sew_resnet": "SEWResNet"}[module]
        return getattr(models, net)(getattr(models, block), [2, 1, 1, 1], num_classes=3, **options, **neuron)

    return build


def _of_class(module: str, name: str, *arguments: Any, **options: Any) -> Callable[..., nn.Module]:
    return lambda **neuron: getattr(their(module), name)(*arguments, **options, **neuron)


def _searched(cell: str) -> Callable[..., nn.Module]:
    """SNASNet; its cells make their own LIFNodes, and its forward its own time loop."""

    def build(**neuron: Any) -> nn.Module:
        options = SimpleNamespace(
            timestep=STEPS, second_avgpooling=8, dataset="cifar100", celltype=cell, threshold=0.2, tau=4 / 3
        )
        connections = torch.tensor([[0, 2, 3, 1], [2 * (cell == "backward"), 0, 2, 3], [0, 0, 0, 4], [0, 0, 0, 0]])
        return their("snas_net").SNASNet(options, connections)

    return build


def _differentiable_search(**neuron: Any) -> nn.Module:
    """SpikeDHS; its layers make their own LIFNodes, and it expands an image over time. Its heads are made narrower."""
    dhs = their("spike_dhs")
    options = SimpleNamespace(fea_step=3, fea_num_layers=8, fea_block_multiplier=3, fea_filter_multiplier=4)
    net = dhs.SpikeDHS(3, options)
    net.feature.auxiliary_head, net.classifier = dhs.AuxiliaryHeadCIFAR(48, 3), dhs.SpikingLinear(48, 3, spiking=False)
    return net


SMALL_FORMER = {"num_classes": 3, "embed_dims": 32, "depths": (1, 1, 1)}
SMALL_MS = {"num_classes": 3, "layers": (1, 1, 1), "base_channels": 8}

ZOO: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...]]] = {
    "SpikingVGG": (_small_vgg(False), (3, 8, 8)),
    "SpikingVGG, norm": (_small_vgg(True), (3, 8, 8)),
    "SpikingResNet, basic": (_resnet("spiking_resnet", "BasicBlock"), (3, 32, 32)),
    "SpikingResNet, bottleneck": (_resnet("spiking_resnet", "Bottleneck", width_per_group=8), (3, 32, 32)),
    "SEWResNet, ADD": (_resnet("sew_resnet", "BasicBlock", cnf="ADD"), (3, 32, 32)),
    "SEWResNet, IAND": (_resnet("sew_resnet", "BasicBlock", cnf="IAND"), (3, 32, 32)),
    "SEWResNet, bottleneck": (_resnet("sew_resnet", "Bottleneck", cnf="ADD", width_per_group=8), (3, 32, 32)),
    "MNISTNet": (_of_class("parametric_lif_net", "MNISTNet", 4), (1, 28, 28)),
    "NMNISTNet": (_of_class("parametric_lif_net", "NMNISTNet", 4), (2, 34, 34)),
    "CIFAR10Net": (_of_class("parametric_lif_net", "CIFAR10Net", 4), (3, 32, 32)),
    "CIFAR10DVSNet": (_of_class("parametric_lif_net", "CIFAR10DVSNet", 4), (2, 128, 128)),
    "DVSGestureNet": (_of_class("parametric_lif_net", "DVSGestureNet", 4), (2, 128, 128)),
    "MASNN": (
        _of_class("masnn", "MASNN", STEPS, channels=(16, 16), pools=(1, 2), fc_hidden=32, reduction_t=1, reduction_c=2,
                  input_size=(8, 8)),
        (2, 8, 8),
    ),
    "AttMSResNet": (_of_class("masnn", "AttMSResNet", STEPS, reduction_c=2, **SMALL_MS), (3, 16, 16)),
    "MSResNet": (_of_class("ms_resnet", "MSResNet", STEPS, **SMALL_MS), (3, 16, 16)),
    "MaxResNet": (_of_class("ms_resnet", "MaxResNet", STEPS, **SMALL_MS), (3, 16, 16)),
    "MaxFormer": (_of_class("maxformer", "MaxFormer", STEPS, **SMALL_FORMER), (3, 32, 32)),
    "MaxFormer, CIFAR": (_of_class("maxformer", "MaxFormer", STEPS, cifar=True, **SMALL_FORMER), (3, 32, 32)),
    "QKFormer": (_of_class("qkformer", "QKFormer", STEPS, num_heads=(1, 2, 2), **SMALL_FORMER), (3, 32, 32)),
    "SpikeDrivenTransformer": (
        _of_class("spike_driven_transformer", "SpikeDrivenTransformer", STEPS, num_classes=3, embed_dims=32,
                  num_heads=2, depths=1),
        (3, 32, 32),
    ),
    "Spikformer": (
        _of_class("spikformer", "Spikformer", STEPS, 3, 16, 16, 4, 3, 32, num_heads=2, depths=2),
        (3, 16, 16),
    ),
    "OTTTSpikingVGG": (_of_class("spiking_vggws_ottt", "OTTTSpikingVGG", [4, "A", 8, 512], num_classes=3), (3, 8, 8)),
    "SNASNet, forward": (_searched("forward"), (3, 32, 32)),
    "SNASNet, backward": (_searched("backward"), (3, 32, 32)),
    "SpikeDHS": (_differentiable_search, (3, 32, 32)),
}  # fmt: skip
"""By name: what builds a network with a neuron class and its arguments, and the shape of one sample of its input."""

IMAGES = ("OTTTSpikingVGG", "SNASNet, forward", "SNASNet, backward", "SpikeDHS")
"""Networks that take images `[N, *]`, and repeat them by themselves or are called step by step."""


def example(name: str, dtype: torch.dtype) -> Tensor:
    """Input of a network, `[T, N, *]`, or `[N, *]` for `IMAGES`."""
    shape = ZOO[name][1]
    rng = torch.Generator().manual_seed(1)
    return 3 * torch.randn(*(() if name in IMAGES else (STEPS,)), BATCH, *shape, generator=rng, dtype=dtype)
