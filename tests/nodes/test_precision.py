"""Gradient errors below float64, against the exact gradient of the recorded spike train: flat in T, or growing."""

import pytest
import torch
from nodes_replay import gradient_errors
from nodes_tolerances import RTOL

STEPS = (4, 1024)


@pytest.mark.usefixtures("on_each_backend")
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("neuron", [{"v_reset": None}, {"v_reset": 0.2, "decay_input": False}], ids=str)
@pytest.mark.parametrize("name", ["lif-carrier", "revlif-anchored"])
def test_regenerated_gradients_are_right_at_every_length(name, neuron, steps):
    """Below 1e-5 in float32 at T = 4 and at T = 1024, for input and initial state alike."""
    for error in gradient_errors(name, torch.float32, steps, carried=True, **neuron):
        assert error < RTOL[torch.float32]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("steps", [4, 64])
@pytest.mark.parametrize("neuron", [{}, {"v_reset": None}, {"tau": 8.0}, {"detach_reset": True}], ids=str)
@pytest.mark.parametrize("name", ["lif", "lif-carrier", "revlif-anchored"])
def test_half_precision_errors_are_a_few_roundings(name, neuron, steps, dtype):
    """float16 below 3e-3, bfloat16 below 3e-2, flat in T: the carrier within thrice the plain node's rounding."""
    for error in gradient_errors(name, dtype, steps, carried=True, **neuron):
        assert error < RTOL[dtype]
