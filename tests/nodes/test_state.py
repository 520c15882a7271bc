"""State across calls: carried, cut, reset, and the same whichever way the steps are handed in."""

import pytest
import torch
from nodes_cases import ALL, COUPLED, INVERTING, Problem, assert_ends_close, differentiate, make, run_node
from nodes_tolerances import INVERSE_RTOL_FLOAT64, RTOL
from revsnn_nodes import reset
from torch import nn


def _tolerance(name):
    return INVERSE_RTOL_FLOAT64 if name in INVERTING else RTOL[torch.float64]


@pytest.mark.parametrize("cut", [1, 3, 6])
@pytest.mark.parametrize("name", ALL)
def test_two_calls_are_one_long_call(name, cut):
    """Values to the bit, and full BPTT through the carried state: gradients reach the first call's input."""
    node = make(name)

    def in_two(x, v):
        node.v = v
        y = torch.cat([node(x[:cut]), node(x[cut:])])
        return y, node.v

    problem = Problem(steps=7)
    got, expected = differentiate(in_two, problem), differentiate(run_node(make(name)), problem)
    assert torch.equal(got.y, expected.y)
    assert torch.equal(got.v, expected.v)
    assert_ends_close(got, expected, _tolerance(name))


@pytest.mark.parametrize("name", ALL)
def test_detach_truncates_the_gradient(name):
    """After detach() values go on, and no gradient reaches what came before: that of a fresh start from the state."""
    problem, node = Problem(steps=6, carried=False), make(name)
    early, late = (part.clone().requires_grad_() for part in problem.x.split(3))
    node(early)
    node.detach()
    carried = node.v.clone()
    y = node(late)
    early_grad, late_grad = torch.autograd.grad(y.sum(), (early, late), allow_unused=True)
    assert early_grad is None
    fresh, again = make(name), problem.x[3:].clone().requires_grad_()
    fresh.v = carried
    y_again = fresh(again)
    assert torch.equal(y, y_again)
    assert torch.equal(late_grad, torch.autograd.grad(y_again.sum(), again)[0])


@pytest.mark.parametrize("name", ALL)
def test_detach_and_reset_at_rest_are_harmless(name):
    """detach() before any call does nothing; reset() puts the float of rest back."""
    node = make(name, v_reset=-0.3)
    node.detach()
    assert node.v == -0.3
    node(Problem().x)
    node.reset()
    assert node.v == -0.3
    assert make(name, v_reset=None).v == 0.0


@pytest.mark.parametrize("name", ALL)
def test_step_mode_switches_in_the_middle_of_a_sequence(name):
    """The state survives the switch."""
    problem, node = Problem(steps=5, carried=False), make(name)
    parts = [node(problem.x[:3])]
    node.step_mode = "s"
    parts += [node(step).unsqueeze(0) for step in problem.x[3:]]
    assert torch.equal(torch.cat(parts), make(name)(problem.x))


@pytest.mark.parametrize("start", [0.25, -1])
@pytest.mark.parametrize("name", ALL)
def test_state_may_be_given_as_a_number(name, start):
    """node.v = number starts every neuron there, as a tensor filled with it does."""
    problem, node, other = Problem(), make(name), make(name)
    node.v, other.v = start, torch.full_like(problem.x[0], start)
    assert torch.equal(node(problem.x), other(problem.x))


@pytest.mark.parametrize("name", ALL)
def test_reset_makes_calls_independent(name):
    """The same batch twice with a reset between gives the same output; without, another."""
    problem, node = Problem(mean=1.5), make(name)
    first, carried_on = node(problem.x), node(problem.x)
    node.reset()
    assert torch.equal(node(problem.x), first)
    if name not in COUPLED:
        assert not torch.equal(carried_on, first)


@pytest.mark.parametrize(
    ("change", "needed"),
    [
        (lambda x: x[:, :1], r"\(1, 12\)"),
        (lambda x: x[..., :6], r"\(2, 6\)"),
        (lambda x: x.float(), "torch.float32"),
    ],
)
@pytest.mark.parametrize("name", ALL)
def test_state_that_does_not_fit_is_refused(name, change, needed):
    """Another batch size, feature or dtype than the carried state: said with both, and reset() as the way out."""
    node, x = make(name), Problem().x
    node(x)
    with pytest.raises(ValueError, match=rf"`x` must match the carried state's.*got .*{needed}.*Call reset\(\)"):
        node(change(x))
    node.reset()
    node(change(x))


class Integrator(nn.Module):
    """A neuron of one's own: it has `reset()` and a membrane `v`."""

    v = 0.0

    def reset(self):
        self.v = 0.0

    def forward(self, x_seq):
        self.v = self.v + x_seq.sum(0)
        return x_seq + self.v


@pytest.mark.parametrize("name", ALL)
def test_a_network_that_is_reset_after_each_step_trains(name):
    """Every neuron, however deep inside and of whatever kind, starts from rest: steps are equal, each with a graph."""
    neurons = [make(name), make(name), Integrator()]
    net, found = nn.Sequential(nn.Linear(4, 4), nn.Sequential(*neurons)), []
    x_seq = torch.randn(3, 2, 4)
    for _ in range(2):
        y_seq = net(x_seq)
        y_seq.sum().backward()
        found.append(y_seq.detach())
        reset(net)
        assert [neuron.v for neuron in neurons] == [0.0, 0.0, 0.0]
    assert torch.equal(*found)
    with pytest.raises(ValueError, match="`model` must be a module; got 'list'"):
        reset(neurons)


def test_layers_of_other_packages_are_reset():
    """SpikingJelly's neurons and its layers with memories, and the membrane of snnTorch's, before and after a swap."""
    pytest.importorskip("spikingjelly")
    snntorch = pytest.importorskip("snntorch")
    from revsnn_nodes.snntorch import swap_neurons
    from spikingjelly.activation_based import layer, neuron

    leaky = snntorch.Leaky(0.5, threshold=9.0, reset_mechanism="zero", reset_delay=False)
    net = nn.Sequential(neuron.LIFNode(), layer.SynapseFilter(), leaky)
    for _ in range(2):
        for current in (3.0, 1.0):
            net(torch.full((2, 3), current))
        assert all(each.any() for each in (net[0].v, net[1].out_i, net[2].mem))
        reset(net)
        assert (net[0].v, net[1].out_i, net[2].mem.any().item()) == (0.0, 0.0, False)
        swap_neurons(net)
