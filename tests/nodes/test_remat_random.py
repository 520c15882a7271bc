"""`remat` on random networks: the bits of every gradient, and never more bytes."""

import copy
import gc
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nodes_memory import timeline
from nodes_remat import assert_equal
from revsnn_nodes import StandardLIF, remat
from torch import nn
from torch.nn import functional as F

CHANNELS, LENGTH, STEPS = 4, 8, 3

LAYERS = {
    "conv": lambda: nn.Conv1d(CHANNELS, CHANNELS, 3, padding=1),
    "batch norm": lambda: nn.BatchNorm1d(CHANNELS),
    "layer norm": lambda: nn.LayerNorm(LENGTH),
    "group norm": lambda: nn.GroupNorm(2, CHANNELS),
    "instance norm": lambda: nn.InstanceNorm1d(CHANNELS, affine=True, track_running_stats=True),
    "relu": lambda: nn.ReLU(),
    "gelu": lambda: nn.GELU(),
    "sigmoid": lambda: nn.Sigmoid(),
    "dropout": lambda: nn.Dropout(0.3),
    "linear": lambda: nn.Linear(LENGTH, LENGTH),
    "neuron": lambda: StandardLIF(step_mode="m"),
    "soft neuron, reference": lambda: StandardLIF(step_mode="m", v_reset=None, backend="torch"),
    "max pool": lambda: nn.MaxPool1d(3, 1, 1),
    "norm, max pool": lambda: nn.Sequential(nn.BatchNorm1d(CHANNELS), nn.MaxPool1d(3, 1, 1)),
    "avg pool": lambda: nn.AvgPool1d(3, 1, 1),
}
FUNCTIONS = {
    "add": lambda x, earlier: x + earlier,
    "add in place": lambda x, earlier: x.clone().add_(earlier),
    "add to part": lambda x, earlier: _add_to_part(x.sin(), earlier),
    "mul": lambda x, earlier: x * earlier,
    "scale in place": lambda x, _: (x * 1.0).mul_(0.5),
    "concat": lambda x, earlier: torch.cat([x, earlier], 1)[:, 1 : CHANNELS + 1],
    "chunk": lambda x, earlier: torch.cat([x.chunk(2, 1)[1], earlier.chunk(2, 1)[0]], 1),
    "transpose": lambda x, _: x.transpose(0, 1).contiguous().transpose(0, 1),
    "softmax": lambda x, _: F.softmax(x, 1),
    "cast": lambda x, _: (x.double() * 1.5).float(),
    "where": lambda x, earlier: torch.where(x > earlier, x, earlier),
    "split": lambda x, _: x[..., : LENGTH // 2].repeat(1, 1, 2),
    "surrogate": lambda x, _: Spike.apply(x),
    "filled surrogate": lambda x, _: FilledSpike.apply(x * 1.5),
    "surrogate of a copy": lambda x, earlier: CopiedSpike.apply(x * 1.5) + x,
    "set part": lambda x, earlier: _set_part(x.sin(), earlier),
    "fill": lambda x, earlier: _set_part(torch.zeros_like(x), earlier) + x,
    "mask": lambda x, earlier: x * (earlier > 0).detach().to(x.dtype),
    "no grad": lambda x, earlier: x * _without_grad(earlier),
    "gate": lambda x, earlier: x * (earlier.detach() > 0) + earlier.detach().sigmoid(),
    "complex": lambda x, earlier: (_complex(x, earlier) * _complex(earlier, x.sin())).mul(1.5).imag.tanh(),
    "channel": lambda x, earlier: x * earlier.mean((0, 2), keepdim=True).sigmoid(),
    "upsample": lambda x, _: F.interpolate(x, scale_factor=2.0, mode="linear")[..., ::2],
    "patches": lambda x, _: F.unfold(x.unsqueeze(2), (1, 3), padding=(0, 1)).unflatten(1, (CHANNELS, 3)).sin().mean(2),
    "quantise": lambda x, _: x * (1 + (x * 4).round() / 8),
    "gather": lambda x, earlier: x.gather(2, earlier.detach().argsort(2)).sin(),
    "masks": lambda x, earlier: torch.where((x > 0) & ~(earlier > 1), x, F.normalize(earlier, dim=1)),
    "attention": lambda x, earlier: ((_heads(x) @ _heads(earlier).mT).tanh() @ _heads(x)).transpose(1, 2).flatten(2),
}
IN_PLACE = {
    "surrogate in place": lambda x, _: SpikeInPlace.apply(x * 1.0),
    "change what was copied": lambda x, earlier: CopiedSpike.apply(x) + x.sin_() * CopiedSpike.apply(x.clone().mul_(2)),
    "dirty": lambda x, _: SpikeInPlace.apply(x),
    "iadd": lambda x, earlier: x.__iadd__(earlier),
    "relu_": lambda x, _: F.relu(x, inplace=True),
    "set": lambda x, earlier: _set_part(x, earlier),
    "add to earlier": lambda x, earlier: earlier.add_(x.detach(), alpha=0.25).sin(),
    "dimensions": lambda x, _: x.sin().unsqueeze_(0).transpose_(1, 2).squeeze_(0).transpose_(0, 1),
}


def _heads(x):
    """Two heads, whose products copy them."""
    return x.unflatten(-1, (2, LENGTH // 2)).transpose(1, 2)


def _complex(real, imaginary):
    return torch.complex(real.float(), imaginary.float())


def _add_to_part(x, earlier):
    x[:, 1:] += earlier[:, :-1]
    return x


def _set_part(x, earlier):
    x[:, 1:] = earlier[:, :-1].clone()
    x[x > 1] = 0.5
    return x


@torch.no_grad()
def _without_grad(x):
    y = F.relu(x).sub_(0.5)
    y[y > 1] = 1.0
    return F.max_pool1d(y, 3, 1, 1)


class Spike(torch.autograd.Function):
    """A surrogate as others write it, which saves its input."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x > 0).to(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient / (1 + x.abs()) ** 2


class FilledSpike(Spike):
    """The same, made by filling; it saves a tensor of its own, and its output."""

    @staticmethod
    def forward(ctx, x):
        out = torch.zeros_like(x)
        out[x > 0] = 1.0
        ctx.save_for_backward(x.abs() + 1 - out * 0.1)
        return out


class CopiedSpike(Spike):
    """The same, which saves a copy of its input."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x.clone())
        return (x > 0).to(x)


class SpikeInPlace(Spike):
    """Decays what it is given, in place, and saves what that has become."""

    @staticmethod
    def forward(ctx, x):
        ctx.mark_dirty(x)
        x.mul_(0.5).add_(0.1)
        ctx.save_for_backward(x)
        return x


class Network(nn.Module):
    """Layers and functions of the last and an earlier tensor, in a row; gives the last tensor and one before."""

    def __init__(self, plan):
        super().__init__()
        self.plan = plan
        self.layers = nn.ModuleList(LAYERS[name]() if name in LAYERS else nn.Identity() for name, _ in plan)

    def forward(self, x):
        tensors = [x * 1.0]
        for (name, back), layer in zip(self.plan, self.layers, strict=True):
            x = tensors[-1]
            earlier = tensors[-1 - back % len(tensors)]
            if name in LAYERS:
                if isinstance(layer, StandardLIF):
                    layer.reset()
                    x = layer(x.unflatten(0, (STEPS, -1))).flatten(0, 1)
                    layer.reset()
                else:
                    x = layer(x)
            else:
                x = (FUNCTIONS | IN_PLACE)[name](x, earlier)
            tensors.append(x)
        return tensors[-1], tensors[len(tensors) // 2]


def forward(net, x, context):
    torch.manual_seed(7)
    with context:
        return net(x)


def plans(names):
    return st.lists(st.tuples(st.sampled_from(sorted(names)), st.integers(0, 3)), min_size=1, max_size=9)


def retained(net, x, context, of=lambda y: y):
    """Bytes that two outputs, or what is made of them, have kept alive in their graph; these left out."""
    gc.collect()
    run = timeline(lambda: [(z, z.grad_fn) for z in map(of, forward(net, x, context))])
    outputs = {y.untyped_storage().data_ptr(): y.untyped_storage().nbytes() for y, _ in run.result}
    return run.live_bytes - sum(outputs.values())


def step(net, x, context):
    """Gradients of both outputs, and buffers; or autograd's refusal of a change in place."""
    try:
        one, two = forward(net, x, context)
        (one.sin().sum() + two.cos().sum()).backward()
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        return None
    return {n: p.grad for n, p in net.named_parameters()} | dict(net.named_buffers()) | {"x": x.grad, "y": one.detach()}


@settings(max_examples=80, deadline=None)
@given(plans({**LAYERS, **FUNCTIONS}), st.booleans(), st.sampled_from([2, 5, 16]), st.booleans(), st.booleans())
def test_gradients_are_equal(plan, training, max_passes, half, verify):
    """Any network, in training and in evaluation, under autocast and not: every gradient and buffer, to the bit."""
    torch.manual_seed(0)
    net = Network(plan).train(training)
    twin = copy.deepcopy(net)
    x = torch.randn(STEPS * 2, CHANNELS, LENGTH)
    xs = [x.clone().requires_grad_() for _ in range(2)]
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        expected = step(twin, xs[0], nullcontext())
        got = step(net, xs[1], remat(max_passes=max_passes, verify=verify))
    assert expected is not None
    assert got is not None
    assert_equal(got, expected)


@settings(max_examples=80, deadline=None)
@given(plans({**LAYERS, **FUNCTIONS, **IN_PLACE}))
def test_changes_in_place_are_right_or_refused(plan):
    """Where autograd accepts changes in place, gradients are equal; where it refuses, so does `remat`."""
    torch.manual_seed(0)
    net = Network(plan)
    twin = copy.deepcopy(net)
    x = torch.randn(STEPS * 2, CHANNELS, LENGTH)
    xs = [x.clone().requires_grad_() for _ in range(2)]
    expected = step(twin, xs[0], nullcontext())
    got = step(net, xs[1], remat(verify=True))
    assert (expected is None) == (got is None)
    if expected is not None:
        assert_equal(got, expected)


@pytest.mark.parametrize("training", [True, False])
def test_never_more_bytes(training):
    """Any network: what the graph keeps alive is at most what it keeps without `remat`, where nobody holds an output
    that the graph saves, too.

    In evaluation a recipe of a norm holds copies of its running statistics, two numbers per channel. Where what it
    replaces is the input, which the caller holds anyway, these may come on top.
    """

    @settings(max_examples=16, deadline=None)
    @given(plans({**LAYERS, **FUNCTIONS}))
    def check(plan):
        torch.manual_seed(0)
        net = Network(plan).train(training)
        x = torch.randn(STEPS * 2, CHANNELS, LENGTH, requires_grad=True)
        forward(net, x, nullcontext()), forward(net, x, remat())
        tracking = [layer for layer in net.layers if getattr(layer, "running_mean", None) is not None]
        copies = 0 if training else 2 * 4 * CHANNELS * len(tracking)
        ours, plain = (retained(net, x, context, of=lambda y: y + 1) for context in (remat(), nullcontext()))
        assert ours <= plain + copies

    check()


def test_copies_of_running_statistics_are_all_that_comes_on_top():
    """A norm and a relu in evaluation whose input and output the caller holds: 32 B for four channels."""
    torch.manual_seed(0)
    net = Network([("add", 0), ("add", 0), ("batch norm", 0), ("relu", 0)]).eval()
    x = torch.randn(STEPS * 2, CHANNELS, LENGTH, requires_grad=True)
    forward(net, x, nullcontext()), forward(net, x, remat())
    assert retained(net, x, remat()) == retained(net, x, nullcontext()) + 2 * 4 * CHANNELS
