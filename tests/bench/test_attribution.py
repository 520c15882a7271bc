"""The live-storage tracker against the profiler: same peak, and a right name for every byte of it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from revsnn_bench.meters.attribution import StorageTracker, attribute_host_peak, attribute_peak, retained_by_module
from revsnn_bench.meters.memory import peak_bytes, retained_bytes
from revsnn_bench.meters.step import TrainingStep

WRAPPED_NUMBERS_BYTES = 250


class _Loop(nn.Module):
    """A leaky loop over time, hard reset, as plain autograd runs it."""

    def forward(self, x_seq: Tensor) -> Tensor:
        v = torch.zeros_like(x_seq[0])
        spikes = []
        for x in x_seq.unbind(0):
            h = v + (x - v) / 2.0
            spike = torch.sigmoid(4.0 * (h - 1.0))
            v = (1.0 - spike) * h
            spikes.append(spike)
        return torch.stack(spikes)


class _Segments(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.loop = _Loop()

    def forward(self, x_seq: Tensor) -> Tensor:
        parts = [checkpoint(self.loop, part, use_reentrant=False, preserve_rng_state=False) for part in x_seq.chunk(4)]
        return torch.cat(parts)


class _NestedAutograd(torch.autograd.Function):
    """Runs forward again under autograd inside backward, as reversible networks do."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x * 2.0 + x * 3.0 + x * 4.0
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        with torch.enable_grad():
            x = (y / 9.0).detach().requires_grad_()
            again = x * 2.0 + x * 3.0 + x * 4.0
        return torch.autograd.grad(again, x, gradient)[0]


class _Nested(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _NestedAutograd.apply(x)


class _FanOut(nn.Module):
    """One tensor with many consumers: the engine adds their gradients."""

    def forward(self, x: Tensor) -> Tensor:
        h = x.sigmoid()
        return h * 2.0 + h * 3.0 + h * 4.0


class _SharedGradient(nn.Module):
    """Two of the gradients that meet at `h` are the caller's tensor: the engine's first addition needs a block."""

    def forward(self, x: Tensor) -> Tensor:
        h = x.sigmoid()
        return (h + h * 2.0) + h


class _OwnSums(torch.autograd.Function):
    """Adds its own temporaries in backward, each freed by the next addition: none is the engine's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient * 2.0
        for _ in range(3):
            total = total + gradient
        return total


class _Sums(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _OwnSums.apply(x)


class _Square(nn.Module):
    """One node that feeds one input twice: both operands of the engine's addition are its own."""

    def forward(self, x: Tensor) -> Tensor:
        h = x.exp()
        return h * h


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


def _step(model: nn.Module, *shape: int) -> TrainingStep:
    return TrainingStep(model, torch.rand(*shape).requires_grad_())


MODELS = {
    "loop": (_Loop(), (8, 4, 500)),
    "loop-in-sequence": (nn.Sequential(_Loop(), _Loop()), (6, 4, 500)),
    "segments": (_Segments(), (8, 4, 500)),
    "nested": (_Nested(), (8, 500)),
    "fan-out": (_FanOut(), (8, 500)),
    "shared-gradient": (_SharedGradient(), (8, 500)),
    "own-sums": (_Sums(), (8, 500)),
    "square": (_Square(), (8, 500)),
    "residual": (nn.Sequential(*(_Residual(64) for _ in range(3))), (32, 64)),
    "mlp": (nn.Sequential(nn.Linear(100, 200), nn.Sigmoid(), nn.Linear(200, 10)), (32, 100)),
}


@pytest.fixture(params=MODELS, name="step")
def _step_of_each_model(request: pytest.FixtureRequest) -> TrainingStep:
    model, shape = MODELS[request.param]
    return _step(model, *shape)


def test_peak_agrees_with_the_profiler(step: TrainingStep) -> None:
    """The tracker is off by wrapped Python numbers at most, under plain and nested autograd alike."""
    assert abs(attribute_peak(step).peak_bytes - peak_bytes(step)) <= WRAPPED_NUMBERS_BYTES


def test_categories_sum_to_the_trackers_peak(step: TrainingStep) -> None:
    """Every byte of the peak is in exactly one category."""
    found = attribute_peak(step)
    assert sum(found.peak_by_category_bytes.values()) == found.peak_bytes


def test_retained_by_module_sums_to_retained(step: TrainingStep) -> None:
    """The modules' shares add up to what the allocator retains."""
    difference = sum(retained_by_module(step).values()) - retained_bytes(step)[0]
    assert abs(difference) <= WRAPPED_NUMBERS_BYTES


def test_host_attribution_is_exact(step: TrainingStep) -> None:
    """From the allocator's events, the categories sum to the peak to the byte, and name a module of the model."""
    found = attribute_host_peak(step)
    assert found.peak_bytes == sum(found.peak_by_category_bytes.values()) == peak_bytes(step)
    names = {name for name, _ in step.model.named_modules()} | {type(step.model).__name__}
    assert found.peak_module in names


def test_repeats_are_identical(step: TrainingStep) -> None:
    """Two attributions of one step are equal."""
    assert attribute_peak(step) == attribute_peak(step)
    assert attribute_host_peak(step) == attribute_host_peak(step)


def test_host_attribution_and_tracker_agree() -> None:
    """Where there is neither scratch nor a wrapped number, two independent methods name the same bytes."""
    step = _step(nn.Sequential(nn.Linear(100, 200), nn.Sigmoid(), nn.Linear(200, 10)), 32, 100)
    assert attribute_host_peak(step) == attribute_peak(step)


def test_scratch_inside_a_kernel_is_found_at_its_module() -> None:
    """The peak of a convolution's backward includes scratch that no dispatch mode sees."""
    network = nn.Sequential(nn.Tanh(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
    step = _step(network, 4, 8, 16, 16)
    peak_bytes(step)
    found = attribute_host_peak(step)
    assert found.peak_bytes == sum(found.peak_by_category_bytes.values()) == peak_bytes(step)
    assert (found.peak_phase, found.peak_module) == ("backward", "1")
    assert found.peak_bytes > attribute_peak(step).peak_bytes


@pytest.mark.parametrize("name", ["fan-out", "nested", "square"])
def test_without_the_correction_the_peak_is_too_high(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's additions are what a naive tracker over-reports: the correction is not idle."""
    model, shape = MODELS[name]
    step = _step(model, *shape)
    corrected = attribute_peak(step).peak_bytes
    monkeypatch.setattr(StorageTracker, "_engine_accumulates", lambda *_: None)
    assert attribute_peak(step).peak_bytes > 1.1 * corrected


def test_retained_by_module_names_the_maker() -> None:
    """Each module is charged for what it made, the kept input apart, the output for nothing."""
    step = _step(nn.Sequential(nn.Linear(10, 30), nn.Sigmoid(), nn.Linear(30, 5)), 4, 10)
    assert retained_by_module(step) == {"input": 4 * 40, "1": 4 * 120}


def test_peak_module_is_nested_and_by_phase() -> None:
    """A peak in backward is named by the module whose forward made the graph node."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(_FanOut(), nn.ReLU()))
    step = _step(model, 64, 8)
    for found in (attribute_peak(step), attribute_host_peak(step)):
        assert (found.peak_phase, found.peak_module) == ("backward", "1.0")


def test_recomputation_belongs_to_the_recomputing_module() -> None:
    """Nodes made inside backward by a module without hooks of its own go by the module that recomputes."""
    step = _step(nn.Sequential(nn.Tanh(), _Nested(), nn.ReLU()), 8, 500)
    for found in (attribute_peak(step), attribute_host_peak(step)):
        assert (found.peak_phase, found.peak_module) == ("backward", "1")


def test_peak_in_forward_is_found() -> None:
    """A wide temporary in forward puts the peak there."""

    class Wide(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                wide = x.repeat(20, 1).sum()
            return x.sigmoid() + wide

    found = attribute_peak(_step(nn.Sequential(nn.Tanh(), Wide()), 8, 500))
    assert (found.peak_phase, found.peak_module) == ("forward", "1")
    assert found.peak_by_category_bytes["temporary"] == 20 * 4 * 8 * 500 + 4  # and its sum


def test_gradients_have_their_categories() -> None:
    """At the first layer's backward the weight gradient and the input gradient are told apart."""
    found = attribute_peak(_step(nn.Linear(300, 200), 4, 300))
    assert found.peak_by_category_bytes["parameter gradient"] == 4 * (300 * 200 + 200)
    assert found.peak_by_category_bytes["input"] == 4 * 4 * 300
    assert found.peak_by_category_bytes["output gradient"] == 4 * 4 * 200


def test_no_hook_stays_behind() -> None:
    """The model has no hook and the step no gradient afterwards."""
    step = _step(nn.Sequential(nn.Linear(5, 5)), 2, 5)
    attribute_peak(step)
    attribute_host_peak(step)
    retained_by_module(step)
    for module in step.model.modules():
        assert not module._forward_pre_hooks
        assert not module._forward_hooks
    assert all(parameter.grad is None for parameter in step.model.parameters())
