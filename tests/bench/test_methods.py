"""Methods over time: gradients by their own equations, identities, bytes and steps in closed form, and refusals."""

from functools import cache
from math import comb

import pytest
import torch
from nodes_oracle import PHI
from revsnn_nodes.plan import neurons_of
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

from revsnn_bench.case import Case
from revsnn_bench.measuring import Settings, measure
from revsnn_bench.meters.fidelity import measure_fidelity
from revsnn_bench.meters.memory import peak_bytes, retained_bytes
from revsnn_bench.meters.step import relative_error
from revsnn_bench.models import methods
from revsnn_bench.models.methods import Stepwise
from revsnn_bench.models.reference import subject_of
from revsnn_bench.models.training import Recipe, Trainer
from revsnn_bench.models.workloads import build
from revsnn_bench.records import SkipCase, Status

ONLINE = ("lif+sltt", "lif+sltt-2", "lif+tbptt-2", "lif+ottt")
EXACT = ("lif+chunks-3", "lif+chunks-4", "lif+revolve-1", "lif+revolve-2", "lif+revolve-3")
ROUNDING = 1e-12
DEPTH, BATCH, HIDDEN = 3, 5, 32
TAU = 2.0


def case_of(node, **changes):
    fields = {"workload": "mlp@0.125", "shape": (1, 8, 8), "timesteps": 8, "batch": BATCH, "depth": DEPTH}
    return Case(node=node, encoding="poisson", **(fields | {"dtype": "float64"} | changes))


def gradients(step, seed=3):
    step.prepare()
    torch.manual_seed(seed)
    step.backward(step.forward())
    found = [parameter.grad.clone() for parameter in step.model.parameters()]
    step.prepare()
    return found


def by_hand(step, leak, steps=None):
    """Gradients of all weights by the equations of SLTT and OTTT, without autograd: errors of one step at a time.

    Args:
        leak: of the traces; 0 for SLTT.
        steps: those that are learned from; None for all.
    """
    *weights, weight, bias = (parameter.detach() for parameter in step.model.parameters())
    total = [torch.zeros_like(each) for each in (*weights, weight, bias)]
    sharpness, phi = PHI["Sigmoid"]
    v = [torch.zeros(BATCH, HIDDEN, dtype=torch.float64) for _ in weights]
    traces = [0.0] * len(weights)
    for t, x in enumerate(step.source):
        s, charges = x.flatten(1), []
        for layer, w in enumerate(weights):
            traces[layer] = leak * traces[layer] + s
            h = (1 - 1 / TAU) * v[layer] + s @ w.T / TAU
            s = (h >= 1).double()
            v[layer] = h * (1 - s)
            charges.append(h)
        error = ((s @ weight.T + bias).softmax(1) - one_hot(step.labels, 10)) / (BATCH * len(step.source))
        if steps is not None and t not in steps:
            continue
        total[-1] += error.sum(0)
        total[-2] += error.T @ s
        error = error @ weight
        for layer in reversed(range(len(weights))):
            error = error * phi(charges[layer] - 1, sharpness) / TAU
            total[layer] += error.T @ traces[layer]
            error = error @ weights[layer]
    return total


@pytest.mark.parametrize(("node", "leak"), [("lif+sltt", 0.0), ("lif+ottt", 1 - 1 / TAU)])
def test_online_gradients_follow_their_equations(node, leak):
    """Every weight's gradient is the sum over steps of error times spikes (SLTT), or times their trace (OTTT)."""
    step = build(case_of(node))
    assert relative_error(gradients(step), by_hand(step, leak)) < ROUNDING
    assert relative_error(gradients(step), by_hand(step, 0.25)) > 1e-3


def test_sltt_k_learns_from_the_steps_drawn():
    """The same sum over K steps, drawn anew in every call, with no factor in front."""
    step = build(case_of("lif+sltt-2"))
    torch.manual_seed(3)
    drawn = torch.randperm(8)[:2].tolist()
    assert relative_error(gradients(step), by_hand(step, 0.0, drawn)) < ROUNDING
    assert relative_error(gradients(step), gradients(step, seed=4)) > 0.1


@pytest.mark.parametrize("window", [2, 3])
def test_tbptt_is_backpropagation_with_the_membrane_cut(window):
    """Autograd through a plain loop that detaches the membrane before every K-th step; windows may differ in length."""
    step = build(case_of(f"lif+tbptt-{window}"))
    net, loss = step.model.net, 0.0
    step.prepare()
    for t, x in enumerate(step.source):
        if t % window == 0:
            for neuron in neurons_of(step.model):
                neuron.detach()
        loss = loss + cross_entropy(net(x[None])[0], step.labels) / len(step.source)
    expected = torch.autograd.grad(loss, [*step.model.parameters()])
    assert relative_error(gradients(step), expected) < ROUNDING


def test_sltt_is_tbptt_of_one_step():
    """K = 1 leaves no path through time: the same gradient to the bit."""
    pairs = zip(gradients(build(case_of("lif+sltt"))), gradients(build(case_of("lif+tbptt-1"))), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_ottt_without_a_leak_is_sltt():
    """A trace with lambda = 0 is the input: tau goes to 1, where a node allows no more."""
    found = [gradients(build(case_of(node, node_options={"tau": 1 + 1e-14}))) for node in ("lif+ottt", "lif+sltt")]
    assert relative_error(*found) < ROUNDING
    found = [gradients(build(case_of(node))) for node in ("lif+ottt", "lif+sltt")]
    assert relative_error(*found) > 0.05


def test_tbptt_of_all_steps_is_bptt():
    """One window of T steps cuts nothing: the gradient of backpropagation through time."""
    step = build(case_of("lif"))
    expected = gradients(step)
    step.prepare()
    loss = methods.tbptt(step.model, step.source, step.labels, len(step.source))
    assert relative_error(torch.autograd.grad(loss, [*step.model.parameters()]), expected) < ROUNDING


@pytest.mark.parametrize("timesteps", [5, 8])
@pytest.mark.parametrize("node", EXACT)
def test_checkpoints_give_the_gradient_of_bptt(node, timesteps):
    """In two calls in a row, of all parameters and of the membranes carried between them; T need not be divisible."""
    found = measure_fidelity(subject_of(case_of(node, timesteps=timesteps)))
    assert found.gradient_bias is None
    assert found.output_error < ROUNDING
    assert found.parameter_gradient_error < ROUNDING
    assert found.state_gradient_error < ROUNDING


def size_of(*sizes):
    return 4 * torch.Size(sizes).numel()


def bytes_of(node, timesteps):
    step = build(case_of(node, timesteps=timesteps, dtype="float32"))
    return retained_bytes(step)[0], peak_bytes(step)


@pytest.mark.parametrize("node", ONLINE)
def test_online_methods_keep_the_gradients_alone(node):
    """After forward b P bytes for P parameters; the peak does not depend on T."""
    parameters = 64 * HIDDEN + (DEPTH - 1) * HIDDEN**2 + (HIDDEN + 1) * 10
    short, long = bytes_of(node, 8), bytes_of(node, 32)
    assert short == long
    assert short[0] == 4 * parameters


def test_ottt_needs_one_trace_per_layer_more():
    """The peak is that of SLTT and the traces of the first layer's input and of two layers' spikes."""
    traces = size_of(BATCH, 64) + (DEPTH - 1) * size_of(BATCH, HIDDEN)
    assert bytes_of("lif+ottt", 8)[1] - bytes_of("lif+sltt", 8)[1] == traces


@pytest.mark.parametrize(("node", "kept", "membranes"), [
    ("lif+chunks-4", 4, lambda steps: steps // 4 - 2),
    ("lif+revolve-2", 1, lambda steps: 1),
    ("lif+revolve-4", 1, lambda steps: 3),
])  # fmt: skip
def test_checkpoints_keep_membranes_and_the_last_steps(node, kept, membranes):
    """What BPTT keeps of the last steps, and b N per layer for each checkpoint but the first, which is at rest."""
    last = bytes_of("lif", kept)[0]
    for steps in (8, 16, 32):
        assert bytes_of(node, steps)[0] == last + membranes(steps) * DEPTH * size_of(BATCH, HIDDEN)


@cache
def fewest(steps, checkpoints):
    """Steps run without being kept, by Bellman's recursion over where the next checkpoint is."""
    if steps == 1:
        return 0
    if checkpoints == 1:
        return steps * (steps - 1) // 2
    return min(n + fewest(n, checkpoints) + fewest(steps - n, checkpoints - 1) for n in range(1, steps))


@pytest.mark.parametrize("checkpoints", [1, 2, 3, 5])
def test_advances_are_the_fewest(checkpoints):
    """r T - C(C + r, C + 1) is the minimum over all schedules, with r the least such that T <= C(C + r, C)."""
    for steps in range(1, 40):
        assert methods.advances(steps, checkpoints) == fewest(steps, checkpoints)
    assert methods.advances(comb(checkpoints + 2, 2), checkpoints) <= 2 * comb(checkpoints + 2, 2)


@pytest.mark.parametrize("timesteps", [2, 5, 12])
@pytest.mark.parametrize("checkpoints", [1, 2, 3])
def test_revolve_runs_as_many_steps_as_stated(timesteps, checkpoints):
    """In forward and backward together T + advances(T, C) steps pass the network."""
    step = build(case_of(f"lif+revolve-{min(checkpoints, timesteps - 1)}", timesteps=timesteps))
    seen = []
    step.model.net.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    gradients(step)
    assert sum(seen) == timesteps + methods.advances(timesteps, min(checkpoints, timesteps - 1))


def test_chunks_run_all_but_the_last_again():
    """T steps in forward, T - K again."""
    step, seen = build(case_of("lif+chunks-3")), []
    step.model.net.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    gradients(step)
    assert seen == [3, 3, 2, 3, 3]


@pytest.mark.parametrize("node", ONLINE)
def test_a_gradient_that_is_not_exact_is_approximate(node):
    """Neither right nor wrong: the status says so, and the bias is there for all layers and each."""
    record = measure(case_of(node), Settings(passes=("fidelity",)))
    bias = record.fidelity.gradient_bias
    assert record.status is Status.APPROXIMATE
    assert f"{bias.relative:.2g} from that of BPTT" in record.reason
    assert bias.relative > 0.01
    assert bias.cosine < 1
    assert [*bias.by_module] == ["net.1.inner", "net.3.inner", "net.5.inner", "net.7.inner"]


def test_without_its_bias_it_is_approximate_all_the_same():
    """A run that leaves the fidelity pass out ranks it no more than any other."""
    record = measure(case_of("lif+sltt"), Settings(passes=("flops",)))
    assert record.status is Status.APPROXIMATE
    assert record.reason.endswith("its bias was not measured")


def test_bias_is_that_of_the_gradients():
    """Relative L2 and cosine against backpropagation, of all parameters and of the read-out, which no path crosses."""
    bias = measure_fidelity(subject_of(case_of("lif+sltt"))).gradient_bias
    mine, theirs = (gradients(build(case_of(node))) for node in ("lif+sltt", "lif"))
    a, b = (torch.cat([each.flatten() for each in side]) for side in (mine, theirs))
    assert bias.relative == pytest.approx(((a - b).norm() / b.norm()).item(), rel=1e-9)
    assert bias.cosine == pytest.approx((a @ b / (a.norm() * b.norm())).item(), rel=1e-9)
    assert bias.by_module["net.7.inner"][0] < ROUNDING


def test_an_output_that_is_wrong_is_wrong(monkeypatch):
    """A method may not change the forward: a loss of other steps is no bias."""
    monkeypatch.setitem(
        methods.METHODS, "sltt",
        methods.Method(lambda net, x_seq, labels: methods.sltt(net, x_seq[1:], labels), exact=False),
    )  # fmt: skip
    record = measure(case_of("lif+sltt"), Settings(passes=("fidelity",)))
    assert record.status is Status.WRONG
    assert record.reason.startswith("output_error")


@pytest.mark.parametrize(("node", "workload", "why"), [
    ("lif+sltt", "digits-net", "batch norms take their statistics over all T steps"),
    ("lif+chunks-4", "conv-blocks", "batch norms take their statistics over all T steps"),
    ("lif+ottt", "layer", "no loss at every step"),
    ("lif+tbptt-4", "pixels", "no loss at every step"),
])  # fmt: skip
def test_methods_are_refused_where_they_are_not_legal(node, workload, why):
    """The error names the reason and a workload that has none."""
    case = Case(node=node, workload=workload, shape=(64,) if workload in ("layer", "pixels") else (1, 8, 8))
    with pytest.raises(ValueError, match=f"{why}.*Pass the workload mlp"):
        build(case)


def test_norms_and_biases_are_refused():
    """A batch norm in any network over time; for OTTT a bias, whose input has no trace, or a neuron with no leak."""
    with pytest.raises(ValueError, match="`net` must have no batch norm"):
        Stepwise(nn.Sequential(nn.BatchNorm1d(3)))
    step = build(case_of("lif+ottt"))
    step.model.net[1].inner.bias = nn.Parameter(torch.zeros(HIDDEN, dtype=torch.float64))
    with pytest.raises(ValueError, match="layers without bias in front of neurons with a leak"):
        step.forward()
    assert "forward" not in vars(step.model.net[1].inner)


def test_nothing_to_cut_is_skipped():
    """A window, or a number of checkpoints, of T and more leaves plain BPTT: not measured a second time."""
    for node in ("lif+tbptt-8", "lif+revolve-9"):
        with pytest.raises(SkipCase, match="below T = 8"):
            build(case_of(node))


@pytest.mark.parametrize("name", ["lif+tbptt", "lif+tbptt-0", "lif+tbptt-x", "lif+sltt-K", "lif+ottt-3"])
def test_names_without_their_number_are_refused(name):
    """K is a number of at least 1 where a method has one, and absent where it has none."""
    with pytest.raises(ValueError, match="K stands for a number"):
        build(case_of(name))


def test_a_method_trains():
    """Two epochs of SLTT on digits: the loss falls, and accuracy is that of the mean logits."""
    trainer = Trainer(case_of("lif+sltt", dtype="float32", timesteps=4), Recipe(epochs=2))
    trainer.run_epoch()
    trainer.run_epoch()
    assert trainer.loss_by_epoch[1] < trainer.loss_by_epoch[0]
    assert trainer.accuracy_by_epoch[1] > 0.25  # one class in ten is 0.1
