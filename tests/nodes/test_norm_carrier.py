"""NormCarrierLIF's gradients against batch norm, clamp and the LIF loop in float64, and in low precision."""

import itertools

import pytest
import torch
from nodes_cases import relative_error
from nodes_norm import CHANNELS, assert_gradients_close, node_gradients, node_with, oracle_gradients, problem
from nodes_tolerances import RTOL
from revsnn_nodes import NormCarrierLIF, decode_spikes

NEURONS = [
    {"v_reset": v_reset, "detach_reset": detach, "decay_input": decay}
    for v_reset, detach, decay in itertools.product((0.0, 0.3, None), (False, True), (True, False))
]


@pytest.mark.parametrize("steps", [1, 4, 32])
@pytest.mark.parametrize("neuron", NEURONS, ids=str)
def test_every_gradient_is_the_oracles(neuron, steps, backend):
    """Any reset, decay and detachment: gradients of input, gamma, bias, residual and initial state, in float64."""
    parts, bars = problem(steps)
    y, got = node_gradients(parts, bars, backend=backend, tau=1.7, **neuron)
    expected_y, expected = oracle_gradients(parts, bars, tau=1.7, **neuron)
    assert relative_error(y, expected_y) <= RTOL[torch.float64]
    assert_gradients_close(got, expected, RTOL[torch.float64])


@pytest.mark.parametrize("shape", [(20, CHANNELS), (6, CHANNELS, 5), (2, CHANNELS, 2, 3, 2)], ids=str)
def test_any_number_of_space_dimensions(shape, backend):
    """Features alone, sequences and volumes, as BatchNorm1d and BatchNorm3d take them."""
    parts, bars = problem(3, shape)
    assert_gradients_close(
        node_gradients(parts, bars, backend=backend)[1], oracle_gradients(parts, bars)[1], RTOL[torch.float64]
    )


@pytest.mark.parametrize("epsilon", [1 / 4, 1 / 16, 1 / 256])
def test_inputs_cut_by_the_clamp_keep_the_norms_gradient(epsilon, backend):
    """Where the clamp bites, the norm's gradient still needs the value before it: exact at any epsilon."""
    parts, bars = problem(4, (16, CHANNELS, 5, 5), sparse=True)
    y, got = node_gradients(parts, bars, backend=backend, epsilon=epsilon)
    clamped = node_with(parts, epsilon=epsilon).clamped_fraction(y)
    assert (clamped > 0) == (epsilon > 1 / 256)
    assert_gradients_close(got, oracle_gradients(parts, bars, epsilon=epsilon)[1], 256 * RTOL[torch.float64])


@pytest.mark.parametrize("neuron", [{}, {"v_reset": None}, {"v_reset": 0.2, "decay_input": False}], ids=str)
@pytest.mark.parametrize("steps", [1, 4, 32, 256])
def test_float32_gradients_are_right_at_every_length(steps, neuron, backend):
    """Below 1e-5 against the float64 gradient of the very same spikes, flat in T."""
    parts, bars = problem(steps, (8, CHANNELS, 5, 5))
    parts, bars = {name: part.float() for name, part in parts.items()}, tuple(bar.float() for bar in bars)
    y, got = node_gradients(parts, bars, backend=backend, **neuron)
    expected = oracle_gradients(parts, bars, spike_seq=decode_spikes(y).double(), **neuron)[1]
    assert_gradients_close(got, expected, RTOL[torch.float32])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype):
    """Half precisions are right to a few of their roundings, those of the carried input at a spike among them."""
    parts, bars = problem(4, (8, CHANNELS, 5, 5))
    parts, bars = {name: part.to(dtype) for name, part in parts.items()}, tuple(bar.to(dtype) for bar in bars)
    y, got = node_gradients(parts, bars)
    expected = oracle_gradients(parts, bars, spike_seq=decode_spikes(y).double())[1]
    assert_gradients_close(got, expected, 4 * RTOL[dtype])


@pytest.mark.parametrize("frozen", [("weight",), ("bias",), ("weight", "bias")], ids=str)
def test_frozen_affine_parameters_get_no_gradient(frozen, backend):
    """Freezing gamma or bias changes no other gradient."""
    parts, bars = problem(4)
    expected = oracle_gradients(parts | {"v": torch.zeros_like(parts["v"]), "residual": 0 * parts["residual"]}, bars)[1]
    node = node_with(parts, backend=backend)
    for name in frozen:
        getattr(node, name).requires_grad_(False)
    z = parts["z"].clone().requires_grad_()
    y = node(z)
    ((y * bars[0]).sum() + (node.v * bars[1]).sum()).backward()
    assert relative_error(z.grad, expected["z"]) <= RTOL[torch.float64]
    for name in ("weight", "bias"):
        gradient = getattr(node, name).grad
        assert gradient is None if name in frozen else relative_error(gradient, expected[name]) <= 1e-9


def test_without_affine_parameters_or_tracking(backend):
    """affine=False is gamma 1 and bias 0; without tracking, eval() normalises by the batch, as BatchNorm2d does."""
    parts, bars = problem(4)
    node = NormCarrierLIF(CHANNELS, affine=False, track_running_stats=False, backend=backend)
    z = parts["z"].clone().requires_grad_()
    y = node(z)
    ((y * bars[0]).sum() + (node.v * bars[1]).sum()).backward()
    plain = parts | {"weight": torch.ones(CHANNELS), "bias": torch.zeros(CHANNELS)}
    plain |= {"v": torch.zeros_like(parts["v"]), "residual": 0 * parts["residual"]}
    assert relative_error(z.grad, oracle_gradients(plain, bars)[1]["z"]) <= RTOL[torch.float64]
    assert not node.state_dict()
    node.reset()
    assert torch.equal(decode_spikes(y), node.eval()(parts["z"]))


@pytest.mark.parametrize("missing", ["y", "v"])
def test_gradient_may_arrive_at_one_end_only(missing, backend):
    """A loss on the output alone, or on the last membrane alone."""
    parts, bars = problem(4)
    bars = tuple(0 * bar if end == missing else bar for end, bar in zip("yv", bars, strict=True))
    node = node_with(parts, backend=backend)
    node.v = parts["v"]
    z = parts["z"].clone().requires_grad_()
    y = node(z, parts["residual"])
    loss = (node.v * bars[1]).sum() if missing == "y" else (y * bars[0]).sum()
    loss.backward()
    assert relative_error(z.grad, oracle_gradients(parts, bars)[1]["z"]) <= RTOL[torch.float64]
