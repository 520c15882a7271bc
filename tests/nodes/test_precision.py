"""Gradient errors below float64, against the exact gradient of the recorded spike train: flat in T, or growing."""

import copy
import io

import pytest
import torch
from nodes_cases import COUPLED, Problem, make, run_node
from nodes_replay import gradient_errors
from nodes_tolerances import HALF_RTOL, RTOL

STEPS = (4, 256)
HALF_NODES = ("lif", "if", "plif", "lif-checkpoint", "lif-carrier", *COUPLED)


@pytest.mark.usefixtures("on_each_backend")
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("neuron", [{"v_reset": None}, {"v_reset": 0.2, "decay_input": False}], ids=str)
@pytest.mark.parametrize("name", ["lif-carrier", "revlif-anchored"])
def test_regenerated_gradients_are_right_at_every_length(name, neuron, steps):
    """Below 1e-5 in float32 at T = 4 and at T = 256, for input and initial state alike."""
    for error in gradient_errors(name, torch.float32, steps, carried=True, **neuron):
        assert error < RTOL[torch.float32]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("steps", [4, 64])
@pytest.mark.parametrize("neuron", [{}, {"v_reset": None}, {"tau": 8.0}, {"detach_reset": True}], ids=str)
@pytest.mark.parametrize("name", ["lif", "lif-carrier", "revlif-anchored"])
def test_half_precision_errors_are_a_few_roundings(name, neuron, steps, dtype):
    """float16 below 1e-3, bfloat16 below 8e-3, flat in T; the carrier below three times as much."""
    for error in gradient_errors(name, dtype, steps, carried=True, **neuron):
        assert error < (RTOL if name == "lif-carrier" else HALF_RTOL)[dtype]


@pytest.mark.parametrize(("dtype", "most"), [(torch.float16, 2.5e-2), (torch.bfloat16, 0.16)])
def test_a_small_epsilon_costs_digits_in_half_precision(dtype, most):
    """What an input that fired comes back with grows as 1 / epsilon: at 1/256 over eight times that at 1/16."""
    small, usual = (gradient_errors("lif-carrier", dtype, 64, epsilon=1 / n)[0] for n in (256, 16))
    assert 8 * usual < small <= most


@pytest.mark.usefixtures("on_each_backend")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("neuron", [{"tau": 16.0}, {"tau": 64.0, "v_reset": None}], ids=str)
@pytest.mark.parametrize("name", ["lif", "lif-carrier", "revlif-anchored"])
def test_slow_membranes_are_right_in_half_precision(name, neuron, dtype):
    """tau = 16 and 64, T = 128: with membranes of the input's type, tau = 16 in bfloat16 was wrong by 0.4 at T = 64."""
    for error in gradient_errors(name, dtype, 128, mean=1.5, carried=True, **neuron):
        assert error < HALF_RTOL[dtype]


@pytest.mark.usefixtures("on_each_backend")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", HALF_NODES)
def test_state_is_float32_across_calls(name, dtype):
    """In one call, in two, and step by step: the same outputs and float32 membranes, to the bit."""
    problem = Problem(steps=6, carried=False).to(dtype)
    slow = {} if name == "if" else {"init_tau" if name == "plif" else "tau": 16.0}
    whole = make(name, **slow)
    y = whole(problem.x)
    assert (y.dtype, whole.v.dtype) == (dtype, torch.float32)
    assert not torch.equal(whole.v.to(dtype).float(), whole.v)  # no number of the half type
    for parts in (problem.x.split(3), problem.x.split(1)):
        node = make(name, **slow)
        assert torch.equal(torch.cat([node(part) for part in parts]), y)
        assert torch.equal(node.v, whole.v)
    node.step_mode = "s"
    node.detach()
    twin, file = copy.deepcopy(node), io.BytesIO()
    torch.save(node, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    expected = node(problem.x[0])
    assert torch.equal(twin(problem.x[0]), expected)
    assert torch.equal(loaded(problem.x[0]), expected)
    node.reset()
    assert node.v == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", HALF_NODES)
def test_state_in_half_precision_is_taken(name, dtype):
    """A membrane of the input's type is widened, and its gradient has its type."""
    problem = Problem(steps=3).to(dtype)
    given = problem.v.clone().requires_grad_()
    y, v = run_node(make(name))(problem.x, given)
    wide_y, wide_v = run_node(make(name))(problem.x, problem.v.float())
    assert torch.equal(y, wide_y)
    assert torch.equal(v, wide_v)
    (grad,) = torch.autograd.grad(v.sum(), given)
    assert grad.dtype == dtype


@pytest.mark.parametrize("name", HALF_NODES)
def test_state_of_a_call_in_half_precision_fits_float32(name):
    """As where autocast is left, or entered, between two calls."""
    problem = Problem(steps=4, carried=False).to(torch.bfloat16)
    node = make(name)
    for x in (problem.x, problem.x.float(), problem.x):
        assert node(x).dtype == x.dtype
        assert node.v.dtype == torch.float32
