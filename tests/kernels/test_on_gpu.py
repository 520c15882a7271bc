"""What only a GPU shows: nodes, bytes, prediction, graphs and remat on CUDA. Skipped where there is none."""

import copy
import warnings

import nodes_cases
import pytest
import torch
from nodes_cases import COUPLED, FUSED, Problem, assert_ends_close, differentiate, make, run_node
from nodes_tolerances import RTOL
from revsnn_nodes import StandardLIF, remat
from revsnn_nodes.remat.norm import NormKind, exact_form
from torch import nn

from revsnn_bench.kernel_speed import captured

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(autouse=True)
def _fused(monkeypatch):
    monkeypatch.setattr(nodes_cases, "backend", "fused")


def on_cuda(problem: Problem) -> Problem:
    """A problem whose tensors are on the GPU."""
    other = copy.copy(problem)
    for name in ("x", "v", "y_bar", "v_bar"):
        value = getattr(problem, name)
        setattr(other, name, None if value is None else value.cuda())
    return other


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", FUSED)
def test_a_node_is_the_same_on_both_devices(name, dtype):
    """Output, state and both gradients through the module: the reference's bits on the CPU, gradients to rounding."""
    problem = Problem(steps=7, shape=(3, 40), seed=1).to(dtype)
    node = make(name)
    got = differentiate(run_node(node), on_cuda(problem))
    assert node.backend_in_use == "fused"
    expected = differentiate(run_node(make(name, backend="torch")), problem)
    for end in ("y", "v", "x_grad", "v_grad"):
        setattr(got, end, getattr(got, end).cpu())
    if dtype is not torch.bfloat16:
        assert torch.equal(got.y, expected.y)
        assert torch.equal(got.v, expected.v)
    assert_ends_close(got, expected, RTOL[dtype] * (100 if name in COUPLED else 2))


@pytest.mark.parametrize("name", FUSED)
def test_nothing_waits_for_the_gpu(name):
    """Forward, backward and reset of a warm node never synchronise; the carrier looks at its calls 1, 2, 4, 8 ..."""
    node, x = make(name), torch.randn(4, 2, 64, device="cuda", requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the mode says that it is a prototype
        for mode in (*["default"] * 4, "error"):
            torch.cuda.set_sync_debug_mode(mode)
            try:
                node(x).sum().backward()
                node.reset()
            finally:
                torch.cuda.set_sync_debug_mode("default")
    assert x.grad is not None


@pytest.mark.filterwarnings("ignore:The AccumulateGrad node")
@pytest.mark.parametrize("name", FUSED)
def test_a_step_is_captured_into_a_cuda_graph(name):
    """A replayed graph of forward and backward gives what the calls give, for inputs that came later."""
    node = make(name)
    x = torch.randn(4, 2, 64, device="cuda", requires_grad=True)

    def step():
        node.reset()
        y = node(x)
        return y, *torch.autograd.grad(y, x, torch.ones_like(y))

    replay = captured(step)
    with torch.no_grad():
        x.copy_(torch.randn_like(x) + 1)
    for have, want in zip([each.clone() for each in replay()], step(), strict=True):
        assert torch.equal(have, want)


@pytest.mark.parametrize("name", [*FUSED, "lif-checkpoint", "revlif-stored", "revlif-revnet"])
def test_bytes_are_those_of_the_cpu(name):
    """The caching allocator's requested bytes equal the host's timeline: kept, state, output, saved and peak.

    But for wrapped Python numbers, which stay on the host. Both devices run the fused kernels, or neither.
    """
    from revsnn_bench.case import Case
    from revsnn_bench.measuring import Settings, measure

    case = Case(node=name, timesteps=5, batch=2, shape=(1024,))
    records = [
        measure(case.model_copy(update={"device": device}), Settings(passes=("memory",))).memory
        for device in ("cpu", "cuda")
    ]
    for field in ("state_bytes", "output_bytes", "saved_bytes"):
        assert getattr(records[0], field) == getattr(records[1], field), field
    for field in ("retained_bytes", "peak_bytes"):
        host, device = (getattr(each, field) for each in records)
        assert device % (4 * 1024) == 0, field
        assert 0 <= host - device <= 64 * case.timesteps, field


def test_meters_against_closed_forms_on_the_gpu():
    """Bytes and operations of the self-test's step, measured on CUDA."""
    from revsnn_bench.meters.selftest import run_selftest

    for quantity, expected, measured in run_selftest("cuda"):
        assert measured == expected, quantity


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(16, 64, 16, 16), (128, 64, 56, 56), (64, 512, 7, 7)], ids=str)
def test_a_form_of_cudnn_s_norm_is_known(shape, training):
    """The kernels have the rounding of cuDNN's batch norm for few and many elements per channel, in both modes.

    Channels innermost are known in training.
    """
    channels, size = shape[1], shape[2] * shape[3]
    places = [(size, shape[3], 1)] + [(1, shape[3] * channels, channels)] * training
    for stride in places:
        kind = NormKind(torch.float32, (torch.float32,) * 3, shape, stride, training, torch.device("cuda", 0))
        assert exact_form(kind) is not None, stride


def network() -> nn.Module:
    """Convolution, norm and neuron twice; then a mean."""
    from spikingjelly.activation_based import functional, layer

    def block(inputs: int) -> list[nn.Module]:
        conv = layer.Conv2d(inputs, 16, 3, 1, 1, bias=False, step_mode="m")
        return [conv, layer.BatchNorm2d(16, step_mode="m"), StandardLIF(step_mode="m", detach_reset=True)]

    net = nn.Sequential(*block(3), *block(16), *block(16))
    functional.set_step_mode(net, "m")
    return net.cuda()


@pytest.mark.parametrize("channels_last", [False, True])
def test_remat_keeps_one_tensor_per_block_and_every_bit(channels_last, monkeypatch):
    """Gradients and buffers equal those without it, and less is kept."""
    pytest.importorskip("spikingjelly")
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    torch.manual_seed(0)
    plain = network()
    if channels_last:
        plain = plain.to(memory_format=torch.channels_last)
    saved = copy.deepcopy(plain)
    x = torch.randn(4, 8, 3, 16, 16, device="cuda")
    kept = []
    for net, context in ((plain, torch.enable_grad()), (saved, remat())):
        for _ in range(2):
            net.zero_grad()
            for module in net:
                if isinstance(module, StandardLIF):
                    module.reset()
            torch.cuda.synchronize()
            before = torch.cuda.memory_stats()["requested_bytes.all.current"]
            with context:
                y = net(x)
            after = torch.cuda.memory_stats()["requested_bytes.all.current"] - before
            y.sum().backward()
            del y
            context = torch.enable_grad() if net is plain else remat()
        kept.append(after)
    assert kept[1] < 0.6 * kept[0]
    for one, other in zip(plain.parameters(), saved.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
    for one, other in zip(plain.buffers(), saved.buffers(), strict=True):
        assert torch.equal(one, other)
