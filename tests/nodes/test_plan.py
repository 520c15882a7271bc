"""Plans: what each block keeps, and that nothing else changes."""

import copy
import itertools
import json

import pytest
import torch
from nodes_remat import NETWORKS, PerStep, Residual, image_sequence, residual_net, train_step, vgg
from revsnn_nodes import StandardLIF, apply_plan, plan, reset
from revsnn_nodes.plan import OPTIONS, REST, find_blocks, remove_plan
from revsnn_nodes.surrogate import ATan
from torch import nn
from torch.autograd.graph import save_on_cpu


def options_of(net, seed):
    """A mix of options, every option in some block of some seed."""
    names = [block.name for block in find_blocks(net)]
    start = itertools.islice(itertools.cycle(OPTIONS), seed, None)
    return {REST: ("plain", "remat")[seed % 2], **dict(zip(names, start, strict=False))}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("network", NETWORKS)
def test_a_plan_changes_no_bit(network, seed):
    """Outputs, gradients and running statistics of any mix of options equal those without a plan."""
    net = NETWORKS[network]()
    twin, x = copy.deepcopy(net), image_sequence()
    expected = train_step(twin, x)
    apply_plan(net, options_of(net, seed))
    train_step(net, x).assert_equals(expected)


def test_a_checkpointed_block_is_found_and_runs_once_more():
    """A block with `checkpoint` runs its convolution twice in a step, a plain one once."""
    net, x = vgg(), image_sequence()
    calls = []
    conv = net[0][0]
    conv.register_forward_hook(lambda *call: calls.append(1))
    train_step(net, x)
    assert len(calls) == 1
    apply_plan(net, {find_blocks(net)[0].name: "checkpoint"})
    train_step(net, x)
    assert len(calls) == 3


def test_blocks_end_behind_neurons():
    """A sequential is cut behind each neuron; a residual block with its shortcut is one block."""
    assert [block.name for block in find_blocks(vgg())] == ["[0:2]", "[2:5]", "[5:9]"]
    assert [block.name for block in find_blocks(residual_net())] == ["[0:2]", "2", "3"]
    block = Residual(4)
    block.shortcut = nn.Sequential(PerStep(nn.Conv2d(4, 4, 1)), StandardLIF(step_mode="m"))
    assert [each.name for each in find_blocks(block)] == ["(model)"]


@pytest.mark.parametrize("option", OPTIONS)
def test_a_module_that_stands_twice_runs_twice(option):
    """A layer and a pooling that an `nn.Sequential` has in two places, and a block of it that another one has.

    The second place was left out, so that the model was another one.
    """
    torch.manual_seed(0)
    same, pool = PerStep(nn.Conv2d(2, 2, 3, padding=1)), PerStep(nn.MaxPool2d(2, stride=1))
    inner = nn.Sequential(same, StandardLIF(step_mode="m"))
    net = nn.Sequential(same, StandardLIF(step_mode="m"), pool, nn.Sequential(inner, pool, same), pool, inner[0])
    blocks = [block.name for block in find_blocks(net)]
    assert blocks == ["[0:2]", "3.0[0:2]"]
    twin, x = copy.deepcopy(net), image_sequence()
    expected = train_step(twin, x)
    apply_plan(net, dict.fromkeys(blocks, option))
    train_step(net, x).assert_equals(expected)


@pytest.mark.parametrize("option", ["checkpoint", "bits"])
def test_a_block_that_writes_to_its_input_cannot_run_again(option):
    """It says so in forward, where torch's own error would come from backward and name no block."""
    convolution = PerStep(nn.Conv2d(2, 2, 3, padding=1))
    net = nn.Sequential(convolution, nn.Sequential(nn.ReLU(inplace=True), convolution, StandardLIF(step_mode="m")))
    apply_plan(net, {"1[0:3]": option})
    with pytest.raises(ValueError, match=f"got '{option}'. The block that begins with ReLU would.*`inplace=True`"):
        net(image_sequence())
    apply_plan(net, {"1[0:3]": "remat"})
    assert net(image_sequence()).requires_grad


def test_a_large_head_hides_no_blocks():
    """A network of blocks is one of blocks, though most of its parameters are behind the last neuron."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = (
                nn.Sequential(PerStep(nn.Conv2d(2, 2, 3, padding=1)), StandardLIF(step_mode="m")) for _ in range(2)
            )
            self.head = nn.Linear(128, 1000)

        def forward(self, x):
            return self.head(self.two(self.one(x)).flatten(2))

    assert [block.name for block in find_blocks(Net())] == ["one[0:2]", "two[0:2]"]


def test_blocks_by_class():
    """The user's class names the blocks."""
    assert [block.name for block in find_blocks(residual_net(), Residual)] == ["2", "3"]


def test_a_plan_is_replaced_and_removed():
    """The last plan holds; without one the module has its own forward."""
    net, x = residual_net(), image_sequence()
    apply_plan(net, {"2": "checkpoint", "3": "remat"})
    apply_plan(net, {"2": "plain", "3": "plain"})
    assert "forward" not in net.__dict__
    apply_plan(net, {"2": "bits"})
    remove_plan(net)
    assert all("forward" not in module.__dict__ for module in net.modules())
    train_step(net, x)


def test_a_copy_of_a_planned_model_is_its_own():
    """The copy's blocks run the copy's parameters."""
    net, x = residual_net(), image_sequence()
    apply_plan(net, {"2": "checkpoint", "3": "bits"})
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    assert train_step(twin, x).y.abs().sum() > 0
    assert twin.state_dict().keys() == residual_net().state_dict().keys()


def test_a_carried_state_goes_through_a_checkpoint():
    """Two forwards without a reset, one backward: the second starts from the first's membranes, recomputed too."""
    net, x = residual_net(), image_sequence()
    twin = copy.deepcopy(net)
    apply_plan(net, {"[0:2]": "bits", "2": "checkpoint", "3": "remat"})
    found = []
    for each in (net, twin):
        (each(x).sum() + (each(x + 0.5) ** 2).sum()).backward()
        found.append([parameter.grad for parameter in each.parameters()])
    assert all(map(torch.equal, *found))


class Adaptive(nn.Module):
    """A neuron whose threshold rises with every spike: its membrane is not all that it carries.

    The membrane of one that works in place is a tensor at rest, which is written to.
    """

    def __init__(self, in_place):
        super().__init__()
        self.spike, self.in_place = ATan(), in_place
        self.reset()

    def reset(self):
        """To rest."""
        self.v, self.rise = torch.zeros(3, 6) if self.in_place else 0.0, 0.0

    def forward(self, x_seq):
        """Spikes."""
        spikes = []
        for x in x_seq:
            self.v = self.v.mul_(0.8).add_(x) if self.in_place else 0.8 * self.v + x
            spikes.append(self.spike(self.v - 0.5 - self.rise))
            self.v, self.rise = self.v - 0.5 * spikes[-1], 0.9 * self.rise + 0.2 * spikes[-1]
        return torch.stack(spikes)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("carried", [False, True])
def test_a_second_run_has_all_that_a_neuron_carried(carried, in_place):
    """Over two forwards and two backward passes; also where it writes to that in place."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 6), Adaptive(in_place), nn.Linear(6, 6), Adaptive(in_place))
    twin, x, found = copy.deepcopy(net), torch.rand(4, 3, 6) * 4, []
    apply_plan(net, {"[0:2]": "checkpoint", "[2:4]": "bits"})
    for each in (net, twin):
        loss = each(x).sum()
        if not carried:
            reset(each)
        loss = loss + (each(x + 0.5) ** 2).sum()
        loss.backward(retain_graph=True)
        loss.backward()
        found.append([*(parameter.grad for parameter in each.parameters()), each[1].v, each[1].rise])
    assert all(map(torch.equal, *found))


class Scaled(nn.Module):
    """Divides by a mean of what came before, which every forward changes, in place or by another buffer."""

    def __init__(self, in_place):
        super().__init__()
        self.in_place = in_place
        self.register_buffer("scale", torch.ones(6))

    def forward(self, x):
        """The input, scaled."""
        mean = x.detach().abs().mean((0, 1))
        if self.in_place:
            self.scale.lerp_(mean, 0.5)
        else:
            self.scale = self.scale.lerp(mean, 0.5)
        return x / self.scale.clone()


@pytest.mark.parametrize("option", ["checkpoint", "bits"])
@pytest.mark.parametrize("in_place", [True, False])
def test_a_second_run_starts_from_the_buffers_of_the_first(option, in_place):
    """Of a scale and of a spectral norm, over two forwards before two backward passes."""
    torch.manual_seed(0)
    linear = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6))
    net = nn.Sequential(linear, Scaled(in_place), StandardLIF(step_mode="m"))
    twin, x, found = copy.deepcopy(net), torch.randn(4, 3, 6), []
    apply_plan(net, {block.name: option for block in find_blocks(net)})
    for each in (net, twin):
        loss = each(x * 3).sum() + (each(x + 0.5) ** 2).sum()
        loss.backward(retain_graph=True)
        loss.backward()
        found.append([*(parameter.grad for parameter in each.parameters()), *each.buffers()])
    assert all(map(torch.equal, *found))


class Evaluated(nn.Module):
    """A norm, a buffer, and neurons."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        self.register_buffer("scale", torch.ones(6))
        self.linear = nn.Linear(6, 6)
        self.neuron = StandardLIF(step_mode="m")

    def forward(self, x):
        y = self.neuron(self.linear(self.norm(x.flatten(0, 1)).unflatten(0, x.shape[:2]) * self.scale) * 3)
        self.neuron.reset()
        return y


@pytest.mark.parametrize("option", ["checkpoint", "bits"])
def test_a_second_run_has_the_mode_and_the_statistics_of_the_first(option):
    """A forward in evaluation, then one in training, which changes mode and statistics, then the first one's gradient.

    That is the gradient before anything changed. A buffer that was written to since is refused.
    """
    torch.manual_seed(0)
    net, x = nn.Sequential(Evaluated(), Evaluated()), torch.randn(4, 3, 6)
    expected = torch.autograd.grad(net.eval()(x).sum(), [*net.parameters()])
    apply_plan(net, {"0": option, "1": option})
    loss = net(x).sum()
    net.train()(x)
    found = torch.autograd.grad(loss, [*net.parameters()], retain_graph=True)
    assert net.training
    assert net[0].norm.num_batches_tracked == 1
    assert all(map(torch.equal, found, expected))
    net[0].scale.mul_(2)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation.*A checkpointed block runs again"):
        loss.backward()


@pytest.mark.parametrize("option", ["checkpoint", "bits"])
def test_a_second_run_has_the_parameters_of_the_first(option):
    """Where `functional_call` gives others for a forward, and where a state that is loaded puts others in their places.

    One that an optimizer steps on before the backward pass is refused, as without a plan.
    """
    torch.manual_seed(0)
    net, x = nn.Sequential(Evaluated(), Evaluated()), torch.randn(4, 3, 6)
    twin = copy.deepcopy(net)
    apply_plan(net, {"0": option, "1": option})
    found = []
    for each in (net, twin):
        first = dict(each.named_parameters())
        others = {name: parameter * 1.5 for name, parameter in first.items()}
        loss = torch.func.functional_call(each, others, (x,)).sum() + each(x).sum()
        each.load_state_dict({name: value.detach() + 0.1 for name, value in each.state_dict().items()}, assign=True)
        loss.backward()
        assert all(second is not first[name] for name, second in each.named_parameters())
        found.append([parameter.grad for parameter in first.values()])
    assert all(map(torch.equal, *found))
    loss = net(x).sum()
    with torch.no_grad():
        net[0].norm.bias.add_(1)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation.*A checkpointed block runs again"):
        loss.backward()


@pytest.mark.parametrize("option", ["checkpoint", "bits"])
def test_a_buffer_of_an_evaluation_in_inference_mode(option):
    """It counts no versions; training goes on from it as without a plan."""
    net = nn.Sequential(nn.Linear(6, 6), Scaled(in_place=False), StandardLIF(step_mode="m"))
    twin, x = copy.deepcopy(net), torch.randn(4, 3, 6)
    apply_plan(net, {block.name: option for block in find_blocks(net)})
    for each in (net, twin):
        with torch.inference_mode():
            each(x)
        assert each[1].scale.is_inference()
    train_step(net, x).assert_equals(train_step(twin, x))


def test_dropout_in_a_checkpoint_draws_the_same():
    """Random numbers of the second run are those of the first."""
    net = nn.Sequential(nn.Linear(6, 6), StandardLIF(step_mode="m"), nn.Dropout(), nn.Linear(6, 6), StandardLIF())
    net[-1].step_mode = "m"
    x = torch.randn(4, 3, 6)
    twin = copy.deepcopy(net)
    apply_plan(net, {block.name: "checkpoint" for block in find_blocks(net)})
    train_step(net, x).assert_equals(train_step(twin, x))


@pytest.mark.parametrize("carried", [False, True])
def test_a_second_run_has_the_memories_of_the_first(carried):
    """Of a dropout of SpikingJelly, which keeps its mask until reset, of a synapse and of a recurrent layer."""
    pytest.importorskip("spikingjelly")
    from spikingjelly.activation_based import functional, layer, neuron

    recurrent = layer.LinearRecurrentContainer(neuron.LIFNode(), 6, 6)
    parts = (layer.Dropout(0.5), nn.Linear(6, 6), layer.SynapseFilter(), recurrent, nn.Linear(6, 6), neuron.IFNode())
    net = nn.Sequential(*parts)
    functional.set_step_mode(net, "m")
    twin, x, found = copy.deepcopy(net), torch.rand(4, 3, 6) * 4, []
    apply_plan(net, {"[0:4]": "checkpoint", "[4:6]": "bits"})
    for each in (net, twin):
        torch.manual_seed(0)
        first = each(x).sum()
        if not carried:
            functional.reset_net(each)
        loss = first + (each(x + 0.5) ** 2).sum()
        loss.backward(retain_graph=True)
        loss.backward()
        found.append([*(parameter.grad for parameter in each.parameters()), each[0].mask])
    assert all(map(torch.equal, *found))
    assert all(each.count_nonzero() for each in found[0])


def test_a_plan_from_a_file(tmp_path):
    """`apply_plan` reads what `revsnn-bench plan` writes."""
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"neurons": "as-is", "blocks": [{"block": "2", "option": "checkpoint"}]}))
    net = residual_net()
    assert apply_plan(net, path) is net
    assert "forward" in net[2].__dict__


def test_a_plan_that_does_not_fit_warns(tmp_path):
    """One that fits, or does not say, does not."""
    path = tmp_path / "plan.json"
    saved = {"neurons": "as-is", "blocks": [], "budget_bytes": 2**20, "expected_bytes": 3 * 2**19}
    path.write_text(json.dumps(saved | {"fits": False}))
    with pytest.warns(UserWarning, match=r"budget of 1.00 MiB: a step is expected to take 1.50 MiB\."):
        apply_plan(residual_net(), path)
    path.write_text(json.dumps(saved | {"fits": True}))
    apply_plan(residual_net(), path)


def test_a_plan_whose_neurons_cannot_be_put_in_warns(tmp_path):
    """As where monitors were registered first; those without hooks are exchanged."""
    pytest.importorskip("spikingjelly")
    from spikingjelly.activation_based import neuron

    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"neurons": "lif", "blocks": []}))
    net = nn.Sequential(neuron.LIFNode(), neuron.LIFNode(), neuron.KLIFNode())
    net[1].register_forward_hook(lambda *call: None)
    with pytest.warns(UserWarning, match="neurons 1 stay SpikingJelly's, for they have hooks: .* Apply the plan first"):
        apply_plan(net, path)
    assert [type(each).__module__.split(".")[0] for each in net[:2]] == ["revsnn_nodes", "spikingjelly"]
    net[1]._forward_hooks.clear()
    apply_plan(net, path)


def test_offload_keeps_copies_on_the_host(monkeypatch):
    """Its hooks decide inside of `remat`, gradients keep their bits; the check of the device is left out here."""
    net, x = residual_net(), image_sequence()
    expected = train_step(copy.deepcopy(net), x)
    monkeypatch.setattr(plan, "_require_device", lambda *_: None)
    apply_plan(net, {REST: "remat", "2": "offload", "3": "checkpoint"})
    moved = []
    monkeypatch.setattr(plan, "save_on_cpu", lambda pin_memory: moved.append(pin_memory) or save_on_cpu())
    train_step(net, x).assert_equals(expected)
    assert moved == [torch.cuda.is_available()]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"7": "remat"}, r"`plan` must name blocks of the model; got '7'\."),
        ({"[0:99]": "remat"}, r"got '\[0:99\]'\."),
        ({"[3:1]": "remat"}, r"got '\[3:1\]'\."),
        ({"[0:2]": "remat", "[1:3]": "bits"}, r"that do not overlap; got '\[0:2\] and \[1:3\]'\."),
        ({"[0:3]": "remat", "(model)": "bits"}, r"that do not overlap; got '\[0:3\] and \(model\)'\."),
        ({"2": "pickle"}, r"`plan` must give '2' one of plain, .*, offload; got 'pickle'\."),
        ({"2": "offload"}, r"`plan` must give '2' another option on the CPU; got 'offload'\. .* is there already\."),
        ({REST: "bits"}, r"`plan` must give 'rest' one of plain, remat, remat4; got 'bits'\."),
    ],
)
def test_a_plan_for_another_model_is_refused(options, message):
    """The error names the block."""
    with pytest.raises(ValueError, match=message):
        apply_plan(residual_net(), options)
