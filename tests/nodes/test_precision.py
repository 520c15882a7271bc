"""Gradient errors below float64, against the exact gradient of the recorded spike train: flat in T, or growing."""

import pytest
import torch
from nodes_cases import INVERTING
from nodes_replay import gradient_errors
from nodes_tolerances import RTOL

STEPS = (4, 1024)


@pytest.mark.usefixtures("on_each_backend")
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("neuron", [{}, {"v_reset": None}, {"v_reset": 0.2, "decay_input": False}], ids=str)
@pytest.mark.parametrize("name", ["lif-carrier", "revlif-anchored"])
def test_regenerated_gradients_are_right_at_every_length(name, neuron, steps):
    """Below 1e-5 in float32 at T = 4 and at T = 1024, for input and initial state alike."""
    for error in gradient_errors(name, torch.float32, steps, carried=True, **neuron):
        assert error < RTOL[torch.float32]


@pytest.mark.usefixtures("on_each_backend")
@pytest.mark.parametrize("every", [1, 7, 1024])
def test_anchors_decide_bytes_not_precision(every):
    """One anchor per step and none at all: the same error in float32."""
    assert gradient_errors("revlif-anchored", torch.float32, 256, anchor_every=every)[0] < RTOL[torch.float32] / 10


@pytest.mark.usefixtures("on_each_backend")
@pytest.mark.parametrize("v_reset", [0.0, None])
def test_carrier_error_grows_with_one_over_epsilon_only(v_reset):
    """1/256 costs the sixteenfold of 1/16 in rounding, is below 1e-5 still, and both are flat in T."""
    for epsilon, bound in ((1 / 16, 1e-6), (1 / 256, RTOL[torch.float32])):
        short, long = (
            gradient_errors("lif-carrier", torch.float32, steps, epsilon=epsilon, v_reset=v_reset)[0] for steps in STEPS
        )
        assert max(short, long) < bound
        assert long < 2 * short


@pytest.mark.usefixtures("on_each_backend")
@pytest.mark.parametrize("name", INVERTING)
def test_inverted_gradients_lose_their_digits(name):
    """1e-6 at T = 4, above 1e-3 at T = 16, worthless at T = 32: why the guard is there."""
    errors = [gradient_errors(name, torch.float32, steps)[0] for steps in (4, 8, 16, 32)]
    assert errors == sorted(errors)
    assert errors[0] < 1e-6
    assert errors[2] > 1e-3
    assert errors[3] > 1e-2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("steps", [4, 64])
@pytest.mark.parametrize("neuron", [{}, {"v_reset": None}, {"tau": 8.0}, {"detach_reset": True}], ids=str)
@pytest.mark.parametrize("name", ["lif", "lif-carrier", "revlif-anchored"])
def test_half_precision_errors_are_a_few_roundings(name, neuron, steps, dtype):
    """float16 below 3e-3, bfloat16 below 3e-2, flat in T: the carrier within thrice the plain node's rounding."""
    for error in gradient_errors(name, dtype, steps, carried=True, **neuron):
        assert error < RTOL[dtype]
