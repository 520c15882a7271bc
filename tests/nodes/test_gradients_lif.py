"""The three nodes of the LIF family against the float64 loop: outputs, last membrane and every gradient."""

import itertools

import pytest
import torch
from nodes_cases import LIF_FAMILY, Problem, assert_ends_close, differentiate, make, run_node, run_oracle
from nodes_tolerances import RTOL

TIGHT = RTOL[torch.float64]
NEURONS = [
    {"v_reset": v_reset, "decay_input": decay, "detach_reset": detach}
    for v_reset, decay, detach in itertools.product((0.0, -0.3, None), (True, False), (True, False))
]


@pytest.mark.usefixtures("on_each_backend")
@pytest.mark.parametrize("steps", [1, 5, 8])
@pytest.mark.parametrize("neuron", NEURONS, ids=str)
@pytest.mark.parametrize("name", LIF_FAMILY)
def test_every_gradient_is_the_loops(name, neuron, steps):
    """Any reset, decay, detachment and T: output, membrane, and the gradients of input and initial state."""
    problem = Problem(steps)
    expected = differentiate(run_oracle(name, tau=1.7, **neuron), problem)
    assert_ends_close(differentiate(run_node(make(name, tau=1.7, **neuron)), problem), expected, TIGHT)


@pytest.mark.usefixtures("on_each_backend")
@pytest.mark.parametrize("v_reset", [0.0, -0.3, None])
@pytest.mark.parametrize("through", ["y", "v"])
@pytest.mark.parametrize("carried", [True, False])
@pytest.mark.parametrize("name", LIF_FAMILY)
def test_gradient_may_arrive_at_one_end_only(name, carried, through, v_reset):
    """A loss on the output alone, or on the last membrane alone, from a carried state or from any rest."""
    problem = Problem(carried=carried)
    expected = differentiate(run_oracle(name, v_reset=v_reset), problem, through)
    assert_ends_close(differentiate(run_node(make(name, v_reset=v_reset)), problem, through), expected, TIGHT)


@pytest.mark.usefixtures("on_each_backend")
@pytest.mark.parametrize("v_reset", [0.0, 0.4, None])
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


@pytest.mark.usefixtures("on_each_backend")
@pytest.mark.parametrize("spread", [1.0, 30.0])
@pytest.mark.parametrize("epsilon", [1 / 2, 1 / 16, 1 / 256])
@pytest.mark.parametrize("v_reset", [0.0, 0.4, None])
def test_carrier_at_any_scale_with_inputs_past_the_clamp(v_reset, epsilon, spread):
    """Any epsilon; inputs beyond the clamp are cut and get no gradient."""
    problem = Problem(steps=6)
    problem.x *= spread
    border = 31 / 64 / epsilon
    problem.x[0, 0, :3] = torch.tensor([border, -border, border * (1 + 1e-9)])
    node = make("lif-carrier", epsilon=epsilon, v_reset=v_reset)
    got = differentiate(run_node(node), problem)
    assert_ends_close(
        got, differentiate(run_oracle("lif-carrier", epsilon=epsilon, v_reset=v_reset), problem), 256 * TIGHT
    )
    outside = problem.x.abs() >= border
    assert torch.equal(got.x_grad == 0, outside)
    assert node.clamped_fraction(got.y) == pytest.approx(outside.double().mean().item())


@pytest.mark.usefixtures("on_each_backend")
@pytest.mark.parametrize("neuron", [*NEURONS, {"epsilon": 1 / 256}, {"carrier": "always"}], ids=str)
def test_stored_carrier_is_the_carrier_by_plain_autograd(neuron):
    """The control of CarrierLIF: the same output and membrane to the bit in float32, and the loop's gradients."""
    node = make("lif-carrier", **neuron)
    stored = node.reference()
    assert type(stored).__name__ == "StoredCarrierLIF"
    single = Problem(steps=20).to(torch.float32)
    for end in ("y", "v"):
        got, expected = (getattr(differentiate(run_node(n), single), end) for n in (node, stored))
        assert torch.equal(got, expected)
    assert_ends_close(differentiate(run_node(node), Problem()), differentiate(run_node(stored), Problem()), TIGHT)
