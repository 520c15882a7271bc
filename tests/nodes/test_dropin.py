"""A node in place of SpikingJelly's: step mode, order of arguments, membranes of every step."""

import importlib
import inspect
from contextlib import nullcontext

import pytest
import revsnn_nodes
import torch
from nodes_cases import ALL, foreign_import_is_silent, make
from revsnn_nodes import NormCarrierLIF, StandardLIF, node_factory, remat
from revsnn_nodes.surrogate import TWINS, ATan

pytest.importorskip("spikingjelly")


@pytest.mark.parametrize("name", ALL)
def test_positional_arguments_have_one_order(name):
    """The neuron's, then step_mode "s", backend, store_v_seq; what only some nodes have is passed by name."""
    parameters = inspect.signature(node_factory(name)).parameters.values()
    positional = [each.name for each in parameters if each.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    of_lif = inspect.signature(StandardLIF).parameters.values()
    assert positional == [each.name for each in of_lif if each.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["LIFNode", "IFNode", "ParametricLIFNode"])
@pytest.mark.parametrize("v_reset", [0.0, None])
def test_state_in_half_precision_may_be_spikingjellys(name, v_reset, dtype):
    """With state_dtype="input" outputs and membranes have its bits over two calls; by default membranes are float32."""
    theirs, _ = foreign_import_is_silent()
    ours, kind = ("StandardLIF", "StandardIF", "StandardParametricLIF"), ("LIFNode", "IFNode", "ParametricLIFNode")
    make_ours = getattr(revsnn_nodes, ours[kind.index(name)])
    expected = getattr(theirs, name)(v_reset=v_reset, step_mode="m").to(dtype)
    same, wide = (
        make_ours(v_reset=v_reset, step_mode="m", state_dtype="input"),
        make_ours(v_reset=v_reset, step_mode="m"),
    )
    for x in (1.5 * torch.randn(2, 5, 4, 200) + 0.5).to(dtype):
        y = expected(x)
        assert torch.equal(same.to(dtype)(x), y)
        assert torch.equal(same.v, expected.v)
        assert (wide.to(dtype)(x) != y).float().mean() < 0.02
        assert (same.v.dtype, wide.v.dtype) == (dtype, torch.float32)
    assert same.backend_reason == 'state_dtype="input" asks for membranes in half precision'
    assert same.reference().state_dtype == "input"
    with pytest.raises(ValueError, match=r'`state_dtype` must be "auto" or "input"'):
        same.state_dtype = "float16"


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


def slopes_of(function):
    """The gradient of the spikes of a LIF with this surrogate, and the backend it ran on."""
    x = torch.linspace(-1, 4, 24).reshape(2, 2, 6).requires_grad_()
    node = StandardLIF(surrogate_function=function, step_mode="m")
    return torch.autograd.grad(node(x).sum(), x)[0], node


@pytest.mark.parametrize("name", [*TWINS])
def test_spikingjellys_surrogates_run_fused_with_the_alpha_of_now(name):
    """Annealing: alpha set on their object, or on the node's, changes the gradient as it does in their neuron."""
    pytest.importorskip("numba")
    neuron, theirs = foreign_import_is_silent()
    function = getattr(theirs, name)()
    x = torch.linspace(-1, 4, 24).reshape(2, 2, 6).requires_grad_()
    node, foreign = (kind(surrogate_function=function, step_mode="m") for kind in (StandardLIF, neuron.LIFNode))
    for alpha in (function.alpha, 2.5, 0.5) if name != "QPseudoSpike" else (function.alpha,):
        function.alpha = alpha
        got, want = (torch.autograd.grad(each(x).sum(), x)[0] for each in (node, foreign))
        assert node.backend_in_use == "fused", node.backend_reason
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-7)
        node.reset()
        foreign.reset()
    node.surrogate_function.alpha = 1.5
    assert function.alpha == 1.5


@pytest.mark.parametrize("around", [nullcontext, remat])
@pytest.mark.parametrize("name", ALL)
@pytest.mark.usefixtures("on_each_backend")
def test_an_alpha_assigned_before_the_backward_pass_is_none_of_it(name, around):
    """The gradient is that of the forward's alpha, as in SpikingJelly's neurons; it was that of the new one."""
    _, theirs = foreign_import_is_silent()
    gradients = []
    for function in (ATan(), theirs.ATan()):
        for later in (2.0, 5.0):
            node = make(name, surrogate_function=function)
            function.alpha = 2.0
            x = torch.linspace(-1, 4, 36, dtype=torch.float64).reshape(3, 2, 6).requires_grad_()
            with around():
                y = node(2 * x)
            function.alpha = later
            gradients += torch.autograd.grad(y.sum(), x)
    assert gradients[0].any()
    assert all(torch.equal(each, gradients[0]) for each in gradients[1:])


def test_a_subclass_of_theirs_is_used_as_it_is():
    """Only the exact type is known: a subclass may have another derivative, and does not run fused."""
    _, theirs = foreign_import_is_silent()

    class Mine(theirs.ATan):
        pass

    got, node = slopes_of(Mine())
    assert node.backend_in_use == "torch"
    torch.testing.assert_close(got, slopes_of(theirs.ATan())[0])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda z: (z > 0).to(z) * (1 + z - z.detach()), "fire 0 below the threshold and 1 from it on"),
        (lambda z: torch.bernoulli(torch.sigmoid(z)) + z - z.detach(), "fire 0 below the threshold"),
        (lambda z: (z >= 0).to(z) + (z - z.detach()) * torch.rand(()), "have one derivative"),
        (lambda z: (z >= 0).to(z), "have a derivative in autograd"),
    ],
)
def test_spike_functions_that_are_not_theta_are_refused(function, message):
    """Silent at z = 0, random spikes, a random derivative, or none."""
    with pytest.raises(ValueError, match=f"`surrogate_function` must {message}"):
        StandardLIF(surrogate_function=function)


def test_turning_the_spikes_off_later_is_refused():
    """A surrogate that outputs its primitive from now on is noticed at the next call."""
    _, theirs = foreign_import_is_silent()
    function = theirs.Sigmoid()
    _, node = slopes_of(function)
    function.set_spiking_mode(False)
    with pytest.raises(ValueError, match="`spiking` must be True"):
        node(torch.randn(2, 2, 6))


@pytest.mark.parametrize("name", ["LIFNode", "IFNode", "ParametricLIFNode", "CheckpointedLIFNode", "ReversibleLIFNode"])
def test_an_unknown_argument_of_a_drop_in_class_is_told_by_its_name(name):
    """And not by that of a base, whose constructor it has; so for a subclass of it."""
    kind = getattr(importlib.import_module("revsnn_nodes.spikingjelly"), name)
    for each in (kind, type("Mine", (kind,), {})):
        with pytest.raises(TypeError, match=f"^{each.__name__}: got an unexpected keyword.*v_threshold, v_reset"):
            each(v_thresh=1.0)
