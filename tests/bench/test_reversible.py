"""Reversible blocks: inverse and gradient, bytes that do not depend on depth, and refusals."""

import pytest
import torch

from revsnn_bench.case import Case
from revsnn_bench.meters.fidelity import measure_fidelity
from revsnn_bench.meters.flops import measure_flops
from revsnn_bench.meters.memory import retained_bytes
from revsnn_bench.meters.step import relative_error
from revsnn_bench.models.reference import subject_of
from revsnn_bench.models.workloads import build

ROUNDING = 1e-12


def case_of(node="lif+rev-block", **changes):
    fields = {"workload": "rev-blocks", "shape": (32,), "timesteps": 6, "batch": 4, "depth": 3, "dtype": "float64"}
    return Case(node=node, **(fields | changes))


def gradients(step):
    step.prepare()
    step.backward(step.forward())
    return [step.source.grad, *(parameter.grad for parameter in step.model.parameters())]


def test_a_block_is_inverted():
    """X2 = Y2 - G(Y1) and X1 = Y1 - F(X2), with neurons that start again from rest, give back both halves."""
    step = build(case_of(depth=1))
    (block,) = step.model.blocks
    x1, x2 = step.source.detach().chunk(2, 2)
    y1, y2 = block(x1, x2)
    step.reset_state()
    back2 = y2 - block.g(y1)
    back1 = y1 - block.f(back2)
    assert relative_error([back1, back2], [x1, x2]) < ROUNDING
    assert relative_error([y1, y2], [x1, x2]) > 0.1


@pytest.mark.parametrize("depth", [1, 3, 8])
def test_gradient_is_that_of_the_same_chain_by_autograd(depth):
    """Of the input, all parameters and the membranes carried from one call to the next."""
    found = measure_fidelity(subject_of(case_of(depth=depth)))
    assert found.output_error == 0
    assert max(found.gradient_error, found.parameter_gradient_error, found.state_gradient_error) < ROUNDING
    pairs = zip(gradients(build(case_of(depth=depth))), gradients(build(case_of("lif", depth=depth))), strict=True)
    assert all(relative_error([a], [b]) < ROUNDING for a, b in pairs)


@pytest.mark.parametrize("depth", [1, 2, 8])
def test_the_chain_keeps_its_output_alone(depth):
    """b N T bytes, the two halves of the output, at any depth; by autograd more with every block."""
    kept = {node: retained_bytes(build(case_of(node, depth=depth)))[0] for node in ("lif", "lif+rev-block")}
    assert kept["lif+rev-block"] == 8 * 6 * 4 * 32
    assert kept["lif"] > 3 * depth * kept["lif+rev-block"]


def test_every_block_runs_once_more():
    """Recomputed multiply-accumulates are those of forward."""
    flops = measure_flops(build(case_of()))
    assert flops.recompute.multiply_accumulate == flops.forward.multiply_accumulate > 0


def test_membranes_are_left_as_forward_left_them():
    """Backward runs neurons again from where they started, and puts back what the next call starts from."""
    step = build(case_of())
    output = step.forward()
    carried = [v.clone() for v in step.state_tensors()]
    step.backward(output)
    assert all(torch.equal(a, b) for a, b in zip(step.state_tensors(), carried, strict=True))


def test_other_networks_are_refused():
    """Where nothing adds one half to the other, and where there are no two halves."""
    with pytest.raises(ValueError, match=r"add one half of the features to the other.*Pass the workload rev-blocks"):
        build(case_of(workload="linear-blocks"))
    with pytest.raises(ValueError, match="`shape` must be even; got 33"):
        build(case_of(shape=(33,)))
