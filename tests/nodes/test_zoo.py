"""SpikingJelly's networks with our neurons in the place of theirs: outputs, gradients, and whole trainings."""

import copy

import pytest
import torch
from nodes_cases import foreign_import_is_silent
from nodes_zoo import BATCH, IMAGES, ZOO, example, their
from revsnn_nodes.spikingjelly import CarrierLIFNode, swap_neurons
from spikingjelly.activation_based import functional, layer, memopt
from torch import nn

neuron, surrogate = foreign_import_is_silent()

KINDS = [
    {"spiking_neuron": neuron.LIFNode, "tau": 1.5},
    {"spiking_neuron": neuron.LIFNode, "v_reset": None, "decay_input": False, "detach_reset": True},
    {"spiking_neuron": neuron.IFNode, "v_reset": -0.1},
    {"spiking_neuron": neuron.ParametricLIFNode, "init_tau": 1.5},
]
"""The neurons that networks are built with, in turn."""

LOOPED = ["SpikingVGG, norm", "SpikingResNet, basic", "SEWResNet, ADD", "MNISTNet", "OTTTSpikingVGG"]
CARRIED = ["SpikingVGG, norm", "SpikingResNet, basic", "SEWResNet, ADD", "Spikformer", "MSResNet", "QKFormer"]


def build(name, dtype=torch.float64, **options):
    """A network of the zoo that fires in every layer, in step mode "m" where it does not loop over time itself."""
    kind = options or KINDS[list(ZOO).index(name) % len(KINDS)]
    torch.manual_seed(0)
    net = ZOO[name][0](surrogate_function=surrogate.ATan(), v_threshold=0.1, **kind).to(dtype)
    if name not in IMAGES or name == "SpikeDHS":
        functional.set_step_mode(net, "m")
    return net


def step(net, x, run=None):
    """Output, and gradients of the input and of every parameter, of a random linear loss on `run(x)`, or `net(x)`.

    Names of parameters are those without memopt's wrappers.
    """
    torch.manual_seed(1)
    x = x.clone().requires_grad_()
    found = (run or net)(x)
    y = torch.cat([each.flatten() for each in found]) if isinstance(found, tuple) else found
    net.zero_grad()
    (y * torch.randn_like(y)).sum().backward()
    return y.detach(), {"x": x.grad} | {
        name.replace("_checkpoint_wrapped_module.", ""): p.grad for name, p in net.named_parameters()
    }


def assert_same(got, want, rtol):
    """The same gradients: the norm of the largest difference is within rtol of that of all of them."""
    assert got.keys() == want.keys()
    scale = torch.stack([each.norm() for each in want.values() if each is not None]).norm()
    assert scale > 0
    for name, expected in want.items():
        assert (got[name] is None) == (expected is None), name
        if expected is not None:
            assert (got[name] - expected).norm() <= rtol * scale, name


@pytest.mark.parametrize("name", ZOO)
def test_every_network_computes_the_same(name):
    """Outputs have their bits, and the gradients of the input and of every parameter agree to 1e-12 in float64."""
    theirs = build(name)
    ours = copy.deepcopy(theirs)
    done = swap_neurons(ours)
    assert done.swapped
    assert all(why.startswith("save_v_LIFNode is not among") for why in done.left.values())
    x = example(name, torch.float64)
    (y, gradients), (y_theirs, expected) = step(ours, x), step(theirs, x)
    assert y.any()
    assert torch.equal(y, y_theirs)
    assert_same(gradients, expected, 1e-12)


@pytest.mark.parametrize("name", LOOPED)
def test_step_by_step_they_compute_the_same(name):
    """In step mode "s", the default of both, a loop over time gives the same outputs and gradients through time."""
    theirs = build(name)
    functional.set_step_mode(theirs, "s")
    ours = copy.deepcopy(theirs)
    swap_neurons(ours)
    rng = torch.Generator().manual_seed(1)
    x = 3 * torch.randn(3, BATCH, *ZOO[name][1], generator=rng, dtype=torch.float64)

    def looped(net):
        return step(net, x, lambda sequence: torch.stack([net(each) for each in sequence]))

    (y, gradients), (y_theirs, expected) = looped(ours), looped(theirs)
    assert torch.equal(y, y_theirs)
    assert_same(gradients, expected, 1e-12)


def script(swap):
    """A user's training of SpikingJelly's VGG-11 for images of 32 x 32: the losses of five steps."""
    torch.manual_seed(0)
    net = their("spiking_vgg").spiking_vgg11_bn(spiking_neuron=neuron.LIFNode, surrogate_function=surrogate.ATan())
    net.avgpool, net.classifier = layer.AdaptiveAvgPool2d(1), layer.Linear(512, 10)
    functional.set_step_mode(net, "m")
    if swap:
        assert len(swap_neurons(net).swapped) == 8
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    losses = []
    for _ in range(5):
        images, labels = torch.randn(4, 3, 32, 32), torch.randint(10, (4,))
        loss = nn.functional.cross_entropy(net(images.expand(4, -1, -1, -1, -1)).mean(0), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        functional.reset_net(net)
        losses.append(loss.item())
    return losses


def test_a_training_script_needs_one_line():
    """Five steps of SGD on VGG-11 in float32, `swap_neurons(net)` the only new line: the same losses to 1e-6."""
    ours, theirs = script(True), script(False)
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert len(set(theirs)) == 5


@pytest.mark.parametrize("name", CARRIED)
def test_a_carrier_evaluates_as_theirs_and_trains_exactly(name):
    """In eval() outputs and gradients are SpikingJelly's; in training they are those of its own plain autograd.

    In training the layers behind it read spikes that carry their input, so that no gradient of a network is theirs.
    """
    theirs = build(name, spiking_neuron=neuron.LIFNode)
    ours = copy.deepcopy(theirs)
    assert not swap_neurons(ours, "lif-carrier").left
    x = example(name, torch.float64)
    (y, gradients), (y_theirs, expected) = step(ours.eval(), x), step(theirs.eval(), x)
    assert torch.equal(y, y_theirs)
    assert_same(gradients, expected, 1e-12)
    functional.reset_net(ours)
    stored = copy.deepcopy(ours)
    for parent in list(stored.modules()):
        for child_name, child in list(parent.named_children()):
            if isinstance(child, CarrierLIFNode):
                setattr(parent, child_name, child.reference())
    (y, gradients), (y_stored, expected) = step(ours.train(), x), step(stored.train(), x)
    assert torch.equal(y, y_stored)
    assert not torch.equal(y, y_theirs)
    assert_same(gradients, expected, 1e-12)


def test_one_layer_of_carriers_has_their_gradient():
    """Where no input is clamped: output and gradient are theirs, plus epsilon times the input and what arrives."""
    torch.manual_seed(0)
    x = torch.randn(8, 2, 50, dtype=torch.float64).clamp(-3, 3).requires_grad_()
    theirs = nn.Sequential(neuron.LIFNode(surrogate_function=surrogate.ATan(), step_mode="m"))
    ours = copy.deepcopy(theirs)
    swap_neurons(ours, "lif-carrier")
    arriving = torch.randn(x.shape, dtype=torch.float64)
    (y, gradient), (spikes, expected) = (
        (y := net(x), *torch.autograd.grad((y * arriving).sum(), x)) for net in (ours, theirs)
    )
    epsilon = ours[0].epsilon
    torch.testing.assert_close(y, spikes + epsilon * x, rtol=0, atol=1e-15)
    torch.testing.assert_close(gradient, expected + epsilon * arriving, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize(
    ("name", "module", "block"),
    [
        ("SEWResNet, ADD", "sew_resnet", "BasicBlock"),
        ("SpikingResNet, bottleneck", "spiking_resnet", "Bottleneck"),
        ("Spikformer", "spikformer", "SpikformerBlock"),
        ("MSResNet", "ms_resnet", "_MSBlock"),
    ],
)
def test_memopt_changes_nothing(name, module, block, level):
    """Their optimiser around our neurons, over two calls between which the state is carried: outputs and gradients."""
    theirs = build(name)
    ours = copy.deepcopy(theirs)
    swap_neurons(ours)
    x = example(name, torch.float64)
    target = getattr(their(module), block)
    ours = memopt.optimize_memory(ours, (target,), lambda net: net(x), level=level)
    wrapped = [type(parent).__name__ for parent in ours.modules() if target in map(type, parent.children())]
    assert (set(wrapped) == {"CheckpointWrapper"}) == (level == 1)
    functional.reset_net(ours)
    for _ in range(2):
        (y, gradients), (y_theirs, expected) = step(ours, x), step(theirs, x)
        assert torch.equal(y, y_theirs)
        assert_same(gradients, expected, 1e-12)
        functional.detach_net(ours)
        functional.detach_net(theirs)
