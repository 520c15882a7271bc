"""SpikingJelly's own networks as workloads: gradients equal to the bit, and one tensor per block with `remat`."""

import pytest
import torch

from revsnn_bench.case import Case
from revsnn_bench.meters.fidelity import measure_fidelity
from revsnn_bench.meters.memory import retained_bytes
from revsnn_bench.models.field import NETWORKS
from revsnn_bench.models.reference import subject_of
from revsnn_bench.models.workloads import build

KEEPING_LESS = ("lif+remat", "lif+checkpoint", "lif+bitpack")


def built(node, workload):
    return build(Case(node=node, workload=workload, timesteps=2, batch=2, shape=(3, 32, 32)))


def gradients(step):
    step.prepare()
    step.backward(step.forward())
    buffers = (buffer.clone() for buffer in step.model.buffers())
    return [step.source.grad, *(parameter.grad for parameter in step.model.parameters()), *buffers]


@pytest.mark.parametrize("workload", NETWORKS)
def test_what_keeps_less_changes_no_bit(workload):
    """Every gradient and buffer of the network with our LIF, and fewer bytes."""
    plain = built("lif", workload)
    expected = gradients(plain)
    kept = retained_bytes(plain)[0]
    for node in KEEPING_LESS:
        step = built(node, workload)
        got = gradients(step)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True)), node
        assert retained_bytes(step)[0] < kept, node


@pytest.mark.parametrize("node", ["lif+remat", "lif+bitpack", "spikingjelly+bitpack"])
def test_fidelity_is_judged_by_the_plain_network(node):
    """The output of our LIF by plain autograd, and its float64 gradient."""
    case = Case(node=node, workload="sj-sew-resnet18", timesteps=2, batch=2, shape=(3, 32, 32))
    assert not measure_fidelity(subject_of(case)).beyond_tolerance()
