"""Fused LIF and carrier LIF in bfloat16 on the CPU: held against the float64 oracle with the reference's tolerance."""

import math

import numba
import numpy as np
import pytest
import torch
from nodes_cases import Problem, assert_ends_close, differentiate, make, relative_error, run_node
from nodes_replay import gradient_errors
from nodes_tolerances import RTOL
from revsnn_nodes import decode_spikes, surrogate
from revsnn_nodes.kernels.cpu import machine as threads
from revsnn_nodes.kernels.cpu.equations import copy_row

NAMES = ("lif", "lif-carrier")
NEURONS = ({}, {"v_reset": None}, {"v_reset": -0.2}, {"tau": 8.0}, {"detach_reset": True})


def _problem(**how):
    return Problem(**how).to(torch.bfloat16)


def test_conversion_is_torchs():
    """Every bfloat16 comes back; float32 is rounded to nearest even, with infinities, subnormals and NaN."""
    copy = numba.njit(lambda source, row: copy_row(source, row))
    bits = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)
    wide, back = np.empty(1 << 16, np.float32), np.empty(1 << 16, np.uint16)
    copy(bits, wide)
    copy(wide, back)
    known = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)
    assert np.array_equal(back[~np.isnan(wide)], bits[~np.isnan(wide)])
    assert torch.equal(torch.from_numpy(wide).nan_to_num(0.5), known.float().nan_to_num(0.5))
    x = torch.randint(-(1 << 31), (1 << 31) - 1, (100_000,), dtype=torch.int64).int().view(torch.float32)
    ties = (known.float().view(torch.int32) + 0x8000).view(torch.float32)
    for values in (x, ties):
        got = np.empty(values.numel(), np.uint16)
        copy(values.numpy(), got)
        expected = values.bfloat16()
        converted = torch.from_numpy(got.view(np.int16)).view(torch.bfloat16)
        assert torch.equal(converted.isnan(), expected.isnan())
        assert torch.equal(converted.nan_to_num(0.5), expected.nan_to_num(0.5))


@pytest.mark.parametrize("steps", [4, 256])
@pytest.mark.parametrize("neuron", NEURONS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_right_at_every_length(name, neuron, steps):
    """Against float64 BPTT of the same spikes, for input and carried state: the tolerance of the reference."""
    for error in gradient_errors(name, torch.bfloat16, steps, carried=True, backend="fused", **neuron):
        assert error < RTOL[torch.bfloat16]


def test_a_steep_surrogate_sees_the_rounding_of_a_kept_charge():
    """As nodes/README.md says: near the threshold half a unit of bfloat16 is as wide as the surrogate itself."""
    problem = Problem(steps=16, shape=(8, 512), carried=False, mean=0.5).to(torch.bfloat16)

    def gradient(backend, given):
        node = make("lif", backend=backend, surrogate_function=surrogate.ATan(25.0))
        return differentiate(run_node(node), given).x_grad

    exact = gradient("torch", problem.to(torch.float64))
    fused, plain = (relative_error(gradient(each, problem), exact) for each in ("fused", "torch"))
    assert plain < 4e-3 < 3e-2 < fused < 0.15


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_forward_is_the_references(name, neuron):
    """To the bit, outputs and membranes: both compute in float32, and round the output alone."""
    problem = _problem(steps=6, shape=(4, 500), carried=False)
    nodes = [make(name, backend=backend, **neuron) for backend in ("fused", "torch")]
    got, expected = (node(problem.x) for node in nodes)
    assert torch.equal(got, expected)
    assert torch.equal(*(node.v for node in nodes))
    assert 0.01 < decode_spikes(got).double().mean() < 0.9


@pytest.mark.parametrize("kind", ["ATan", "SuperSpike", "Rect"])
def test_surrogates_have_the_references_gradient(kind):
    """Of the same spikes, in input and carried state: within a few roundings of bfloat16.

    At the rectangle's edges a rounding decides between all and nothing. The coupled nodes' tests have all surrogates.
    """
    problem, derivative = _problem(shape=(2, 600), seed=3), getattr(surrogate, kind)()
    nodes = [make("lif", backend=backend, surrogate_function=derivative) for backend in ("fused", "torch")]
    got, expected = (differentiate(run_node(node), problem) for node in nodes)
    assert torch.equal(got.y, expected.y)
    assert_ends_close(got, expected, 4 * RTOL[torch.bfloat16] if kind == "Rect" else 4 * 2.0**-8)


@pytest.mark.parametrize("through", ["y", "v", "yv"])
@pytest.mark.parametrize("name", NAMES)
def test_gradient_may_arrive_at_either_end(name, through):
    """Output, membrane or both: near the reference's gradient, at input and carried state."""
    problem = _problem(steps=5)
    got, expected = (
        differentiate(run_node(make(name, backend=backend)), problem, through) for backend in ("fused", "torch")
    )
    for end in ("x_grad", "v_grad"):
        assert relative_error(getattr(got, end), getattr(expected, end)) < 2 * RTOL[torch.bfloat16]


@pytest.mark.parametrize("name", NAMES)
def test_sizes_that_nothing_divides_on_several_threads(name):
    """The same bits from one thread and three, and from any strides."""
    x = torch.randn(5, 3, threads.SERIAL_ELEMENTS // 5 + 1, dtype=torch.bfloat16)
    results = []
    for count, given in ((1, x), (3, x), (2, x.transpose(0, 1).contiguous().transpose(0, 1))):
        torch.set_num_threads(count)
        leaf = given.detach().requires_grad_()
        y = make(name, backend="fused")(leaf)
        results.append((y, torch.autograd.grad(y.float().square().sum(), leaf)[0]))
    for y, grad in results[1:]:
        assert torch.equal(y, results[0][0])
        assert torch.equal(grad, results[0][1])


def test_eval_gives_spikes_and_their_gradient():
    """A stripped carrier in bfloat16: binary output, and no clamp in front of it."""
    x = _problem(steps=4, carried=False).x
    x[0, 0, 0] = 100.0  # far beyond the clamp of training
    leaf = x.requires_grad_()
    node = make("lif-carrier", backend="fused").eval()
    y = node(leaf)
    (grad,) = torch.autograd.grad(y.float().sum(), leaf)
    assert set(y.unique().tolist()) == {0.0, 1.0}
    assert y[0, 0, 0] == 1
    assert math.isfinite(grad.float().norm().item())
    assert grad.count_nonzero() > grad.numel() // 2
