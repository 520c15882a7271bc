"""NormCarrierLIF: gradients against the loop in float64, statistics, exchange with an ordinary norm, bytes."""

import copy

import pytest
import torch
from nodes_cases import NEURONS, relative_error
from nodes_memory import timeline
from nodes_norm import CHANNELS, assert_gradients_close, node_gradients, node_with, oracle_gradients, problem
from nodes_tolerances import RTOL
from revsnn_nodes import NormCarrierLIF, StandardLIF, StoredNormCarrierLIF, decode_spikes
from torch import nn


@pytest.mark.parametrize("steps", [1, 5])
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
@pytest.mark.parametrize("steps", [4, 256])
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
    node = NormCarrierLIF(CHANNELS, affine=False, track_running_stats=False, backend=backend, step_mode="m")
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


@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
def test_running_statistics_are_batch_norms(momentum, backend):
    """Three batches: statistics and their count are BatchNorm2d's, each batch counted once, backward or not."""
    node = NormCarrierLIF(CHANNELS, momentum=momentum, backend=backend, step_mode="m")
    norm = nn.BatchNorm2d(CHANNELS, momentum=momentum)
    for seed in range(3):
        z = problem(4, seed=seed)[0]["z"].float().requires_grad_()
        norm(z.flatten(0, 1))
        node.reset()
        node(z).sum().backward()
    rtol = 0 if backend == "torch" else 1e-6
    for name, value in norm.state_dict().items():
        assert torch.allclose(node.state_dict()[name], value, rtol=rtol, atol=0)
    assert node.num_batches_tracked == 3


def test_eval_is_batch_norm_then_lif_to_the_bit(backend):
    """In eval() with exchanged weights the layer is an ordinary norm and node; the exchange works both ways."""
    parts, _ = problem(6)
    norm, lif = nn.BatchNorm2d(CHANNELS), StandardLIF(backend="torch", step_mode="m")
    node = NormCarrierLIF(CHANNELS, backend=backend, step_mode="m")
    with torch.no_grad():
        node.weight.copy_(parts["weight"])
        node.bias.copy_(parts["bias"])
    node(parts["z"].float())
    norm.load_state_dict(node.state_dict())
    back = NormCarrierLIF(CHANNELS, backend=backend, step_mode="m")
    back.load_state_dict(norm.state_dict())
    z = 2 * parts["z"].float()
    expected = lif(norm.eval()(z.flatten(0, 1)).view_as(z))
    for layer in (node, back, NormCarrierLIF.from_norm(norm, step_mode="m")):
        layer.reset()
        assert torch.equal(layer.eval()(z), expected)


def test_training_spikes_are_those_of_norm_and_node(backend):
    """While the clamp does not bite, the spikes are those of BatchNorm2d followed by StandardLIF."""
    parts, _ = problem(6)
    node, norm = node_with(parts, backend=backend), nn.BatchNorm2d(CHANNELS).double()
    norm.load_state_dict(node.state_dict())
    expected = StandardLIF(step_mode="m")(norm(parts["z"].flatten(0, 1)).view_as(parts["z"]))
    assert torch.equal(decode_spikes(node(parts["z"])), expected)


def test_reference_gives_the_same_bits_and_is_apart():
    """The control by plain autograd: same output to the bit, same statistics, no storage shared, frozen alike."""
    parts, _ = problem(5)
    node = node_with({name: part.float() for name, part in parts.items()}, momentum=0.3, eps=1e-3)
    node.bias.requires_grad_(False)
    reference = node.reference()
    assert isinstance(reference, StoredNormCarrierLIF)
    z = parts["z"].float()
    assert torch.equal(node(z), reference(z))
    assert torch.equal(node.running_var, reference.running_var)
    assert not reference.bias.requires_grad
    assert not {p.data_ptr() for p in node.state_dict().values()} & {
        p.data_ptr() for p in reference.state_dict().values()
    }


def test_keeps_its_output_and_one_vector(backend):
    """Retained: 1/sigma, C values; the state, b N, is gone after reset(). Nothing at all under no_grad."""
    node, one = NormCarrierLIF(64, backend=backend, step_mode="m"), torch.zeros((), requires_grad=True)
    z = torch.randn(6, 4, 64, 8, 8)

    def forward():
        node.reset()
        y = node(z + one)
        node.reset()
        return y

    kept = timeline(forward)
    output_bytes = kept.result.untyped_storage().nbytes()
    assert kept.live_bytes - output_bytes == 64 * 4
    with torch.no_grad():
        free = timeline(forward)
    assert free.live_bytes == output_bytes
    assert not free.result.requires_grad


def test_backward_needs_scratch_of_steps_not_of_sequences(backend):
    """Beside output, arriving and leaving gradient, backward's peak does not grow with T."""

    def scratch(steps):
        node = NormCarrierLIF(8, backend=backend, step_mode="m")
        z = torch.randn(steps, 4, 8, 8, 8, requires_grad=True)
        y = node(z)
        node.reset()
        bar = torch.randn_like(y)
        peak = timeline(lambda: torch.autograd.grad(y, z, bar, retain_graph=True)).peak_bytes
        return peak - z.nbytes

    assert scratch(32) == pytest.approx(scratch(8), rel=0.02)


def test_one_value_per_channel_is_refused_in_training_only():
    """As BatchNorm2d: a batch of one value per channel has no variance; in eval() it is fine."""
    node, z = NormCarrierLIF(CHANNELS, step_mode="m"), torch.randn(1, 1, CHANNELS, 1, 1)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        node(z)
    assert node.num_batches_tracked == 0
    assert node.eval()(z).shape == z.shape
    assert NormCarrierLIF(CHANNELS, step_mode="m")(z.expand(2, 1, CHANNELS, 1, 1)).shape[0] == 2


def test_refusals_say_what_to_do():
    """Wrong channels and norms of other kinds, SyncBatchNorm among them, are named."""
    with pytest.raises(ValueError, match=r"`z` must have num_features = 3 channels.*got \(2, 2, 4, 1, 1\)"):
        NormCarrierLIF(CHANNELS, step_mode="m")(torch.randn(2, 2, 4, 1, 1))
    with pytest.raises(ValueError, match=r"`norm` must be a BatchNorm1d.*got 'SyncBatchNorm'.*CarrierLIF behind it"):
        NormCarrierLIF.from_norm(nn.SyncBatchNorm(CHANNELS), step_mode="m")


def test_single_steps_normalise_each_step(backend):
    """Step mode "s" carries its state and normalises every call by itself."""
    parts, _ = problem(3)
    node, expected = NormCarrierLIF(CHANNELS, step_mode="s", backend=backend).double(), StandardLIF(step_mode="s")
    for z in parts["z"]:
        n = nn.functional.batch_norm(z, None, None, training=True)
        assert torch.equal(decode_spikes(node(z)), expected(n))


def test_always_carries_in_eval_where_told(backend):
    """carrier="always": eval() normalises by running statistics and still carries."""
    parts, _ = problem(3)
    node = node_with(parts, backend=backend, carrier="always")
    node(parts["z"])
    node.reset()
    n, spikes = node.decode(node.eval()(parts["z"]))
    expected = nn.functional.batch_norm(parts["z"].flatten(0, 1), node.running_mean, node.running_var).view_as(n)
    assert torch.allclose(n, expected, rtol=0, atol=1e-14)
    assert set(spikes.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("layout", ["channels_last", "strided"])
def test_memory_layout_changes_nothing(layout, backend):
    """Channels-last and non-contiguous inputs give the same values and gradients."""
    parts, bars = problem(4)
    expected = node_gradients(parts, bars, backend=backend)
    z = parts["z"]
    if layout == "channels_last":
        z = z.flatten(0, 1).contiguous(memory_format=torch.channels_last).view_as(z)
    else:
        z = z.transpose(0, 1).contiguous().transpose(0, 1)
    y, got = node_gradients(parts | {"z": z}, bars, backend=backend)
    assert relative_error(y, expected[0]) <= 1e-12
    assert_gradients_close(got, expected[1], 1e-12)


def test_copies_and_the_limits_of_differentiation(backend):
    """deepcopy gives equal outputs; a second derivative, and an output changed in place, are refused."""
    parts, _ = problem(2)
    node = node_with(parts, backend=backend)
    twin = copy.deepcopy(node)
    z = parts["z"].clone().requires_grad_()
    y = node(z)
    assert torch.equal(y, twin(z))
    (first,) = torch.autograd.grad(y.square().sum(), z, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives"):
        first.sum().backward()
    twin.reset()
    output = twin(z)
    with pytest.raises(RuntimeError, match=r"modified (by an )?inplace"):
        output.mul_(2).sum().backward()
