"""Fused coupled LIF in bfloat16 on the CPU: against the float64 oracle, given the very spikes that fired."""

import math

import nodes_oracle as oracle
import pytest
import torch
from nodes_cases import (
    ROWS,
    Problem,
    assert_ends_close,
    differentiate,
    make,
    relative_error,
    row_for,
    run_node,
    run_oracle,
)
from nodes_replay import gradient_errors
from nodes_tolerances import RTOL
from revsnn_nodes import DriftError, DriftWarning, predicted_gradient_error, surrogate
from revsnn_nodes.kernels.cpu import machine as threads
from revsnn_nodes.kernels.layout import numbers

NAMES = ("revlif", "revlif-anchored")
MODES = [(row_for("revlif", row), row["reset_gate"]) for row in ROWS]
"""Neuron and gate of the reset."""
ROUNDING = 2.0**-8
"""Half a unit in the last place of bfloat16, relative to the number."""
STEPS = {"revlif": 2, "revlif-anchored": 5}
"""Over which the gradients of input and state keep the tolerance of bfloat16; the inverse loses it at the third."""


def _problem(**how):
    return Problem(**how).to(torch.bfloat16)


def _truth(name, got, problem, through="yv", **options):
    """What the float64 oracle gives for the spikes in an output."""
    coupling = options.get("groups", 2), options.get("group_dim", 1), options.get("beta", 1.0)
    spikes = oracle.spikes_in_coupled_output(got.y, problem.x, *coupling)
    return differentiate(run_oracle(name, spike_seq=spikes, **options), problem.to(torch.float64), through)


@pytest.mark.parametrize("steps", [4, 128])
@pytest.mark.parametrize(("neuron", "gate"), MODES, ids=str)
def test_regenerated_gradients_are_a_few_roundings_wrong_at_every_length(neuron, gate, steps):
    """Two for the input, four for the carried state, half of what the reference is allowed; at high rates too."""
    for mean in (0.3, 1.5):
        for_input, for_state = gradient_errors(
            "revlif-anchored",
            torch.bfloat16,
            steps,
            mean=mean,
            carried=True,
            backend="fused",
            reset_gate=gate,
            **neuron,
        )
        assert for_input < 2 * ROUNDING
        assert for_state < 4 * ROUNDING


@pytest.mark.parametrize("neuron", [{}, {"v_reset": None}, {"alpha": 0.2}, {"tau": 8.0}], ids=str)
def test_inverse_is_no_worse_than_the_references(neuron):
    """Right to two roundings for three steps; from there both lose their digits alike."""
    for steps in (1, 2, 3, 4, 8):
        fused, reference = (
            gradient_errors("revlif", torch.bfloat16, steps, shape=(2, 512), backend=backend, **neuron)[0]
            for backend in ("fused", "torch")
        )
        assert fused < (2 * ROUNDING if steps <= 3 else 1.2 * reference)


def test_inverse_is_wrong_beyond_a_few_steps_and_says_so():
    """By 3 % at T = 8, where the guard predicts 100 %; by more than its tolerance at every T, so it always speaks."""
    node = make("revlif", backend="fused", on_drift="warn")
    error = gradient_errors("revlif", torch.bfloat16, 8, shape=(2, 512), backend="fused")[0]
    assert 0.02 < error < predicted_gradient_error(8, node.neuron, torch.bfloat16)
    x = _problem(steps=1, carried=False).x.requires_grad_()
    with pytest.warns(DriftWarning, match=r"T = 1 steps.*bfloat16 its gradient is predicted to be wrong"):
        node(x)
    assert node.backend_in_use == "fused"
    node(x)  # once per node: a second warning would be an error here
    strict = make("revlif", backend="fused", on_drift="error")
    with pytest.raises(DriftError, match="CarrierLIF or AnchoredReversibleLIF"):
        strict(x)
    assert strict.v == 0.0
    with torch.no_grad():
        strict(x)


@pytest.mark.parametrize(("neuron", "gate"), [
    *MODES, ({"groups": 3, "beta": -0.7}, "output"), ({"groups": 3, "beta": -0.7}, "spike"),
    ({"alpha": 0.9, "beta": 0.25}, "output"), ({"alpha": 0.9, "beta": 0.25}, "spike"),
], ids=str)  # fmt: skip
def test_spikes_are_the_references_in_bfloat16(neuron, gate):
    """To the bit under the output's gate; under the spike's, save where the kernel rounds an output the other way."""
    problem, node = _problem(steps=6, shape=(4, 600), carried=False), make("revlif-anchored", reset_gate=gate, **neuron)
    got, expected = (
        make("revlif-anchored", backend=backend, reset_gate=gate, **neuron)(problem.x) for backend in ("fused", "torch")
    )
    if gate == "output":
        assert torch.equal(got, expected)
    fired, wanted = node.spikes(problem.x, got), node.spikes(problem.x, expected)
    assert (fired != wanted).double().mean() < 0.02
    assert 0.01 < fired.double().mean() < 0.9
    assert relative_error(got[fired == wanted], expected[fired == wanted]) < ROUNDING


@pytest.mark.parametrize("gate", ["output", "spike"])
def test_anchors_are_the_membranes_of_the_forward(gate):
    """To the bit: those that single steps pass through."""
    x, node = _problem(steps=5, carried=False).x, make("revlif-anchored", backend="fused", reset_gate=gate)
    anchors = torch.ops.revsnn.coupled_forward(
        x, None, numbers(node.neuron), True, False, gate == "spike", 2, -1, 1
    )[2]  # fmt: skip
    for step, anchor in zip(x[:-1], anchors, strict=True):
        node(step.unsqueeze(0))
        assert torch.equal(node.v, anchor)


@pytest.mark.parametrize("neuron", [{}, {"beta": -0.3}, {"v_reset": None, "tau": 2.7}, {"alpha": 1.0}], ids=str)
def test_regenerated_spikes_are_those_that_fired(neuron):
    """Under the spike's gate an anchor at every step changes no bit of the gradient: no group decides otherwise again.

    An output is the number nearest to spike plus carried input, or where that would fire again otherwise, its
    neighbour: which happens, but rarely.
    """
    problem = _problem(steps=6, shape=(2, 20_000), mean=1.2)
    runs = [
        differentiate(
            run_node(make("revlif-anchored", backend="fused", reset_gate="spike", anchor_every=every, **neuron)),
            problem,
        )
        for every in (None, 1)
    ]
    assert torch.equal(runs[0].x_grad, runs[1].x_grad)
    assert torch.equal(runs[0].v_grad, runs[1].v_grad)
    beta, y = neuron.get("beta", 1.0), runs[0].y.float()
    carried = beta * torch.cat(problem.x.float().chunk(2, -1)[::-1], -1)
    exact = oracle.spikes_in_coupled_output(y, problem.x, 2, -1, beta) + carried
    nearest = exact.bfloat16().float()
    assert ((y - exact).abs() <= 2 * ROUNDING * exact.abs()).all()
    assert 0 < (y != nearest).sum() < 1e-3 * y.numel()
    assert torch.equal(y[..., :10_000], nearest[..., :10_000])


@pytest.mark.parametrize("every", [1, 2, 3, 100])
def test_segments_change_the_first_groups_rounding_only(every):
    """Under the output's gate: its input is carried with a rounding, which an anchor makes good."""
    problem, whole = _problem(steps=6, shape=(2, 600)), make("revlif-anchored", backend="fused")
    got = differentiate(run_node(make("revlif-anchored", backend="fused", anchor_every=every)), problem)
    expected = differentiate(run_node(whole), problem)
    assert torch.equal(got.y, expected.y)
    assert_ends_close(got, expected, ROUNDING)


@pytest.mark.parametrize(("shape", "groups", "group_dim"), [
    ((2, 12), 2, -1), ((2, 12), 12, -1), ((40, 3, 4, 6), 4, -2), ((3, 4, 5, 6), 5, -2), ((90, 66), 2, -1),
    ((2, 9000), 2, -1), ((2, 6, 3000), 3, -2), ((700, 10), 5, -1),
])  # fmt: skip
@pytest.mark.parametrize("name", NAMES)
def test_any_number_of_groups_in_bfloat16(name, shape, groups, group_dim):
    """Inner rows of one element, of some dozens and of thousands, in blocks that they do not divide."""
    coupling = {"groups": groups, "group_dim": group_dim, "alpha": 0.4, "beta": -0.7}
    errors = gradient_errors(
        name, torch.bfloat16, STEPS[name], shape, mean=0.5, carried=True, backend="fused", **coupling
    )  # fmt: skip
    assert max(errors) < RTOL[torch.bfloat16]


@pytest.mark.parametrize(("name", "kind"), [
    ("revlif", "Sigmoid"), ("revlif-anchored", "ATan"), ("revlif", "PiecewiseQuadratic"),
    ("revlif-anchored", "PiecewiseExp"), ("revlif", "SoftSign"), ("revlif", "SuperSpike"), ("revlif-anchored", "Erf"),
    ("revlif", "Rect"),
])  # fmt: skip
def test_every_surrogate_in_bfloat16(name, kind):
    """Each surrogate's derivative; at the rectangle's edges a rounding decides between all and nothing."""
    problem = _problem(steps=STEPS[name], shape=(2, 600), seed=3)
    got = differentiate(run_node(make(name, backend="fused", surrogate_function=getattr(surrogate, kind)())), problem)
    assert_ends_close(got, _truth(name, got, problem, phi=kind), RTOL[torch.bfloat16] * (4 if kind == "Rect" else 1))


@pytest.mark.parametrize("carried", [True, False])
@pytest.mark.parametrize("through", ["y", "v", "yv"])
@pytest.mark.parametrize("name", NAMES)
def test_gradient_may_arrive_at_either_end_in_bfloat16(name, through, carried):
    """Output, membrane or both; from rest and from a carried state."""
    problem = _problem(steps=STEPS[name], shape=(2, 600), carried=carried)
    got = differentiate(run_node(make(name, backend="fused")), problem, through)
    assert_ends_close(got, _truth(name, got, problem, through), RTOL[torch.bfloat16])


@pytest.mark.parametrize("features", [2 * 5, 2 * (threads.SERIAL_ELEMENTS // 10 + 1)])
@pytest.mark.parametrize("options", [{"groups": 2}, {"groups": 2, "reset_gate": "spike", "anchor_every": 2}], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_sizes_that_nothing_divides_on_several_threads_in_bfloat16(name, options, features):
    """The same bits from one thread and three, and from any strides; short inner rows and long ones."""
    if name == "revlif":
        options = {"groups": 2}
    x = torch.randn(5, threads.SERIAL_ELEMENTS // 5 // features + 3, features, dtype=torch.bfloat16)
    results = []
    for count, given in ((1, x), (3, x), (2, x.transpose(0, 1).contiguous().transpose(0, 1))):
        torch.set_num_threads(count)
        leaf = given.detach().requires_grad_()
        y = make(name, backend="fused", **options)(leaf)
        results.append((y, torch.autograd.grad(y.float().square().sum(), leaf)[0]))
    for y, grad in results[1:]:
        assert torch.equal(y, results[0][0])
        assert torch.equal(grad, results[0][1])


@pytest.mark.parametrize("name", NAMES)
def test_extremes_pass_through_in_bfloat16(name):
    """A batch of no samples gives no elements; infinite and huge inputs fire, and stay what they are in the output."""
    assert differentiate(run_node(make(name, backend="fused")), _problem(shape=(0, 4))).x_grad.shape == (5, 0, 4)
    for gate in ("output", "spike") if name == "revlif-anchored" else ("output",):
        x = torch.tensor([[[math.inf, 1e38, -math.inf, -1e38]]], dtype=torch.bfloat16)
        node = make(name, backend="fused", reset_gate=gate)
        assert torch.equal(node(x), make(name, reset_gate=gate)(x))
