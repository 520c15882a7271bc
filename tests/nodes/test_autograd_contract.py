"""What autograd users rely on: memory layouts, leaves, second and double backward, in-place checks."""

import pytest
import torch
from nodes_cases import (
    ALL,
    CLOSED_FORM,
    INVERTING,
    Problem,
    assert_ends_close,
    differentiate,
    make,
    relative_error,
    run_node,
    run_oracle,
)
from nodes_tolerances import INVERSE_RTOL_FLOAT64
from torch.utils.checkpoint import checkpoint

TOLERANCE = INVERSE_RTOL_FLOAT64
LAYOUTS = {
    "transposed": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "every second": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "expanded": lambda x: x[:1].expand(x.shape),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last_3d),
    "frames channels last": lambda x: torch.stack([s.contiguous(memory_format=torch.channels_last) for s in x]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ALL)
def test_any_memory_layout(name, layout):
    """Strided, expanded and channels-last inputs and arriving gradients give the values of contiguous ones."""
    problem = Problem(steps=4, shape=(2, 4, 3, 5))
    strided = Problem(steps=4, shape=(2, 4, 3, 5))
    strided.x, strided.y_bar = LAYOUTS[layout](problem.x), LAYOUTS[layout](problem.y_bar)
    problem.x, problem.y_bar = strided.x.contiguous(), strided.y_bar.contiguous()
    options = {} if name.startswith("lif") else {"group_dim": 1}
    node = make(name, **options)

    def through_layout(x, v):
        return run_node(node)(LAYOUTS[layout](x) if layout != "expanded" else x, v)

    assert not strided.x.is_contiguous() or layout == "frames channels last"
    assert_ends_close(
        differentiate(through_layout, strided), differentiate(run_oracle(name, **options), problem), TOLERANCE
    )


@pytest.mark.parametrize("name", ALL)
def test_inputs_and_gradients_of_the_caller_are_untouched(name):
    """Neither forward nor backward writes to the input, the state or the arriving gradient."""
    problem, kept = Problem(), Problem()
    differentiate(run_node(make(name)), problem)
    for given, copy in zip((problem.x, problem.v, problem.y_bar), (kept.x, kept.v, kept.y_bar), strict=True):
        assert torch.equal(given, copy)
        assert given._version == copy._version == 0


@pytest.mark.parametrize("name", ALL)
def test_second_backward(name):
    """Without retain_graph it raises autograd's error; with it, the gradient is the same again."""
    problem, node = Problem(carried=False), make(name)
    x = problem.x.clone().requires_grad_()
    y = node(x)
    (first,) = torch.autograd.grad(y, x, problem.y_bar, retain_graph=True)
    (again,) = torch.autograd.grad(y, x, problem.y_bar)
    assert torch.equal(first, again)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(y, x, problem.y_bar)


@pytest.mark.usefixtures("on_each_backend")
@pytest.mark.parametrize("name", CLOSED_FORM)
def test_double_backward_is_refused_by_closed_forms(name):
    """A gradient penalty through a closed-form node raises, also where the arriving gradient is a constant. In a
    checkpoint, which lets each tensor be read once, the first derivative raised, too."""
    x = Problem(carried=False).x.requires_grad_()
    outside = torch.autograd.grad(make(name)(x).sum(), x)[0]
    for loss in (lambda y: y.square().sum(), torch.sum, None):
        y = loss(make(name)(x)) if loss else checkpoint(make(name), x, use_reentrant=False).sum()
        (grad,) = torch.autograd.grad(y, x, create_graph=True)
        assert loss or torch.equal(grad, outside)
        with pytest.raises(RuntimeError, match="must not lead to second derivatives"):
            (grad.square().sum() + x.sum()).backward()


@pytest.mark.parametrize("name", CLOSED_FORM)
def test_second_derivatives_are_refused_in_transforms(name):
    """Two nested torch.func.grad raise as well, or the node takes no transform at all."""

    def penalty(x):
        return torch.func.grad(lambda each: make(name)(each).sum())(x).square().sum()

    with pytest.raises(RuntimeError, match=r"second derivatives|by a functorch transform"):
        torch.func.grad(penalty)(Problem(carried=False).x)
    with pytest.raises(RuntimeError, match=r"second derivatives|by a functorch transform"):
        penalty(Problem(carried=False).x.requires_grad_()).backward()


@pytest.mark.parametrize("neuron", [{}, {"v_reset": None}, {"detach_reset": True}], ids=str)
@pytest.mark.parametrize("name", [n for n in ALL if n not in CLOSED_FORM])
def test_double_backward_works_under_plain_autograd(name, neuron):
    """The second derivative of the stored and checkpointed nodes is that of the loop, phi's own slope included."""
    problem = Problem(steps=3, carried=False)

    def second(run):
        x = problem.x.clone().requires_grad_()
        (grad,) = torch.autograd.grad((run(x, None)[0] ** 2 * problem.y_bar).sum(), x, create_graph=True)
        return torch.autograd.grad((grad**2).sum(), x)[0]

    expected = second(run_oracle(name, **neuron))
    assert expected.norm() > 1
    assert relative_error(second(run_node(make(name, **neuron))), expected) < TOLERANCE


@pytest.mark.parametrize("step_mode", ["m", "s"])
@pytest.mark.parametrize("name", CLOSED_FORM)
def test_writing_into_the_output_is_caught(name, step_mode):
    """The output is what backward works from: autograd's version check refuses one that was modified in place."""
    x = Problem(carried=False).x.requires_grad_()
    y = make(name, step_mode=step_mode)(x)
    y.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("name", INVERTING)
def test_writing_into_the_carried_state_is_caught(name):
    """The last membrane is kept for backward by nodes that invert: the same check holds for it."""
    node, x = make(name), Problem(carried=False).x.requires_grad_()
    y = node(x)
    node.v.detach().mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
