"""Networks with a loss at every step, and methods that get their gradient over time: two exact ones, four that are not.

A `Stepwise` network runs some steps at a time; each method is made of `Stepwise.steps`. Layer by layer, with
l = 1, 2, ... and s_0 = x:

    h_l[t] = lambda v_l[t-1] + W_l s_(l-1)[t]        lambda = 1 - 1 / tau
    s_l[t] = Theta(h_l[t] - theta)                   its derivative is the surrogate's, phi
    v_l[t] = h_l[t] (1 - s_l[t])                     or another reset

An input that decays, of weight 1 / tau, has this factor in W. sg(z) is z with no gradient. A method is a function of
this file with its equations and its source, and a row of `METHODS`.
"""

from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import comb, sqrt
from typing import Any

import torch
from revsnn_nodes.plan import is_neuron
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm
from torch.profiler import record_function

from revsnn_bench.meters.step import learned
from revsnn_bench.models.blocks import Method, NodeMaker, State, Strategy, TimeDistributed, set_states, states_of

HIDDEN = 256

GAIN = 4.0
"""Spread of a hidden layer's initial weights, times the root of its inputs: spikes are few, and a membrane leaks."""


class Stepwise(nn.Module):
    """A network in which nothing but its neurons knows time, trained on the mean of one loss per step:

        L = (1 / T) sum_t CE(o[t], y)

    which is TET (Deng et al. 2022, arXiv 2202.11946) without its second term.

    Args:
        net: `[t, B, *]` to logits `[t, B, classes]`, for any number of steps t, from the membranes that it carries; a
            batch norm in it, whose statistics span all steps that it sees at once, raises `ValueError`.
        method: how it gets its gradient; None for backpropagation through time.
    """

    def __init__(self, net: nn.Module, method: Method | None = None) -> None:
        super().__init__()
        if any(isinstance(module, _BatchNorm) for module in net.modules()):
            raise ValueError(
                "`net` must have no batch norm; got one. Its statistics span all T steps at once, and a method that "
                "runs some steps at a time would take others. Leave it out, or standardise the weights."
            )
        self.net, self.method = net, method

    def plain(self) -> "Stepwise":
        """The same network by backpropagation through time, with the same modules."""
        return Stepwise(self.net).train(self.training)

    def steps(self, x_seq: Tensor, labels: Tensor, of: int, *states: State) -> tuple[Any, ...]:
        """Runs steps `[t, B, *]` from given membranes; returns their share in the loss, and membranes after them."""
        set_states(self.net, states)
        logits = self.net(x_seq).flatten(0, 1)
        loss = cross_entropy(logits, labels.repeat(len(x_seq)), reduction="sum") / (of * len(labels))
        return loss, *states_of(self.net)

    def forward(self, x_seq: Tensor, labels: Tensor | None = None) -> Tensor:
        """The loss of `[T, B, *]`, from the membranes carried; without labels the mean logits `[B, classes]`."""
        if labels is None:
            y: Tensor = self.net(x_seq).mean(0)
            return y
        if self.method is not None and torch.is_grad_enabled():
            return self.method.loss(self, x_seq, labels)
        loss: Tensor = self.steps(x_seq, labels, len(x_seq), *states_of(self.net))[0]
        return loss


def mlp(make_node: NodeMaker, features: int, depth: int, classes: int, width: float) -> Stepwise:
    """Hidden layers of weights and `width HIDDEN` neurons, and a linear read-out at every step: `[T, B, *]`.

    Hidden layers have no bias, so that each weight is one of the equations above. A `Strategy` in the place of
    `make_node` also says how the gradient is got.
    """
    layers: list[nn.Module] = [nn.Flatten(2)]
    hidden = max(1, round(HIDDEN * width))
    for _ in range(depth):
        linear = nn.Linear(features, hidden, bias=False)
        nn.init.normal_(linear.weight, std=GAIN / sqrt(features))
        layers += [TimeDistributed(linear), make_node()]
        features = hidden
    method = make_node.method if isinstance(make_node, Strategy) else None
    return Stepwise(nn.Sequential(*layers, TimeDistributed(nn.Linear(features, classes))), method)


def tbptt(net: Stepwise, x_seq: Tensor, labels: Tensor, number: int) -> Tensor:
    """Truncated backpropagation: v[t-1] <- sg(v[t-1]) where K divides t, counted from 0; backward window by window.

    Args:
        number: K, steps per window.
    Keeps for backward: the parameters' gradients. Transient: what BPTT keeps of K steps. Constant in T.
    Exactness: none; BPTT where K = T.
    Source: Williams and Peng 1990, with windows that do not overlap.
    """
    return _in_forward(net, x_seq, labels, number)


def sltt(net: Stepwise, x_seq: Tensor, labels: Tensor) -> Tensor:
    """Spatial learning through time: no gradient passes from step to step, which is `tbptt` with K = 1.

        delta_l[t] = (W_(l+1)^T delta_(l+1)[t]) phi(h_l[t] - theta)
        dW_l = sum_t delta_l[t] s_(l-1)[t]^T

    Keeps for backward: the parameters' gradients. Transient: what BPTT keeps of one step. Constant in T.
    Source: Meng et al. 2023, arXiv 2302.14311.
    """
    return tbptt(net, x_seq, labels, 1)


def sltt_k(net: Stepwise, x_seq: Tensor, labels: Tensor, number: int) -> Tensor:
    """SLTT with a backward pass at K of the T steps, drawn anew for each call: dW_l sums over these alone.

    Nothing makes up for the steps left out: the authors' training script divides every step's loss by T, as here.

    Args:
        number: K, steps with a backward pass.
    Keeps for backward: as `sltt`.
    Source: Meng et al. 2023, arXiv 2302.14311, section on SLTT-K, and their train_SLTTK script.
    """
    drawn = torch.randperm(len(x_seq))[:number].tolist()
    return _in_forward(net, x_seq, labels, 1, frozenset(drawn))


def ottt(net: Stepwise, x_seq: Tensor, labels: Tensor) -> Tensor:
    """Online training through time: the errors of SLTT, and a trace of what each weight was given.

        a_(l-1)[t] = lambda a_(l-1)[t-1] + s_(l-1)[t]
        dW_l = sum_t delta_l[t] a_(l-1)[t]^T

    Traces start at 0 with every call. The read-out has no membrane, so it needs none. The authors' code differs: it
    leaves out the first layer's trace, and gives one to the read-out.

    Keeps for backward: the parameters' gradients. Transient: as `sltt`, and a trace per weighted layer. Constant in T.
    Source: Xiao et al. 2022, arXiv 2210.04195.
    Raises:
        ValueError: a bias in front of a neuron, or a neuron without a leak `tau`.
    """
    with _traced(net):
        return _in_forward(net, x_seq, labels, 1)


def chunks(net: Stepwise, x_seq: Tensor, labels: Tensor, number: int) -> Tensor:
    """Temporal checkpoints: runs K steps at a time, and each chunk but the last again in the backward pass.

    Args:
        number: K, steps per chunk.
    Keeps for backward: the membranes where a chunk begins, but for the first; what BPTT keeps of the last chunk.
    Exactness: the gradient of BPTT, but for the order of sums.
    Source: Chen et al. 2016, arXiv 1604.06174, along time.
    """
    return _checkpointed(net, x_seq, labels, number, lambda steps, free: min(number, steps), len(x_seq))


def revolve(net: Stepwise, x_seq: Tensor, labels: Tensor, number: int) -> Tensor:
    """Checkpoints at the steps for which the fewest steps run in all: T and `advances(T, C)` more.

    A stretch that begins at a checkpoint is cut in two where `split_of` says. The second part is run on with one
    checkpoint less; the first is run again when its turn comes, with the checkpoints that are free by then.

    Args:
        number: C, checkpoints at a time, that of the first step included.
    Keeps for backward: at most C - 1 sets of membranes, for the first step starts at rest; what BPTT keeps of one step.
    Exactness: the gradient of BPTT, but for the order of sums.
    Source: Griewank and Walther 2000, algorithm 799 (revolve).
    """
    return _checkpointed(net, x_seq, labels, 1, split_of, number)


def advances(steps: int, checkpoints: int) -> int:
    """The fewest steps that are run without keeping them: r T - C(C + r, C + 1).

    Here r, the most often that a step is run so, is the least with T <= C(C + r, C).
    """
    r = next(r for r in range(steps) if comb(checkpoints + r, checkpoints) >= steps)
    return r * steps - comb(checkpoints + r, checkpoints + 1)


def split_of(steps: int, checkpoints: int) -> int:
    """After how many steps to set the next checkpoint: where least is run in all, by the recursion of `advances`."""
    if checkpoints == 1 or steps == 1:
        return max(1, steps - 1)

    def cost(first: int) -> int:
        return first + advances(first, checkpoints) + advances(steps - first, checkpoints - 1)

    return min(range(1, steps), key=cost)


METHODS: dict[str, Method] = {
    "tbptt-K": Method(tbptt, exact=False),
    "sltt": Method(sltt, exact=False),
    "sltt-K": Method(sltt_k, exact=False),
    "ottt": Method(ottt, exact=False),
    "chunks-K": Method(chunks, exact=True),
    "revolve-K": Method(revolve, exact=True),
}
"""Methods by what follows the + in a node's name, K standing for a number: `lif+tbptt-4`."""


def method_of(kind: str) -> Method | None:
    """The method of a name such as `sltt` or `tbptt-4`; None where there is none."""
    name, _, number = kind.rpartition("-")
    method = METHODS.get(f"{name}-K")
    if method is not None and number.isascii() and number.isdecimal() and int(number):
        return replace(method, number=int(number))
    return None if kind.endswith("-K") else METHODS.get(kind)


def is_approximate(node: str) -> bool:
    """Whether the gradient of a node, or strategy, by name, is not meant to be that of BPTT."""
    method = method_of(node.partition("+")[2])
    return method is not None and not method.exact


class _GradientInForward(torch.autograd.Function):
    """A loss whose gradient is computed beside it, and kept in place of what a backward pass would need."""

    @staticmethod
    def forward(ctx: Any, losses: Callable[[], Iterator[Tensor]], *parameters: Tensor) -> Tensor:
        gradients = [torch.zeros_like(parameter) for parameter in parameters]
        total: Tensor | float = 0.0
        with torch.enable_grad():
            for loss in losses():
                if loss.requires_grad:
                    for gradient, each in zip(gradients, torch.autograd.grad(loss, parameters), strict=True):
                        gradient += each
                total = total + loss.detach()
        ctx.save_for_backward(*gradients)
        assert isinstance(total, Tensor)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, arriving: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(arriving * gradient for gradient in ctx.saved_tensors)


def _in_forward(
    net: Stepwise, x_seq: Tensor, labels: Tensor, every: int, learning: Container[int] | None = None
) -> Tensor:
    """The sum of the losses of windows, whose membranes are cut from the window before.

    Backward goes through those windows alone whose numbers are `learning`; all where it is None.
    """

    def losses() -> Iterator[Tensor]:
        for number, window in enumerate(x_seq.split(every)):
            states = _cut(states_of(net))
            with torch.set_grad_enabled(learning is None or number in learning):
                loss, *states = net.steps(window, labels, len(x_seq), *states)
            set_states(net, _cut(states))
            yield loss

    total: Tensor = _GradientInForward.apply(losses, *learned(net))
    return total


def _cut(states: Sequence[State]) -> list[State]:
    return [v.detach() if isinstance(v, Tensor) else v for v in states]


@dataclass(frozen=True)
class _Schedule:
    """Which steps run again, and from where.

    Fields:
        of: T.
        kept: how many steps are run at a time, and kept where they are the last.
        cut: after how many steps the next checkpoint is, by their number and that of free checkpoints; all where kept.
    """

    net: Stepwise
    labels: Tensor
    of: int
    kept: int
    cut: Callable[[int, int], int]

    def steps(self, x_seq: Tensor, states: Sequence[State]) -> tuple[Any, list[State]]:
        """Loss and membranes of steps that may be kept."""
        loss, *states = self.net.steps(x_seq, self.labels, self.of, *states)
        return loss, states

    def advance(self, x_seq: Tensor, states: Sequence[State]) -> tuple[Tensor, list[State]]:
        """Loss and membranes of steps of which nothing is kept."""
        total = x_seq.new_zeros(())
        with torch.no_grad():
            for part in x_seq.split(self.kept):
                loss, states = self.steps(part, states)
                total += loss
        return total, [*states]

    def reverse(
        self, x_seq: Tensor, free: int, states: Sequence[State], arriving: Sequence[Tensor], gradients: list[Tensor]
    ) -> list[Tensor]:
        """Runs steps again, adds to the gradients of the parameters, and returns those of the membranes at the start.

        `arriving` are those of the loss, and of the membranes at the end.
        """
        checkpoints = []
        with record_function("recompute"):
            while (first := self.cut(len(x_seq), free)) < len(x_seq):
                checkpoints.append((x_seq[:first], free, states))
                _, states = self.advance(x_seq[:first], states)
                x_seq, free = x_seq[first:], free - 1
            leaves = [v.detach().requires_grad_() for v in states if isinstance(v, Tensor)]
            with torch.enable_grad():
                loss, after = self.steps(x_seq, leaves or states)
        found = torch.autograd.grad([loss, *after], [*leaves, *learned(self.net)], [*arriving])
        del loss, after
        for gradient, each in zip(gradients, found[len(leaves) :], strict=True):
            gradient += each
        at_start = [*found[: len(leaves)]]
        del found, leaves, states
        while checkpoints:
            at_start = self.reverse(*checkpoints.pop(), [arriving[0], *at_start], gradients)
        return at_start


def _checkpointed(net: Stepwise, x_seq: Tensor, labels: Tensor, kept: int, cut: Any, free: int) -> Tensor:
    """The loss, whose graph keeps the last steps, and checkpoints for those before them."""
    schedule, states = _Schedule(net, labels, len(x_seq), kept, cut), states_of(net)
    total: Tensor | float = 0.0
    while (first := cut(len(x_seq), free)) < len(x_seq):
        loss, *states = _Again.apply(schedule, x_seq[:first], free, len(states), *states, *learned(net))
        total, x_seq, free = total + loss, x_seq[first:], free - 1
    loss, after = schedule.steps(x_seq, states)
    set_states(net, after)
    total = total + loss
    assert isinstance(total, Tensor)
    return total


class _Again(torch.autograd.Function):
    """Steps that keep the membranes where they begin, and run again in the backward pass.

    `torch.utils.checkpoint` does not fit: our nodes take their membranes from its first run, not from who calls them.
    """

    @staticmethod
    def forward(ctx: Any, schedule: _Schedule, x_seq: Tensor, free: int, count: int, *given: Any) -> tuple[Any, ...]:
        ctx.again, ctx.at_rest = partial(schedule.reverse, x_seq, free), [v for v in given if not isinstance(v, Tensor)]
        ctx.net, ctx.started = schedule.net, count - len(ctx.at_rest)
        ctx.save_for_backward(*(v for v in given if isinstance(v, Tensor)))
        loss, states = schedule.advance(x_seq, given[:count])
        return loss, *states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *arriving: Tensor) -> tuple[Any, ...]:
        states, parameters = ctx.saved_tensors[: ctx.started], ctx.saved_tensors[ctx.started :]
        gradients, carried = [torch.zeros_like(parameter) for parameter in parameters], states_of(ctx.net)
        at_start = ctx.again(states or ctx.at_rest, arriving, gradients)
        set_states(ctx.net, carried)
        return None, None, None, None, *(None for _ in ctx.at_rest), *at_start, *gradients


@contextmanager
def _traced(net: Stepwise) -> Iterator[None]:
    """Every weighted layer in front of a neuron keeps the trace of its input for its weight's gradient."""
    layers: list[nn.Module] = []
    last: nn.Module | None = None
    try:
        for module in net.modules():
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
                last = module
            elif is_neuron(module) and last is not None:
                setattr(last, "forward", _traced_forward(last, module))  # noqa: B010  (mypy takes no method for a variable)
                layers.append(last)
                last = None
        yield
    finally:
        for layer in layers:
            delattr(layer, "forward")


def _traced_forward(layer: nn.Module, neuron: nn.Module) -> Callable[[Tensor], Tensor]:
    """The forward of a weighted layer that saves a trace of its inputs in the place of its input.

    The gradient of the weight is a product with what was saved, that of the input one with the weight alone.
    """
    tau: Any = getattr(neuron, "tau", None)
    if getattr(layer, "bias", None) is not None or not isinstance(tau, float | int):
        raise ValueError(
            "`ottt` must have layers without bias in front of neurons with a leak `tau`; got "
            f"{layer} before {type(neuron).__name__}. A trace is that of a weight's input. Pass bias=False."
        )
    run, leak, before = layer.forward, 1.0 - 1.0 / tau, None

    def forward(x: Tensor) -> Tensor:
        nonlocal before
        trace = before = x.detach() if before is None else leak * before + x.detach()

        def pack(saved: Tensor) -> Tensor:
            return trace if saved.data_ptr() == x.data_ptr() and saved.shape == x.shape else saved

        with saved_tensors_hooks(pack, lambda saved: saved):
            y: Tensor = run(x)
        return y

    return forward
