"""The drift guard against the measured error: never silent where the gradient is wrong, no false alarm by far."""

import functools
import itertools
import warnings

import pytest
import torch
from nodes_cases import INVERTING, Problem, make
from nodes_replay import gradient_errors
from nodes_tolerances import DRIFT_SLACK
from revsnn_nodes import DriftError, DriftWarning, ReversibleLIF, predicted_gradient_error

TOLERANCE = 1e-3
HORIZON = {torch.float32: (2, 4, 6, 8, 10, 12, 14, 16, 24), torch.float64: (8, 16, 24, 32, 48)}
VARIANTS = ({}, {"decay_input": False}, {"v_reset": None}, {"groups": 8})


@functools.cache
def _measured(dtype, tau, alpha, variant, backend):
    """Measured and predicted error by T."""
    options = {"tau": tau, "alpha": alpha} | VARIANTS[variant]
    neuron = ReversibleLIF(**options).neuron
    return {
        steps: (
            gradient_errors("revlif", dtype, steps, shape=(2, 512), backend=backend, **options)[0],
            predicted_gradient_error(steps, neuron, dtype),
        )
        for steps in HORIZON[dtype]
    }


@pytest.mark.parametrize("variant", range(len(VARIANTS)), ids=lambda i: str(VARIANTS[i]))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("tau", "alpha"), list(itertools.product((1.5, 2.0, 8.0), (0.2, 0.5, 0.9))))
def test_guard_speaks_where_and_only_where_the_gradient_is_wrong(tau, alpha, dtype, variant, backend):
    """Silent: the measured error is below the tolerance. Warning: it is above a hundredth of it."""
    for steps, (measured, predicted) in _measured(dtype, tau, alpha, variant, backend).items():
        if predicted <= TOLERANCE:
            assert measured <= TOLERANCE, f"silent at T={steps}: {measured:.1e} measured, {predicted:.1e} predicted"
        else:
            assert measured > TOLERANCE / DRIFT_SLACK, f"false alarm at T={steps}: {measured:.1e}, {predicted:.1e}"


def test_the_grid_has_both_sides():
    """The grid above holds silent and warning points for each dtype and variant: neither branch is vacuous."""
    for dtype, variant in itertools.product(HORIZON, range(len(VARIANTS))):
        predicted = [point[1] for point in _measured(dtype, 2.0, 0.5, variant, "torch").values()]
        assert min(predicted) <= TOLERANCE < max(predicted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_never_trusted_to_an_inverse(dtype):
    """Two steps in half precision already exceed the tolerance, measured and predicted."""
    measured, _ = gradient_errors("revlif", dtype, 4)
    assert measured > TOLERANCE
    assert predicted_gradient_error(4, ReversibleLIF().neuron, dtype) > TOLERANCE


def test_prediction_grows_and_saturates():
    """The prediction rises with T and alpha, falls with tau, and never passes 1, however long the sequence."""
    neuron = ReversibleLIF().neuron
    errors = [predicted_gradient_error(steps, neuron, torch.float32) for steps in (1, 4, 8, 12, 100, 100_000)]
    assert errors == sorted(errors)
    assert errors[-1] == errors[-2] == 1.0
    assert errors[0] < 1e-6
    by_tau = [predicted_gradient_error(10, ReversibleLIF(tau=tau).neuron, torch.float32) for tau in (1.5, 2, 4, 8)]
    assert by_tau == sorted(by_tau, reverse=True)
    by_alpha = [predicted_gradient_error(10, ReversibleLIF(alpha=a).neuron, torch.float32) for a in (0.1, 0.5, 0.9)]
    assert by_alpha == sorted(by_alpha)


@pytest.mark.usefixtures("on_each_backend")
@pytest.mark.parametrize("name", INVERTING)
def test_warns_once_and_names_the_way_out(name, backend):
    """One warning per node, with T, the predicted error, and the nodes that are right at every T."""
    node, x = make(name, on_drift="warn"), Problem(steps=16).x.float().requires_grad_()
    message = r"inverts its membrane over T = 16 steps.*wrong by .*CarrierLIF or AnchoredReversibleLIF.*smaller T"
    with pytest.warns(DriftWarning, match=message):
        node(x)
    assert node.backend_in_use == backend
    node.reset()
    node(x)  # a second warning would be an error here


@pytest.mark.usefixtures("on_each_backend")
@pytest.mark.parametrize("name", INVERTING)
def test_warning_is_the_default_and_short_sequences_are_silent(name):
    """Nothing needs to be switched on; four steps in float32 pass without a word."""
    node = make(name, on_drift="warn")
    assert node.drift_guard.on_drift == type(node)().drift_guard.on_drift
    node(Problem(steps=4).x.float().requires_grad_())


@pytest.mark.usefixtures("on_each_backend")
@pytest.mark.parametrize("name", INVERTING)
def test_error_raises_every_time_and_ignore_never(name):
    """on_drift="error" refuses the call and leaves the state alone; "ignore" says nothing."""
    x = Problem(steps=16).x.float().requires_grad_()
    node = make(name, on_drift="error")
    for _ in range(2):
        with pytest.raises(DriftError, match="its gradient is predicted to be wrong"):
            node(x)
    assert node.v == 0.0
    make(name, on_drift="ignore")(x)


@pytest.mark.usefixtures("on_each_backend")
@pytest.mark.parametrize("name", INVERTING)
def test_no_gradient_no_warning(name):
    """Without a gradient there is nothing to be wrong: no_grad and inputs that need none are silent."""
    node, x = make(name, on_drift="error"), Problem(steps=16).x.float()
    node(x)
    with torch.no_grad():
        node(x.requires_grad_())


def test_tolerance_moves_the_border():
    """A tighter tolerance speaks earlier, a looser one later."""
    x = Problem(steps=8).x.float().requires_grad_()
    with pytest.warns(DriftWarning):
        ReversibleLIF(drift_tolerance=1e-6)(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ReversibleLIF(drift_tolerance=0.5)(x)


def test_bad_guards_are_refused():
    """An unknown reaction, or a tolerance that is no relative error."""
    with pytest.raises(ValueError, match='`on_drift` must be "warn", "error" or "ignore"; got \'raise\''):
        ReversibleLIF(on_drift="raise")
    with pytest.raises(ValueError, match=r"`drift_tolerance` must lie in \(0, 1\]; got 0.0"):
        ReversibleLIF(drift_tolerance=0.0)


@pytest.mark.usefixtures("on_each_backend")
@pytest.mark.parametrize("name", INVERTING)
def test_inverse_recovers_input_spikes_and_initial_state(name):
    """invert() in float64 gives back the input, the spikes and V[0] that the forward had."""
    problem = Problem(steps=6)
    node = make(name, groups=3)
    node.v = problem.v
    y = node(problem.x)
    x, spikes, v = node.invert(y)
    torch.testing.assert_close(x, problem.x, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(v, problem.v, rtol=1e-7, atol=1e-9)
    partner = torch.cat([*problem.x.chunk(3, -1)[1:], problem.x.chunk(3, -1)[0]], -1)
    torch.testing.assert_close(spikes, (y - partner).round())
    v_last = node.v
    node.reset()
    with pytest.raises(ValueError, match=r"`v_last` must be the membrane after the last step.*before reset"):
        node.invert(y)
    assert torch.equal(node.invert(y, v_last)[2], v)
