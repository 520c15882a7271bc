"""torch.utils.checkpoint around nodes that carry a state and are not reset inside."""

import gc
import weakref

import pytest
import torch
from nodes_cases import ALL, make
from revsnn_nodes import apply_plan
from torch.utils.checkpoint import checkpoint


def gradients(name, run, steps=4, calls=3, **options):
    """Input and weight gradients of several calls of one function of node and layer, with the state carried on."""
    torch.manual_seed(1)
    x = torch.randn(calls, steps, 2, 6, dtype=torch.float64, requires_grad=True)
    layer = torch.nn.Linear(6, 6).double()
    node = make(name, **options)
    node(layer(x[0]).detach() + 1)  # a state to start from
    node.detach()
    loss = 0.0
    for part in x.unbind(0):
        loss = loss + run(lambda each: node(2 * layer(each)), part, node).square().sum()
    before = node.v
    loss.backward()
    assert node.v is before
    return [x.grad, layer.weight.grad]


def plain(function, x, node):
    return function(x)


def nested(function, x, node):
    def inner(each):
        return checkpoint(function, each, use_reentrant=False)

    return checkpoint(lambda each: inner(each) + inner(each / 2), x, use_reentrant=False)


def unnested(function, x, node):
    return function(x) + function(x / 2)


def reset_between(function, x, node):
    y = function(x)
    node.reset()
    return y + function(x / 2)


def detached(wrap):
    def run(function, x, node):
        node.detach()
        return wrap(function, x, node)

    return run


WRAPS = {
    "checkpoint": (lambda function, x, node: checkpoint(function, x, use_reentrant=False), plain),
    "nested": (nested, unnested),
    "reset inside": (
        lambda function, x, node: checkpoint(lambda each: reset_between(function, each, node), x, use_reentrant=False),
        reset_between,
    ),
    "reentrant, detached": (
        detached(lambda function, x, node: checkpoint(function, x, use_reentrant=True)),
        detached(plain),
    ),
    "reentrant, two calls inside": (
        detached(
            lambda function, x, node: checkpoint(lambda each: unnested(function, each, node), x, use_reentrant=True)
        ),
        detached(unnested),
    ),
}


@pytest.mark.parametrize("wrap", [*WRAPS])
@pytest.mark.parametrize("name", ALL)
@pytest.mark.usefixtures("on_each_backend")
def test_the_second_run_starts_where_the_first_did(name, wrap):
    """Gradients are those without checkpoint, and the carried state is the one that the forward left."""
    checkpointed, without = WRAPS[wrap]
    for got, want in zip(gradients(name, checkpointed), gradients(name, without), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_a_backward_pass_frees_what_the_second_run_made():
    """A loop of single steps left it in a reference cycle, of several tensors a step, until Python looked for such."""
    node, x = make("lif", step_mode="s"), torch.randn(8, 2, 6, requires_grad=True)
    made = []

    def loop(each):
        spikes = []
        for step in each.unbind(0):
            spikes.append(node(2 * step))
            made.append(weakref.ref(node.v))
        return torch.stack(spikes)

    gc.collect()
    gc.disable()
    try:
        checkpoint(loop, x, use_reentrant=False).sum().backward()
        node.reset()
        assert len(made) > 8  # the second run ends where it has made all that was saved
        assert all(membrane() is None for membrane in made)
    finally:
        gc.enable()


def test_a_region_may_run_again_twice():
    """A loop of steps in one region, with retain_graph: both backward passes give the same gradient."""
    node, x = make("lif", step_mode="s"), torch.randn(8, 2, 6, requires_grad=True)

    def loop(each):
        return torch.stack([node(step) for step in each.unbind(0)])

    y = checkpoint(loop, x, use_reentrant=False)
    y.sum().backward(retain_graph=True)
    first = x.grad.clone()
    x.grad = None
    y.sum().backward()
    assert torch.equal(x.grad, first)


READOUTS = {
    "of every step": lambda node, x: torch.stack([(node(step), node.v)[1] for step in x.unbind(0)]),
    "cut by hand": lambda node, x: torch.stack([cut_and_run(node, step) for step in x.unbind(0)]),
    "cut at the end": lambda node, x: (READOUTS["of every step"](node, x), node.detach(), cut(node))[0],
}


def cut(node):
    node.v = node.v.detach()


def cut_and_run(node, step):
    if isinstance(node.v, torch.Tensor):
        node.v = node.v.detach()
    y = node(step)
    return y + node.v.square()


@pytest.mark.parametrize("planned", [False, True], ids=["checkpoint", "plan"])
@pytest.mark.parametrize("readout", READOUTS.values(), ids=READOUTS)
@pytest.mark.parametrize("name", ALL)
@pytest.mark.usefixtures("on_each_backend")
def test_a_membrane_that_is_read_is_that_of_the_step(name, readout, planned):
    """Before, the second run read the membrane that the whole forward left: a wrong gradient, without a word."""

    class Reads(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.node, self.weight = make(name, step_mode="s"), torch.nn.Parameter(torch.full((6, 6), 0.5))

        def forward(self, x):
            return readout(self.node, x @ self.weight) @ self.weight

    x = torch.randn(6, 2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plain_model, model = Reads().double(), Reads().double()
    if planned:
        apply_plan(model, {"": "checkpoint"})
    for _ in range(2):
        for each in (plain_model, model):
            each.node.detach()
            wrapped = model is each and not planned
            (checkpoint(each, x, use_reentrant=False) if wrapped else each(x)).square().sum().backward()
        assert torch.equal(model.node.v, plain_model.node.v)
        torch.testing.assert_close(model.weight.grad, plain_model.weight.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["lif", "lif-carrier"])
def test_a_membrane_is_put_back_behind_backward_passes_inside_of_others(name):
    """A reentrant checkpoint runs its own backward pass, in which the regions inside of it are run again, too."""

    def run(around):
        node, x = make(name, step_mode="s"), torch.linspace(0, 1, 12).view(2, 6).requires_grad_()

        def reads(each):
            node.detach()
            node(each)
            return node.v + each

        def loop(each):
            for _ in range(2):
                each = around(reads, each, use_reentrant=False)
            return each

        y = around(loop, x, use_reentrant=True)
        carried = node.v
        y.square().sum().backward()
        assert node.v is carried
        return x.grad

    def without(function, x, use_reentrant):
        return function(x)

    torch.testing.assert_close(run(checkpoint), run(without))


@pytest.mark.parametrize("name", ["lif", "lif-carrier"])
def test_a_reentrant_checkpoint_that_would_cut_the_state_is_refused(name):
    """No gradient reaches a state that enters it with a graph, nor goes on from one that leaves it."""
    x = torch.randn(4, 2, 6, requires_grad=True)
    node = make(name)
    node(x)
    with pytest.raises(ValueError, match=r"`use_reentrant` must be False.*detach"):
        checkpoint(node, x, use_reentrant=True)
    node.detach()
    checkpoint(node, x, use_reentrant=True)
    with pytest.raises(ValueError, match="`use_reentrant` must be False"):
        node(x)
    node.detach()
    assert node(x).requires_grad


def test_a_state_from_inference_mode_serves_training():
    """A call in inference_mode leaves a state that the next call in training may start from."""
    x = torch.randn(4, 2, 6, requires_grad=True)
    node, plain_node = make("lif"), make("lif")
    with torch.inference_mode():
        node(x)
    with torch.no_grad():
        plain_node(x)
    got, want = (torch.autograd.grad(each(x).sum(), x)[0] for each in (node, plain_node))
    assert torch.equal(got, want)
