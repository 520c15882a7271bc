"""What norm-carrier's blocks keep in networks: one tensor each, since pooling and a shortcut's norm run again."""

import pytest
import torch
from torch import nn

from revsnn_bench.case import Case
from revsnn_bench.meters.memory import retained_bytes
from revsnn_bench.models.blocks import conv_block
from revsnn_bench.models.networks import Residual
from revsnn_bench.models.strategies import strategy
from revsnn_bench.models.workloads import WorkloadStep, build


def kept(step):
    """Bytes retained by a step that ran before: a first call loads kernels, and what it holds meanwhile counts."""
    retained_bytes(step)
    return retained_bytes(step)[0]


def test_norm_carrier_keeps_no_pooled_tensor():
    """Three blocks, one behind a pooling: the input, the outputs of two blocks, and 1/sigma; exactly."""
    torch.manual_seed(0)
    make = strategy("norm-carrier")
    model = nn.Sequential(conv_block(4, 4, make), conv_block(4, 4, make, pool=nn.AvgPool2d(2)), conv_block(4, 8, make))
    step = WorkloadStep(model, torch.randn(4, 3, 4, 8, 8, requires_grad=True))
    first, second = step.source.nbytes, step.source.nbytes // 4
    assert kept(step) == step.source.nbytes + first + second + 4 * (4 + 4 + 8)


def test_norm_carrier_keeps_one_tensor_for_a_shortcut():
    """A residual block that halves the image: its input, one output, and what the shortcut's norm keeps; exactly."""
    torch.manual_seed(0)
    model = Residual(4, 8, strategy("norm-carrier"), stride=2)
    step = WorkloadStep(model, torch.randn(4, 3, 4, 8, 8, requires_grad=True))
    half = step.source.nbytes // 2
    assert kept(step) == step.source.nbytes + 2 * half + 4 * (8 + 8) + 2 * 4 * 8


@pytest.mark.parametrize("workload", ["vgg11@0.125", "resnet19@0.0625"])
def test_norm_carrier_keeps_a_quarter_of_what_lif_keeps(workload):
    """From T = 4 on, at least 4 times less than plain blocks in the published networks."""
    case = {"workload": workload, "shape": (3, 32, 32), "batch": 4}
    kept = {node: retained_bytes(build(Case(node=node, timesteps=4, **case)))[0] for node in ("lif", "norm-carrier")}
    assert kept["lif"] >= 4 * kept["norm-carrier"]


@pytest.mark.parametrize("changed", ["pooling input", "shortcut", "output"])
def test_norm_carrier_sees_a_change_in_place(changed):
    """What is made again is made of a tensor that must not have changed since: backward refuses."""
    make = strategy("norm-carrier")
    pooling = conv_block(2, 2, make, pool=nn.AvgPool2d(2))
    block = pooling if changed == "pooling input" else Residual(2, 4, make, stride=2)
    seen = {}
    if changed == "shortcut":
        block.second.shortcut[0].register_forward_hook(lambda *call: seen.update({changed: call[2]}))
    seen["pooling input"] = torch.randn(3, 2, 2, 8, 8, requires_grad=True).clone()
    seen["output"] = block(seen["pooling input"])
    loss = seen["output"].sum()
    seen[changed].detach().add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
