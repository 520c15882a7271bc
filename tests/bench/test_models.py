"""The published networks: parameters, shapes, and what they do with small images and narrow widths."""

from functools import partial

import pytest
import torch
from revsnn_nodes import CarrierLIF, NormCarrierLIF, StandardLIF, make_node
from torch import nn

from revsnn_bench.case import Case
from revsnn_bench.meters.fidelity import measure_fidelity
from revsnn_bench.models.networks import resnet19, resnet_cifar, vgg
from revsnn_bench.models.reference import subject_of
from revsnn_bench.models.strategies import strategy
from revsnn_bench.models.workloads import WORKLOADS, build

LIF = partial(make_node, "lif", step_mode="m")
NETWORKS = ("vgg11", "vgg13", "vgg16", "vgg19", "resnet19", "resnet20", "resnet32")


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def convolutions(model):
    return [module for module in model.modules() if isinstance(module, nn.Conv2d)]


@pytest.mark.parametrize(("depth", "published"), [(11, 9_231_114), (13, 9_416_010), (16, 14_728_266), (19, 20_040_522)])
def test_vgg_has_the_published_parameters(depth, published):
    """CIFAR-10's counts of kuangliu/pytorch-cifar, to the last one, less the biases that batch norm makes redundant."""
    model = vgg(depth, LIF)
    biases = sum(conv.out_channels for conv in convolutions(model))
    assert parameters(model) == published - biases
    assert len(convolutions(model)) == depth - 3


@pytest.mark.parametrize(("depth", "published"), [(20, 272_474), (32, 466_906)])
def test_cifar_resnets_have_the_published_parameters(depth, published):
    """The counts of ResNet-20 and 32 with 1x1 shortcuts, to the last one."""
    assert parameters(resnet_cifar(depth, LIF)) == published


def test_resnet19_has_the_published_size():
    """Within 1 % of the 12.63 M that papers give, and 19 layers: 17 convolutions and 2 linear ones."""
    model = resnet19(LIF)
    assert parameters(model) == 12_697_994
    assert parameters(model) == pytest.approx(12.63e6, rel=0.01)
    main = [conv for conv in convolutions(model) if conv.kernel_size == (3, 3)]
    assert (len(main), sum(isinstance(module, nn.Linear) for module in model.modules())) == (17, 2)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 16), (3, 32, 32), (2, 48, 48)], ids=str)
@pytest.mark.parametrize("name", ["vgg11", "resnet19", "resnet20"])
def test_any_image_size_gives_logits(name, shape):
    """[T, B, C, H, W] to [B, classes], for images smaller and larger than CIFAR's."""
    make = {"vgg11": partial(vgg, 11), "resnet19": resnet19, "resnet20": partial(resnet_cifar, 20)}[name]
    model = make(make_node=LIF, shape=shape, classes=7, width=1 / 16)
    assert model(torch.rand(2, 3, *shape)).shape == (3, 7)


def test_stages_halve_the_image():
    """VGG on 32x32 pools five times, down to one pixel; on 16x16 the last pooling is left out."""
    for side, expected in ((32, [32, 16, 8, 8, 4, 4, 2, 2]), (16, [16, 8, 4, 4, 2, 2, 1, 1])):
        model = vgg(11, LIF, shape=(3, side, side), width=1 / 32)
        sides = []
        for node in (module for module in model.modules() if isinstance(module, StandardLIF)):
            node.register_forward_hook(lambda module, args, y, sides=sides: sides.append(y.shape[-1]))
        model(torch.rand(1, 2, 3, side, side))
        assert sides == expected


def test_width_scales_channels_and_never_reaches_zero():
    """Half the width: about a quarter of the parameters; a tiny width still runs."""
    assert parameters(vgg(16, LIF, width=0.5)) == pytest.approx(parameters(vgg(16, LIF)) / 4, rel=0.01)
    assert resnet_cifar(20, LIF, width=1e-3)(torch.rand(2, 2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: vgg(12, LIF), r"`depth` must be one of \[11, 13, 16, 19\]; got 12"),
    (lambda: resnet_cifar(21, LIF), r"`depth` must be 6 n \+ 2; got 21"),
])  # fmt: skip
def test_depths_that_were_never_published(call, message):
    """Depths outside of the families are refused."""
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_a_workload_with_a_right_gradient(name):
    """Each network, narrow, on digits: its gradient is float64 BPTT's."""
    assert name in WORKLOADS
    case = Case(node="lif", workload=f"{name}@0.0625", shape=(1, 8, 8), timesteps=2, batch=4)
    fidelity = measure_fidelity(subject_of(case))
    assert fidelity.output_error == 0
    assert not fidelity.beyond_tolerance()
    assert fidelity.gradient_error < 1e-5


@pytest.mark.parametrize("workload", ["layer", "linear-blocks"])
def test_what_a_node_learns_has_the_type_of_the_case(workload):
    """The weight of a parametric LIF, alone or in a network."""
    model = build(Case(node="plif", workload=workload, timesteps=2, shape=(8,), dtype="float64")).model
    assert {each.dtype for each in model.parameters()} == {torch.float64}


def test_norm_carrier_leaves_no_ordinary_norm_but_in_shortcuts():
    """In a ResNet with norm-carrier, batch norms stand in the two 1x1 shortcuts only, and one node is without norm."""
    model = resnet19(strategy("norm-carrier", epsilon=1 / 256), width=1 / 16)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == 2
    carriers = [module for module in model.modules() if isinstance(module, NormCarrierLIF)]
    assert len(carriers) == 17
    assert {carrier.epsilon for carrier in carriers} == {1 / 256}
    assert sum(isinstance(module, CarrierLIF) for module in model.modules()) == 1


@pytest.mark.parametrize(("changes", "message"), [
    ({"workload": "vgg12"}, "`workload` must be a registered name; got 'vgg12'"),
    ({"workload": "vgg11@wide"}, "`workload` must be a registered name; got 'vgg11@wide'"),
    ({"workload": "vgg11@0"}, "`workload` must be a registered name; got 'vgg11@0'"),
    ({"workload": "conv-blocks@2"}, "`workload` must be a registered name; got 'conv-blocks@2'"),
    ({"shape": (8, 8)}, "`shape` must be channels, height and width"),
    ({"shape": (3, 8, 16)}, "`shape` must be square with a side of 8 or more"),
    ({"workload": "digits-net", "shape": (3, 8, 8)}, "`shape` must have one channel"),
    ({"node": "lif+checkpont"}, r"Did you mean lif\+checkpoint "),
    ({"node": "lif+checkpoint", "workload": "layer"}, "`node` must be a plain node in the workload 'layer'"),
    ({"node": "norm-carrier", "workload": "linear-blocks", "shape": (4,)}, "`node` must be a plain node"),
])  # fmt: skip
def test_cases_that_name_what_is_not_there(changes, message):
    """Workloads, widths, shapes and strategies that do not exist or do not fit are refused with the way out."""
    with pytest.raises(ValueError, match=message):
        build(Case(**({"node": "lif", "workload": "vgg11", "shape": (1, 8, 8)} | changes)))
