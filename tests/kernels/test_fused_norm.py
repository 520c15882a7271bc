"""The fused `NormCarrierLIF` beside its reference: every mode, statistics, threads, and where it does not run.

Its gradients are held against the oracle in tests/nodes/test_norm_carrier.py, which runs on both backends.
"""

import pytest
import torch
from nodes_cases import ROWS, relative_error, row_for
from nodes_norm import CHANNELS, assert_gradients_close, node_gradients, node_with, problem
from revsnn_nodes import NormCarrierLIF, StoredNormCarrierLIF, decode_spikes, surrogate
from revsnn_nodes.kernels.cpu import machine as threads
from revsnn_nodes.kernels.cpu.carrier import FLUSH
from revsnn_nodes.kernels.cpu.launch import NORM_COLUMNS
from revsnn_nodes.kernels.support import choose_backend
from torch._subclasses.fake_tensor import FakeTensorMode


def assert_agree(parts, bars, rtol, **options):
    """Both backends from one problem: output and gradients to a few roundings."""
    expected_y, expected = node_gradients(parts, bars, backend="torch", **options)
    y, got = node_gradients(parts, bars, backend="fused", **options)
    assert torch.equal(decode_spikes(y), decode_spikes(expected_y))
    assert relative_error(y, expected_y) <= rtol
    assert_gradients_close(got, expected, rtol)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_every_mode_of_the_neuron(row):
    """Residual and carried state given, in float64."""
    assert_agree(*problem(5), 1e-12, **row_for("norm-carrier", row))


@pytest.mark.parametrize("kind", ["ATan", "PiecewiseQuadratic", "Erf"])
def test_surrogates(kind):
    """Other derivatives than the sigmoid's; `test_fused_values` has each of them."""
    assert_agree(*problem(4), 1e-12, surrogate_function=getattr(surrogate, kind)())


@pytest.mark.parametrize("steps", [FLUSH - 1, FLUSH, 2 * FLUSH + 1])
@pytest.mark.parametrize(
    "shape",
    [(1, CHANNELS, 1), (700, CHANNELS), (3, CHANNELS, NORM_COLUMNS[1] - 1), (2, CHANNELS, 50, 33), (5, CHANNELS, 2)],
    ids=str,
)
def test_channels_and_blocks_of_any_size(shape, steps):
    """Blocks within a channel, across channels and across samples; sums that are emptied once, twice and more."""
    assert_agree(*problem(steps, shape), 1e-11)


@pytest.mark.parametrize("offset", [0.0, 1e3, -1e4])
def test_float32_statistics_far_from_zero(offset):
    """A mean of ten thousand deviations: variance and 1/sigma are those of float64, not of cancelled squares."""
    z = torch.randn(8, 16, 4, 9, 9) + offset
    node = NormCarrierLIF(4, backend="fused", momentum=1.0, step_mode="m")
    node(z)
    exact = z.double().transpose(0, 2).flatten(1)
    assert relative_error(node.running_var, exact.var(1)) < 1e-6
    assert relative_error(node.running_mean, exact.mean(1)) < 1e-6


def test_results_do_not_depend_on_threads():
    """One, two and three threads give the same bits, the sums over channels among them."""
    results = []
    for count in (1, 2, 3, 2):
        torch.set_num_threads(count)
        torch.manual_seed(0)
        node = NormCarrierLIF(5, backend="fused", step_mode="m")
        z = torch.randn(4, 3, 5, threads.SERIAL_ELEMENTS // 10, requires_grad=True)
        y = node(z)
        results.append((y, *torch.autograd.grad(y.square().sum(), (z, node.weight, node.bias))))
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others, strict=True))


@pytest.mark.parametrize("carrier", ["train", "always"])
def test_eval_runs_the_fused_neuron(carrier):
    """In eval() output and gradients of input, gamma and bias are the reference's."""
    parts, bars = problem(6)
    results = []
    for backend in ("torch", "fused"):
        node = node_with(parts, backend=backend, carrier=carrier)
        node.running_mean += 0.5
        z = parts["z"].clone().requires_grad_()
        y = node.eval()(z, parts["residual"])
        assert node.backend_in_use == backend
        results.append((y, *torch.autograd.grad((y * bars[0]).sum(), (z, node.weight, node.bias))))
    assert torch.equal(results[0][0], results[1][0])
    assert all(relative_error(b, a) < 1e-12 for a, b in zip(*results, strict=True))


def test_default_backend_and_its_reasons():
    """Fused on the CPU in float32; half precision, CUDA, the stored control and torch.func fall back and say why."""
    parts, _ = problem(3)
    node = NormCarrierLIF(CHANNELS, step_mode="m")
    node(parts["z"].float())
    assert (node.backend_in_use, node.backend_reason) == ("fused", "")
    half = NormCarrierLIF(CHANNELS, step_mode="m").bfloat16()
    half(parts["z"].bfloat16())
    assert (half.backend_in_use, "bfloat16" in half.backend_reason) == ("torch", True)
    with FakeTensorMode():
        choice = choose_backend(node, torch.empty(4, 2, CHANNELS, device="cuda"))
    assert choice == ("torch", "NormCarrierLIF has a fused kernel for the CPU alone")
    stored = StoredNormCarrierLIF(CHANNELS, step_mode="m")
    stored(parts["z"].float())
    assert stored.backend_reason == "StoredNormCarrierLIF has no fused kernel"


def test_statistics_are_counted_once_without_gradient():
    """Under no_grad too, and for a layer that tracks none nothing is written."""
    node, free = (
        NormCarrierLIF(4, backend="fused", track_running_stats=track, step_mode="m") for track in (True, False)
    )
    z = torch.randn(3, 2, 4, 5)
    with torch.no_grad():
        node(z), free(z)
    assert node.num_batches_tracked == 1
    assert torch.allclose(node.running_mean, 0.1 * z.mean((0, 1, 3)), atol=1e-7)
    assert free.running_mean is None


def test_residual_keeps_no_more_than_its_gradient_needs():
    """A residual without gradient gets none; one of another shape is refused before anything is computed."""
    z, residual = torch.randn(3, 2, 4, 5, requires_grad=True), torch.randn(3, 2, 4, 5)
    NormCarrierLIF(4, backend="fused", step_mode="m")(z, residual).sum().backward()
    assert residual.grad is None
    for backend in ("torch", "fused"):
        with pytest.raises(ValueError, match=r"`residual` must have the shape of z \(3, 2, 4, 5\); got \(3, 2, 4, 1\)"):
            NormCarrierLIF(4, backend=backend, step_mode="m")(z, residual[..., :1])
