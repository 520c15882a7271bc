"""SpikingJelly's own networks as workloads: gradients equal to the bit, and one tensor per block with `remat`."""

from dataclasses import replace

import pytest
import torch

from revsnn_bench.case import Case
from revsnn_bench.meters.fidelity import measure_fidelity
from revsnn_bench.meters.memory import retained_bytes
from revsnn_bench.models.field import NETWORKS
from revsnn_bench.models.reference import subject_of
from revsnn_bench.models.workloads import build

KEEPING_LESS = ("lif+remat", "lif+checkpoint", "lif+bitpack")


def case_of(node, workload, size=16):
    return Case(node=node, workload=workload, timesteps=2, batch=2, shape=(3, size, size))


def gradients(step):
    step.prepare()
    step.backward(step.forward())
    buffers = (buffer.clone() for buffer in step.model.buffers())
    return [step.source.grad, *(parameter.grad for parameter in step.model.parameters()), *buffers]


@pytest.mark.parametrize("workload", NETWORKS)
def test_what_keeps_less_changes_no_bit(workload):
    """Every gradient and buffer of the network with our LIF, and fewer bytes."""
    plain = build(case_of("lif", workload))
    expected = gradients(plain)
    kept = retained_bytes(plain)[0]
    for node in KEEPING_LESS:
        step = build(case_of(node, workload))
        got = gradients(step)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True)), node
        assert retained_bytes(step)[0] < kept, node


@pytest.mark.parametrize("node", ["lif+remat", "spikingjelly+bitpack"])
def test_fidelity_is_judged_by_the_plain_network(node):
    """The output of our LIF by plain autograd, its float64 gradient, and the bits of the network without a strategy."""
    found = measure_fidelity(subject_of(case_of(node, "sj-sew-resnet18", size=32)))
    assert not found.beyond_tolerance()
    # In two calls the output and the gradients of input and 62 parameters; of 20 membranes in one; 60 buffers.
    assert found.bit_equal == (208, 208)


def test_bits_that_differ_are_counted():
    """A carrier's gradients are those of the LIF to rounding alone: some tensors are equal, not all."""
    case = case_of("lif+remat", "sj-sew-resnet18")
    other = build(case_of("lif-carrier", "sj-sew-resnet18"))
    equal, tensors = measure_fidelity(replace(subject_of(case), plain=other)).bit_equal
    assert 0 < equal < tensors == 208


def test_the_plain_network_has_nothing_to_be_equal_to():
    """Without a strategy there is no other network whose bits these should be."""
    assert subject_of(case_of("lif", "sj-sew-resnet18")).plain is None
