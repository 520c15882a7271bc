"""The float64 reference decides as the precision under test did: a rounding at a tie is no wrong gradient."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from revsnn_bench import Case, Settings, measure
from revsnn_bench.meters.decisions import Decisions
from revsnn_bench.meters.fidelity import Subject, measure_fidelity
from revsnn_bench.meters.step import TrainingStep, relative_error
from revsnn_bench.records import Status


class AtTheTie(nn.Module):
    """Values that are all zero in float32, and a little above or below it in float64; then what decides among them.

    The gradient of every value is another one, so that a maximum in another place shows.
    """

    def __init__(self, decide):
        super().__init__()
        self.decide = decide
        self.register_buffer("shift", 3e-8 * torch.linspace(-1, 1, 64).reshape(1, 1, 4, 4, 4))
        self.register_buffer("weight", torch.linspace(1, 2, 64).reshape(1, 1, 4, 4, 4))

    def forward(self, x):
        return self.decide((x + self.shift - 1) * self.weight)


def straight_through(y):
    return y * (y - 0.5).round()


DECISIONS = {
    "max_pool1d": lambda y: F.max_pool1d(y.flatten(0, 3), 2),
    "max_pool2d": lambda y: F.max_pool2d(y.flatten(0, 2), 2),
    "max_pool3d": lambda y: F.max_pool3d(y.flatten(0, 1), 2),
    "adaptive_max_pool2d": lambda y: F.adaptive_max_pool2d(y.flatten(0, 2), 2),
    "overlapping windows": lambda y: F.max_pool2d(y.flatten(0, 1), 3, stride=1, padding=1),
    "max over a dimension": lambda y: y.max(dim=-1).values,
    "max over a dimension, kept": lambda y: y.max(1, keepdim=True)[0] + y.max(3, True)[0],
    "amax": lambda y: y.amax(dim=(2, 3)),
    "max of all": lambda y: y.max(),
    "maximum": lambda y: torch.maximum(y, y.flip(-1)),
    "sort": lambda y: y.sort(dim=2, descending=True).values * torch.arange(4.0, dtype=y.dtype)[:, None, None],
    "topk": lambda y: y.topk(2, dim=-1, largest=False)[0],
    "relu": lambda y: F.relu(y) + y / 4,
    "relu in place": lambda y: F.relu(y * 2, inplace=True) + y / 4,
    "relu6": lambda y: F.relu6(y) + y / 4,
    "leaky_relu": F.leaky_relu,
    "clamp": lambda y: y.clamp(0, 1) + y / 4,  # at a bound, torch 2.15 has the derivative 0
    "hardtanh": lambda y: F.hardtanh(y, 0, 1) + y / 4,
    "abs": torch.abs,
    "where": lambda y: torch.where(y > 0, 3 * y, y),
    "sign": lambda y: y * y.sign(),
    "heaviside": lambda y: y * torch.heaviside(y.detach(), torch.ones((), dtype=y.dtype)),
    "round": straight_through,
    "integers": lambda y: y * (y + 1).long(),
}


def step_of(model):
    return TrainingStep(model, torch.ones(2, 1, 4, 4, 4, requires_grad=True))


@pytest.mark.parametrize("decide", DECISIONS.values(), ids=list(DECISIONS))
def test_a_tie_is_decided_as_in_the_precision_under_test(decide):
    """Plain float64 decides otherwise, and its gradient is another; the reference's is that of the forward at hand."""
    model = AtTheTie(decide)
    grads = []
    for dtype in (torch.float32, torch.float64):
        x = torch.ones(2, 1, 4, 4, 4, dtype=dtype, requires_grad=True)
        out = copy.deepcopy(model).to(dtype)(x)
        grads.append(torch.autograd.grad(out, x, torch.ones_like(out))[0])
    assert relative_error(grads[:1], grads[1:]) > 0.1
    judged = measure_fidelity(Subject(step_of(model), copy.deepcopy(model)))
    assert judged.output_error == 0
    assert judged.gradient_error < 1e-6


@pytest.mark.parametrize("draw", [lambda x: torch.native_dropout(x, 0.5, True)[0], lambda x: x * torch.randn_like(x)])
def test_what_was_drawn_is_drawn_again(draw):
    """Another seed draws other numbers; a dropout in one kernel, as on CUDA, has the recorded mask and gradient."""
    decisions, grads = Decisions(places=True), []
    for dtype, mode in ((torch.float32, lambda: decisions), (torch.float64, decisions.repeated)):
        x = torch.ones(64, dtype=dtype, requires_grad=True)
        with mode():
            out = draw(x)
        grads.append(torch.autograd.grad(out.sum(), x)[0].double())
        assert torch.equal(out.double(), grads[-1])
    assert torch.equal(*grads)
    assert grads[0].unique().numel() > 1


def test_a_gradient_to_another_place_is_still_wrong():
    """The reference repeats its own decisions, never those of the model under test."""

    def second(y):
        best, value = y.topk(2, dim=-1).values.unbind(-1)
        return value + (best - value).detach()

    models = [
        AtTheTie(lambda y, of=of: of(y + y.new_tensor([0.0, 0.5, 1.0, 0.25]))) for of in (second, lambda y: y.amax(-1))
    ]
    judged = measure_fidelity(Subject(step_of(models[0]), models[1]))
    assert judged.output_error == 0
    assert judged.gradient_error > 0.5


def test_a_carrier_before_a_pooling_is_right():
    """One maximum of 131,072 is another one in float64, at which its gradient was called wrong by 2 %."""
    case = Case(node="lif-carrier", workload="sj-sew-resnet18", batch=2, timesteps=4, shape=(3, 64, 64))
    record = measure(case, Settings(passes=("fidelity",)))
    assert record.status is Status.OK
    assert record.fidelity.gradient_error < 1e-5
    assert record.fidelity.largest_parameter_error < 1e-4
