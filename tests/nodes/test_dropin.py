"""A node in place of SpikingJelly's: step mode, order of arguments, membranes of every step."""

import inspect

import pytest
import torch
from nodes_cases import ALL, foreign_import_is_silent, make
from revsnn_nodes import NormCarrierLIF, StandardLIF, node_factory

pytest.importorskip("spikingjelly")


@pytest.mark.parametrize("name", ALL)
def test_positional_arguments_have_one_order(name):
    """The neuron's, then step_mode "s", backend, store_v_seq; what only some nodes have is passed by name."""
    parameters = inspect.signature(node_factory(name)).parameters.values()
    positional = [each.name for each in parameters if each.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert positional == list(inspect.signature(StandardLIF).parameters)
    assert node_factory(name)().step_mode == "s"


@pytest.mark.parametrize("name", ALL)
@pytest.mark.usefixtures("on_each_backend")
def test_either_forward_runs_whatever_the_step_mode(name):
    """multi_step_forward takes [T, N, *], single_step_forward [N, *]; both from the carried state."""
    x = torch.randn(4, 2, 6)
    node, by_steps = make(name, step_mode="s"), make(name, step_mode="m")
    assert torch.equal(node.multi_step_forward(x), torch.stack([by_steps.single_step_forward(each) for each in x]))
    assert torch.equal(node.v, by_steps.v)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.usefixtures("on_each_backend")
def test_v_seq_holds_every_membrane(name):
    """store_v_seq leaves output and gradient as they are; v_seq is stacked v, grows in step mode "s", ends at reset."""
    x = torch.randn(4, 2, 6, dtype=torch.float64, requires_grad=True)
    node, plain = make(name, store_v_seq=True), make(name)
    y = node(x)
    torch.testing.assert_close(y, plain(x))
    got = torch.autograd.grad(y.square().sum(), x)[0]
    assert node.v_seq.shape == x.shape
    assert torch.equal(node.v_seq[-1], node.v)
    stepping = make(name, store_v_seq=True, step_mode="s")
    membranes = []
    for each in x:
        stepping(each)
        membranes.append(stepping.v)
    assert torch.equal(stepping.v_seq, torch.stack(membranes))
    torch.testing.assert_close(stepping.v_seq, node.v_seq)
    node.detach()
    assert not node.v_seq.requires_grad
    node.reset()
    assert node.v_seq is None
    plain.reset()
    want = torch.autograd.grad(plain(x).square().sum(), x)[0]
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-9)


def test_v_seq_is_spikingjellys():
    """Its values, and its gradient through a loss on the membranes, are LIFNode's."""
    neuron, _ = foreign_import_is_silent()
    x = torch.randn(4, 2, 6, dtype=torch.float64, requires_grad=True)
    results = []
    for kind in (StandardLIF, neuron.LIFNode):
        node = kind(step_mode="m", store_v_seq=True)
        node(x)
        results.append((node.v_seq, torch.autograd.grad(node.v_seq.square().sum(), x)[0]))
    torch.testing.assert_close(*results)


def test_a_norm_with_v_seq_is_refused_in_training():
    """Its statistics are those of the whole sequence, which then runs step by step."""
    node = NormCarrierLIF(3, step_mode="m", store_v_seq=True)
    with pytest.raises(ValueError, match="`store_v_seq` must be False in training"):
        node(torch.randn(2, 2, 3))
    assert node.eval()(torch.randn(2, 2, 3)).shape == (2, 2, 3)
    assert node.v_seq.shape == (2, 2, 3)


def test_backends_are_listed():
    """`supported_backends` is what `backend` takes."""
    assert StandardLIF().supported_backends == ("auto", "torch", "fused")
