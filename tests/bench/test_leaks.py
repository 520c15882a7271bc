"""What grows from training step to training step, and in which module."""

import pytest
import torch
from revsnn_nodes import CarrierLIF, StandardLIF
from torch import nn

from revsnn_bench import find_leaks

T, B, N = 5, 3, 40
SIZE = 4 * T * B * N


class Hoarder(nn.Module):
    """Keeps its input at every call."""

    def __init__(self):
        super().__init__()
        self.history = []

    def forward(self, x):
        self.history.append({"input": x.detach().clone()})
        return x


def network(node=None):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(N, N), node or StandardLIF(step_mode="m", backend="torch"), nn.Linear(N, 2))


def stepper(model, after=lambda model: None):
    """A training step with an optimizer, and what the loop does between steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(T, B, N)

    def step():
        optimizer.zero_grad()
        model(x).mean().backward()
        optimizer.step()
        after(model)

    return step


def reset(model):
    for module in model.modules():
        if hasattr(module, "reset"):
            module.reset()


@pytest.mark.parametrize("node", [StandardLIF, CarrierLIF])
def test_a_network_that_is_reset_does_not_leak(node):
    """Live bytes after a step are the same as after the one before."""
    model = network(node(step_mode="m", backend="torch"))
    found = find_leaks(model, stepper(model, reset))
    assert not found
    assert str(found) == "No leak: live tensor bytes are the same after every step."


def test_what_is_kept_at_every_step_is_found_to_the_byte():
    """One input per step, in the module whose list holds it."""
    model = nn.Sequential(nn.Linear(N, N), Hoarder(), nn.Linear(N, 2))
    found = find_leaks(model, stepper(model))
    assert (found.bytes_per_step, found.by_module) == (SIZE, {"1": SIZE})
    assert f"grow by {SIZE:,} B with every step: {SIZE:,} B in '1'" in str(found)


def test_a_state_that_is_never_reset_stops_backward_and_is_named():
    """Autograd's own error becomes the name of the module that carries the graph."""
    model = network()
    found = find_leaks(model, stepper(model))
    assert found.stopped
    assert found.carried_graphs == ("1",)
    assert "'1' carry state with its graph: reset or detach it between steps." in str(found)


def test_a_graph_that_grows_without_backward_through_it_is_found():
    """A sum of losses that is logged with its graph: every step keeps the one before."""
    model = network()
    model.total = 0.0

    class Logged(nn.Module):
        def forward(self, x):
            loss = model(x).mean()
            model.total = model.total + loss
            return loss

    logged, x = Logged(), torch.randn(T, B, N)

    def step():
        loss = logged(x)
        del loss
        reset(model)

    found = find_leaks(model, step)
    assert found.bytes_per_step > SIZE
    assert found.carried_graphs == ("",)
    assert next(iter(found.by_module)) == ""


def test_other_errors_pass_through():
    """A step that fails fails with its own error."""
    with pytest.raises(ZeroDivisionError):
        find_leaks(network(), lambda: 1 / 0)
