"""StandardLIF is SpikingJelly's LIFNode: same names, same values, same gradients."""

import inspect

import pytest
import torch
from nodes_cases import Problem, assert_ends_close, differentiate, foreign_import_is_silent, run_node
from nodes_tolerances import ALIKE_RTOL
from revsnn_nodes import StandardLIF, surrogate


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("detach_reset", [True, False])
@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize("v_reset", [0.0, -0.2, None])
def test_values_and_gradients_are_lifnodes(v_reset, decay_input, detach_reset, dtype):
    """Multi-step LIFNode: spikes to the bit, membrane and gradients to rounding, in every mode of the neuron."""
    neuron, theirs = foreign_import_is_silent()
    shared = {
        "tau": 1.8, "decay_input": decay_input, "v_threshold": 0.9, "v_reset": v_reset,
        "detach_reset": detach_reset, "step_mode": "m",
    }  # fmt: skip
    problem = Problem(steps=9, carried=False).to(dtype)
    expected = differentiate(run_node(neuron.LIFNode(surrogate_function=theirs.ATan(), **shared)), problem)
    got = differentiate(run_node(StandardLIF(surrogate_function=surrogate.ATan(), **shared)), problem)
    assert 0.1 < expected.y.double().mean() < 0.9
    assert torch.equal(got.y, expected.y)
    assert_ends_close(got, expected, ALIKE_RTOL[dtype])


def test_constructor_has_lifnodes_names_and_defaults():
    """A LIFNode's keywords and defaults are StandardLIF's; only step_mode differs ("m" here), and `backend` is ours."""
    neuron, theirs = foreign_import_is_silent()
    foreign = inspect.signature(neuron.LIFNode).parameters
    for name, parameter in inspect.signature(StandardLIF).parameters.items():
        if name not in ("step_mode", "surrogate_function", "backend"):
            assert foreign[name].default == parameter.default, name
    assert isinstance(neuron.LIFNode().surrogate_function, theirs.Sigmoid)
    assert isinstance(StandardLIF().surrogate_function, surrogate.Sigmoid)


def test_state_carries_over_as_in_lifnode():
    """Two calls without reset, then reset and a third, give LIFNode's spikes."""
    neuron, _ = foreign_import_is_silent()
    ours, foreign = StandardLIF(), neuron.LIFNode(step_mode="m")
    x = Problem(steps=6).x
    for _ in range(2):
        assert torch.equal(ours(x), foreign(x))
    torch.testing.assert_close(ours.v, foreign.v)
    ours.reset(), foreign.reset()
    assert ours.v == foreign.v == 0.0
    assert torch.equal(ours(x), foreign(x))
