"""`remat` gives the bits of the same step without it where what a recipe reads changes in the forward.

Autograd does not save what only a recipe reads, so it lets it change. Each network here makes such a tensor, drops what
was made of it, and writes to it.
"""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from nodes_memory import timeline
from revsnn_nodes import StandardLIF, StandardParametricLIF, remat
from torch import nn
from torch.nn import functional as F


def doubled(x):
    """Twice a linear layer's output, of which autograd saves the double alone; and the output."""
    h = x @ torch.full((8, 8), 0.3)
    return h, torch.cat([h, h]).mul(2).sin().sum()


def under_no_grad(h):
    with torch.no_grad():
        h.add_(1)


WRITES = {
    "in place": lambda h: h.detach().mul_(3),
    "in place, no_grad": under_no_grad,
    "augmented": lambda h: h.detach().__iadd__(1),
    "item": lambda h: h.detach().__setitem__(0, 3.0),
    "out": lambda h: torch.mul(h.detach(), 2, out=h.detach()),
    "inplace=True": lambda h: F.relu(h.detach(), True),
    "operator": lambda h: torch.ops.aten.relu_(h.detach()),
    "foreach": lambda h: torch._foreach_mul_([h.detach()], 3),
    "view": lambda h: h.detach()[1:].view(-1).zero_(),
    "data": lambda h: h.data.mul_(3),
    "numpy": lambda h: h.detach().numpy().fill(3),
    "asarray": lambda h: np.asarray(h.detach()).fill(3),
    "dlpack": lambda h: np.from_dlpack(h.detach()).fill(3),
}


class Masked(nn.Module):
    """One mask for all steps, drawn again at each; and a mean that follows what it was subtracted from."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.register_buffer("mask", torch.zeros(16, 8, dtype=torch.bool))
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        for _ in range(3):
            self.mask.copy_(torch.rand(16, 8) > 0.5)
            x = self.linear(x) * self.mask.float()
            x = x.sin() + (x - self.mean).square()
            with torch.no_grad():
                self.mean.lerp_(x.mean(0), 0.1)
        return x


def norm_after_use(x):
    """The running mean is read before the norm changes it."""
    norm = nn.BatchNorm1d(8)
    return x.sin().sum() + (x * 2 - norm.running_mean).cos().sum() + norm(x).square().sum()


def shuffled(x):
    """An index of numpy that the next step shuffles."""
    order = np.arange(16)
    total = 0
    for _ in range(3):
        h = x * 1.5
        total = total + h.sin().sum() + h.repeat(2, 1)[order].cos().sum()
        order[:] = order[::-1].copy()
        order[0] = 3
    return total


def frames(x):
    """Frames in numpy's memory, which takes the next chunk before the backward pass."""
    buffer, total = np.zeros((64, 8), np.uint8), 0
    for step in range(3):
        buffer[:] = np.arange(512).reshape(64, 8) % (3 + step)
        events = torch.from_numpy(buffer)
        total = total + F.linear(events.float(), x[:8]).square().sum()
    return total


def step(function, context):
    """Value, gradient and random state after one step."""
    torch.manual_seed(0)
    x = torch.randn(16, 8).requires_grad_()
    with context:
        loss = function(x)
    loss.backward()
    return loss.detach(), x.grad, torch.get_rng_state()


@pytest.mark.parametrize("name", list(WRITES))
def test_a_write_reaches_no_recipe(name):
    """However it is written to, what was made of it before is made again from what it was."""
    if name == "dlpack" and not np.from_dlpack(torch.zeros(1)).flags.writeable:
        pytest.skip("this NumPy only reads what it takes over by DLPack")

    def function(x):
        h, loss = doubled(x * 1.0)
        WRITES[name](h)
        return loss

    for ours, theirs in zip(step(function, remat()), step(function, nullcontext()), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("function", [norm_after_use, shuffled, frames])
def test_a_change_of_what_was_read(function):
    """Statistics, numpy's indices and numpy's memory may change after they were read."""
    for ours, theirs in zip(step(function, remat()), step(function, nullcontext()), strict=True):
        assert torch.equal(ours, theirs)


def test_buffers_that_change_at_every_step():
    """Every gradient and buffer of a network that writes to its buffers; less is kept, the copies counted."""
    results, kept = [], []
    for context in (nullcontext(), remat()):
        torch.manual_seed(0)
        net = Masked()
        with context as saved:
            loss = net(torch.randn(16, 8)).square().sum()
        loss.backward()
        results.append([p.grad for p in net.parameters()] + list(net.buffers()))
        kept.append(saved)
    assert all(map(torch.equal, *results))
    assert kept[1].remade_bytes > 0


def test_what_is_only_read_is_not_copied():
    """Half precision that a recipe reads is copied where it is written to, 256 B; as an operand alone it is not."""
    h, w = torch.ones(16, 8).half(), nn.Parameter(torch.ones(8, 8))

    def live(use):
        def forward():
            with remat():
                y = F.linear(h.float(), w)
                use(h)
            return y

        return timeline(forward).live_bytes

    unused = live(lambda h: None)
    assert live(lambda h: torch.zeros(16, 8).add_(h)) == live(lambda h: F.dropout(h, 0.5, True)) == unused
    assert live(lambda h: h.zero_()) == unused + 256


def test_a_write_to_what_was_unpacked_is_refused_as_without():
    """In the backward pass of a function, and before a second derivative: others read the same memory."""

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, h):
            ctx.save_for_backward(h)
            return h * h

        @staticmethod
        def backward(ctx, gradient):
            return ctx.saved_tensors[0].mul_(2) * gradient

    for context in (nullcontext, remat):
        x, w = (torch.randn(8, 8, requires_grad=True) for _ in range(2))
        with context():
            h = torch.cat([x, x])
            loss = (h @ w).sum() + Square.apply(h).sum()
        del h
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
        with context():
            y = torch.cat([x, x])
            loss = y.sin().sum()
        (first,) = torch.autograd.grad(loss, x, create_graph=True)
        with torch.no_grad():
            y.zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(first.sum(), x)


@pytest.mark.parametrize("norm", [torch.batch_norm, torch.native_batch_norm], ids=["batch_norm", "native_batch_norm"])
def test_statistics_that_a_native_norm_writes_are_copied_for_what_read_them(norm):
    """It counts no version of them; a loss that read them before has the gradient of then."""
    gradients = []
    for context in (nullcontext, remat):
        torch.manual_seed(0)
        mean, var = torch.zeros(8), torch.ones(8)
        x, w = torch.randn(32, 8), torch.randn(8, 8, requires_grad=True)
        with context():
            read = ((x - mean).repeat(4, 1) @ w).sum()
            rest = (True, 0.1, 1e-5, *((False,) if norm is torch.batch_norm else ()))
            normed = norm(x @ w, None, None, mean, var, *rest)
            loss = read + (normed if norm is torch.batch_norm else normed[0]).sin().sum()
        loss.backward()
        gradients.append(w.grad)
    assert torch.equal(*gradients)


def by_data(h):
    other = torch.empty(8, 8)
    other.data = h.detach()
    return other


def by_sparse_rows(h):
    places = torch.arange(8).repeat(8)
    return torch.sparse_csr_tensor(torch.arange(0, 65, 8), places, h.detach().flatten()).values()


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("share", [by_data, by_sparse_rows])
def test_memory_that_another_tensor_shares_is_kept(share):
    """What is written to it after the context, by a name that counts versions apart, reaches no gradient."""
    gradients = []
    for context in (nullcontext, remat):
        torch.manual_seed(0)
        h, w = torch.randn(8, 8), torch.randn(8, 8, requires_grad=True)
        with context():
            other = share(h)
            loss = (torch.cat([h, h]) @ w).sum()
        other.mul_(2)
        loss.backward()
        gradients.append(w.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("read", [lambda half: half, lambda half: half.detach()], ids=["parameter", "detached"])
def test_halves_of_one_vector_are_kept(read):
    """Two parameters share a storage and not a counter, as `vector_to_parameters` leaves them; one learns later."""
    gradients = []
    for context in (nullcontext, remat):
        torch.manual_seed(0)
        halves, w = [nn.Parameter(torch.empty(8, 8)) for _ in range(2)], torch.randn(8, 8, requires_grad=True)
        nn.utils.vector_to_parameters(torch.randn(128), halves)
        with context():
            loss = sum((torch.cat([read(half)] * 3) @ w).sum() for half in halves)
        with torch.no_grad():
            halves[1].mul_(2)
        loss.backward()
        gradients.append(w.grad)
    assert torch.equal(*gradients)


def test_a_buffer_that_a_later_forward_writes_to():
    """Two contexts, one backward pass: what the first forward's recipes read is copied in the second."""
    gradients = []
    for context in (nullcontext, remat):
        torch.manual_seed(0)
        net, losses = Masked(), []
        for _ in range(2):
            with context():
                losses.append(net(torch.randn(16, 8)).square().sum())
        sum(losses).backward()
        gradients.append([p.grad for p in net.parameters()])
    assert all(map(torch.equal, *gradients))


INPUTS = {
    "a source": lambda z, r: z,
    "a norm": lambda z, r: F.layer_norm(z, (8,)),
    "a batch norm": lambda z, r: F.batch_norm(z.flatten(0, 1), None, None, training=True).unflatten(0, (3, 4)),
    "a batch norm and a residual": lambda z, r: INPUTS["a batch norm"](z, r) + r,
}


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("written", ["input", "residual"])
@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("kind", [StandardLIF, StandardParametricLIF])
def test_what_a_neuron_has_read_may_change(kind, name, written, verify):
    """As without `remat`, where it keeps charges and not its input: `x += block(x)` with a neuron first."""
    gradients = []
    for context in (nullcontext(), remat(verify=verify)):
        torch.manual_seed(0)
        node, one, two, x = kind(step_mode="m"), nn.Linear(8, 8), nn.Linear(8, 8), torch.randn(3, 4, 8) * 2
        with context:
            r = two(x)
            h = INPUTS[name](one(x), r)
            spikes = two(node(h))
            (h if written == "input" else r).add_(spikes)
            loss = (h + r).sin().sum()
        del h, r, spikes
        loss.backward(retain_graph=True)
        loss.backward()
        gradients.append([each.grad for module in (node, one, two) for each in module.parameters()])
    assert all(map(torch.equal, *gradients))
