"""`remat` keeps one tensor per block, and changes no bit of the network or its gradients."""

import copy
import gc
import importlib
import itertools
import sys
import warnings
import weakref
from contextlib import nullcontext

import pytest
import torch
from nodes_cases import foreign_import_is_silent
from nodes_memory import timeline
from nodes_remat import (
    BATCH,
    NETWORKS,
    STEPS,
    PerStep,
    Residual,
    assert_equal,
    assert_same_step,
    conv_norm,
    image_sequence,
    reset,
    residual_net,
    train_step,
    vgg,
)
from nodes_tolerances import ALIKE_RTOL
from revsnn_nodes import CarrierLIF, CheckpointedLIF, StandardLIF, StandardParametricLIF, remat
from revsnn_nodes.remat import functions, recipes
from revsnn_nodes.remat.pack import recordable
from torch import nn
from torch._dynamo.source import ConstantSource
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

MODIFIED = "modified by an inplace operation"


def gradients(function, *inputs, context=None):
    """Gradients of a sum of squares, forward in a context."""
    with context or nullcontext():
        y = function(*inputs)
    return torch.autograd.grad(y.float().pow(2).sum(), [x for x in inputs if x.requires_grad], allow_unused=True)


def assert_same(function, *inputs, **options):
    """A function's gradients with and without `remat` are equal to the bit; returns the handle."""
    expected = gradients(function, *inputs)
    with remat(verify=True, **options) as saved:
        y = function(*inputs)
    got = torch.autograd.grad(y.float().pow(2).sum(), [x for x in inputs if x.requires_grad], allow_unused=True)
    for ours, theirs in zip(got, expected, strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.equal(ours, theirs)
    return saved


def rel_error(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


def leaf(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).requires_grad_()


def source(x):
    """A tensor that no recipe makes, and that its consumer keeps: as a convolution's output before a norm."""
    return F.conv1d(x, nn.Parameter(torch.full((x.shape[1], x.shape[1], 1), 0.3, dtype=x.dtype)))


def retained(net, x, context):
    """Bytes alive after a forward besides its output."""
    reset(net)

    def forward():
        with context or nullcontext():
            y = net(x)
        reset(net)
        return y

    gc.collect()
    run = timeline(forward)
    return run.live_bytes - run.result.untyped_storage().nbytes()


# Whole networks


@pytest.mark.parametrize("name", list(NETWORKS))
def test_network_gradients_and_buffers_are_equal(name, backend):
    """Outputs, parameter gradients and running statistics have the bits of the same network without `remat`."""
    saved = assert_same_step(NETWORKS[name](backend=backend), image_sequence(), verify=True)
    assert saved.remade_bytes > saved.kept_bytes


@pytest.mark.parametrize("name", list(NETWORKS))
def test_evaluation_mode_is_equal(name):
    """In `eval()` with running statistics too."""
    net = NETWORKS[name]()
    train_step(net, image_sequence(seed=4))
    assert_same_step(net.eval(), image_sequence(), verify=True)


def test_running_statistics_in_memory_of_numpy_are_equal():
    """As a state dict that was loaded from arrays leaves them: torch cannot resize such memory."""
    net = residual_net()
    train_step(net, image_sequence(seed=4))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.from_numpy(module.running_mean.numpy().copy())
            module.running_var = torch.from_numpy(module.running_var.numpy().copy())
    saved = assert_same_step(net.eval(), image_sequence(), verify=True)
    assert saved.remade_bytes > 0


def test_two_hundred_training_steps_give_equal_parameters():
    """Adam over 200 steps, with and without: every parameter and buffer equal to the bit."""
    nets = [residual_net(blocks=1) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    for net, context in zip(nets, (nullcontext, remat), strict=True):
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        for step in range(200):
            train_step(net, image_sequence(seed=step), context())
            optimizer.step()
    assert_equal(nets[1].state_dict(), nets[0].state_dict())


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_remade_tensors_keep_their_strides(format):
    """channels_last survives: convolutions get their input in the layout of the forward."""
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
    ).to(memory_format=format)
    seen = []
    x = image_sequence()[0].to(memory_format=format)
    with remat(verify=True):
        y = net(x)
    y.grad_fn.next_functions[0][0].register_prehook(lambda *_: seen.append(1))
    kept = net[3](net[:3](x)).grad_fn._saved_input
    with remat():
        remade = net[3](net[:3](x)).grad_fn._saved_input
    assert remade.stride() == kept.stride()
    assert_same_step(net, x)


def test_double_and_bfloat16_networks_are_equal():
    """Other dtypes."""
    for dtype in (torch.float64, torch.bfloat16):
        assert_same_step(residual_net().to(dtype), image_sequence().to(dtype), verify=True)


# Bytes


def test_residual_network_keeps_norm_inputs_alone():
    """SEW: input, one z per convolution, two statistics per channel; to the byte, by the allocator."""
    blocks, channels, size = 3, 4, 8
    net, x = residual_net(blocks, channels), image_sequence(size)
    retained(net, x, remat())
    z = STEPS * BATCH * channels * size**2 * 4
    statistics = 2 * channels * 4
    expected = (1 + 2 * blocks) * (z + statistics)
    with remat() as saved:
        net(x)
    reset(net)
    assert saved.kept_bytes == expected + x.nbytes
    assert retained(net, x, remat()) == expected


def test_vgg_keeps_norm_inputs_and_the_linear_layers_output():
    """VGG: z of both convolutions, their statistics, a byte for each maximum, the linear layer's output; no spikes."""
    net, x = vgg(), image_sequence(8)
    retained(net, x, remat())
    tb = STEPS * BATCH * 4
    assert retained(net, x, remat()) == tb * (4 * 64 + 8 * 16 + 6) + 2 * 4 * (4 + 8) + tb // 4 * (4 * 16 + 8 * 4)


def test_two_summed_sources_are_one_tensor_to_keep():
    """The sum of two convolutions is kept rather than remade from both."""
    x = leaf(2, 3, 50)
    saved = assert_same(lambda x: F.silu(source(x) + source(x * 2)), x)
    assert saved.because() == {"source gone": 1200}  # a convolution keeps its input and not its output
    assert saved.kept_bytes == 1200


def test_recipe_from_as_many_bytes_as_it_saves_is_not_used():
    """Where a source is still alive, keeping it in place of the tensor saves nothing."""
    x, alive = leaf(2, 3, 50), []

    def net(x):
        alive.append(source(x))
        return F.silu(alive[0] * 2)

    with remat() as saved:
        net(x)
    assert saved.because() == {"bytes": 1200}


def test_recipe_from_a_smaller_source_is_used():
    """A repeated tensor is made again from the one that was repeated."""
    x = leaf(2, 3, 50)
    weight = leaf(3, 3, 1)
    with remat() as saved:
        once = x.detach().clone()
        y = F.conv1d(once.repeat(4, 1, 1), weight)
    assert saved.kept_bytes == once.nbytes
    assert torch.equal(
        torch.autograd.grad(y.sum(), weight)[0][0],
        torch.autograd.grad(F.conv1d(once.repeat(4, 1, 1), weight).sum(), weight)[0][0],
    )


def test_kept_sum_is_a_source_for_what_follows():
    """What was kept by a rule serves later recipes: nothing more is kept."""
    saved = assert_same(lambda x: F.silu(F.silu(source(x) + source(x * 2))).exp().sin(), leaf(2, 3, 50))
    assert saved.kept_bytes == 1200


def test_neuron_without_recipe_for_its_input_keeps_no_more_than_its_charges():
    """A neuron whose input is a part of a larger tensor keeps charges, as it does outside."""

    def net(x):
        return StandardLIF(step_mode="m")(source(x)[:, :, :10])

    x = leaf(4, 3, 100)
    saved = assert_same(net, x)
    assert saved.kept_bytes <= 4 * 3 * 10 * 4


def test_recipes_release_their_sources_with_the_graph():
    """Nothing is alive after the graph is dropped, inside the context too."""
    net, x = residual_net(), image_sequence()
    train_step(net, x, remat())

    def forward():
        with remat():
            for _ in range(2):
                net(x)
                reset(net)

    gc.collect()
    assert timeline(forward).live_bytes == 0


def test_what_the_last_function_saved_is_released_by_its_backward():
    """A linear layer at the end: its input is gone where backward ends, without a collection of garbage."""
    x, square, weight = leaf(4, 50), leaf(50, 50), leaf(3, 50)

    def step():
        with remat():
            y = F.linear(F.linear(x, square), weight)
        return torch.autograd.grad(y.sum(), (x, weight))

    step()
    gc.collect()
    gradients = 4 * (4 * 50 + 3 * 50)
    assert timeline(step).live_bytes == gradients


# Rules


def test_chain_deeper_than_max_passes_keeps_a_tensor_on_the_way():
    """A residual stream is cut where making it again would take more passes than allowed."""
    net, x = residual_net(blocks=6), image_sequence()
    shallow = assert_same_step(copy.deepcopy(net), x, max_passes=6)
    deep = assert_same_step(net, x, max_passes=100)
    assert "max_passes" in shallow.because()
    assert "max_passes" not in deep.because()
    assert shallow.kept_bytes > deep.kept_bytes
    assert max(entry.passes for entry in shallow.entries) <= 6


@pytest.mark.parametrize("given", [0, -3, "16", None, 2.5, nn.Flatten()])
def test_max_passes_below_one_is_refused(given):
    """So is what is no whole number, which a comparison alone would let pass; a model by its type, not its layers."""
    shown = "'Flatten'" if isinstance(given, nn.Module) else repr(given)
    message = rf"`max_passes` must be a whole number, at least 1; got {shown}\. .* Write `with remat\(\):` around"
    with pytest.raises(ValueError, match=message), remat(max_passes=given):
        pass


@pytest.mark.parametrize("change", ["relu_", "add_", "mul_", "view"])
def test_changes_in_place_have_recipes(change):
    """A tensor changed in place before it is saved is made again from what it was; parts of it too."""

    def net(x):
        y = F.layer_norm(source(x), (50,))
        if change == "view":
            y[:, :2].add_(y[:, 2:])
        elif change == "relu_":
            F.relu(y, inplace=True)
        else:
            getattr(y, change)(2.5)
        return F.silu(y)

    saved = assert_same(net, leaf(2, 3, 50))
    assert saved.remade_bytes > 0


def test_change_of_a_saved_tensor_raises_autograds_error():
    """Replaced or kept, a saved tensor that was modified afterwards is refused in autograd's words."""
    for function in (lambda x: F.layer_norm(x, (50,)), lambda x: x.clone()):
        for context in (nullcontext(), remat()):
            x = leaf(2, 3, 50)
            with context:
                y = function(source(x))
                loss = y.pow(2).sum()
                y.add_(1)
            with pytest.raises(RuntimeError, match=MODIFIED):
                loss.backward()


def test_change_of_a_source_raises():
    """A parameter of the recipe that was changed before backward is refused, as autograd refuses its own."""
    x, bias = leaf(2, 3, 50), torch.zeros(50, requires_grad=True)
    with remat():
        loss = F.silu(F.layer_norm(source(x), (50,), None, bias)).sum()
    with torch.no_grad():
        bias.add_(1)
    with pytest.raises(RuntimeError, match=MODIFIED):
        loss.backward()


def test_memory_that_was_handed_out_is_not_trusted():
    """A tensor written through `.data` is kept from there on."""

    def net(x):
        y = F.layer_norm(source(x), (50,))
        y.data.mul_(2)
        return F.silu(y)

    assert_same(net, leaf(2, 3, 50))


def test_reused_addresses_are_not_mistaken():
    """Storages that come and go at the same address keep their own recipes."""

    def net(x):
        total = 0
        for scale in range(1, 30):
            y = F.layer_norm(source(x * scale), (50,))
            total = total + F.silu(y).sum()
            z = source(x) * scale if scale % 2 else source(x)
            total = total + (z * z).sum()
            del y, z
        return total

    assert_same(net, leaf(2, 3, 50))


def test_dropout_is_kept():
    """Random functions are never run again: masks are kept, gradients equal."""
    net = nn.Sequential(conv_norm(2, 4), StandardLIF(step_mode="m"), nn.Dropout(0.5), conv_norm(4, 4))
    saved = assert_same_step(net, image_sequence(), verify=True)
    assert saved.because()["not cheap"] > 2 * STEPS * BATCH * 4 * 64 * 4


def test_norm_in_training_updates_statistics_once():
    """Running statistics and the batch counter see the forward alone."""
    net = nn.BatchNorm1d(3)
    with remat():
        loss = F.silu(net(source(leaf(4, 3, 50)))).sum()
    before = copy.deepcopy(net.state_dict())
    loss.backward()
    assert_equal(net.state_dict(), before)
    assert net.num_batches_tracked == 1


def test_norm_in_evaluation_is_remade_from_the_statistics_of_the_forward():
    """Statistics that change between forward and backward do not matter."""
    norm = nn.BatchNorm1d(3).eval()
    x = leaf(4, 3, 50)
    with remat():
        y = norm(source(x))
        loss = y.exp().sin().sum()
    kept = y.detach().clone()
    del y
    norm.train()(torch.randn(4, 3, 50) + 5)
    remade = loss.grad_fn.next_functions[0][0].next_functions[0][0]._saved_result
    assert torch.equal(remade, kept.exp())


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.max_pool1d(x, 2), lambda x: F.adaptive_max_pool1d(x, 5), lambda x: F.avg_pool1d(x, 2),
        lambda x: F.adaptive_avg_pool1d(x, 5), lambda x: F.softmax(x, -1), lambda x: torch.log_softmax(x, 1),
        lambda x: F.instance_norm(x), lambda x: F.group_norm(x, 3), F.gelu, F.silu, F.relu, F.elu, torch.sigmoid,
        torch.tanh, lambda x: x.unfold(2, 5, 5).clone(), lambda x: torch.cat([x, x * 2], 1), lambda x: x.double() * 2,
        lambda x: torch.stack([x, -x]), lambda x: x.transpose(1, 2).reshape(-1, 3) / 3, lambda x: 1 - x,
        lambda x: 2 / (x.abs() + 1),
        lambda x: torch.where(x > 0, x, x * 0.1), lambda x: x.chunk(3, 1)[1] * x.permute(1, 0, 2)[0].unsqueeze(1),
        lambda x: x.repeat(2, 1, 1) ** 2, lambda x: F.max_pool1d(x, 2, return_indices=True)[0],
        lambda x: x[:, [0, 2]] * x[:, 1:],
        lambda x: F.batch_norm(x, None, None, training=True), lambda x: x.expand(2, *x.shape).clone().sin(),
    ],
)  # fmt: skip
def test_cheap_functions_are_equal(function):
    """Each cheap function, before and after others that save their input or their output."""

    def net(x):
        y = function(F.layer_norm(source(x), (50,)))
        return y.exp().sin() * F.silu(y)

    assert_same(net, leaf(4, 3, 50))


@pytest.mark.parametrize(
    ("pool", "size", "nbytes"),
    [
        (lambda x: F.max_pool1d(x, 2), (400,), 1 * 200),
        (lambda x: F.max_pool2d(x, 3, 2, 1), (20, 20), 1 * 10 * 10),
        (lambda x: F.max_pool2d(x, (2, 3), dilation=(3, 1), ceil_mode=True), (9, 140), 2 * 4 * 47),  # 422 places on
        (lambda x: F.max_pool3d(x, 2, 1), (5, 9, 9), 1 * 4 * 8 * 8),
        (lambda x: F.adaptive_max_pool1d(x, 7), (400,), 1 * 7),
        (lambda x: F.adaptive_max_pool2d(x, (3, None)), (20, 11), 1 * 3 * 11),
        (lambda x: F.max_pool2d(x, 2, return_indices=True)[0], (20, 20), 1 * 10 * 10),
        (lambda x: F.max_pool2d(x, 2, 2, 0, 1, False, True)[0], (20, 20), 1 * 10 * 10),
        (lambda x: torch.max_pool2d(x, 2), (20, 20), 1 * 10 * 10),
    ],
)
def test_max_pooling_keeps_one_or_two_bytes_for_each_maximum(pool, size, nbytes):
    """Its input and its output have recipes; int64 for each place would be eight."""
    x = leaf(2, 3, *size)
    saved = assert_same(lambda x: pool(F.layer_norm(source(x.flatten(2)).view_as(x), size)).tanh(), x)
    assert saved.kept_bytes == x.nbytes + 2 * 2 * 3 * 4 + 2 * 3 * nbytes


def _pools(dims):
    """Calls of max pooling over so many dimensions, and sizes of what they pool."""
    one = (1, 2, 3, (3, 2, 2)[:dims]), (None, 1, (1, 3, 2)[:dims]), (0, 1), (1, 2), (False, True)
    calls = [(f"max_pool{dims}d", call) for call in itertools.product(*one)]
    calls += [(f"adaptive_max_pool{dims}d", (size,)) for size in (1, 5, 7, (3, 2, 4)[:dims])]
    return [(*call, size) for call in calls for size in ((9, 11, 7)[:dims], (40, 30, 9)[:dims])]


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_places_of_maxima_come_back_and_read_the_maxima(dims):
    """Over windows, strides, paddings and dilations, with NaN, ties and negative zeros."""
    tried = 0
    for name, call, size in _pools(dims):
        pool = getattr(F, f"{name}_with_indices")
        x = torch.randint(-1, 2, (2, 3, *size)).float()
        x[torch.rand(x.shape) < 0.1] = -0.0
        x[torch.rand(x.shape) < 0.05] = torch.nan
        try:
            maxima, places = pool(x, *call, return_indices=True)
        except RuntimeError:  # padding beyond half of the window
            continue
        windows = recipes.PoolWindows(pool, (x, *call), {})
        short = windows.shorten(places)
        assert short.dtype is not torch.int64
        assert torch.equal(windows.places(short), places), (name, call)
        assert torch.equal(windows.values(x, short).view(torch.int32), maxima.view(torch.int32)), (name, call)
        tried += 1
    assert tried > 100


def test_what_is_pooled_without_gradient_keeps_no_places():
    """It is pooled once more."""

    def gated(x):
        y = source(x)
        return F.max_pool1d(y.detach().exp(), 2) * F.silu(y)[..., :32]

    x = leaf(2, 3, 64)
    assert assert_same(gated, x).kept_bytes == x.nbytes


def test_verify_raises_where_a_function_is_not_deterministic(request, monkeypatch):
    """A wrong entry in the table is found by its checksum."""
    functions.treatment.cache_clear()
    request.addfinalizer(functions.treatment.cache_clear)
    monkeypatch.setitem(functions.CHEAP, F.dropout, 1)
    with remat(verify=True):
        loss = F.dropout(F.layer_norm(source(leaf(2, 3, 50)), (50,))).exp().sin().sum()
    with pytest.raises(RuntimeError, match="must equal the one of the forward"):
        loss.backward()


def test_verify_takes_a_single_element_of_any_stride():
    """The diagonal of a row, whose one element has a stride."""
    assert_same(lambda x: (x * 2).diagonal().sin(), leaf(1, 3))


def test_what_is_run_again_is_labelled():
    """Profilers see "recompute" around it."""
    net, x = vgg(), image_sequence()
    with remat():
        loss = net(x).sum()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        loss.backward()
    assert any(event.key == "recompute" for event in profile.key_averages())


def calls_in_backward(net, x):
    """How often each operator ran in the backward pass of a step inside `remat`."""
    with remat():
        y = net(x)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        y.sum().backward()
    return {event.key: event.count for event in profile.key_averages()}


def test_held_intermediates_are_used_once_and_dropped():
    """A norm's output made for the spikes is held for the neuron, and for no longer: each norm runs once again."""
    counts = calls_in_backward(residual_net(blocks=1, backend="torch"), image_sequence())
    assert counts["aten::native_batch_norm"] == 3


@pytest.mark.parametrize("sew", [True, False])
def test_fused_neurons_behind_a_norm_make_neither_norm_nor_charges_again(sew):
    """One kernel makes the spikes of the two neurons before a convolution, one the gradient of each of the three."""
    pytest.importorskip("numba")
    counts = calls_in_backward(residual_net(blocks=1, sew=sew), image_sequence())
    assert counts["revsnn::norm_lif_forward"] == 2
    assert counts["revsnn::norm_lif_backward"] == 3
    assert not {"aten::native_batch_norm", "revsnn::lif_forward", "revsnn::lif_backward"} & counts.keys()


@pytest.mark.parametrize("blocks", [0, 2])
def test_max_pooling_is_not_run_again(blocks):
    """Its output is read from its input at the places of the maxima: for what follows, and as a block's residual."""
    net = nn.Sequential(
        *vgg()[:3], *(Residual(4, sew=False) for _ in range(blocks)), conv_norm(4, 2), StandardLIF(step_mode="m")
    )
    x = image_sequence()
    counts = calls_in_backward(net, x)
    assert "aten::max_pool2d_with_indices" not in counts
    assert counts["aten::gather"] == 1 + (blocks > 0)
    reset(net)
    assert_same_step(net, x, verify=True)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("sew", [True, False])
def test_channels_last_and_running_statistics_fuse_too(sew, training):
    """Frames with channels innermost, and norms in evaluation: no norm runs again, and gradients are equal."""
    pytest.importorskip("numba")
    net = residual_net(blocks=2, sew=sew).to(memory_format=torch.channels_last)
    x = image_sequence().movedim(2, -1).contiguous().movedim(-1, 2)
    net(x)
    reset(net.train(training))
    assert_same_step(net, x, verify=True)
    counts = calls_in_backward(net, x)
    assert counts["revsnn::norm_lif_backward"] == 5
    assert not {"aten::native_batch_norm", "revsnn::lif_forward", "revsnn::lif_backward"} & counts.keys()


POOLS = {
    "halved": nn.MaxPool2d(2),
    "padded": nn.MaxPool2d(3, 2, 1),
    "dilated": nn.MaxPool2d(2, 1, dilation=2, ceil_mode=True),
    "adaptive": nn.AdaptiveMaxPool2d((3, 5)),
}


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("training", [True, False])
def test_pooling_between_norm_and_neuron_fuses_too(pool, format, training):
    """The neuron keeps the places of the maxima and reads the norm's input there: the norm is not run again."""
    pytest.importorskip("numba")
    layers = conv_norm(2, 4), PerStep(POOLS[pool]), StandardLIF(step_mode="m"), conv_norm(4, 4)
    net = nn.Sequential(*layers, StandardLIF(step_mode="m")).to(memory_format=format)
    nn.init.normal_(net[0][1].weight)  # of both signs
    x = image_sequence()
    if format == torch.channels_last:
        x = x.movedim(2, -1).contiguous().movedim(-1, 2)
    net(x)
    reset(net.train(training))
    assert_same_step(net, x, verify=True)
    assert_same_step(net, x)
    reset(net)
    counts = calls_in_backward(net, x)
    assert counts["revsnn::norm_lif_backward"] == 2
    assert counts["aten::gather"] == 1
    assert not {"aten::native_batch_norm", "revsnn::lif_forward", "revsnn::lif_backward"} & counts.keys()


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pool", [nn.MaxPool3d(2), nn.AdaptiveMaxPool3d(3), nn.MaxPool3d(3, 1, return_indices=True)])
def test_pooling_that_autocast_casts_is_equal(pool, half):
    """On the CPU it computes max pooling over volumes in float32, but not where places are asked for as well."""
    net = nn.Sequential(nn.Conv3d(2, 4, 3), nn.BatchNorm3d(4), First(pool), nn.SiLU())
    x = torch.randn(2, 2, 8, 8, 8)
    with torch.autocast("cpu", half):
        assert_same_step(net, x)


class First(nn.Sequential):
    """The first result of a layer that may have two."""

    def forward(self, x):
        result = super().forward(x)
        return result[0] if isinstance(result, tuple) else result


@pytest.mark.parametrize("kind", ["over channels", "of a part", "behind an activation"])
def test_pooling_of_something_else_than_a_norm_runs_the_norm_again(kind):
    """Where the elements of the output are not those of the norm's input, channel for channel."""
    pools = {
        "over channels": nn.Sequential(nn.Flatten(2), nn.BatchNorm1d(4), nn.MaxPool2d((2, 1))),
        "of a part": nn.Sequential(nn.BatchNorm2d(4), Part(), nn.MaxPool2d(2)),
        "behind an activation": nn.Sequential(nn.BatchNorm2d(4), nn.LeakyReLU(-0.5), nn.MaxPool2d(2)),
    }
    net = nn.Sequential(PerStep(nn.Conv2d(2, 4, 3)), PerStep(pools[kind]), StandardLIF(step_mode="m"))
    x = image_sequence()
    assert_same_step(net, x, verify=True)
    assert "revsnn::norm_lif_backward" not in calls_in_backward(net, x)


class Part(nn.Module):
    """The first of two rows."""

    def forward(self, x):
        return x[:, :, ::2]


def test_where_the_kernels_round_otherwise_norm_and_neuron_run_one_by_one(monkeypatch):
    """The probe decides; gradients are equal either way."""
    monkeypatch.setattr(sys.modules["revsnn_nodes.remat.norm"], "exact_form", lambda *_: None)
    net, x = residual_net(blocks=1), image_sequence()
    assert "revsnn::norm_lif_backward" not in calls_in_backward(net, x)
    reset(net)
    assert_same_step(net, x, verify=True)


# Neurons


@pytest.mark.parametrize("T", [1, 5])
@pytest.mark.parametrize("carried", [True, False])
@pytest.mark.parametrize("v_reset", [0.0, -0.3, None])
def test_neuron_is_equal_in_every_mode(v_reset, carried, T, backend):
    """Both resets, from rest and from a carried membrane that has a gradient, step by step too."""
    for step_mode in ("m", "s"):

        def net(x, v, step_mode=step_mode):
            node = StandardLIF(v_reset=v_reset, step_mode=step_mode, backend=backend)
            if carried:
                node.v = v * 1.0
            y = F.layer_norm(source(x), (50,))
            y = node(y) if step_mode == "m" else torch.stack([node(each) for each in y])
            return torch.cat([y * 0.5, node.v.unsqueeze(0)]).sin()

        assert_same(net, leaf(T, 3, 50), leaf(3, 50, seed=1))


def test_carried_state_over_several_calls_and_truncation():
    """Three chunks with the state carried, the graph cut after the second; one context or one for each."""

    def run(context_per_chunk, context_all):
        net = nn.Sequential(conv_norm(2, 4), StandardLIF(step_mode="m"), conv_norm(4, 4), StandardLIF(step_mode="m"))
        net.load_state_dict(state)
        with context_all():
            outputs = []
            for chunk in range(3):
                with context_per_chunk():
                    outputs.append(net(image_sequence(seed=chunk)))
                if chunk == 1:
                    net[1].detach(), net[3].detach()
        torch.stack(outputs).sin().sum().backward()
        return {name: p.grad for name, p in net.named_parameters()}

    state = nn.Sequential(
        conv_norm(2, 4), StandardLIF(step_mode="m"), conv_norm(4, 4), StandardLIF(step_mode="m")
    ).state_dict()
    expected = run(nullcontext, nullcontext)
    assert_equal(run(remat, nullcontext), expected)
    assert_equal(run(nullcontext, remat), expected)


@pytest.mark.parametrize("make", [StandardLIF, StandardParametricLIF])
def test_a_state_that_is_cut_costs_itself_alone(make):
    """In truncated BPTT each chunk keeps what the first one does, and the membranes that it began with.

    What the fused kernels have made numpy has read, and without a graph it was taken for memory that numpy may change.
    """
    net, kept = nn.Sequential(conv_norm(2, 4), make(step_mode="m"), conv_norm(4, 4)), []
    for _ in range(2):
        with remat() as saved:
            loss = net(image_sequence()).sin().sum()
        loss.backward()
        net[1].detach()
        kept.append(saved.kept_bytes)
    assert kept[1] == kept[0] + net[1].v.nbytes


@pytest.mark.parametrize("make", [StandardLIF, StandardParametricLIF])
def test_a_neuron_that_stores_its_membranes_keeps_them_alone(make):
    """With a loss on each of them: neither charges and spikes nor what the loss is made of."""
    net, found = nn.Sequential(conv_norm(2, 4), make(step_mode="m", store_v_seq=True), conv_norm(4, 4)), []
    for context in (nullcontext(), remat(verify=True)):
        reset(net)
        with context as saved:
            y = net(image_sequence())
            loss = y.sin().sum() + F.relu(net[1].v_seq - 0.5).square().sum()
        found.append(torch.autograd.grad(loss, [*net.parameters()]))
    assert all(map(torch.equal, *found))
    kept = {name: each.kept_bytes for name, each in saved.by_module().items()}
    assert kept["1"] + kept["(no module)"] == net[1].v_seq.nbytes
    assert kept["2.0"] == 0


def test_a_neuron_that_is_run_again_holds_its_input_no_longer_than_its_forward():
    """Beyond the arriving gradient: input, spikes and charges in its second forward; then charges and gradient."""
    node, z = StandardParametricLIF(step_mode="m"), leaf(4, 3, 5000)

    def forward():
        with remat():
            return node(2 * z)

    def backward():
        return torch.autograd.grad(y, z, y_bar, retain_graph=True)

    for _ in range(2):  # the first one compiles kernels
        node.reset()
        y = forward()
        y_bar = torch.ones_like(y)
        run = timeline(backward)
    assert run.peak_bytes < 3.5 * z.nbytes


@pytest.mark.parametrize("theirs", [False, True])
def test_a_neuron_is_gone_with_its_graph(theirs):
    """Without a collection of garbage: what runs it again holds no membrane, which would hold the graph."""
    if theirs:
        foreign_import_is_silent()
    kind = importlib.import_module("revsnn_nodes.spikingjelly").ParametricLIFNode if theirs else StandardParametricLIF
    node = kind(step_mode="m", store_v_seq=True)
    with remat():
        y = node(leaf(4, 3, 50).sin())
    gone = [weakref.ref(each) for each in (node, node.v)]
    del node, y
    assert [each() for each in gone] == [None, None]


@pytest.mark.parametrize("make", [CarrierLIF, CheckpointedLIF])
def test_other_nodes_are_unchanged(make):
    """Nodes that keep little by themselves run as outside."""
    net = nn.Sequential(conv_norm(2, 4), make(step_mode="m"), conv_norm(4, 4), make(step_mode="m"))
    assert_same_step(net, image_sequence(), verify=True)


def test_spikingjellys_own_neurons_are_unchanged():
    """LIFNode under `remat` gives its own gradients."""
    neuron, theirs = foreign_import_is_silent()
    node = neuron.LIFNode(surrogate_function=theirs.ATan(), step_mode="m")
    assert_same_step(nn.Sequential(conv_norm(2, 4), node, conv_norm(4, 4)), image_sequence(), verify=True)


def test_parameters_of_a_neuron_are_those_of_the_forward():
    """A change of tau between forward and backward does not reach the recomputation."""

    def net(x):
        node = StandardLIF(tau=2.0, step_mode="m")
        y = node(F.layer_norm(source(x), (50,)))
        node.tau = 7.0
        return y.exp().sin()

    assert_same(net, leaf(4, 3, 50))


class Noisy(StandardLIF):
    def torch_sequence(self, x_seq, v):
        return super().torch_sequence(x_seq + torch.randn_like(x_seq), v)


class Gated(StandardLIF):
    def torch_sequence(self, x_seq, v):
        return super().torch_sequence(x_seq * self.gate, v)


def gated(x, kind=Gated, **options):
    """A neuron that reads a tensor with a gradient among its attributes."""
    node = kind(step_mode="m", backend="torch", **options)
    node.gate = x[0, 0].sigmoid()
    return node


def replaced(x):
    """A neuron whose method was replaced by one that reads another tensor with a gradient."""
    node = StandardLIF(step_mode="m", backend="torch")
    method, gate = node.torch_sequence, x[0, 0].sigmoid()
    node.torch_sequence = lambda x_seq, v: method(x_seq * gate, v)
    return node


def fast_weight(x):
    """A neuron whose parameter is a tensor that was made from others, as in meta-learning."""
    node = StandardParametricLIF(step_mode="m")
    del node.w
    node.w = x.mean()
    return node


OF_THE_USERS_OWN = {
    "noise": lambda x: Noisy(step_mode="m", backend="torch"),
    "gate": gated,
    "replaced method": replaced,
    "fast weight": fast_weight,
}


@pytest.mark.parametrize("name", OF_THE_USERS_OWN)
def test_neurons_of_the_users_own_run_as_without(name):
    """Subclasses and instances with other methods, or other tensors that learn, keep what autograd keeps."""

    def net(x):
        torch.manual_seed(0)
        node = OF_THE_USERS_OWN[name](x)
        return node(F.layer_norm(source(x), (50,)) * 2).exp().sin()

    assert_same(net, leaf(4, 3, 50))


# Composition


@pytest.mark.parametrize("reentrant", [True, False])
def test_around_checkpoint(reentrant):
    """A checkpointed block inside is checkpoint's own business."""
    net, x = residual_net(), image_sequence()

    class Part(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            def block(x):
                reset(self.net[2])
                return self.net[2](x)

            return self.net[3](checkpoint(block, self.net[1](self.net[0](x)), use_reentrant=reentrant))

    assert_same_step(Part(net), x)


def test_inside_checkpoint_it_steps_aside_and_says_so():
    """Inside a checkpointed function the checkpoint decides; so with an outer `remat` and with save_on_cpu."""
    net, x, notes = residual_net(), image_sequence().requires_grad_(), []

    def block(x):
        reset(net)
        with remat() as saved:
            y = net(x)
        notes.extend(saved.notes)
        return y

    def on_cpu(x):
        with torch.autograd.graph.save_on_cpu():
            return block(x)

    expected = gradients(net, x)
    for run in (
        lambda x: checkpoint(block, x, use_reentrant=False),
        lambda x: remat()(block)(x),
        on_cpu,
    ):
        reset(net)
        assert torch.equal(gradients(run, x)[0], expected[0])
        assert "other saved tensor hooks" in notes.pop()


def test_autocast_is_entered_again():
    """Under bfloat16 autocast, gradients are equal and the backward pass runs outside of autocast."""
    net, x = residual_net(), image_sequence()

    class Cast(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return F.layer_norm(self.net(x), (8,)) * F.softmax(self.net(x), -1)

    assert_same_step(Cast(), x, verify=True)


def test_several_forwards_before_one_backward():
    """Two contexts, one loss; and one context, two losses."""
    net, x = residual_net(), image_sequence().requires_grad_()

    def two(context):
        total = 0
        for scale in (1, 2):
            reset(net)
            with context():
                total = total + net(x * scale).sin().sum()
        return torch.autograd.grad(total, [x, *net.parameters()])

    expected = two(nullcontext)
    assert all(map(torch.equal, two(remat), expected))
    with remat():
        got = two(nullcontext)
    assert all(map(torch.equal, got, expected))


def test_backward_inside_and_twice():
    """Inside the context, and twice over a retained graph, also after one saved tensor was asked for by hand."""
    net, x = residual_net(), image_sequence().requires_grad_()
    (expected,) = gradients(net, x)
    reset(net)
    with remat():
        y = net(x).pow(2).sum()
        first = torch.autograd.grad(y, x, retain_graph=True)[0]
    second = torch.autograd.grad(y, x)[0]
    assert torch.equal(first, expected)
    assert torch.equal(second, expected)


def test_part_of_the_graph():
    """`torch.autograd.grad` of one of two outputs, the other dropped."""
    net, x = residual_net(), image_sequence().requires_grad_()

    def first_of_two(context):
        reset(net)
        with context:
            y = net[1](net[0](x))
            one, _two = net[2](y), net[3](y)
        return torch.autograd.grad(one.sin().sum(), x)[0]

    assert torch.equal(first_of_two(remat()), first_of_two(nullcontext()))


def test_second_derivatives_are_right():
    """create_graph through norms, pools, activations and the reference neuron."""
    node = StandardLIF(step_mode="m", backend="torch")

    def penalty(context):
        x = leaf(4, 3, 50)
        node.reset()
        with context:
            y = F.max_pool1d(F.layer_norm(source(x), (50,)).sigmoid(), 2)
            y = y * node(F.silu(y) * 3)
        (g,) = torch.autograd.grad(y.pow(2).sum(), x, create_graph=True)
        return torch.autograd.grad(g.pow(2).sum(), x)[0]

    assert rel_error(penalty(remat()), penalty(nullcontext())) < ALIKE_RTOL[torch.float32]


@pytest.mark.parametrize("backend", ["fused"])
def test_second_derivatives_of_a_fused_neuron_are_refused(backend):
    """In its own words, as without `remat`."""
    pytest.importorskip("numba")
    for context in (nullcontext(), remat()):
        x = leaf(4, 3, 50)
        with context:
            y = StandardLIF(step_mode="m", backend=backend)(x * 2.0)
        (g,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="second derivatives"):
            (g.pow(2).sum() + x.sum()).backward()


def test_hooks_of_the_user_see_the_same_gradients():
    """Tensor hooks and full backward hooks of modules run as without."""
    net, x = residual_net(), image_sequence()

    def seen(context):
        found = []
        handles = [net[2].one.register_full_backward_hook(lambda m, gi, go: found.extend([*gi, *go]))]
        net[2].sn1.register_forward_hook(lambda m, i, o: o.register_hook(lambda g: found.append(g.clone())) and None)
        train_step(net, x, context)
        handles[0].remove()
        net[2].sn1._forward_hooks.clear()
        return found

    net.eval()
    assert all(map(torch.equal, seen(remat()), seen(nullcontext())))


def test_without_grad_it_does_nothing():
    """No entry, no state, the same output."""
    net, x = residual_net().eval(), image_sequence()
    with torch.no_grad(), remat() as saved:
        y = net(x)
    reset(net)
    with torch.no_grad():
        assert torch.equal(y, net(x))
    assert saved.entries == []


@pytest.mark.parametrize("part", [False, True])
def test_under_compile_it_steps_aside_and_says_so(part):
    """A compiled module, or part of one, keeps what the compiler decides; its gradients are equal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net, x = residual_net(blocks=1), image_sequence()
        if part:
            net[2].compile(backend="aot_eager")
        compiled = net if part else torch.compile(net, backend="aot_eager")
        expected = train_step(compiled, x)
        got = train_step(compiled, x, remat())
    assert_equal(got.gradients, expected.gradients)
    assert any("is compiled" in note for note in got.saved.notes)


def test_tensors_of_a_subclass_are_kept_which_the_table_says():
    """As images of MONAI and fastai are, which make one of everything behind them."""

    class Image(torch.Tensor):
        pass

    net, x = residual_net(blocks=1), image_sequence()
    expected = train_step(net, x)
    for given in (x, x.as_subclass(Image)):
        got = train_step(net, given, remat())
        assert_equal(got.gradients, expected.gradients)
        assert any("Image is a subclass of Tensor" in note for note in got.saved.notes) == (given is not x)


@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace")
def test_a_compiled_function_that_enters_it_runs_that_part_as_written():
    """And returns what it returns: torch.compile made 2 of this function when it compiled the recorder's own."""

    def function(x):
        y = x.sin()
        with remat() as saved:
            notes.extend(saved.notes)
            return net(y * 2).square().sum()

    found, x = [], torch.randn(16, 8)
    for run in (function, torch.compile(function, backend="eager")):
        torch.manual_seed(0)
        net, notes = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU()), []
        loss = run(x)
        found.append([loss.detach(), *torch.autograd.grad(loss, [*net.parameters()]), *net.buffers()])
    assert all(map(torch.equal, *found))
    assert notes == ["a compiled function enters it: what is inside runs as it is written"]


def test_handle_prints_a_table_by_module():
    """Kept and remade bytes, passes and the rule, for each module; totals are the sums."""
    net, x = residual_net(blocks=1), image_sequence()
    with remat() as saved:
        net(x)
    text = str(saved)
    assert "2.one.1" in text
    assert "not cheap" in text
    modules = saved.by_module()
    assert sum(each.kept_bytes for each in modules.values()) == saved.kept_bytes
    assert modules["2.two.0"].remade_bytes == STEPS * BATCH * 4 * 64 * 4
    assert modules["2.two.0"].kept_bytes == 0


def test_an_error_in_the_forward_leaves_nothing_behind():
    """After an exception inside, the next forward runs as without."""
    net, x = residual_net(), image_sequence()
    with pytest.raises(ZeroDivisionError), remat():
        raise ZeroDivisionError
    assert torch._C._autograd._top_saved_tensors_default_hooks(False) is None
    reset(net)
    with remat() as saved:
        pass
    net(x)
    assert saved.entries == []


def test_only_plain_memory_is_recorded_however_often_it_was_asked():
    """Conjugate, negative, sparse, inference and meta tensors are saved as they are, after plain ones too."""

    class Own(torch.Tensor):
        pass

    plain, complex_ones = torch.zeros(2), torch.zeros(2, dtype=torch.cfloat)
    with torch.inference_mode():
        inference = torch.zeros(2)
    with FakeTensorMode():
        fakes = torch.zeros(2), torch.zeros(2, device="meta")
    others = [
        complex_ones.conj(), complex_ones.conj().imag, plain.to_sparse(), torch.zeros(2, device="meta"), inference,
        fakes[1], plain.as_subclass(Own),
    ]  # fmt: skip
    for _ in range(2):
        assert all(map(recordable, [plain, complex_ones, nn.Parameter(plain), fakes[0]]))
        assert not any(map(recordable, others))


def test_sizes_may_be_symbols():
    """As where a step is traced for sizes that are not known yet."""
    fake = FakeTensorMode(shape_env=ShapeEnv())
    dynamic = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC] * 2)
    x = fake.from_tensor(torch.zeros(6, 5), symbolic_context=dynamic, source=ConstantSource("x"))
    with fake:
        with remat():
            y = (F.relu(x.requires_grad_() * 2) * 3).exp().sum()
        y.backward()
    assert isinstance(x.shape[0], torch.SymInt)
    assert x.grad.shape == x.shape
