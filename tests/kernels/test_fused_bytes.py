"""Bytes of the fused nodes against their closed forms, by the profiler's memory timeline."""

import math

import pytest
import torch
from nodes_cases import make
from nodes_memory import bytes_after_forward, timeline

STATE = (4, 1024)
N = math.prod(STATE)
STEPS = (1, 8, 25)
FORMS = {
    "lif": lambda steps: steps,
    "lif-carrier": lambda steps: 0,
    "revlif": lambda steps: 1,
    "revlif-anchored": lambda steps: 0,
}
"""States kept from forward to backward, beside the output."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", FORMS)
def test_kept_bytes(name, steps, dtype):
    """lif the charges, b N T; carrier and anchored nothing; revlif one state. To the byte."""
    node = make(name, backend="fused")
    width = max(dtype.itemsize, 4) if name == "revlif" else dtype.itemsize  # of a state, and of a sequence
    assert bytes_after_forward(node, (steps, *STATE), dtype) == FORMS[name](steps) * N * width


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("every", [1, 3, 4, 25, 60])
def test_anchors_are_all_that_segments_add(every, dtype):
    """m N (ceil(T/k) - 1), with membranes in float32 for bfloat16 too."""
    node = make("revlif-anchored", backend="fused", anchor_every=every)
    kept = bytes_after_forward(node, (25, *STATE), dtype)
    assert kept == (math.ceil(25 / every) - 1) * N * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", FORMS)
def test_carried_start_is_kept_where_it_is_needed(name, dtype):
    """One float32 state more for the nodes that regenerate forward; none for the others."""
    node = make(name, backend="fused")
    kept = bytes_after_forward(node, (8, *STATE), dtype, carried=True)
    more = name in ("lif-carrier", "revlif-anchored")
    assert kept == FORMS[name](8) * N * (dtype.itemsize if name == "lif" else 4) + more * N * 4


@pytest.mark.parametrize("name", FORMS)
def test_nothing_is_kept_without_gradient(name):
    """Under no_grad only the output lives on."""
    node, x = make(name, backend="fused"), torch.randn(8, *STATE)

    def forward():
        y = node(x)
        node.reset()
        return y

    with torch.no_grad():
        node(x), node.reset()
        assert timeline(forward).live_bytes == 8 * N * 4


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", ["lif-carrier", "revlif-anchored"])
def test_whole_step_peaks_at_output_and_two_gradients(name, steps):
    """Output, its gradient, the input's gradient, and at most two states: nothing else at any moment."""
    node, x = make(name, backend="fused"), torch.randn(steps, *STATE, requires_grad=True)
    node(x), node.reset()

    def step():
        y = node(x)
        y_bar = torch.ones_like(y)
        y.backward(y_bar)
        return y, y_bar

    peak = timeline(step).peak_bytes
    assert 3 * steps * N * 4 <= peak <= (3 * steps + 2) * N * 4
