"""Nodes whose gradient is wrong in one known way each, and right ones beside them: what a verdict is held against."""

from collections.abc import Callable

import torch
from revsnn_nodes import surrogate
from torch import Tensor, nn


class _Twist(torch.autograd.Function):
    """Passes values on and twists the gradient."""

    @staticmethod
    def forward(ctx, x, twist):
        ctx.twist = twist
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return ctx.twist(gradient), None


def twisted(x: Tensor, twist: Callable[[Tensor], Tensor] | None) -> Tensor:
    return x if twist is None else _Twist.apply(x, twist)


class _WrongSlope(surrogate.Sigmoid):
    """Fires like a sigmoid, and its backward pass uses another slope than its primitive has."""

    def __init__(self, change: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change

    def derivative(self, z: Tensor) -> Tensor:
        return self.change(super().derivative(z), z)


class Planted(nn.Module):
    """A LIF with a learnable decay, written by hand, with places where a fault can be put.

    Args:
        at_input, at_charge, at_spike, at_membrane, at_decay, at_carried: what the gradient becomes there.
        fire: the surrogate.
        late: the faults act from the second call on only.
        cut_every: the membrane is cut from its graph every so many steps.
    """

    def __init__(self, at_input=None, at_charge=None, at_spike=None, at_membrane=None, at_decay=None,
                 at_carried=None, fire=None, late=False, cut_every=0, soft=False):  # fmt: skip
        super().__init__()
        self.twists = (at_input, at_charge, at_spike, at_membrane, at_decay, at_carried)
        self.surrogate_function = surrogate.Sigmoid() if fire is None else fire
        self.late, self.cut_every, self.soft = late, cut_every, soft
        self.decay = nn.Parameter(torch.tensor(0.5))
        self.v: Tensor | float = 0.0
        self.calls = 0

    def reset(self) -> None:
        self.v, self.calls = 0.0, 0

    def forward(self, x_seq: Tensor) -> Tensor:
        self.calls += 1
        faulty = not self.late or self.calls > 1
        at_input, at_charge, at_spike, at_membrane, at_decay, at_carried = self.twists if faulty else (None,) * 6
        decay = twisted(self.decay, at_decay)
        if isinstance(self.v, Tensor):
            self.v = twisted(self.v, at_carried)
        out = []
        for t, x in enumerate(twisted(x_seq, at_input).unbind(0)):
            if faulty and self.cut_every and t and t % self.cut_every == 0:
                self.v = self.v.detach()
            h = twisted(self.v + (x - self.v) * decay, at_charge)
            s = twisted(self.surrogate_function(h - 1.0), at_spike)
            self.v = twisted(h - s if self.soft else (1 - s) * h, at_membrane)
            out.append(s)
        return torch.stack(out)


def _first(gradient: Tensor) -> Tensor:
    return torch.cat([gradient[:1] * 0, gradient[1:]])


def _only_last(gradient: Tensor) -> Tensor:
    return torch.cat([gradient[:-1] * 0, gradient[-1:]])


def _noisy(gradient: Tensor) -> Tensor:
    noise = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(0), dtype=gradient.dtype)
    return gradient * (1 + 0.05 * noise)


RIGHT: dict[str, Callable[[], nn.Module]] = {
    "hard": Planted,
    "soft": lambda: Planted(soft=True),
    **{
        kind.__name__: lambda kind=kind: Planted(fire=kind())
        for kind in (surrogate.ATan, surrogate.PiecewiseExp, surrogate.SoftSign, surrogate.Erf, surrogate.SuperSpike)
    },
}
"""Nodes of no reference whose gradient is right."""

WRONG: dict[str, Callable[[], nn.Module]] = {
    "three times": lambda: Planted(at_input=lambda g: 3 * g),
    "three times and flipped": lambda: Planted(at_input=lambda g: 3 * g.flip(0)),
    "zero": lambda: Planted(at_input=lambda g: g * 0),
    "sign": lambda: Planted(at_input=lambda g: -g),
    "one percent": lambda: Planted(at_input=lambda g: g * 1.01),
    "time reversed": lambda: Planted(at_input=lambda g: g.flip(0)),
    "one step late": lambda: Planted(at_input=lambda g: g.roll(1, 0)),
    "samples exchanged": lambda: Planted(at_input=lambda g: g.roll(1, 1)),
    "neurons exchanged": lambda: Planted(at_input=lambda g: g.roll(1, -1)),
    "first step missing": lambda: Planted(at_input=_first),
    "last step alone": lambda: Planted(at_input=_only_last),
    "sign of it": lambda: Planted(at_input=torch.sign),
    "clipped": lambda: Planted(at_input=lambda g: g.clamp(-0.1, 0.1)),
    "five percent of noise": lambda: Planted(at_input=_noisy),
    "mean over samples": lambda: Planted(at_input=lambda g: g.mean(1, keepdim=True).expand_as(g)),
    "half precision": lambda: Planted(at_input=lambda g: g.bfloat16().to(g.dtype)),
    "normalised": lambda: Planted(at_input=lambda g: g / g.norm()),
    "positive part": lambda: Planted(at_input=torch.relu),
    "a tenth of neurons": lambda: Planted(at_input=lambda g: torch.cat([g[..., :6] * 0, g[..., 6:]], -1)),
    "charge doubled": lambda: Planted(at_charge=lambda g: 2 * g),
    "charge without a tenth": lambda: Planted(at_charge=lambda g: 0.9 * g),
    "spike doubled": lambda: Planted(at_spike=lambda g: 2 * g),
    "no gradient through spikes": lambda: Planted(at_spike=lambda g: g * 0),
    "membrane cut at every step": lambda: Planted(cut_every=1),
    "membrane cut at every fourth step": lambda: Planted(cut_every=4),
    "membrane leaks in backward": lambda: Planted(at_membrane=lambda g: 0.9 * g),
    "membrane reversed": lambda: Planted(at_membrane=lambda g: -g),
    "decay's gradient zero": lambda: Planted(at_decay=lambda g: g * 0),
    "decay's gradient halved": lambda: Planted(at_decay=lambda g: g / 2),
    "decay's gradient reversed": lambda: Planted(at_decay=lambda g: -g),
    "wider surrogate": lambda: Planted(fire=_WrongSlope(lambda phi, z: phi * 1.05)),
    "straight through": lambda: Planted(fire=_WrongSlope(lambda phi, z: torch.ones_like(z))),
    "surrogate shifted": lambda: Planted(fire=_WrongSlope(lambda phi, z: phi.roll(1, -1))),
    "window on the surrogate": lambda: Planted(fire=_WrongSlope(lambda phi, z: phi * (z.abs() < 0.5))),
    "three times from the second call on": lambda: Planted(at_input=lambda g: 3 * g, late=True),
    "flipped from the second call on": lambda: Planted(at_input=lambda g: g.flip(0), late=True),
    "carried membrane's gradient zero": lambda: Planted(at_carried=lambda g: g * 0, late=True),
    "carried membrane's gradient doubled": lambda: Planted(at_carried=lambda g: 2 * g, late=True),
    "membrane cut from the second call on": lambda: Planted(cut_every=1, late=True),
}
"""Nodes whose gradient is wrong, by what is wrong with it."""


class Offset(Planted):
    """Adds a learnable offset to the output, whose gradient is 3e-4 of the decay's.

    Args:
        at_offset: what that gradient becomes.
    """

    def __init__(self, at_offset=None):
        super().__init__()
        self.at_offset = at_offset
        self.offset = nn.Parameter(torch.tensor(1.0))

    def forward(self, x_seq: Tensor) -> Tensor:
        return super().forward(x_seq) + 1e-4 * twisted(self.offset, self.at_offset)


RIGHT["small parameter"] = Offset
WRONG["small parameter's gradient zero"] = lambda: Offset(lambda g: g * 0)
WRONG["small parameter's gradient reversed"] = lambda: Offset(lambda g: -g)


class HiddenSpikes(nn.Module):
    """Right, but it decides its spikes where nobody can look: no difference can judge it."""

    def __init__(self) -> None:
        super().__init__()
        self.v: Tensor | float = 0.0

    def reset(self) -> None:
        self.v = 0.0

    def forward(self, x_seq: Tensor) -> Tensor:
        out = []
        for x in x_seq.unbind(0):
            h = self.v + (x - self.v) / 2
            smooth = torch.sigmoid(4 * (h - 1))
            s = smooth + ((h >= 1).to(h.dtype) - smooth).detach()
            self.v = (1 - s) * h
            out.append(s)
        return torch.stack(out)
