"""SpikingJelly's own networks, as `--model spikingjelly_models:vgg11 --input 4,8,3,32,32`.

Run in this folder; needs `pip install ".[peers]"` in the clone, and torchvision.
"""

import warnings
from typing import Any

import torch
from torch import nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try:
        import torchvision  # noqa: F401
    except RuntimeError:  # built for another torch: its operators are missing, and it fails on two of them
        _library = torch.library.Library("torchvision", "FRAGMENT")
        for _name in ("nms", "qnms"):
            _library.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from spikingjelly.activation_based import functional, layer, neuron, surrogate
    from spikingjelly.activation_based.model import sew_resnet, spikformer, spiking_vgg


def _multi_step(net: Any) -> nn.Module:
    functional.set_step_mode(net, "m")
    module: nn.Module = net
    return module


def vgg11() -> nn.Module:
    """VGG-11 with batch norm; `[T, B, 3, H, W]` to `[T, B, 10]`.

    Its classifier for ImageNet, of 123 M weights, is one linear layer here.
    """
    net: Any = spiking_vgg.spiking_vgg11_bn(
        spiking_neuron=neuron.LIFNode, surrogate_function=surrogate.ATan(), detach_reset=True
    )
    net.avgpool, net.classifier = layer.AdaptiveAvgPool2d(1), layer.Linear(512, 10)
    return _multi_step(net)


def spikformer_small() -> nn.Module:
    """A Spikformer of four blocks, 128 wide; takes `[T, B, 3, 32, 32]`."""
    return _multi_step(
        spikformer.Spikformer(
            img_size_h=32, img_size_w=32, patch_size=4, embed_dims=128, num_heads=8, num_classes=10,
            spiking_neuron=neuron.LIFNode,
        )
    )  # fmt: skip


def sew_resnet18() -> nn.Module:
    """SEW-ResNet-18; `[T, B, 3, H, W]` to `[T, B, 10]`."""
    return _multi_step(
        sew_resnet.sew_resnet18(
            cnf="ADD",
            spiking_neuron=neuron.LIFNode,
            surrogate_function=surrogate.ATan(),
            detach_reset=True,
            num_classes=10,
        )
    )
