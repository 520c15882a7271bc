"""`remat` and functions of others: surrogates written as `autograd.Function`, and kernels that write unseen."""

import ctypes
import warnings
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from revsnn_nodes import remat
from revsnn_nodes.remat import pack
from torch import nn

STEPS, BATCH, WIDTH = 6, 4, 16


class Surrogate(torch.autograd.Function):
    """The derivative of a fast sigmoid; what its subclasses make is 1 above 0."""

    @classmethod
    def spikes(cls, x):
        return (x > 0).float()

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient / (1 + 10 * x.abs()) ** 2


def surrogate(spikes):
    """A surrogate whose spikes are made by a function."""

    class Made(Surrogate):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return spikes(x)

    return Made.apply


def filled(x):
    out = torch.zeros_like(x)
    out[x > 0] = 1.0
    return out


def written(x):
    return x.detach().clone().gt_(0)


WAYS = {
    "snntorch": lambda x: (x > 0).float(),
    "spytorch": filled,
    "norse": lambda x: torch.where(x > 0, torch.ones_like(x), torch.zeros_like(x)),
    "type_as": lambda x: x.gt(0).type_as(x),
    "heaviside": lambda x: torch.heaviside(x, torch.zeros_like(x)),
    "in place": written,
}


class Loop(nn.Module):
    """Two layers of LIF neurons, written out over time as tutorials do."""

    def __init__(self, spike):
        super().__init__()
        self.spike = spike
        self.fc1, self.fc2 = nn.Linear(8, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.readout = nn.Linear(WIDTH, 3)

    def layer(self, linear, x_seq):
        v, spikes = torch.zeros(x_seq.shape[1], WIDTH), []
        for x in x_seq:
            v = 0.9 * v + linear(x)
            spikes.append(self.spike(v - 1.0))
            v = v * (1 - spikes[-1].detach())
        return torch.stack(spikes)

    def forward(self, x_seq):
        return self.readout(self.layer(self.fc2, self.layer(self.fc1, x_seq)))


def gradients(net, context=None):
    """Output and gradients of a step, and the handle of `remat`."""
    x_seq = torch.randn(STEPS, BATCH, 8, generator=torch.Generator().manual_seed(1)) * 3
    net.zero_grad()
    with context or remat() as saved:
        y = net(x_seq)
    y.square().sum().backward()
    return [y.detach(), *(parameter.grad.clone() for parameter in net.parameters())], saved


@pytest.fixture(autouse=True)
def nothing_was_tried(monkeypatch):
    monkeypatch.setattr(pack, "_tried", {})


def plainly(net):
    net.zero_grad()
    x_seq = torch.randn(STEPS, BATCH, 8, generator=torch.Generator().manual_seed(1)) * 3
    y = net(x_seq)
    y.square().sum().backward()
    return [y.detach(), *(parameter.grad.clone() for parameter in net.parameters())]


@pytest.mark.parametrize("name", WAYS)
def test_spikes_of_a_surrogate_are_made_again(name):
    """Of each neuron and step the charge stays and not the spike, and every bit is that without `remat`."""
    torch.manual_seed(0)
    net = Loop(surrogate(WAYS[name]))
    expected = plainly(net)
    assert expected[0].ne(expected[0][0]).sum() > 0
    for _ in range(5):
        found, saved = gradients(net, remat(verify=True))
        assert all(map(torch.equal, found, expected))
    charges = STEPS * BATCH * WIDTH * 4
    assert saved.kept_bytes <= 2 * charges + STEPS * BATCH * 8 * 4
    assert saved.remade_bytes >= 2 * charges


def raw_write(tensor, values):
    """What a kernel of a C extension does: it writes to an address, and the version counter does not move."""
    with torch._C.DisableTorchFunction():
        source = values.contiguous()
        ctypes.memmove(tensor.data_ptr(), source.data_ptr(), tensor.nbytes)


def test_a_kernel_that_nobody_sees_is_found_out():
    """A copy that an extension then writes to is kept, and the table says why; so is what follows from it."""

    def spikes(x):
        out = x.clone()
        raw_write(out, (x > 0).float())
        return out

    torch.manual_seed(0)
    net = Loop(surrogate(spikes))
    expected = plainly(net)
    for _ in range(3):
        found, saved = gradients(net)
        assert all(map(torch.equal, found, expected))
    assert saved.because()[pack.UNSEEN] > 0


@pytest.mark.parametrize("make", [torch.zeros_like, lambda x: x[:1].repeat(len(x), 1, 1)], ids=["zeros", "copies"])
def test_what_a_kernel_fills_is_found_out(make):
    """Outside of functions, too: what has no gradient, and may be there to be written to, is tried first."""

    class Mask(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x_seq):
            mask = make(x_seq)
            raw_write(mask, torch.arange(float(x_seq.numel())))
            return self.fc(x_seq) * mask

    torch.manual_seed(0)
    net = Mask()
    expected = plainly(net)
    found, saved = gradients(net)
    assert all(map(torch.equal, found, expected))
    assert saved.because()[pack.UNSEEN] == STEPS * BATCH * 8 * 4


def test_an_address_that_is_handed_out_is_no_secret():
    """A kernel that asks Python for the address, as those of Triton and CuPy do, is seen without a trial."""

    def spikes(x):
        out = x.clone()
        address, values = out.data_ptr(), (x > 0).float()
        with torch._C.DisableTorchFunction():
            ctypes.memmove(address, values.data_ptr(), out.nbytes)
        return out

    torch.manual_seed(0)
    net = Loop(surrogate(spikes))
    expected = plainly(net)
    found, saved = gradients(net)
    assert all(map(torch.equal, found, expected))
    assert pack.UNSEEN not in saved.because()


def test_a_kernel_that_starts_to_write_later_is_an_error():
    """It held when it was tried first, and no longer in the second step: gradients would be wrong without a word."""
    bias = torch.zeros(1)

    def spikes(x):
        out = (x > 0).float()
        raw_write(out, out + bias)
        return out

    torch.manual_seed(0)
    net = Loop(surrogate(spikes))
    expected = plainly(net)
    assert all(map(torch.equal, gradients(net)[0], expected))
    bias.fill_(0.5)
    with pytest.raises(RuntimeError, match=r"it did so far, and now it does not.*outside of `remat`"):
        gradients(net)


def test_a_first_trial_is_made_while_trials_rest():
    """A meter reads steps in which nothing is tried again, and no step in which nothing was tried."""
    bias = torch.zeros(1)

    def spikes(x):
        out = (x > 0).float()
        raw_write(out, out + bias)
        return out

    torch.manual_seed(0)
    net = Loop(surrogate(spikes))
    with pack.trials_rest():
        gradients(net)
        bias.fill_(0.5)
        gradients(net)  # unseen: it has held
        expected = plainly(net)
        pack._tried.clear()
        found, saved = gradients(net)
    assert all(map(torch.equal, found, expected))
    assert saved.because()[pack.UNSEEN] > 0


def test_another_size_is_tried_by_itself():
    """What held for a small tensor tells nothing of a kernel that works on large ones alone."""

    def spikes(x):
        out = (x > 0).float()
        if len(x) > BATCH:
            raw_write(out, out + 1)
        return out

    torch.manual_seed(0)
    net = Loop(surrogate(spikes))
    gradients(net)
    x_seq = torch.randn(STEPS, 2 * BATCH, 8)
    grads = []
    for context in (None, remat()):
        net.zero_grad()
        if context is None:
            net(x_seq).square().sum().backward()
        else:
            with context:
                y = net(x_seq)
            y.square().sum().backward()
        grads.append([parameter.grad.clone() for parameter in net.parameters()])
    assert all(map(torch.equal, *grads))


def test_a_write_at_equal_places_is_not_repeated():
    """Which of two values stays at a place that an index names twice is chance on a GPU; a mask names each once."""
    x = torch.randn(40, 30, requires_grad=True)
    mask, places = x.detach() > 0, torch.arange(40) // 2
    rows = slice(2), slice(torch.tensor(2))  # the second as of a sequence whose length is in a tensor
    once = *((each, None, ...) for each in rows), mask
    for index, remade in ((places, False), (([0, 0, 1],), False), *((each, True) for each in once)):
        with remat() as saved:
            out = torch.zeros_like(x)
            out[index] = 2.0
            y = x * out
        assert y.grad_fn is not None
        assert (saved.remade_bytes == x.nbytes) == remade
        assert torch.equal(torch.autograd.grad(y.sum(), x)[0], out)


def test_places_that_were_tried_are_forgotten_at_last(monkeypatch):
    """Inputs of ever other sizes do not fill the memory."""
    monkeypatch.setattr(pack, "_MOST_PLACES", 30)
    net = Loop(surrogate(WAYS["spytorch"]))
    for batch in range(1, 20):
        with remat():
            y = net(torch.randn(2, batch, 8))
        y.sum().backward()
        assert len(pack._tried) < 60


def test_the_table_leaves_out_what_is_gone():
    """A tensor saved by a graph that nobody holds is not kept."""
    spike = surrogate(WAYS["snntorch"])
    x = torch.randn(3, 50, requires_grad=True)
    with remat() as saved:
        h = x @ torch.ones(50, 50)
        spike(h - 1).detach()
        y = spike(h - 2) * 1.0
    assert y.grad_fn is not None
    assert saved.kept_bytes == 600


def test_parts_count_as_parts():
    """A chain for each of many steps is as long as one of them, not as all of them together."""
    x_seq = torch.randn(40, 8, requires_grad=True)
    with remat(max_passes=4) as saved:
        steps = [(x * 1.5 + 1).relu() for x in x_seq.exp().unbind(0)]
        y = torch.stack(steps) @ torch.ones(8, 2, requires_grad=True)
    assert y.grad_fn is not None
    assert max(entry.passes for entry in saved.entries) == 4


def under_vmap():
    nets = [nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True)) for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(nets)
    x = torch.ones(5, 4)
    return torch.vmap(lambda p, b: torch.func.functional_call(nets[0], (p, b), (x,)))(parameters, buffers)


def nested():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parts = torch.nested.nested_tensor([torch.ones(3, 4), torch.ones(5, 4)])
    return torch.relu(parts + parts).to_padded_tensor(0.0)


TAKEN_AS_THEY_ARE = {
    "in place under vmap": under_vmap,
    "in place under jvp": lambda: torch.func.jvp(lambda a: (a * 2).add_(1), (torch.ones(3),), (torch.ones(3),))[1],
    "by name": lambda: torch.relu_(input=torch.ones(4) * 2),
    "nested": nested,
    "sparse in place": lambda: torch.eye(3).to_sparse().mul_(2).to_dense(),
    "traced": lambda: torch.jit.trace(nn.Sequential(nn.MaxPool1d(2), nn.BatchNorm1d(2)).eval(), torch.ones(1, 2, 4))(
        torch.ones(1, 2, 4)
    ),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:`torch.jit:FutureWarning")
@pytest.mark.parametrize("name", TAKEN_AS_THEY_ARE)
def test_what_has_no_recipe_runs_as_without(name):
    torch.manual_seed(0)
    plain = TAKEN_AS_THEY_ARE[name]()
    torch.manual_seed(0)
    with remat():
        assert torch.equal(TAKEN_AS_THEY_ARE[name](), plain)


def test_a_kept_copy_serves_for_what_it_is_a_copy_of():
    """A surrogate that keeps a copy of the charge, as sinabs' do: the clamped membrane and the spikes come from it."""
    gradients = []

    class Copied(Surrogate):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x.clone())
            return (x > 1).float()

    for context in (nullcontext(), remat(verify=True)):
        torch.manual_seed(0)
        net, v, spikes = nn.Linear(WIDTH, WIDTH), torch.zeros(BATCH, WIDTH), []
        x = torch.randn(STEPS, BATCH, WIDTH)
        with context as saved:
            for current in net(x):
                v = v + current
                spikes.append(Copied.apply(v))
                v = torch.relu(v - spikes[-1] + 1) - 1
            loss = net(torch.stack(spikes)).sum()
        loss.backward()
        gradients.append(net.weight.grad)
    assert torch.equal(*gradients)
    assert saved.kept_bytes == x.nbytes + STEPS * v.nbytes


def test_a_frozen_weight_counts_for_nothing():
    """It lives anyway, as one that learns."""
    counts = []
    for learns in (True, False):
        net = nn.Sequential(nn.Linear(8, 1024), nn.Linear(1024, 1024))
        net[1].requires_grad_(learns)
        with remat() as saved:
            net(torch.randn(2, 8)).sum()
        counts.append(saved.kept_bytes)
    assert counts[1] <= counts[0] < net[1].weight.nbytes


def kept_with(package):
    """What `remat` kept and made again of two layers of another package's neurons."""
    layers = [nn.Linear(200, 1000), nn.Linear(1000, 1000), nn.Linear(1000, 10)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if package == "sinabs":
            from sinabs.layers import LIF

            with remat() as saved:
                nn.Sequential(layers[0], LIF(10.0), layers[1], LIF(10.0), layers[2])(torch.randn(32, 25, 200) * 3)
            return saved
        import norse.torch as norse

        cell, state, outputs = getattr(norse, package), None, []
        net = norse.SequentialState(layers[0], cell(), layers[1], cell(), layers[2])
        with remat() as saved:
            for x in torch.randn(25, 32, 200) * 3:
                y, state = net(x, state)
                outputs.append(y)
        return saved


@pytest.mark.parametrize("package", ["LIFBoxCell", "LIFCell", "sinabs"])
def test_the_page_says_what_neurons_of_other_packages_gain(package):
    """About half of the bytes are made again, though Norse compares with a number that it makes a tensor of."""
    pytest.importorskip("sinabs" if package == "sinabs" else "norse")
    saved = kept_with(package)
    page = (Path(__file__).parents[2] / "docs" / "remat.md").read_text(encoding="utf-8")
    assert f"{saved.kept_bytes / 2**20:.1f} MiB" in page
    assert f"{(saved.kept_bytes + saved.remade_bytes) / 2**20:.1f}" in page
    assert saved.remade_bytes > 0.9 * saved.kept_bytes


def test_constants_have_the_type_and_device_of_the_forward():
    """What torch was set to while they were made does not matter later."""
    results = []
    for context in (nullcontext(), remat()):
        w = torch.ones(4, 8, dtype=torch.float64, requires_grad=True)
        with context:
            torch.set_default_dtype(torch.float64)
            try:
                number = torch.full((8,), 1 / 3).repeat(4, 1) + torch.tensor(0.1)
            finally:
                torch.set_default_dtype(torch.float32)
            loss = (w * 2 * number).sum()
            del number
        loss.backward()
        results.append(w.grad)
    assert torch.equal(*results)


def heads(x):
    """q and k of `[2, 3, 32]`, as parts of one tensor: `[2, heads, 3, 4]` each."""
    return x.unflatten(-1, (2, 4, 4)).permute(2, 0, 3, 1, 4).unbind(0)


def channels_last(x):
    return x.mT, x.mT


PRODUCTS = {
    "q and k of one tensor": (heads, lambda q, k, w: q @ k.transpose(-2, -1)),
    "k and q, transposed": (heads, lambda q, k, w: torch.matmul(k.transpose(-2, -1), q)),
    "a linear layer": (channels_last, lambda x, _, w: nn.functional.linear(x, w)),
    "a matrix that learns": (channels_last, lambda x, _, w: x.matmul(w.mT)),
    "a frozen matrix": (channels_last, lambda x, _, w: x @ w.detach().mT),
    "one side learns": (heads, lambda q, k, w: q.detach() @ k.transpose(-2, -1)),
}
"""Two tensors whose dimensions do not merge, and a product of theirs or of one and a weight `[5, 3]`."""


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", PRODUCTS)
def test_operands_that_a_product_copies_are_made_again(name, half):
    """Bits are those without, and no more is kept than of a product of contiguous operands."""
    operands, product = PRODUCTS[name]
    results, kept = [], []
    for context, laid_out in ((nullcontext, None), (remat, None), (remat, torch.Tensor.contiguous)):
        torch.manual_seed(0)
        layer, norm, w = nn.Linear(32, 32), nn.BatchNorm1d(3), nn.Parameter(torch.randn(5, 3))
        with context() as saved, torch.autocast("cpu", torch.bfloat16, enabled=half):
            pair = operands(norm(layer(torch.randn(2, 3, 32))).relu())
            y = product(*(map(laid_out, pair) if laid_out else pair), w)
        y.float().square().sum().backward()
        results.append(
            [y, *(each.grad for each in (w, *layer.parameters(), *norm.parameters()) if each.grad is not None)]
        )
        kept.append(saved.kept_bytes if saved else None)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))
    assert kept[1] == kept[2]


def test_a_linear_layer_of_a_strided_input_keeps_its_rounding():
    """Torch adds the bias after the product there, and with it where the input is contiguous: the copy is torch's."""
    layer, x = nn.Linear(3, 5).bfloat16(), torch.randn(2, 3, 32, dtype=torch.bfloat16, requires_grad=True)
    expected = layer(x.mT)
    with remat():
        assert torch.equal(layer(x.mT), expected)
    assert not torch.equal(layer(x.mT.contiguous()), expected)
