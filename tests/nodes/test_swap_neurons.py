"""`revsnn_nodes.spikingjelly`: nodes of SpikingJelly's own kind, and the exchange of a model's neurons for them."""

import copy

import pytest
import torch
from revsnn_nodes import spikingjelly
from revsnn_nodes.spikingjelly import SURROGATES, IFNode, LIFNode, ParametricLIFNode, swap_neurons
from spikingjelly.activation_based import base, functional, layer, memopt, monitor, neuron, op_counter, surrogate
from torch import nn


class Block(nn.Sequential):
    """What memopt takes as one segment."""


def network(tau: float = 3.0, v_reset: float | None = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    blocks = [
        Block(
            layer.Conv2d(channels, 8, 3, padding=1, bias=False),
            layer.BatchNorm2d(8),
            neuron.LIFNode(tau=tau, v_reset=v_reset, surrogate_function=surrogate.ATan()),
        )
        for channels in (3, 8)
    ]
    net = nn.Sequential(*blocks, layer.Flatten(), layer.Linear(8 * 64, 10))
    functional.set_step_mode(net, "m")
    return net


def gradients(net: nn.Module, calls: int = 2) -> torch.Tensor:
    """All parameter gradients of several calls between which the state is carried and the graph is cut."""
    torch.manual_seed(1)
    found = []
    for _ in range(calls):
        net.zero_grad()
        functional.detach_net(net)
        net(torch.randn(4, 2, 3, 8, 8)).square().sum().backward()
        found += [parameter.grad.flatten() for parameter in net.parameters()]
    return torch.cat(found)


def error(of: torch.Tensor, against: torch.Tensor) -> float:
    return float((of - against).norm() / against.norm())


@pytest.mark.parametrize("v_reset", [0.0, None])
def test_swapped_network_has_the_same_gradients_over_two_calls(v_reset):
    """Parameters, surrogate and carried state come along: two calls in a row agree to rounding."""
    ours = network(v_reset=v_reset)
    done = swap_neurons(ours)
    assert list(done.swapped) == ["0.2", "1.2"]
    assert error(gradients(ours), gradients(network(v_reset=v_reset))) < 1e-6


@pytest.mark.parametrize("level", [0, 1])
def test_memopt_around_our_nodes_is_right(level):
    """Their optimiser sees the membrane as a memory, so its second run starts from where the first one did."""
    ours = network()
    swap_neurons(ours)
    torch.manual_seed(2)
    x = torch.randn(4, 2, 3, 8, 8)
    optimised = memopt.optimize_memory(ours, (Block,), lambda model: model(x), level=level)
    functional.reset_net(optimised)
    assert error(gradients(optimised), gradients(network())) < 1e-6


def test_their_functions_treat_our_nodes_as_their_own(caplog):
    """reset_net, detach_net, set_step_mode and the memory protocol work, and none of them logs a warning."""
    ours = network()
    swap_neurons(ours)
    functional.set_step_mode(ours, "s")
    ours(torch.randn(2, 3, 8, 8))
    assert [name for name, _ in base.named_memories(ours)] == ["0.2.v", "1.2.v"]
    assert [tuple(v.shape) for v in base.extract_memories(ours)] == [(2, 8, 8, 8)] * 2
    functional.detach_net(ours)
    assert all(v.grad_fn is None for v in base.extract_memories(ours))
    functional.reset_net(ours)
    assert base.extract_memories(ours) == [0.0, 0.0]
    assert not caplog.records


@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("kind", ["LIFNode", "IFNode", "ParametricLIFNode"])
def test_functional_forward_is_theirs(kind, mode):
    """From an explicit membrane: outputs, new membrane and gradients; the node's own membrane stays."""
    torch.manual_seed(0)
    x, v = torch.randn(4, 2, 6) + 1, torch.randn(2, 6).requires_grad_()
    found = []
    for module in (neuron, spikingjelly):
        node = getattr(module, kind)(step_mode=mode)
        forward = base.to_functional_forward(node)
        (y,), (after,) = forward((x if mode == "m" else x[0],), (v,))
        assert node.v == 0.0
        found.append((y, after, *torch.autograd.grad(y.sum() + after.sum(), [v, *node.parameters()])))
        (start,) = node.materialize_states((x[0],), (0.5,), "s")
        assert torch.equal(start, torch.full((2, 6), 0.5))
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("to", spikingjelly.KINDS)
def test_exchanged_nodes_are_neurons_of_theirs(to):
    """What asks for `BaseNode` finds every node; `LIFNode` is what has its function; no attribute of theirs is set."""
    ours = network(tau=3.0)
    swap_neurons(ours, to)
    nodes = [module for module in ours.modules() if isinstance(module, neuron.BaseNode)]
    assert [type(node) for node in nodes] == [spikingjelly.KINDS[to]] * 2
    assert [isinstance(node, neuron.LIFNode) for node in nodes] == [to in ("lif", "lif-checkpoint")] * 2
    assert nodes[0].tau == 3.0
    assert not {"tau", "decay_input", "v_threshold", "v_reset", "detach_reset", "lava_s_cale"} & vars(nodes[0]).keys()


def test_their_monitor_sees_our_nodes_as_theirs():
    """A spike monitor that asks for `BaseNode` records the same, layer by layer."""
    counted = []
    for swap in (False, True):
        net = network()
        if swap:
            swap_neurons(net)
        watch = monitor.OutputMonitor(net, neuron.BaseNode)
        torch.manual_seed(1)
        net(torch.randn(4, 2, 3, 8, 8))
        counted.append([watch.monitored_layers, *(each.sum().item() for each in watch.records)])
        watch.remove_hooks()
    assert counted[0] == counted[1]
    assert len(counted[0]) == 3


@pytest.mark.parametrize("kind", ["LIFNode", "IFNode", "ParametricLIFNode"])
def test_their_counters_count_our_nodes_as_theirs(kind):
    """Every counter, in both passes, and the same output; a fused kernel would be one unknown operator."""
    counted = []
    for module in (neuron, spikingjelly):
        torch.manual_seed(0)
        node = getattr(module, kind)(step_mode="m")
        net = nn.Sequential(layer.Linear(6, 8, step_mode="m"), node, layer.Linear(8, 4, step_mode="m"))
        counters = [op_counter.FlopCounter(), op_counter.NeuronStateCounter(), op_counter.MemoryAccessCounter()]
        with op_counter.DispatchCounterMode(counters):
            y = net(torch.linspace(-2, 4, 72).reshape(4, 3, 6))
            y.square().sum().backward()
        assert tuple(node.v.shape) == (3, 8)
        counted.append([y.tolist(), *(counter.get_counts()["Global"] for counter in counters[::2])])
        counted[-1].append(dict(counters[1].get_metric_counts()["Global"]))
    assert counted[0] == counted[1]
    assert all(counted[0][1:])


def test_one_neuron_without_dimensions_is_theirs():
    """Step by step on scalars, as their neurons take them: spikes, membrane and gradient."""
    found = []
    for module in (neuron, spikingjelly):
        x_seq, node = torch.tensor([0.7, 1.9, -0.3, 2.5]).requires_grad_(), module.LIFNode()
        y_seq = torch.stack([node(x) for x in x_seq])
        found.append((y_seq, node.v, *torch.autograd.grad(y_seq.sum() + node.v, x_seq)))
    assert found[0][1].shape == ()
    assert found[0][0].sum() > 0
    torch.testing.assert_close(found[1], found[0])


def test_state_is_moved_with_the_neuron():
    """A swap in the middle of a sequence goes on from the membrane it finds."""
    theirs = network()
    torch.manual_seed(3)
    first, second = torch.randn(2, 4, 2, 3, 8, 8)
    with torch.no_grad():
        theirs(first)
        ours = copy.deepcopy(theirs)
        swap_neurons(ours)
        assert torch.equal(ours(second), theirs(second))


def test_a_swap_back_gives_their_neuron_with_its_parameters():
    """There and back: class, parameters and surrogate are what they were."""
    net = network(tau=4.0, v_reset=None)
    before = net[0][2]
    swap_neurons(net)
    swap_neurons(net, to="spikingjelly")
    after = net[0][2]
    assert type(after) is neuron.LIFNode
    assert (after.tau, after.v_reset, after.step_mode) == (before.tau, before.v_reset, before.step_mode)
    assert type(after.surrogate_function) is surrogate.ATan
    assert after.surrogate_function.alpha == before.surrogate_function.alpha


def test_a_shared_neuron_stays_one():
    """A neuron that a model holds twice is exchanged once, for one node."""
    shared = neuron.LIFNode(step_mode="m")
    net = nn.ModuleDict({"a": nn.Sequential(shared, nn.Identity(), shared), "b": nn.Sequential(shared)})
    done = swap_neurons(net)
    assert net["a"][0] is net["a"][2] is net["b"][0]
    assert type(net["a"][0]) is LIFNode
    assert list(done.swapped) == ["a.0", "a.2", "b.0"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler
def test_a_neuron_that_is_compiled_by_itself_is_left():
    """What it calls was bound when it was compiled: a neuron put there would not run, nor the old one be reset."""
    torch.compiler.reset()
    net = nn.Sequential(torch.compile(neuron.LIFNode(step_mode="m"), backend="eager"), neuron.LIFNode(step_mode="m"))
    done = swap_neurons(net)
    assert set(done.swapped) == {"1"}
    assert "0._orig_mod: left, compiled by itself" in str(done)
    whole = torch.compile(copy.deepcopy(nn.Sequential(neuron.LIFNode(step_mode="m"))), backend="eager")
    assert set(swap_neurons(whole).swapped) == {"_orig_mod.0"}
    ran = []
    whole.get_submodule("_orig_mod.0").register_forward_hook(lambda *_: ran.append(True))
    whole(torch.randn(2, 3))
    assert ran == [True]


def test_what_is_left_says_why():
    """Other neurons and hooked ones stay, with the reason in the printed table; those that are no `BaseNode` were not
    named. On the way back each was said to have no counterpart in SpikingJelly."""
    hooked = neuron.LIFNode()
    hooked.register_forward_hook(lambda *_: None)
    net = nn.Sequential(neuron.QIFNode(), hooked, neuron.PSN(4), neuron.GatedLIFNode(4), neuron.DSRLIFNode())
    done = swap_neurons(net)
    assert not done.swapped
    for place in (0, 2, 3, 4):
        name = type(net[place]).__name__
        told = f"{place}: left, {name} is not among LIFNode, IFNode and ParametricLIFNode, which 'lif' takes"
        assert told in str(done)
    assert "1: left, it has hooks" in str(done)
    assert swap_neurons(net, "spikingjelly").left == dict.fromkeys("01234", "it is SpikingJelly's already")


def test_neurons_of_another_function_are_left():
    """One with a forward of its own, one that begins elsewhere than its class, one that does not spike."""
    changed, elsewhere, smooth = (neuron.LIFNode() for _ in range(3))
    forward = changed.forward
    changed.forward = lambda x: 2 * forward(x)
    elsewhere.set_reset_value("v", 0.7)
    smooth.surrogate_function = surrogate.Sigmoid(spiking=False)
    done = swap_neurons(nn.Sequential(changed, elsewhere, smooth, neuron.LIFNode(v_reset=0.3)))
    assert list(done.swapped) == ["3"]
    assert done.left == {
        "0": "it has a forward of its own",
        "1": "its membrane begins at another value than v_reset",
        "2": "its surrogate does not spike",
    }


def test_an_exchange_that_fails_changes_nothing(monkeypatch):
    net = nn.Sequential(neuron.LIFNode(), neuron.LIFNode())
    before, build = list(net), spikingjelly._node
    monkeypatch.setattr(spikingjelly, "_node", lambda one, *rest: build(one, *rest) if one is before[0] else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        swap_neurons(net)
    assert list(net) == before


@pytest.mark.parametrize("theirs", SURROGATES.values(), ids=lambda kind: kind.__name__)
def test_surrogates_have_twins(theirs):
    """Values and slopes of each pair are equal, at its own alpha."""
    function = theirs()
    net = nn.Sequential(neuron.LIFNode(surrogate_function=function))
    swap_neurons(net)
    z = torch.linspace(-2, 2, 401, dtype=torch.float64).requires_grad_()
    (ours,) = torch.autograd.grad(net[0].surrogate_function(z).sum(), z)
    (expected,) = torch.autograd.grad(function(z).sum(), z)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


class Sloped(nn.Module):
    """A surrogate that learns its slope."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(2.0))

    def forward(self, z):
        smooth = torch.sigmoid(self.slope * z)
        return (z >= 0).to(z) + smooth - smooth.detach()


@pytest.mark.parametrize(
    ("function", "why"),
    [(Sloped(), "have no trainable parameters"), (lambda z: (z > 0) + z * 0.0, "fire 0 below the threshold")],
    ids=["learns", "fires above"],
)
def test_a_surrogate_that_no_node_takes_is_left(function, why):
    """And the other neurons are exchanged; with an error none would be."""
    net = nn.Sequential(neuron.LIFNode(surrogate_function=function), neuron.LIFNode())
    done = swap_neurons(net)
    assert list(done.swapped) == ["1"]
    assert why in done.left["0"]


def test_bad_arguments_are_refused():
    """An unknown target, a bare neuron and a list get one clear error each."""
    with pytest.raises(ValueError, match="`to` must be one of"):
        swap_neurons(network(), to="nothing")
    with pytest.raises(ValueError, match="`model` must be a module that holds neurons"):
        swap_neurons(neuron.LIFNode())
    with pytest.raises(ValueError, match="`model` must be a module that holds neurons; got 'list'"):
        swap_neurons([network()])


def test_integrate_and_fire_and_learned_tau_are_exchanged_and_back():
    """IFNode and ParametricLIFNode, both ways: same gradients, and the very parameter w that an optimizer holds."""

    def mixed():
        net = network()
        net[0][2] = neuron.IFNode(v_reset=None, surrogate_function=surrogate.ATan(), step_mode="m")
        net[1][2] = neuron.ParametricLIFNode(3.0, decay_input=False, surrogate_function=surrogate.ATan(), step_mode="m")
        return net

    ours = mixed()
    w = ours[1][2].w
    done = swap_neurons(ours)
    assert list(done.swapped) == ["0.2", "1.2"]
    assert not done.left
    assert (type(ours[0][2]), type(ours[1][2])) == (IFNode, ParametricLIFNode)
    assert ours[1][2].w is w
    assert ours[1][2].tau == pytest.approx(3.0)
    assert error(gradients(ours), gradients(mixed())) < 2e-6
    assert set(swap_neurons(ours).left.values()) == {"it is one already"}
    assert set(swap_neurons(mixed(), "lif-carrier").left) == {"0.2", "1.2"}
    functional.reset_net(ours)
    swap_neurons(ours, "spikingjelly")
    assert (type(ours[0][2]), type(ours[1][2])) == (neuron.IFNode, neuron.ParametricLIFNode)
    assert ours[1][2].w is w
    assert error(gradients(ours), gradients(mixed())) < 1e-6
