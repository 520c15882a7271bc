"""A gradient that names no reference is judged by differences of its own forward, never by itself."""

import planted_faults
import pytest
import torch
from revsnn_nodes import StandardLIF, surrogate
from torch import nn

from revsnn_bench.meters.oracle import NoOracle, measure_oracle_errors
from revsnn_bench.meters.step import ModuleStep

TOLERANCE = 1e-3


class NodeStep(ModuleStep):
    """A step whose nodes are reset before it."""

    def reset_state(self) -> None:
        for module in self.model.modules():
            if callable(getattr(module, "reset", None)):
                module.reset()


def errors_of(model: nn.Module, shape=(8, 4, 64), dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).add_(0.5).to(dtype).requires_grad_()
    return measure_oracle_errors(NodeStep(model, x))


@pytest.mark.parametrize("name", planted_faults.RIGHT)
def test_a_right_gradient_without_a_reference_is_right(name):
    """Nodes by plain autograd agree with the differences to rounding, over two calls, for input and parameter."""
    found = errors_of(planted_faults.RIGHT[name]())
    assert found.input < 1e-5
    assert found.parameters < TOLERANCE


@pytest.mark.parametrize("name", planted_faults.WRONG)
def test_a_planted_fault_is_found(name):
    """No fault passes the tolerance, be it in the input's or the parameter's gradient, in the first call or later."""
    found = errors_of(planted_faults.WRONG[name]())
    assert max(found.input, found.parameters) > TOLERANCE


def test_the_error_is_estimated_in_size():
    """A gradient three times too large is off by 2; one that is 1 % too large by 0.01."""
    assert errors_of(planted_faults.WRONG["three times"]()).input == pytest.approx(2.0, rel=1e-3)
    assert errors_of(planted_faults.WRONG["one percent"]()).input == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("kind", [surrogate.Sigmoid, surrogate.ATan, surrogate.PiecewiseQuadratic, surrogate.Rect])
def test_our_reference_passes_the_independent_check(kind):
    """StandardLIF by plain autograd, in both resets: the definition agrees with differences of itself."""
    for v_reset in (0.0, None):
        node = StandardLIF(v_reset=v_reset, surrogate_function=kind(), step_mode="m", backend="torch")
        assert errors_of(node).input < 1e-5


def test_a_network_with_weights_is_judged():
    """Linear layers around a node: input and weights agree with the differences."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 48), planted_faults.Planted(), nn.Linear(48, 8), planted_faults.Planted())
    found = errors_of(model, (6, 4, 32))
    assert max(found.input, found.parameters) < TOLERANCE


def test_float64_is_judged_to_its_own_tolerance():
    """In float64 the differences are exact to 1e-7, so the tolerance of that dtype can be held."""
    assert errors_of(planted_faults.Planted(), dtype=torch.float64).input < 1e-7


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (planted_faults.HiddenSpikes(), "does not fire through a surrogate"),
        (StandardLIF(detach_reset=True, step_mode="m", backend="torch"), "its reset is detached"),
    ],
    ids=["hidden spikes", "detached reset"],
)
def test_what_cannot_be_judged_says_why(model, why):
    """Where differences cannot decide, there is no error to show, but a reason."""
    with pytest.raises(NoOracle, match=why):
        errors_of(model)
