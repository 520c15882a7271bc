"""The LIF family against the float64 loop, and StandardLIF against SpikingJelly: values and every gradient."""

import inspect

import pytest
import torch
from nodes_cases import (
    LIF_FAMILY,
    NEURONS,
    Problem,
    assert_ends_close,
    differentiate,
    foreign_import_is_silent,
    make,
    run_node,
    run_oracle,
)
from nodes_tolerances import ALIKE_RTOL, RTOL
from revsnn_nodes import StandardLIF, surrogate

TIGHT = RTOL[torch.float64]


@pytest.mark.usefixtures("on_each_backend")
@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("neuron", NEURONS, ids=str)
@pytest.mark.parametrize("name", LIF_FAMILY)
def test_every_gradient_is_the_loops(name, neuron, steps):
    """Any reset, decay, detachment and T: output, membrane, and the gradients of input and initial state."""
    problem = Problem(steps)
    expected = differentiate(run_oracle(name, tau=1.7, **neuron), problem)
    assert_ends_close(differentiate(run_node(make(name, tau=1.7, **neuron)), problem), expected, TIGHT)


@pytest.mark.usefixtures("on_each_backend")
@pytest.mark.parametrize("v_reset", [-0.3, None])
@pytest.mark.parametrize("through", ["y", "v"])
@pytest.mark.parametrize("carried", [True, False])
@pytest.mark.parametrize("name", LIF_FAMILY)
def test_gradient_may_arrive_at_one_end_only(name, carried, through, v_reset):
    """A loss on the output alone, or on the last membrane alone, from a carried state or from any rest."""
    problem = Problem(carried=carried)
    expected = differentiate(run_oracle(name, v_reset=v_reset), problem, through)
    assert_ends_close(differentiate(run_node(make(name, v_reset=v_reset)), problem, through), expected, TIGHT)


@pytest.mark.usefixtures("on_each_backend")
@pytest.mark.parametrize("v_reset", [0.4, None])
@pytest.mark.parametrize("tau", [1.01, 20.0])
@pytest.mark.parametrize("name", LIF_FAMILY)
def test_extreme_leak_and_threshold(name, tau, v_reset):
    """Membranes that forget at once or hardly ever, and a threshold that is not 1."""
    neuron = {"tau": tau, "v_reset": v_reset, "v_threshold": 0.7}
    problem = Problem(steps=7)
    expected = differentiate(run_oracle(name, **neuron), problem)
    assert_ends_close(differentiate(run_node(make(name, **neuron)), problem), expected, TIGHT)


@pytest.mark.parametrize("every", [1, 2, 5, 9, 20])
def test_segment_length_of_checkpoints_changes_no_bit(every):
    """Whatever the segment length, outputs and gradients are those of StandardLIF to the bit."""
    problem = Problem(steps=9).to(torch.float32)
    got = differentiate(run_node(make("lif-checkpoint", checkpoint_every=every)), problem)
    expected = differentiate(run_node(make("lif")), problem)
    assert all(torch.equal(getattr(got, end), getattr(expected, end)) for end in ("y", "v", "x_grad", "v_grad"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("neuron_options", NEURONS, ids=str)
def test_values_and_gradients_are_lifnodes(neuron_options, dtype):
    """Multi-step LIFNode: spikes to the bit, membrane and gradients to rounding, in every mode of the neuron."""
    neuron, theirs = foreign_import_is_silent()
    shared = {"tau": 1.8, "v_threshold": 0.9, "step_mode": "m"} | neuron_options
    problem = Problem(steps=9, carried=False).to(dtype)
    expected = differentiate(run_node(neuron.LIFNode(surrogate_function=theirs.ATan(), **shared)), problem)
    got = differentiate(run_node(StandardLIF(surrogate_function=surrogate.ATan(), **shared)), problem)
    assert 0.1 < expected.y.double().mean() < 0.9
    assert torch.equal(got.y, expected.y)
    assert_ends_close(got, expected, ALIKE_RTOL[dtype])


def test_constructor_has_lifnodes_names_and_defaults():
    """A LIFNode's keywords, their order and defaults are StandardLIF's; `backend` and `state_dtype` are ours."""
    neuron, theirs = foreign_import_is_silent()
    foreign = inspect.signature(neuron.LIFNode).parameters
    ours = inspect.signature(StandardLIF).parameters
    assert ours["state_dtype"].kind is inspect.Parameter.KEYWORD_ONLY
    assert [name for name in ours if name not in ("backend", "state_dtype")] == list(foreign)
    for name, parameter in ours.items():
        if name not in ("surrogate_function", "backend", "state_dtype"):
            assert foreign[name].default == parameter.default, name
    assert isinstance(neuron.LIFNode().surrogate_function, theirs.Sigmoid)
    assert isinstance(StandardLIF(step_mode="m").surrogate_function, surrogate.Sigmoid)


def test_state_carries_over_as_in_lifnode():
    """Two calls without reset, then reset and a third, give LIFNode's spikes."""
    neuron, _ = foreign_import_is_silent()
    ours, foreign = StandardLIF(step_mode="m"), neuron.LIFNode(step_mode="m")
    x = Problem(steps=6).x
    for _ in range(2):
        assert torch.equal(ours(x), foreign(x))
    torch.testing.assert_close(ours.v, foreign.v)
    ours.reset(), foreign.reset()
    assert ours.v == foreign.v == 0.0
    assert torch.equal(ours(x), foreign(x))
