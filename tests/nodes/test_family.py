"""IF and parametric LIF: values and every gradient against the float64 loop and SpikingJelly, that of w included."""

import math

import nodes_oracle as oracle
import pytest
import torch
from nodes_cases import Problem, assert_ends_close, differentiate, foreign_import_is_silent, relative_error, run_node
from nodes_memory import bytes_after_forward
from nodes_tolerances import ALIKE_RTOL, RTOL
from revsnn_nodes import StandardIF, StandardParametricLIF, make_node, remat, surrogate
from torch import nn

TAUS = (1.7, 20.0)
NEURONS = [
    {"v_reset": 0.0, "detach_reset": True},
    {"v_reset": -0.3, "detach_reset": False},
    {"v_reset": None, "detach_reset": False},
]
BACKENDS = ("torch", "fused")
EXACT = torch.float64


def with_w(node, problem, through="yv"):
    """The ends of a run, and the gradient of w."""
    node = node.to(problem.x.dtype)
    node.w.grad = None
    x = problem.x.clone().requires_grad_()
    v = None if problem.v is None else problem.v.clone().requires_grad_()
    y, last = run_node(node)(x, v)
    loss = ("y" in through) * (y * problem.y_bar).sum() + ("v" in through) * (last * problem.v_bar).sum()
    loss.backward()
    return y.detach(), last.detach(), x.grad, None if v is None else v.grad, node.w.grad


def loop(problem, tau, decay_input=True, through="yv", **neuron):
    """The same by the float64 loop."""
    w = torch.tensor(-math.log(tau - 1.0), dtype=EXACT, requires_grad=True)
    x = problem.x.clone().requires_grad_()
    v = None if problem.v is None else problem.v.clone().requires_grad_()
    y, last = oracle.lif(x, v, tau=1 / w.sigmoid(), decay_input=decay_input, **neuron)
    loss = ("y" in through) * (y * problem.y_bar).sum() + ("v" in through) * (last * problem.v_bar).sum()
    loss.backward()
    return y.detach(), last.detach(), x.grad, None if v is None else v.grad, w.grad


def assert_all_close(got, expected, rtol):
    for have, want in zip(got, expected, strict=True):
        assert (have is None) == (want is None)
        if want is not None:
            assert (have.double() - want.double()).norm() <= rtol * want.double().norm()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize("neuron", NEURONS, ids=str)
def test_parametric_gradients_are_the_loops(neuron, decay_input, backend):
    """Every reset and decay, from rest and from a carried state: all gradients, that of w included, in float64."""
    for tau in TAUS:
        for problem in (Problem(5), Problem(1), Problem(9, carried=False)):
            expected = loop(problem, tau, decay_input, **neuron)
            w = torch.tensor(-math.log(tau - 1.0), dtype=EXACT)
            node = StandardParametricLIF(tau, decay_input, step_mode="m", backend=backend, **neuron).double()
            node.w.data.copy_(w)
            assert_all_close(with_w(node, problem), expected, RTOL[EXACT])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("neuron", NEURONS, ids=str)
def test_integrate_and_fire_is_the_loop_without_leak(neuron, backend):
    """tau without bound and an undivided input: values and gradients in float64, from rest and a carried state."""
    for problem in (Problem(6, mean=0.2), Problem(1), Problem(6, carried=False)):
        expected = differentiate(lambda x, v: oracle.lif(x, v, tau=math.inf, decay_input=False, **neuron), problem)
        node = StandardIF(step_mode="m", backend=backend, **neuron)
        assert_ends_close(differentiate(run_node(node), problem), expected, RTOL[EXACT])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("neuron", NEURONS, ids=str)
def test_values_and_gradients_are_spikingjellys(neuron, dtype, backend):
    """Multi-step IFNode and ParametricLIFNode: spikes to the bit, membrane and gradients (w's too) to rounding."""
    theirs, their_surrogate = foreign_import_is_silent()
    problem = Problem(steps=9, carried=False).to(dtype)
    shared = {"v_threshold": 0.9, "step_mode": "m"} | neuron
    ours = {"surrogate_function": surrogate.Sigmoid(), "backend": backend} | shared
    foreign = {"surrogate_function": their_surrogate.Sigmoid()} | shared
    expected = differentiate(run_node(theirs.IFNode(**foreign)), problem)
    got = differentiate(run_node(StandardIF(**ours)), problem)
    assert torch.equal(got.y, expected.y)
    assert_ends_close(got, expected, ALIKE_RTOL[dtype])
    for decay_input in (True, False):
        of_theirs = with_w(theirs.ParametricLIFNode(init_tau=1.8, decay_input=decay_input, **foreign), problem)
        of_ours = with_w(StandardParametricLIF(1.8, decay_input=decay_input, **ours), problem)
        assert 0.05 < of_ours[0].double().mean() < 0.95
        assert torch.equal(of_ours[0], of_theirs[0])
        assert_all_close(of_ours, of_theirs, 5 * ALIKE_RTOL[dtype])


@pytest.mark.parametrize("kind", ["Sigmoid", "ATan", "PiecewiseExp"])
def test_surrogates_reach_w(kind):
    """The fused gradient of w with other surrogates is the loop's; tests/kernels has each of them in the kernel."""
    problem = Problem(4, carried=False)
    node = StandardParametricLIF(1.7, surrogate_function=getattr(surrogate, kind)(), step_mode="m", backend="fused")
    node.double().w.data.fill_(-math.log(0.7))
    assert_all_close(with_w(node, problem), loop(problem, 1.7, phi=kind), RTOL[EXACT])


@pytest.mark.parametrize("through", ["y", "v"])
def test_gradient_may_arrive_at_one_end_only(through):
    """The fused gradient of w, of a loss on the output alone or on the last membrane alone."""
    problem = Problem(4)
    node = StandardParametricLIF(1.7, step_mode="m", backend="fused").double()
    node.w.data.fill_(-math.log(0.7))
    assert_all_close(with_w(node, problem, through), loop(problem, 1.7, through=through), RTOL[EXACT])


def test_w_has_the_same_gradient_in_every_run_and_by_any_number_of_threads():
    """Neurons are added in one order: the bits of the gradient of w do not depend on how work is shared out."""
    problem = Problem(3, (2, 70_000), carried=False).to(torch.float32)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            found.append(with_w(StandardParametricLIF(step_mode="m", backend="fused"), problem)[4])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(each, found[0]) for each in found)


def test_frozen_w_and_w_alone():
    """With w frozen only the input has a gradient; with an input that needs none, w has its gradient still."""
    problem = Problem(4, carried=False)
    node = StandardParametricLIF(1.7, step_mode="m", backend="fused").double()
    node(problem.x).sum().backward()
    alone = node.w.grad.clone()
    node.reset()
    x = problem.x.clone().requires_grad_()
    node(x).sum().backward()
    assert torch.equal(node.w.grad - alone, alone)
    node.w.requires_grad_(False)
    node.reset()
    y = node(problem.x)
    assert not y.requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", [StandardIF, StandardParametricLIF])
def test_remat_remakes_charges_and_keeps_every_gradient(kind, backend):
    """Inside `remat` a neuron keeps its input in place of its charges; gradients, that of w too, have the same bits."""

    def gradients(inside):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 8), kind(step_mode="m", backend=backend), nn.Linear(8, 4))
        x = torch.randn(5, 3, 6)
        if not inside:
            net(x).square().sum().backward()
            return [each.grad for each in net.parameters()], None
        with remat() as saved:
            y = net(x)
        y.square().sum().backward()
        return [each.grad for each in net.parameters()], saved

    expected, _ = gradients(False)
    got, saved = gradients(True)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert saved.remade_bytes > 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("steps", [1, 8, 25])
def test_bytes(steps, backend):
    """Fused b N T, and a carried state where tau is learned; eager 3 b N T, one more per step where tau is learned."""
    state = (4, 1024)

    def states(node, **how):
        return bytes_after_forward(node, (steps, *state), torch.float32, **how) / (4 * 4 * 1024)

    made_if, made = (kind(step_mode="m", backend=backend) for kind in (StandardIF, StandardParametricLIF))
    if backend == "fused":
        assert states(made_if) == states(made_if, carried=True) == steps
        assert states(made) == pytest.approx(steps, abs=0.002)
        assert states(made, carried=True) == pytest.approx(steps + 1, abs=0.002)
    else:
        assert states(made_if) == pytest.approx(3 * steps - 2, abs=0.002 * steps)
        assert states(made) == pytest.approx(4 * steps - 2, abs=0.003 * steps)


def test_reference_has_the_learned_tau():
    """`reference()` copies w and not just where it started."""
    node = StandardParametricLIF(3.0)
    node.w.data.add_(1.0)
    assert node.reference().tau == node.tau == pytest.approx(1 + 2 * math.exp(-1), rel=1e-6)
    with pytest.raises(ValueError, match=r"`init_tau` must be > 1 step; got 1\.0"):
        StandardParametricLIF(1.0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["lif", "if", "plif", "lif-carrier"])
def test_strides_of_the_input_are_those_of_output_membrane_and_gradient(name, backend):
    """Frames that are channels_last give channels_last results with the values of contiguous ones, over two calls."""
    problem = Problem(3, (2, 4, 3, 5), carried=False).to(torch.float32)

    def run(arranged):
        node = make_node(name, step_mode="m", backend=backend)
        x = arranged(problem.x).requires_grad_()
        y = torch.cat([node(x), node(x)])
        (x_grad,) = torch.autograd.grad(y, x, arranged(torch.cat([problem.y_bar] * 2)))
        node.reset()
        return node(x), node.v, x_grad

    def last(sequence):
        return sequence.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (-1, 2))

    for got, expected in zip(run(last), run(torch.clone), strict=True):
        assert (
            relative_error(got, expected) <= ALIKE_RTOL[torch.float32]
        )  # torch's vectors round otherwise at their ends
        assert got.stride()[-4:] == last(expected if expected.dim() == 5 else expected[None]).stride()[-4:]
