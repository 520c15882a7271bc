"""The four coupled nodes against the float64 loop: outputs, last membrane and every gradient."""

import itertools

import pytest
import torch
from nodes_cases import COUPLED, INVERTING, Problem, assert_ends_close, differentiate, make, run_node, run_oracle
from nodes_tolerances import INVERSE_RTOL_FLOAT64, RTOL

NEURONS = [
    {"v_reset": v_reset, "decay_input": decay, "detach_reset": detach}
    for v_reset, decay, detach in itertools.product((0.0, -0.3, None), (True, False), (True, False))
]


def _tolerance(name):
    return INVERSE_RTOL_FLOAT64 if name in INVERTING else RTOL[torch.float64]


def _check(name, problem, through="yv", node_options=None, **neuron):
    expected = differentiate(run_oracle(name, **neuron), problem, through)
    node = make(name, **neuron, **(node_options or {}))
    assert_ends_close(differentiate(run_node(node), problem, through), expected, _tolerance(name))


@pytest.mark.usefixtures("on_each_backend")
@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("neuron", NEURONS, ids=str)
@pytest.mark.parametrize("name", COUPLED)
def test_every_gradient_is_the_loops(name, neuron, steps):
    """Any reset, decay, detachment and T: output, membrane, and the gradients of input and initial state."""
    _check(name, Problem(steps), tau=1.7, **neuron)


@pytest.mark.usefixtures("on_each_backend")
@pytest.mark.parametrize("v_reset", [0.2, None])
@pytest.mark.parametrize(("groups", "group_dim"), [(2, -1), (3, -1), (4, 1), (8, 1), (6, 2), (3, -2), (2, -3)])
@pytest.mark.parametrize("name", COUPLED)
def test_any_number_of_groups_along_any_feature_dimension(name, groups, group_dim, v_reset):
    """2, 3, 4 groups and as many as the dimension is large, along channels, rows or columns."""
    problem = Problem(steps=4, shape=(2, 8, 6, 12) if group_dim < 0 else (2, 8, 6))
    if group_dim == -2:
        problem = Problem(steps=4, shape=(2, 4, 6, 2))
    _check(name, problem, groups=groups, group_dim=group_dim, v_reset=v_reset)


@pytest.mark.usefixtures("on_each_backend")
@pytest.mark.parametrize("v_reset", [0.0, -0.3, None])
@pytest.mark.parametrize("through", ["y", "v"])
@pytest.mark.parametrize("carried", [True, False])
@pytest.mark.parametrize("name", COUPLED)
def test_gradient_may_arrive_at_one_end_only(name, carried, through, v_reset):
    """A loss on the output alone, or on the last membrane alone, from a carried state or from any rest."""
    _check(name, Problem(carried=carried), through, groups=3, v_reset=v_reset)


@pytest.mark.usefixtures("on_each_backend")
@pytest.mark.parametrize(("alpha", "beta"), [(0.05, 1.0), (0.8, 1.0), (0.5, -0.7), (0.5, 3.0)])
@pytest.mark.parametrize("name", COUPLED)
def test_any_reset_strength_and_coupling(name, alpha, beta):
    """Weak and strong resets; a partner weighted down, up, and with the other sign."""
    _check(name, Problem(steps=4), alpha=alpha, beta=beta, v_threshold=0.8)


@pytest.mark.usefixtures("on_each_backend")
@pytest.mark.parametrize("every", [1, 2, 5, 9, 30, None])
@pytest.mark.parametrize("carried", [True, False])
def test_any_distance_of_anchors(every, carried):
    """Segments of one step, of several, uneven ones, and one that is longer than the sequence."""
    _check("revlif-anchored", Problem(steps=9, carried=carried), node_options={"anchor_every": every}, groups=3)


@pytest.mark.usefixtures("on_each_backend")
@pytest.mark.parametrize("alpha", [0.5, 1.0])
@pytest.mark.parametrize("neuron", NEURONS, ids=str)
@pytest.mark.parametrize("name", ["revlif-stored", "revlif-anchored"])
def test_reset_gated_by_the_spike(name, neuron, alpha):
    """The true hard reset, alpha = 1 included, which only nodes that never invert the membrane offer."""
    _check(name, Problem(steps=7), reset_gate="spike", alpha=alpha, groups=3, **neuron)


@pytest.mark.usefixtures("on_each_backend")
@pytest.mark.parametrize("name", COUPLED)
def test_gate_has_no_slope_at_its_borders(name):
    """Binary inputs put outputs on 0 and 1 exactly: there the gate passes no gradient, in every node alike."""
    problem = Problem(steps=6)
    problem.x = (problem.x > 0.8).double()
    expected = differentiate(run_oracle(name), problem)
    assert ((expected.y == 0) | (expected.y == 1)).double().mean() > 0.5
    assert_ends_close(differentiate(run_node(make(name)), problem), expected, _tolerance(name))


@pytest.mark.parametrize("neuron", [*NEURONS, {"groups": 3}, {"alpha": 0.9, "beta": -0.3}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_four_forwards_are_one(neuron, dtype):
    """Outputs and last membranes of the four coupled nodes are equal bit for bit, from rest and from a state."""
    for carried in (True, False):
        problem = Problem(steps=20, shape=(3, 24), carried=carried).to(dtype)
        runs = [run_node(make(name, **neuron))(problem.x, problem.v) for name in COUPLED]
        assert all(torch.equal(y, runs[0][0]) and torch.equal(v, runs[0][1]) for y, v in runs[1:])
