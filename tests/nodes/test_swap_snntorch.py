"""`revsnn_nodes.snntorch`: snnTorch's `Leaky` is exchanged where the dynamics are the same, else left."""

import copy

import pytest
import torch
from nodes_memory import timeline
from revsnn_nodes.spikingjelly import swap_neurons as swap_spikingjelly
from torch import nn

snntorch = pytest.importorskip("snntorch")

from revsnn_nodes.snntorch import LeakyNode, swap_neurons  # noqa: E402
from snntorch import surrogate, utils  # noqa: E402

SAME = (
    {"beta": 0.75, "reset_mechanism": "zero", "init_hidden": True},
    {"beta": 0.75, "reset_mechanism": "zero", "reset_delay": False, "spike_grad": surrogate.atan(3.0)},
    {"beta": 0.5, "reset_mechanism": "zero", "reset_delay": False, "init_hidden": True, "output": True},
    {"beta": 0.9, "reset_mechanism": "zero", "init_hidden": True, "spike_grad": surrogate.sigmoid(slope=5)},
    {"beta": 1.0, "threshold": 0.5, "init_hidden": True},
    {"beta": 1.0, "reset_mechanism": "zero", "reset_delay": False},
)
OTHER = (
    ({"beta": 0.75, "init_hidden": True}, "those of no node: a reset by subtraction leaks with beta"),
    ({"beta": 0.75, "reset_mechanism": "none", "init_hidden": True}, "those of no node: it never resets"),
    ({"beta": 1.0, "reset_delay": False, "init_hidden": True}, "those of no node: without reset_delay a high"),
    ({"beta": 0.75, "reset_mechanism": "zero"}, "it returns the membrane before its reset"),
    ({"beta": torch.tensor([0.5, 0.75]), "reset_mechanism": "zero", "init_hidden": True}, "for each neuron"),
    ({"beta": 0.5, "reset_mechanism": "zero", "init_hidden": True, "learn_beta": True}, "it learns its beta"),
    ({"beta": 0.5, "reset_mechanism": "zero", "init_hidden": True, "inhibition": True}, "it has inhibition"),
    (
        {"beta": 0.5, "reset_mechanism": "zero", "init_hidden": True, "graded_spikes_factor": 2.0},
        "graded_spikes_factor",
    ),
    (
        {"beta": 0.5, "reset_mechanism": "zero", "init_hidden": True, "spike_grad": surrogate.fast_sigmoid()},
        "its spike_grad is neither atan nor sigmoid",
    ),
)


def network(**arguments):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 30), snntorch.Leaky(**arguments), nn.Linear(30, 30), snntorch.Leaky(**arguments))


def run(net, steps=12, seed=1):
    """Outputs of every step, their membranes where they are returned, and the gradients of all parameters."""
    torch.manual_seed(seed)
    x_seq = torch.randn(steps, 4, 20) * 2 + 0.5
    explicit, found, mems = not net[1].init_hidden, [], [None, None]
    for x in x_seq:
        for layer, (weight, leaky) in enumerate(((net[0], net[1]), (net[2], net[3]))):
            y = leaky(weight(x), *([mems[layer]] if explicit and mems[layer] is not None else []))
            x, mems[layer] = y if isinstance(y, tuple) else (y, None)
            found += [each for each in (x, mems[layer]) if each is not None]
    net.zero_grad()
    sum((each * torch.linspace(-1, 1, each.numel(), dtype=each.dtype).view_as(each)).sum() for each in found).backward()
    return [*found, *(parameter.grad for parameter in net.parameters())]


@pytest.mark.parametrize("arguments", SAME, ids=range(len(SAME)))
def test_an_exchanged_network_gives_theirs(arguments):
    """Spikes, returned membranes and all gradients over two sequences with `utils.reset` between them."""
    theirs, ours = network(**arguments), network(**arguments)
    done = swap_neurons(ours)
    assert list(done.swapped) == ["1", "3"]
    assert [type(ours[1]), ours.state_dict().keys()] == [LeakyNode, theirs.state_dict().keys()]
    for seed in (1, 2):
        expected, found = run(theirs, seed=seed), run(ours, seed=seed)
        assert sum(float(each.detach().sum()) for each in expected[:4]) != 0
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        for net in (theirs, ours):
            utils.reset(net)
            assert not net[1].mem.any()


@pytest.mark.parametrize("arguments", [each for each in SAME if each.get("init_hidden")])
def test_an_exchange_in_the_middle_of_a_sequence_gives_theirs(arguments):
    """A hidden membrane above the threshold is reset, as the neuron would do at its next step."""
    theirs = network(**arguments)
    with torch.no_grad():
        theirs[1](theirs[0](torch.full((4, 20), 3.0)))
    ours = copy.deepcopy(theirs)
    assert arguments.get("output") or (ours[1].mem > ours[1].threshold).any()
    swap_neurons(ours)
    torch.testing.assert_close(run(ours), run(theirs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("arguments", "why"), OTHER, ids=lambda each: each if isinstance(each, str) else None)
@pytest.mark.filterwarnings("ignore:Inhibition is an unstable feature")
def test_what_differs_is_left_and_says_why(arguments, why):
    """Nothing is exchanged, and the table has the reason; SpikingJelly's exchange points here."""
    layers = snntorch.Leaky(**arguments), snntorch.Synaptic(0.5, 0.5), snntorch.LeakyParallel(4, 4)
    net = nn.Sequential(*layers)
    done = swap_neurons(net)
    assert not done.swapped
    assert why in done.left.pop("0")
    assert done.left == {"1": "Synaptic is not Leaky", "2": "LeakyParallel is not Leaky"}
    left = swap_spikingjelly(net).left
    assert len(left) == 3
    assert all("revsnn_nodes.snntorch.swap_neurons" in why for why in left.values())


RESETS_TO_ZERO = {"beta": 0.5, "reset_mechanism": "zero", "init_hidden": True}


@pytest.mark.parametrize(
    ("arguments", "theirs"),
    [(RESETS_TO_ZERO, 2), ({**RESETS_TO_ZERO, "reset_delay": False}, 4), ({"beta": 1.0, "init_hidden": True}, 1)],
)
def test_less_is_kept(arguments, theirs):
    """For backward the exchanged neuron keeps one tensor per step; whatever snnTorch keeps beyond is said in words."""
    steps, step_bytes, kept = 20, 3 * 1000 * 4, []
    for swap in (False, True):
        net = nn.Sequential(snntorch.Leaky(**arguments))
        if swap:
            swap_neurons(net)
        x_seq = torch.randn(steps, 3, 1000, requires_grad=True)
        found = timeline(lambda net=net, x_seq=x_seq: torch.stack([net(x) for x in x_seq.unbind()]))
        kept.append(found.live_bytes / step_bytes - steps)
    assert [round(each / steps) for each in kept] == [theirs, 1]
    assert all(abs(each - steps * round(each / steps)) <= 3 for each in kept)  # the membranes of the last step


def test_a_shared_neuron_stays_one():
    """One in two places is one afterwards, and is not exchanged again."""
    leaky = snntorch.Leaky(**RESETS_TO_ZERO)
    net = nn.Sequential(leaky, leaky)
    done = swap_neurons(net)
    assert net[0] is net[1]
    assert list(done.swapped) == ["0", "1"]
    assert set(swap_neurons(net).left.values()) == {"it is one already"}


def test_a_bare_neuron_and_a_second_membrane_are_refused():
    """Nothing holds a bare neuron, and a hidden state takes none beside it."""
    leaky = snntorch.Leaky(beta=0.5, reset_mechanism="zero", init_hidden=True)
    with pytest.raises(ValueError, match="`model` must be a module that holds neurons; got 'Leaky'"):
        swap_neurons(leaky)
    with pytest.raises(ValueError, match="`model` must be a module that holds neurons; got 'list'"):
        swap_neurons([leaky])
    with pytest.raises(TypeError, match="`mem` must be left out"):
        LeakyNode(leaky)(torch.zeros(2, 3), torch.zeros(2, 3))


CHANGES = {
    "beta": lambda leaky: leaky.beta.fill_(0.5),
    "threshold": lambda leaky: leaky.threshold.fill_(2.0),
    "no leak": lambda leaky: leaky.beta.fill_(1.0),
    "another buffer": lambda leaky: setattr(leaky, "beta", torch.tensor(0.5)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_buffers_changed_after_the_exchange_count(change):
    """A checkpoint that is loaded after it, with or without `assign`, and buffers changed in place or exchanged."""
    arguments = {"beta": 0.9, "reset_mechanism": "zero", "reset_delay": False}
    theirs, loaded, assigned, changed = (network(**arguments) for _ in range(4))
    before = run(theirs)
    utils.reset(theirs)
    change(theirs[1])
    expected = run(theirs)
    assert any(not torch.equal(*pair) for pair in zip(before, expected, strict=True))
    for net in (loaded, assigned, changed):
        swap_neurons(net)
        net[1].node.backend = "torch"
        run(net)
        utils.reset(net)
    loaded.load_state_dict(theirs.state_dict())
    assigned.load_state_dict(theirs.state_dict(), assign=True)
    change(changed[1])
    for net in (loaded, assigned, changed):
        torch.testing.assert_close(run(net), expected, rtol=1e-4, atol=1e-5)
        assert net[1].node.backend_in_use == "torch"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler
@torch.no_grad()
def test_a_compiled_network_follows_its_buffers():
    """Changed in place between two calls of the compiled module, they count as they do without a compiler."""
    net = network(beta=0.9, reset_mechanism="zero", init_hidden=True)
    swap_neurons(net)
    torch._dynamo.reset()
    compiled, x = torch.compile(net, backend="eager"), torch.randn(4, 20) * 3
    found = []
    for beta in (0.9, 0.1):
        net[1].beta.fill_(beta)
        for run_once in (compiled, net):
            utils.reset(net)
            found.append([run_once(x) for _ in range(4)])
    torch.testing.assert_close(found[0::2], found[1::2])
    assert net[1].node.tau == pytest.approx(1 / 0.9)


def test_buffers_of_no_node_are_refused_after_the_exchange():
    """A factor, or a checkpoint of a neuron that subtracts, computes what no node does: an error, not another net."""
    arguments = {"beta": 0.9, "reset_mechanism": "zero", "reset_delay": False}
    net, subtracts = network(**arguments), network(**arguments | {"reset_mechanism": "subtract"})
    swap_neurons(net)
    for refused, why in ((subtracts, "its reset_mechanism_val"), (network(**arguments), "it has graded_spikes_factor")):
        refused[1].graded_spikes_factor.fill_(1.0 if refused is subtracts else 2.0)
        net.load_state_dict(refused.state_dict())
        with pytest.raises(ValueError, match=f"`neuron` must keep the dynamics of a node; got '{why}.*Do so before"):
            run(net)
    net.load_state_dict(network(**arguments).state_dict())
    run(net)


def test_buffers_without_values_leave_the_node_as_it_is():
    """On the meta device a step gives a shape; on the way back it computes what it did."""
    net = network(beta=0.9, reset_mechanism="zero", reset_delay=False)
    swap_neurons(net)
    values = net.state_dict()
    assert net.to("meta")[1](torch.zeros(4, 30, device="meta"))[0].shape == (4, 30)
    assert net.to_empty(device="cpu").load_state_dict(values).missing_keys == []
    assert net[1].node.tau == pytest.approx(10.0)
