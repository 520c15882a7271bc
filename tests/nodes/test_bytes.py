"""Bytes from forward to backward against the closed forms of nodes/README.md, by the profiler's memory timeline."""

import math

import pytest
import torch
from nodes_cases import ALL, CLOSED_FORM, INVERTING, make
from nodes_memory import bytes_after_forward, peak_of_backward

STATE = (4, 1024)
N = math.prod(STATE)
STEPS_AND_TYPES = [(1, torch.float32), (8, torch.float64), (8, torch.bfloat16), (25, torch.float32)]


def _states(node, steps, dtype=torch.float32, **how):
    """Retained bytes in units of one state, m N: m is the itemsize, 4 for half precision."""
    return bytes_after_forward(node, (steps, *STATE), dtype, **how) / (max(dtype.itemsize, 4) * N)


@pytest.mark.parametrize(("steps", "dtype"), STEPS_AND_TYPES)
@pytest.mark.parametrize(
    ("neuron", "per_step"),
    [({}, 3), ({"v_reset": -0.3}, 3), ({"detach_reset": True}, 2), ({"v_reset": None}, 1)],
    ids=str,
)
def test_standard_lif_keeps_every_step(neuron, per_step, steps, dtype):
    """3 m N T, 2 m N T with detach_reset, m N T with soft reset; a few bytes per step for scalars.

    The reset of the last step belongs to the state, which is dropped: all but one of its tensors less.
    """
    expected = per_step * steps - (per_step - 1)
    assert _states(make("lif", **neuron), steps, dtype) == pytest.approx(expected, abs=0.002 * steps)


@pytest.mark.parametrize("every", [None, 4, 100])
@pytest.mark.parametrize(("steps", "dtype"), STEPS_AND_TYPES)
def test_checkpointed_lif_keeps_input_and_borders(steps, dtype, every):
    """b N T for the input, m N for every border between segments; ceil(sqrt T) steps per segment by default."""
    segments = math.ceil(steps / (every or math.ceil(math.sqrt(steps))))
    got = _states(make("lif-checkpoint", checkpoint_every=every), steps, dtype)
    of_input = steps * dtype.itemsize / max(dtype.itemsize, 4)
    assert got == pytest.approx(of_input + segments - 1, abs=0.002 * steps)


@pytest.mark.parametrize(("steps", "dtype"), STEPS_AND_TYPES)
@pytest.mark.parametrize("name", INVERTING)
def test_inverting_nodes_keep_one_state_at_every_length(name, steps, dtype):
    """m N whatever T is, and it is the very storage of the carried state."""
    assert _states(make(name), steps, dtype) == 1
    assert _states(make(name), steps, dtype, reset=False) == 1
    assert _states(make(name), steps, dtype, carried=True) == 1


@pytest.mark.parametrize("every", [1, 3, 25, None])
@pytest.mark.parametrize(("steps", "dtype"), STEPS_AND_TYPES)
def test_anchored_node_keeps_its_anchors(steps, dtype, every):
    """m N (ceil(T/k) - 1): nothing at all for k >= T; one state more where it started from a carried one."""
    anchors = math.ceil(steps / (every or steps)) - 1
    assert _states(make("revlif-anchored", anchor_every=every), steps, dtype) == anchors
    assert _states(make("revlif-anchored", anchor_every=every), steps, dtype, carried=True) == anchors + 1
    assert _states(make("revlif-anchored", anchor_every=every), steps, dtype, reset=False) == anchors + 1


@pytest.mark.parametrize(("steps", "dtype"), [*STEPS_AND_TYPES, (8, torch.float16)])
def test_carrier_keeps_nothing(steps, dtype):
    """0 bytes at every T; one state where it started from a carried one; the last state apart, until reset."""
    assert _states(make("lif-carrier"), steps, dtype) == 0
    assert _states(make("lif-carrier"), steps, dtype, carried=True) == 1
    assert _states(make("lif-carrier"), steps, dtype, reset=False) == 1


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_carried_state_is_one_state(name, dtype):
    """What a node carries until reset() is m N bytes, and owns no more storage than that."""
    node = make(name)
    node(torch.randn(5, *STATE, dtype=dtype))
    assert node.v.untyped_storage().nbytes() == 4 * N
    node.reset()
    assert node.v == 0.0


@pytest.mark.parametrize("mode", ["no_grad", "input without grad"])
@pytest.mark.parametrize("name", ALL)
def test_without_a_gradient_nothing_is_kept(name, mode):
    """Under no_grad, or where no input needs a gradient, only output and last state stay."""
    node, x = make(name), torch.randn(9, *STATE)
    with torch.set_grad_enabled(mode != "no_grad"):
        y = node(x)
    assert not y.requires_grad
    assert y.grad_fn is None
    assert not node.v.requires_grad
    if mode == "no_grad":
        with torch.no_grad():
            assert _states(make(name), 9) == 0


@pytest.mark.parametrize("name", [n for n in CLOSED_FORM if n not in INVERTING])
def test_backward_of_regenerating_nodes_allocates_the_input_gradient(name):
    """Beyond output and arriving gradient: the input gradient, and some states whose number does not depend on T."""
    extra = [peak_of_backward(make(name), (steps, *STATE), torch.float32) / (4 * N) - steps for steps in (8, 64)]
    assert extra[0] == pytest.approx(extra[1], abs=0.01)
    assert extra[1] <= 10


@pytest.mark.parametrize("name", INVERTING)
def test_backward_of_inverting_nodes_is_constant_in_t(name):
    """The same holds where the membrane is inverted, with the graph of one step for RevNet."""
    extra = [peak_of_backward(make(name), (steps, *STATE), torch.float32) / (4 * N) - steps for steps in (8, 64)]
    assert extra[0] == pytest.approx(extra[1], abs=0.01)
    assert extra[1] <= 14
