"""One `remat` around many steps, and one object entered many times: nothing of a step stays when it is over."""

import copy
import gc
import io
import pickle
import threading
from contextlib import nullcontext

import pytest
import torch
from nodes_remat import image_sequence, reset, residual_net
from revsnn_nodes import StandardLIF, StandardParametricLIF, remat
from revsnn_nodes.remat import record
from revsnn_nodes.remat.recipes import MOST_RECIPES, Value
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

STEPS = 8


def train(context, after_forward, steps=STEPS, save_at=None):
    """Weights, buffers and sums after some steps inside of one context; `after_forward(step, loss, saved)`."""
    torch.manual_seed(0)
    net, x = residual_net(), image_sequence()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    total, mean = torch.zeros(()), torch.zeros(4)
    with context as saved:
        for step in range(steps):
            reset(net)
            optimizer.zero_grad()
            loss = net(x).pow(2).mean()
            total = total + loss.detach()
            with torch.no_grad():
                mean.mul_(0.9).add_(loss.detach().expand(4) * 0.1)
            after_forward(step, loss, saved)
            optimizer.step()
            if step == save_at:
                saved_at = io.BytesIO()
                torch.save((net.state_dict(), optimizer.state_dict()), saved_at)
                saved_at.seek(0)
                for each, state in zip((net, optimizer), torch.load(saved_at), strict=True):
                    each.load_state_dict(state)
    return [*net.parameters(), *net.buffers(), total, mean]


def backward(step, loss, saved):
    loss.backward()


def test_a_whole_training_inside_is_equal():
    """With sums over the steps, which have recipes of everything before them; weights are saved and loaded midway."""
    expected = train(nullcontext(), backward, save_at=STEPS // 2)
    assert all(map(torch.equal, train(remat(verify=True), backward, save_at=STEPS // 2), expected))


def test_no_step_leaves_anything():
    """Neither lines of the table nor objects of Python, with a sum and a moving mean over all steps."""
    lines, objects = [], []

    def note(step, loss, saved):
        loss.backward()
        lines.append(len(saved.entries))
        gc.collect()
        objects.append(len(gc.get_objects()))

    train(remat(), note)
    assert len({*lines}) == 1
    assert max(objects[2:]) - objects[2] < 20


def test_what_comes_before_the_first_save_is_made_again_in_every_step():
    """An input that is scaled and repeated; a sum and a moving mean behind the backward pass hold on to no step."""
    net, image, kept, objects = residual_net(), torch.arange(256, dtype=torch.uint8).view(2, 2, 8, 8), [], []
    total, mean = torch.zeros(()), torch.zeros(4)
    with remat() as saved:
        for _ in range(STEPS):
            loss = net((image / 255 - 0.5).unsqueeze(0).repeat(3, 1, 1, 1, 1)).square().mean()
            loss.backward()
            kept.append(saved.kept_bytes)
            total = total + loss.detach()
            mean.mul_(0.9).add_(loss.detach() * torch.ones(4))
            reset(net)
            gc.collect()
            objects.append(len(gc.get_objects()))
    assert kept == kept[:1] * STEPS
    assert max(objects[3:]) - objects[3] < 20


def test_forwards_alone_leave_nothing_beyond_a_bound(monkeypatch):
    """Without a backward pass what is gone is looked for when much has been noted."""
    monkeypatch.setattr(record, "_MANY", 50)
    lines = []
    train(remat(), lambda step, loss, saved: lines.append(len(saved.entries)), steps=60)
    assert max(lines) <= 3 * lines[0]


def test_a_forward_by_itself_looks_for_nothing(monkeypatch):
    """Nor does it where statistics of a norm are read from what autograd saved."""
    net, x = residual_net(), image_sequence()
    looked = []
    monkeypatch.setattr(record.Recorder, "forget_what_is_gone", looked.append)
    with remat():
        loss = net(x).pow(2).sum()
    loss.backward()
    assert not looked


def test_a_graph_that_waits_is_still_made_again(monkeypatch):
    """Forward of one, forward and backward of others, then backward of the first."""
    monkeypatch.setattr(record, "_MANY", 0)
    x = image_sequence().requires_grad_()

    def gradients(context):
        torch.manual_seed(0)
        waits, others = residual_net(), residual_net()
        with context:
            first = waits(x)
            (between,) = torch.autograd.grad(others(x * 2).pow(2).sum(), x)
            second = (first * 2 + 1).sin().sum()
        return between, *torch.autograd.grad(second, (x, *waits.parameters()))

    expected = gradients(nullcontext())
    for ours, theirs in zip(gradients(remat(verify=True)), expected, strict=True):
        assert torch.equal(ours, theirs)


def test_many_graphs_that_wait_are_gone_through_seldom(monkeypatch):
    """Sixty wait while others come and go: in all, no more is looked at than four times what was saved.

    The table tells of what waits and of the last forward, and every gradient is equal.
    """

    def net():
        return nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 8))

    looks = []
    forget = record.Recorder.forget_what_is_gone
    monkeypatch.setattr(
        record.Recorder, "forget_what_is_gone", lambda self: (looks.append(len(self.packed)), forget(self))
    )

    def steps(context):
        torch.manual_seed(0)
        x = torch.randn(4, 8)
        waits, others = net(), net()
        with context as saved:
            waiting = []
            for _ in range(60):
                waiting.append(waits(x).sum())
                others(x).sum().backward()
        lines = None if saved is None else len(saved.entries)
        sum(waiting).backward()
        return [each.grad for each in (*waits.parameters(), *others.parameters())], lines

    with remat() as one:
        result = net()(torch.randn(4, 8)).sum()
    found, lines = steps(remat())
    assert sum(looks) <= 4 * 120 * len(one.entries)
    assert lines == 61 * len(one.entries)
    assert result.requires_grad
    assert all(map(torch.equal, found, steps(nullcontext())[0]))


def test_what_a_waiting_graph_needs_on_the_way_is_not_forgotten():
    """A tensor between a source and a saved tensor is there when another backward pass ends, and gone later."""
    x = torch.arange(6.0, requires_grad=True)
    with remat():
        between = x * 2
        waits = (between + 1).sin()
        (x * 3).cos().sum().backward()
        x.exp().cos()  # saves something after the backward pass
        del between
    x.grad = None
    waits.sum().backward()
    assert torch.equal(x.grad, 2 * (2 * x + 1).cos())


def test_evaluation_leaves_nothing_beyond_a_bound(monkeypatch):
    """Under `no_grad` nothing is saved, and values are noted all the same."""
    monkeypatch.setattr(record, "_MANY", 50)
    net, x = residual_net().eval(), image_sequence()
    objects = []
    with remat(), torch.no_grad():
        for _ in range(60):
            net(x)
            reset(net)
            objects.append(len(gc.get_objects()))
    assert max(objects[30:]) <= max(objects[:30]) + 20


def test_the_table_tells_of_what_is_there():
    """After a backward pass and another forward, the lines are those of that forward."""
    net, x = residual_net(), image_sequence()
    with remat() as alone:
        y = net(x)
    del y
    reset(net)
    with remat() as saved:
        net(x).sum().backward()
        reset(net)
        y = net(x)
        assert saved.kept_bytes == alone.kept_bytes
    assert saved.kept_bytes == alone.kept_bytes
    assert saved.remade_bytes == alone.remade_bytes
    assert y.requires_grad


def test_the_table_counts_no_weight_that_a_mean_over_steps_reads():
    """Reading an alias of it, after it has changed, told nothing of whose memory that is."""
    net = nn.Sequential(nn.Linear(6, 64), nn.Sigmoid(), nn.Linear(64, 2))
    optimizer, x = torch.optim.SGD(net.parameters(), 0.1), torch.rand(3, 6)
    mean, kept = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn()), []
    with remat() as saved:
        for _ in range(3):
            net(x).sum().backward()
            kept.append(saved.kept_bytes)
            optimizer.step()
            mean.update_parameters(net)
    assert kept == kept[:1] * 3


def write_file(net):
    torch.save(net.state_dict(), io.BytesIO())


def read_by_numpy(net):
    for each in net.parameters():
        each.detach().numpy()


def clamp_by_data(net):
    for each in net.parameters():
        each.data.clamp_(-0.9, 0.9)


@pytest.mark.parametrize("hand_out", [write_file, read_by_numpy, clamp_by_data])
def test_small_weights_are_copied_once_their_memory_was_handed_out(hand_out):
    """Those of norms and neurons between steps; what is made with them was kept whole from the second step on."""
    found = []
    for context in (nullcontext(), remat()):
        torch.manual_seed(0)
        layers = [(nn.Linear(8, 8), nn.LayerNorm(8), StandardParametricLIF(step_mode="m")) for _ in range(2)]
        net, kept = nn.Sequential(*(layer for each in layers for layer in each), nn.Linear(8, 8)), []
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        with context as saved:
            for _ in range(3):
                reset(net)
                net(torch.randn(4, 8, 8)).square().mean().backward()
                kept.append(0 if saved is None else saved.kept_bytes)
                optimizer.step()
                hand_out(net)
        found.append([*net.parameters()])
    assert all(map(torch.equal, *found))
    assert kept[0] < max(kept) < 1.1 * kept[0]


def test_the_table_leaves_out_a_result_that_was_dropped():
    """Of a network with norms, whose statistics are read while it runs."""
    net, x = residual_net(), image_sequence()
    with remat() as saved:
        net(x)
        reset(net)
        y = net(x)
    reset(net)
    with remat() as alone:
        z = net(x)
    assert saved.kept_bytes == alone.kept_bytes
    assert y.shape == z.shape


def test_a_noted_call_makes_few_objects_and_no_cycle():
    """Python's garbage collector goes through all of them, again and again in a long loop."""
    x = torch.linspace(-1, 1, 8, requires_grad=True)
    enabled, calls = gc.isenabled(), 200
    gc.disable()
    try:
        for _ in range(2):  # what is made once is there the second time
            gc.collect()
            with remat():
                before, y = len(gc.get_objects()), x
                for _ in range(calls // 2):
                    y = torch.sigmoid(y * 0.5)
                made = len(gc.get_objects()) - before
            del y
            unreachable = gc.collect()
    finally:
        if enabled:
            gc.enable()
    assert made < 16 * calls
    assert unreachable == 0


@pytest.mark.parametrize("kind", ["new", "in place", "gone"])
def test_a_small_tensor_may_come_from_any_number_of_steps(kind):
    """A schedule or threshold that is carried on: it is kept as it is, or where it is gone what was made with it is."""
    x = torch.linspace(-1, 1, 5000, requires_grad=True)

    def forward(steps=2000):
        hidden, factor = torch.relu(x * 2), torch.ones(1)
        for _ in range(steps):
            factor = factor.mul_(0.999) if kind == "in place" else factor * 0.999
        y = hidden + factor
        if kind == "gone":
            del factor
        return (torch.exp(y) * torch.sin(y)).sum()

    (expected,) = torch.autograd.grad(forward(), x)
    with remat() as saved:
        loss = forward()
    (grad,) = torch.autograd.grad(loss, x)
    assert torch.equal(grad, expected)
    assert saved.kept_bytes == (2 * x.nbytes if kind == "gone" else torch.ones(1).nbytes)
    assert ("source gone" in saved.because()) == (kind == "gone")


@pytest.mark.parametrize(
    "use", ["again", "nested", "copied", "pickled", "decorator", "without parentheses", "in threads", "after an error"]
)
def test_one_object_is_entered_many_times(use):
    """As `torch.no_grad()` is; each entry has a handle of its own."""
    net, x = residual_net(), image_sequence()
    context = remat(max_passes=9)

    def step():
        reset(net)
        net.zero_grad()
        with context as saved:
            loss = net(x).pow(2).sum()
        loss.backward()
        return saved

    first, decorators = step(), ("decorator", "without parentheses")
    expected = [parameter.grad for parameter in net.parameters()]
    if use == "nested":
        with context as outer:
            assert step().notes
        assert not outer.notes
    elif use in ("copied", "pickled"):
        context = copy.deepcopy(context) if use == "copied" else pickle.loads(pickle.dumps(context))
    elif use in decorators:
        reset(net)
        net.zero_grad()
        decorated = (remat if use == "without parentheses" else context)(lambda: net(x).pow(2).sum())
        decorated().backward()
    elif use == "in threads":
        barrier = threading.Barrier(2)

        def inside():
            with context as saved:
                barrier.wait()
                assert torch._C._autograd._top_saved_tensors_default_hooks(False) is not None
            barrier.wait()
            noted.append(saved.notes)

        noted = []
        threads = [threading.Thread(target=inside) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert noted == [[], []]
    elif use == "after an error":
        with pytest.raises(ZeroDivisionError), context:
            raise ZeroDivisionError
    if use not in decorators:
        second = step()
        assert second is not first
        assert second.kept_bytes == first.kept_bytes
    assert all(map(torch.equal, [parameter.grad for parameter in net.parameters()], expected))
    assert torch._C._autograd._top_saved_tensors_default_hooks(False) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("v_threshold", [1.0, 0.3])
def test_a_fused_neuron_that_steps_keeps_its_charges_alone(dtype, v_threshold):
    """The next layer's spikes are made from them: one tensor per step in place of two, and every bit is the same."""
    torch.manual_seed(0)
    layers = [nn.Linear(16, 64), StandardLIF(v_threshold=v_threshold), nn.Linear(64, 8)]
    net, x_seq = nn.Sequential(*layers).to(dtype), 3 * torch.randn(6, 5, 16).to(dtype)
    gradients = []
    for context in (nullcontext(), remat(verify=True)):
        reset(net)
        net.zero_grad()
        with context as saved:
            loss = torch.stack([net(x) for x in x_seq]).square().sum()
        loss.backward()
        gradients.append([parameter.grad for parameter in net.parameters()])
    assert all(map(torch.equal, *gradients))
    assert layers[1].backend_in_use == "fused"
    (kept,) = {entry.kept_bytes for entry in saved.entries if entry.name == "1" and entry.kept_bytes}
    assert kept == 5 * 64 * dtype.itemsize
    assert not any(entry.kept_bytes for entry in saved.entries if entry.name == "2")


def generator():
    yield


async def coroutine():
    pass


async def stream():
    yield


@pytest.mark.parametrize("function", [generator, coroutine, stream])
@pytest.mark.parametrize("decorate", [remat, remat()], ids=["without parentheses", "with"])
def test_a_function_that_runs_later_is_refused(decorate, function):
    """Its body would run outside of the context, without a word."""
    message = f"`function` must run when it is called; got '{function.__name__}'.*Write `with remat"
    with pytest.raises(ValueError, match=message):
        decorate(function)


@pytest.mark.parametrize("carry", [lambda v: v.add_(1), lambda v: v * 0.9 + torch.rand(8)], ids=["in place", "anew"])
def test_a_chain_without_end_holds_a_bounded_part_of_itself(carry):
    """A counter of an evaluation, or a state that a stream carries: what no recipe reaches any more is let go of."""

    def values():
        return sum(type(each) is Value for each in gc.get_objects())

    with remat(), torch.no_grad():
        v = torch.zeros(8)
        for _ in range(600):
            v = carry(v)
        many = values()
        for _ in range(3_000):
            v = carry(v)
        assert values() <= many + 2 * MOST_RECIPES
