"""What autograd packs, split by whose storage it is."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from revsnn_bench.meters.memory import measure_saved, retained_bytes
from revsnn_bench.meters.step import TrainingStep
from revsnn_bench.records import SavedBytes

SIZE = 4 * 6 * 50


class _UnbindsTime(nn.Module):
    """Saves one view of the input per row, and views of one output."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([row.square() for row in x.unbind(0)]).sigmoid()


class _HiddenTensor(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.hidden = x.exp()
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * ctx.hidden


class _Hides(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _HiddenTensor.apply(x)


class _SavesAConstantOfTheSource(nn.Module):
    def __init__(self, source: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(6, 50))
        self.source = source

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale * self.source.detach()


def _step(model: nn.Module) -> TrainingStep:
    return TrainingStep(model, torch.rand(6, 50).requires_grad_())


@pytest.mark.parametrize(
    ("model", "own", "input_", "output"),
    [
        (nn.Sequential(nn.Sigmoid(), nn.Tanh()), 1, 0, 1),
        (nn.Sequential(nn.Linear(50, 50), nn.ReLU()), 0, 1, 1),
        (nn.Sequential(nn.SiLU(), nn.SiLU()), 1, 1, 0),
        (_UnbindsTime(), 0, 1, 1),
        (nn.Identity(), 0, 0, 0),
    ],
    ids=["own-and-output", "weights-not-counted", "input", "views-once", "nothing"],
)
def test_split_by_owner(model: nn.Module, own: int, input_: int, output: int) -> None:
    """Each storage is counted once, whole, and by whose it is; parameters are not counted."""
    assert measure_saved(_step(model)) == SavedBytes(own=own * SIZE, input=input_ * SIZE, output=output * SIZE)


def test_buffers_and_source_are_not_counted() -> None:
    """Tensors that are alive before the step cost it nothing, though they are packed."""
    step = _step(nn.Identity())
    step.model = _SavesAConstantOfTheSource(step.source)
    assert measure_saved(step) == SavedBytes(own=0, input=0, output=0)


def test_dead_storages_do_not_hide_live_ones() -> None:
    """Storages that die early keep their identity: a later one at the same address is counted too."""

    class DiesEarly(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            for _ in range(4):
                x.exp()  # a graph that nobody keeps
            return x.sigmoid()

    assert measure_saved(_step(DiesEarly())) == SavedBytes(own=4 * SIZE, input=0, output=SIZE)


def test_hidden_tensors_are_seen_by_the_allocator_only() -> None:
    """A tensor kept as an attribute of the context escapes the hooks, not the retained bytes."""
    step = _step(_Hides())
    assert measure_saved(step) == SavedBytes(own=0, input=0, output=0)
    assert retained_bytes(step)[0] == SIZE


def test_step_is_left_prepared() -> None:
    """No hook and no gradient stays behind."""
    step = _step(nn.Sigmoid())
    measure_saved(step)
    assert not step.model._forward_pre_hooks
    assert step.source.grad is None
