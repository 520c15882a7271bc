"""Strategies of what a block keeps: right gradients, statistics counted once, states left alone, bytes as stated."""

import pytest
import torch
from revsnn_nodes import SpikingNode, StandardLIF
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from revsnn_bench.case import Case
from revsnn_bench.meters.fidelity import measure_fidelity
from revsnn_bench.meters.flops import measure_flops
from revsnn_bench.meters.memory import retained_bytes
from revsnn_bench.meters.step import relative_error
from revsnn_bench.models import strategies
from revsnn_bench.models.blocks import ConvBlock, conv_block
from revsnn_bench.models.reference import reference_of, subject_of
from revsnn_bench.models.strategies import pack_bits, strategy, strategy_names, unpack_bits
from revsnn_bench.models.training import train
from revsnn_bench.models.workloads import build
from revsnn_bench.records import SkipCase

RECOMPUTING = ("lif+checkpoint", "lif+bitpack", "lif-carrier+checkpoint-conv")
BLOCKS = (*RECOMPUTING, "norm-carrier")
STRATEGIES = (*BLOCKS, "lif+remat")
SAME_AS_LIF = ("lif+checkpoint", "lif+bitpack", "lif+checkpoint-conv", "lif+remat", "lif+save-on-cpu")
NORM_OPERATIONS = 6
"""Of a batch norm in training, per element: see `meters/flops.py`."""
TIGHT = 1e-5


def blocks_case(node, **changes):
    fields = {"node": node, "workload": "conv-blocks", "shape": (4, 6, 6), "timesteps": 4, "batch": 3}
    fields["depth"] = 3 if changes.get("workload", "conv-blocks") == "conv-blocks" else 1
    return Case(**(fields | changes))


def network_case(node, workload="resnet20@0.25"):
    return blocks_case(node, workload=workload, shape=(1, 8, 8), timesteps=2)


def gradients(step):
    step.prepare()
    output = step.forward()
    step.backward(output)
    grads = [step.source.grad, *(parameter.grad for parameter in step.model.parameters())]
    step.prepare()
    return [output.detach(), *(grad.clone() for grad in grads if grad is not None)]


@pytest.mark.parametrize("workload", ["conv-blocks", "digits-net", "vgg11@0.0625", "resnet20@0.25"])
@pytest.mark.parametrize("node", STRATEGIES)
def test_gradient_is_that_of_the_plain_float64_network(node, workload):
    """Every strategy in every kind of network: outputs to the bit, gradients of input and parameters below 1e-5."""
    case = blocks_case(node) if workload == "conv-blocks" else network_case(node, workload)
    fidelity = measure_fidelity(subject_of(case))
    assert not fidelity.beyond_tolerance()
    assert fidelity.output_error == 0
    assert fidelity.gradient_error < TIGHT
    assert fidelity.parameter_gradient_error < TIGHT


@pytest.mark.parametrize("node", SAME_AS_LIF)
def test_recomputing_blocks_give_the_plain_blocks_bits(node):
    """Same seed, same weights: output and every gradient equal those of plain blocks to the bit."""
    for make_case in (blocks_case, network_case):
        plain, got = gradients(build(make_case("lif"))), gradients(build(make_case(node)))
        assert all(torch.equal(a, b) for a, b in zip(got, plain, strict=True))


def statistics(model):
    return {name: value.clone() for name, value in model.state_dict().items() if "running" in name or "num" in name}


@pytest.mark.parametrize("node", STRATEGIES)
def test_norms_count_a_batch_once(node):
    """Backward's second run updates no statistics: they are those after forward alone, and one batch is counted."""
    step = build(network_case(node))
    before = statistics(step.model)
    output = step.forward()
    after_forward = statistics(step.model)
    step.backward(output)
    after_backward = statistics(step.model)
    for name, value in after_backward.items():
        assert torch.equal(value, after_forward[name]), name
        if name.endswith("num_batches_tracked"):
            assert value == before[name] + 1


@pytest.mark.parametrize("node", RECOMPUTING)
def test_state_survives_recomputation_and_carries(node):
    """Two chunks with carried membranes: backward leaves the state alone, and gradients cross the border."""
    torch.manual_seed(0)
    model = nn.Sequential(*[conv_block(2, 2, strategy(node)) for _ in range(2)])
    plain = reference_of(model)
    x = torch.randn(6, 2, 2, 5, 5, requires_grad=True)
    grads = []
    for network in (model, plain):
        first, second = network(x[:2]), network(x[2:])
        states = [module.v for module in network.modules() if hasattr(module, "v")]
        (first.sum() + (second * second).sum()).backward()
        assert all(state is module.v for state, module in zip(
            states, (m for m in network.modules() if hasattr(m, "v")), strict=True))  # fmt: skip
        grads.append(x.grad.clone())
        x.grad = None
    # A carrier's backward pass is not autograd's: it rounds elsewhere.
    assert relative_error(grads[:1], grads[1:]) <= (TIGHT if "carrier" in node else 0)


def test_recomputation_in_eval_and_without_gradients():
    """eval() uses running statistics; under no_grad nothing is kept and nothing runs twice."""
    for node in BLOCKS:
        torch.manual_seed(0)
        block, plain = conv_block(2, 2, strategy(node)), conv_block(2, 2, strategy("lif"))
        plain.load_state_dict(block.state_dict())
        x = torch.randn(3, 2, 2, 4, 4)
        with torch.no_grad():
            assert torch.equal(block.eval()(x), plain.eval()(x))


@pytest.mark.parametrize("node", BLOCKS)
def test_state_dict_moves_between_strategies(node):
    """Keys and shapes are those of the plain network, so weights move from any strategy to any other."""
    plain, model = build(network_case("lif")).model, build(network_case(node)).model
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in plain.state_dict().items()
               if "num_batches" not in name and "running" not in name)  # fmt: skip
    plain.load_state_dict(model.state_dict())


def test_retained_bytes_of_four_blocks():
    """In units of b N T per block: 5 plain, 1 where inputs or outputs are kept, 1/32 in bits."""
    depth, steps = 4, 4
    unit = 4 * steps * 3 * 8 * 16 * 16
    case = {"depth": depth, "shape": (8, 16, 16)}
    kept = {node: retained_bytes(build(blocks_case(node, **case)))[0] / unit for node in ("lif", *BLOCKS)}
    # Convolution input, norm input, and three per step in the neuron.
    assert kept["lif"] == pytest.approx(5 * depth, rel=0.002)
    for node in ("lif+checkpoint", "lif-carrier+checkpoint-conv", "norm-carrier"):
        assert kept[node] == pytest.approx(depth, rel=0.002)
    # The first input is no spike train, and stays as it is.
    assert kept["lif+bitpack"] == pytest.approx(1 + (depth - 1) / 32, rel=0.02)


@pytest.mark.parametrize("depth", [1, 3])
def test_remat_keeps_one_tensor_per_block_and_runs_nothing_but_norms_and_neurons_again(depth):
    """The input, what each convolution made, and mean and deviation per channel; norm once more, neuron twice."""
    case = blocks_case("lif+remat", depth=depth)
    step = build(case)
    gradients(step)
    assert retained_bytes(step)[0] == (depth + 1) * step.source.nbytes + depth * 2 * 4 * case.shape[0]
    # Each neuron for its own gradient, and once more for the convolution behind it: the last has none.
    layer = case.model_copy(update={"node": "lif", "workload": "layer", "depth": 1})
    neuron = measure_flops(build(layer)).forward.pointwise
    again = measure_flops(step).recompute
    assert again.multiply_accumulate == 0
    assert again.pointwise == depth * NORM_OPERATIONS * step.source.numel() + (2 * depth - 1) * neuron


def test_training_inside_remat_gives_the_same_losses():
    """One epoch of the small network on digits: loss and accuracy of plain training, to the bit."""
    plain, inside = (train(network_case(node, "digits-net"), 1) for node in ("lif", "lif+remat"))
    assert inside.loss_by_epoch == plain.loss_by_epoch
    assert inside.accuracy == plain.accuracy


def test_offload_is_skipped_on_the_cpu():
    """There is nothing to move: the reason says so."""
    with pytest.raises(SkipCase, match=r"lif\+offload moves tensors from a GPU to the host"):
        build(network_case("lif+offload"))


@pytest.mark.parametrize("node", ["spikingjelly+checkpoint", "spikingjelly+remat"])
def test_a_peer_takes_a_strategy(node):
    """SpikingJelly's neuron in blocks that keep less: outputs and gradients of its plain blocks, to the bit."""
    plain, got = (gradients(build(blocks_case(each))) for each in ("spikingjelly", node))
    assert all(torch.equal(a, b) for a, b in zip(got, plain, strict=True))


def test_only_norm_carrier_convolves_nothing_twice():
    """Multiply-accumulates of recomputation: those of the forward convolutions for checkpoints, 0 for norm-carrier."""
    for node in BLOCKS:
        flops = measure_flops(build(blocks_case(node)))
        again = flops.recompute.multiply_accumulate
        assert again == (0 if node == "norm-carrier" else flops.forward.multiply_accumulate)


def test_bitpack_packs_spikes_and_leaves_other_inputs(monkeypatch):
    """Spikes are packed, those before a pooling too; images and carrier outputs stay as they are."""
    packed = []
    monkeypatch.setattr(strategies, "pack_bits", lambda x: packed.append(pack_bits(x)) or packed[-1])
    build(network_case("lif+bitpack", "vgg11@0.0625")).model(torch.rand(2, 2, 1, 8, 8))
    assert [each is not None for each in packed] == [False] + [True] * 7
    packed.clear()
    torch.manual_seed(0)
    carrying = nn.Sequential(*[conv_block(2, 2, strategy("lif-carrier+bitpack")) for _ in range(2)])
    x = torch.randn(3, 2, 2, 5, 5, requires_grad=True)
    got = torch.autograd.grad(carrying(x).sum(), x)
    assert packed == [None, None]
    plain = reference_of(carrying)
    assert torch.allclose(got[0], torch.autograd.grad(plain(x).sum(), x)[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("numel", [1, 7, 8, 9, 1000])
def test_bits_come_back(numel):
    """Any length, dtype and layout; an eighth of a byte per element, rounded up."""
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        x = (torch.rand(2, numel) < 0.3).to(dtype).t()
        packed = pack_bits(x)
        assert packed.bits.numel() == -(-2 * numel // 8)
        back = unpack_bits(packed)
        assert torch.equal(back, x)
        assert back.dtype == dtype


@pytest.mark.parametrize("value", [0.5, -1.0, 2.0, float("nan"), 1e-30])
def test_one_element_that_is_no_bit_is_seen(value):
    """A single other number among a thousand bits: nothing is packed."""
    x = torch.ones(1000)
    x[617] = value
    assert pack_bits(x) is None


def test_reference_is_plain_throughout():
    """The reference of every strategy has plain blocks, and no custom backward but the surrogate's."""
    for node in BLOCKS:
        model = build(network_case(node)).model
        reference = reference_of(model)
        kinds = {type(module) for module in reference.modules() if isinstance(module, ConvBlock)}
        assert all(kind.forward is ConvBlock.forward for kind in kinds) or node == "norm-carrier"
        names = {type(module).__name__ for module in reference.modules()}
        assert not names & {"CarrierLIF", "NormCarrierLIF", "CheckpointBlock", "BitPackBlock", "CheckpointConvBlock"}
        shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in reference.parameters()}
        assert not shared


def test_strategies_have_readable_case_ids():
    """A strategy is a node's name, so each is a row of its own and every name builds."""
    assert Case(node="lif+bitpack", workload="vgg11", shape=(3, 32, 32)).id.startswith(
        "vgg11/lif+bitpack/T8-B8-N3x32x32"
    )
    for name in strategy_names():
        block = conv_block(2, 4, strategy(name))
        assert isinstance(block, ConvBlock)
    assert isinstance(strategy("lif+checkpoint", tau=3.0)(), StandardLIF)
    assert strategy("lif+checkpoint", tau=3.0)().tau == 3.0


@pytest.mark.parametrize("name", strategy_names())
def test_cases_measure_the_reference_backend(name):
    """Whatever is installed, every node of every strategy says backend="torch", unless the case names another."""
    for backend in ("torch", "auto"):
        block = conv_block(2, 4, strategy(name, **({} if backend == "torch" else {"backend": backend})))
        assert {node.backend for node in block.modules() if isinstance(node, SpikingNode)} == {backend}


class _Convolutions(TorchDispatchMode):
    """Counts convolutions that run."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten.convolution.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("node", RECOMPUTING)
def test_blocks_recompute_one_at_a_time(node):
    """Each of three convolutions runs twice in a step, and once where no gradient is asked for."""
    step = build(blocks_case(node))
    with _Convolutions() as counted:
        step.backward(step.forward())
    assert counted.count == 6
    with torch.no_grad(), _Convolutions() as counted:
        step.forward()
    assert counted.count == 3
