"""Nodes as modules: representation, copies, dtype, validated attributes, evaluation, and training in a network."""

import copy
import io
import pickle

import pytest
import torch
from nodes_cases import ALL, COUPLED, Problem, make
from revsnn_nodes import surrogate
from torch import nn


@pytest.mark.parametrize("name", ALL)
def test_repr_shows_every_parameter(name):
    """repr(node) names parameters, step mode and surrogate."""
    text = repr(make(name, tau=3.5, v_reset=None, step_mode="s"))
    assert "tau=3.5, decay_input=True, v_threshold=1.0, v_reset=None, detach_reset=False" in text
    assert "step_mode='s'" in text
    assert "Sigmoid(alpha=4.0)" in text
    own = {"lif-checkpoint": "checkpoint_every=None", "lif-carrier": "epsilon=0.0625, carrier='train'"}
    coupling = "groups=2, group_dim=1, alpha=0.5, beta=1.0"
    assert (coupling if name in COUPLED else own.get(name, "tau")) in text


@pytest.mark.parametrize("name", ALL)
def test_state_dict_is_empty_and_loads(name):
    """Neurons have no weights and their state is no part of a checkpoint, as in SpikingJelly."""
    node = make(name)
    node(Problem().x)
    assert node.state_dict() == {}
    assert list(node.parameters()) == list(node.buffers()) == []
    node.load_state_dict({}, strict=True)


@pytest.mark.parametrize("name", ALL)
def test_reference_is_a_fresh_node_of_the_same_dynamics(name):
    """reference() takes over parameters, surrogate and training mode, starts at rest, and gives the same output."""
    node = make(name, tau=1.6, v_reset=-0.2, surrogate_function=surrogate.ATan(3.0)).eval()
    y = node(Problem().x)
    reference = node.reference()
    assert reference.v == -0.2
    assert (reference.tau, reference.training, reference.surrogate_function.alpha) == (1.6, False, 3.0)
    assert reference.surrogate_function is not node.surrogate_function
    assert torch.equal(reference(Problem().x), y)


def _pickled(node):
    return pickle.loads(pickle.dumps(node))


def _saved(node):
    file = io.BytesIO()
    torch.save(node, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.usefixtures("on_each_backend")
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, _pickled, _saved])
@pytest.mark.parametrize("name", ALL)
def test_copies_after_a_training_step(name, duplicate):
    """A copy made in mid-training has parameters and state values of its own, goes on alike, and shares no graph."""
    node, x = make(name, tau=1.5, v_reset=-0.2), Problem(carried=False).x.requires_grad_()
    node(x)
    twin = duplicate(node)
    assert twin.backend == node.backend
    assert torch.equal(twin.v, node.v)
    assert twin.v.grad_fn is None
    assert node.v.grad_fn is not None
    assert twin.v.data_ptr() != node.v.data_ptr()
    assert torch.equal(twin(x), node(x))
    node.reset()
    assert isinstance(twin.v, torch.Tensor)


@pytest.mark.parametrize("name", ALL)
def test_modules_move_with_their_state(name):
    """.double() and .to(dtype) convert the carried membrane, but not below float32; it then fits converted input."""
    node, x = make(name), Problem(carried=False).x.float()
    node(x)
    assert node.double().v.dtype == torch.float64
    assert node(x.double()).dtype == torch.float64
    carried = node.v.detach().float()
    assert torch.equal(node.to(torch.bfloat16).v, carried)
    assert node.v.dtype == torch.float32
    assert node(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ALL)
def test_parameters_can_be_changed_and_are_checked(name):
    """node.tau = ... takes effect at the next call and is validated; a refusal changes nothing."""
    node, x = make(name), Problem(carried=False).x
    before = node(x)
    node.reset()
    node.tau = 8.0
    assert node.tau == node.neuron.tau == 8.0
    assert torch.equal(node(x), make(name, tau=8.0)(x))
    assert not torch.equal(before, make(name, tau=8.0)(x))
    with pytest.raises(ValueError, match=r"`tau` must be > 1 step; got 0\.5"):
        node.tau = 0.5
    with pytest.raises(ValueError, match='`step_mode` must be "s" or "m"; got \'multi\''):
        node.step_mode = "multi"
    assert (node.tau, node.step_mode) == (8.0, "m")
    with pytest.raises(AttributeError, match="no attribute 'leak'"):
        _ = node.leak


@pytest.mark.parametrize("name", ["lif-carrier", "revlif-anchored"])
def test_infinite_inputs_do_not_spread(name):
    """An infinite input spoils its own neuron at most: the carrier clamps it, the coupled node keeps to its groups."""
    x = Problem(carried=False).x.clone()
    x[2, 0, 0] = torch.inf
    x.requires_grad_()
    make(name)(x).nan_to_num(0.0).sum().backward()
    assert torch.isfinite(x.grad[:, 1]).all()
    if name == "lif-carrier":
        assert torch.isfinite(x.grad).all()
        assert x.grad[2, 0, 0] == 0


class _PerFrame(nn.Module):
    """Applies a module of single frames to [T, N, *]."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x_seq):
        return self.module(x_seq.flatten(0, 1)).unflatten(0, x_seq.shape[:2])


@pytest.mark.parametrize("name", ALL)
def test_a_convolutional_network_trains(name):
    """Convolution, norm, node, convolution, node, readout in nn.Sequential: the loss falls to below a half."""
    options = {"group_dim": 1} if name in COUPLED else {}
    images = torch.randn(16, 1, 8, 8)
    labels = torch.arange(16) % 2
    images[labels == 1, :, :4] += 1.0
    network = nn.Sequential(
        _PerFrame(nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4))),
        make(name, **options),
        _PerFrame(nn.Conv2d(4, 4, 3, stride=2)),
        make(name, **options),
        _PerFrame(nn.Sequential(nn.Flatten(), nn.Linear(36, 2))),
    )
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    losses = []
    for _ in range(40):
        for module in network:
            if hasattr(module, "reset"):
                module.reset()
        loss = nn.functional.cross_entropy(network(images.expand(4, -1, -1, -1, -1)).mean(0), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
