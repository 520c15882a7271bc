"""`remat` on SpikingJelly's own networks, to the byte and to the bit; data-parallel and with scaled losses."""

import copy
import gc
from contextlib import nullcontext
from functools import partial

import nodes_ddp_worker as ddp
import pytest
import torch
from nodes_cases import foreign_import_is_silent
from nodes_memory import timeline
from nodes_remat import (
    PerStep,
    assert_equal,
    assert_same_step,
    conv_norm,
    image_sequence,
    reset,
    residual_net,
    with_our_neurons,
)
from nodes_zoo import their
from revsnn_nodes import StandardLIF, remat
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

STEPS, BATCH, SIZE = 2, 2, 32


@pytest.fixture(scope="module")
def models():
    """Networks of theirs, by name."""
    wide = {"T": STEPS, "num_classes": 3, "embed_dims": 32}
    stages = {"depths": (1, 1, 1), **wide}
    spikformer = {"img_size_h": SIZE, "img_size_w": SIZE, "patch_size": 4, "num_heads": 2, "depths": 2, **wide}
    return {
        "sew_resnet18": lambda **lif: their("sew_resnet").sew_resnet18(cnf="ADD", num_classes=3, **lif),
        "spiking_resnet18": lambda **lif: their("spiking_resnet").spiking_resnet18(num_classes=3, **lif),
        "vgg11": lambda **lif: their("spiking_vgg").spiking_vgg11_bn(num_classes=3, **lif),
        "ms_resnet18": lambda **lif: their("ms_resnet").ms_resnet18(T=STEPS, num_classes=3, **lif),
        "spikformer": lambda **lif: their("spikformer").Spikformer(**spikformer, **lif),
        "qkformer": lambda **lif: their("qkformer").QKFormer(num_heads=(2, 2, 2), **stages, **lif),
        "qkformer, channels": lambda **lif: their("qkformer").QKFormer(
            num_heads=(2, 2, 2), qka_type="channel", **stages, **lif
        ),
        "spike-driven transformer": lambda **lif: their("spike_driven_transformer").SpikeDrivenTransformer(
            num_heads=4, depths=2, **wide, **lif
        ),
        "maxformer": lambda **lif: their("maxformer").MaxFormer(**stages, **lif),
    }


def make(models, name):
    from spikingjelly.activation_based import functional, layer

    neuron, theirs = foreign_import_is_silent()
    torch.manual_seed(0)
    net = models[name](spiking_neuron=neuron.LIFNode, surrogate_function=theirs.ATan())
    if name == "vgg11":
        net.avgpool, net.classifier = layer.AdaptiveAvgPool2d(1), layer.Linear(512, 3)
    functional.set_step_mode(net, "m")
    return with_our_neurons(net)


def bytes_of_kinds(net, x):
    """What is kept: a norm's input and two statistics per channel; a byte for each maximum of a pooling; of attention
    by matrices, the product of v and k; what neurons behind attention read, and behind a mean, and the head of it."""
    total = 0

    def count(module, inputs, output, after_sum=False):
        nonlocal total
        if isinstance(module, nn.MaxPool2d):
            total += output.numel()
        elif isinstance(module, _BatchNorm):
            total += inputs[0].nbytes + 2 * module.num_features * 4
        elif after_sum:
            total += inputs[0].nbytes
        else:
            total += STEPS * BATCH * 4 * module.dim**2 // module.num_heads

    handles = []
    for name, module in net.named_modules():
        after_sum = name.split(".")[-1] in ("attn_lif", "head_lif", "head") and not name_of(net).endswith("ResNet")
        if after_sum or isinstance(module, _BatchNorm | nn.MaxPool2d) or name_of(module) == MATRICES:
            handles.append(module.register_forward_hook(partial(count, after_sum=after_sum)))
    net(x)
    reset(net)
    for handle in handles:
        handle.remove()
    return total


MATRICES = "SpikingSelfAttention"


def name_of(module):
    return type(module).__name__


@pytest.mark.parametrize(
    "name",
    [
        *("sew_resnet18", "spiking_resnet18", "vgg11", "ms_resnet18", "spikformer", "qkformer", "qkformer, channels"),
        *("spike-driven transformer", "maxformer"),
    ],
)
def test_bytes_are_the_closed_form_and_gradients_equal(models, name):
    """One z per convolution, statistics per channel, maxima's places, the input; by the handle and the allocator.

    Attention keeps sums and products, which are not run again.
    """
    net, x = make(models, name), torch.randn(STEPS, BATCH, 3, SIZE, SIZE)
    saved = assert_same_step(net, x)
    expected = bytes_of_kinds(net, x)
    assert saved.kept_bytes - x.nbytes == expected
    scales = 8 * sum(name_of(module) == MATRICES for module in net.modules())  # a factor, a number in float64
    assert retained(net, x) == expected + scales


class UNet(nn.Module):
    """A step down, a step up, and what was before beside it."""

    def __init__(self):
        super().__init__()
        self.down, self.inner, self.up = conv_norm(3, 4), conv_norm(4, 8), conv_norm(12, 4)
        self.neurons = nn.ModuleList(StandardLIF(step_mode="m") for _ in range(3))
        self.pool, self.upsample = PerStep(nn.MaxPool2d(2)), PerStep(nn.Upsample(scale_factor=2))

    def forward(self, x):
        first, second, third = self.neurons
        x = first(self.down(x))
        y = self.upsample(second(self.inner(self.pool(x))))
        return third(self.up(torch.cat([x, y], 2)))


def test_what_is_enlarged_is_made_again():
    """A U-Net keeps what its norms and its pooling keep, and its input, but nothing of the large sum of both ways."""
    net, x = UNet(), torch.randn(STEPS, BATCH, 3, 8, 8)
    saved = assert_same_step(net, x)
    assert saved.kept_bytes - x.nbytes == bytes_of_kinds(net, x)


def retained(net, x):
    """Bytes alive after a forward besides its output."""

    def forward():
        with remat():
            y = net(x)
        reset(net)
        return y

    gc.collect()
    run = timeline(forward)
    return run.live_bytes - run.result.untyped_storage().nbytes()


def test_data_parallel_steps_are_equal(tmp_path):
    """Two gloo processes, two batches, weights whole, sharded, or sharded with a plan: gradients after reduction and
    buffers have the bits that they have without. Where weights are sharded, a norm's two vectors are kept on top."""
    kept = {}
    torch.multiprocessing.spawn(ddp.remat_work, args=(2, str(tmp_path)), nprocs=2)
    for wrap in (ddp.DistributedDataParallel, ddp.sharded, ddp.planned):
        plain, ours = torch.load(tmp_path / f"{wrap.__name__}0.pt")
        other, _ = torch.load(tmp_path / f"{wrap.__name__}1.pt")
        for one, two, far in zip(plain, ours, other, strict=True):
            assert_equal(two[0], one[0])
            assert_equal(two[1], one[1])
            assert_equal(far[0], one[0])
        kept[wrap] = [step[2] for step in ours]
    norms = [module for module in residual_net().modules() if isinstance(module, _BatchNorm)]
    vectors = sum(norm.weight.nbytes + norm.bias.nbytes for norm in norms)
    assert kept[ddp.sharded] == [nbytes + vectors for nbytes in kept[ddp.DistributedDataParallel]]
    for rank in range(2):  # what another process wrote to, unseen, is not made again as it was
        plain, ours = torch.load(tmp_path / f"collectives{rank}.pt")
        assert all(map(torch.equal, plain, ours))


@pytest.mark.parametrize("half", [False, True])
def test_scaled_loss_and_autocast_train_equally(half):
    """Ten steps of GradScaler and SGD, in float32 and under bfloat16 autocast: every parameter equal."""
    start = nn.Sequential(residual_net(), nn.Flatten(2), nn.Linear(4 * 64, 3))
    nets = [copy.deepcopy(start) for _ in range(2)]
    for net, context in zip(nets, (nullcontext, remat), strict=True):
        optimizer = torch.optim.SGD(net.parameters(), 1e-2)
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        for step in range(10):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=half), context():
                loss = net(image_sequence(seed=step)).float().pow(2).mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            reset(net)
    assert_equal(nets[1].state_dict(), nets[0].state_dict())
    assert not torch.equal(nets[0][2].weight, start[2].weight)
