"""A gradient that names no reference is judged by differences of its own forward, never by itself."""

from functools import partial

import planted_faults
import pytest
import torch
from own_models import per_step, wrong_backend
from revsnn_nodes import StandardLIF, registry, surrogate
from scipy import stats
from torch import nn

from revsnn_bench import Case, Settings, measure
from revsnn_bench.meters.oracle import CALLS, DIRECTIONS, FAR, FEW, errors_of_functions, measure_oracle_errors
from revsnn_bench.meters.step import TrainingStep
from revsnn_bench.records import NoOracle, Status

TOLERANCE = 1e-3


class NodeStep(TrainingStep):
    """A step whose nodes are reset before it."""

    def reset_state(self) -> None:
        for module in self.model.modules():
            if callable(getattr(module, "reset", None)):
                module.reset()


def errors_of(model: nn.Module, shape=(5, 4, 64), dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).add_(0.5).to(dtype).requires_grad_()
    return measure_oracle_errors(NodeStep(model, x))


@pytest.mark.parametrize("name", planted_faults.RIGHT)
def test_a_right_gradient_without_a_reference_is_right(name):
    """Nodes by plain autograd agree with the differences to rounding, over two calls, for input and parameter."""
    found = errors_of(planted_faults.RIGHT[name]())
    assert max(found.input, found.states) < 1e-5
    assert found.parameters < TOLERANCE


@pytest.mark.parametrize("name", planted_faults.WRONG)
def test_a_planted_fault_is_found(name):
    """No fault passes the tolerance, be it in the input's or the parameter's gradient, in the first call or later."""
    found = errors_of(planted_faults.WRONG[name]())
    assert max(found.input, found.parameters, found.states) > TOLERANCE


@pytest.mark.filterwarnings("ignore")  # of the compiler
def test_the_gradient_of_compiled_code_is_what_is_judged():
    """What fires is watched where the model runs as it is written, and its gradient is right there."""
    wrong = torch.compile(planted_faults.Planted(), backend=wrong_backend())
    right = torch.compile(planted_faults.Planted(), backend="aot_eager")
    assert errors_of(wrong).input > 1
    assert errors_of(right).input < 1e-5


def test_the_error_is_estimated_in_size():
    """A gradient three times too large is off by 2; one that is 1 % too large by 0.01."""
    assert errors_of(planted_faults.WRONG["three times"]()).input == pytest.approx(2.0, rel=1e-3)
    assert errors_of(planted_faults.WRONG["one percent"]()).input == pytest.approx(0.01, rel=1e-3)


def test_a_gradient_far_within_the_tolerance_takes_few_directions():
    """One that is wrong by a twentieth of the tolerance takes all: its estimate may be off by more than one of few."""
    runs = {}
    for name, at_input in {"right": None, "nearer": lambda g: (1 + TOLERANCE / 20) * g}.items():
        model, calls = planted_faults.Planted(at_input=at_input), []
        model.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        assert errors_of(model).input < TOLERANCE
        runs[name] = len(calls)
    assert runs["nearer"] - runs["right"] == 2 * CALLS * (DIRECTIONS - FEW)
    assert float(stats.f.cdf(FAR**2, FEW, FEW)) < 1e-7


@pytest.mark.parametrize("kind", [surrogate.Sigmoid, surrogate.ATan, surrogate.PiecewiseQuadratic, surrogate.Rect])
def test_our_reference_passes_the_independent_check(kind):
    """StandardLIF by plain autograd, in both resets: the definition agrees with differences of itself."""
    for v_reset in (0.0, None):
        node = StandardLIF(v_reset=v_reset, surrogate_function=kind(), step_mode="m", backend="torch")
        assert errors_of(node).input < 1e-5


def test_a_network_with_weights_is_judged():
    """Linear layers around a node: input and weights agree with the differences."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 48), planted_faults.Planted(), nn.Linear(48, 8), planted_faults.Planted())
    found = errors_of(model, (6, 4, 32))
    assert max(found.input, found.parameters) < TOLERANCE


def pooled(*, behind, at_input=None):
    """A convolution, a node without a reference, and a pooling before or behind the node, or a `relu` before it."""
    torch.manual_seed(0)
    node, conv = planted_faults.Planted(at_input=at_input), per_step(nn.Conv2d(2, 16, 3, padding=1))
    head = per_step(nn.Flatten(), nn.Linear(16 * 64, 4))
    between = [node, per_step(nn.MaxPool2d(2))] if behind else [per_step(nn.MaxPool2d(2), nn.ReLU()), node]
    return nn.Sequential(conv, *between, head)


@pytest.mark.parametrize("behind", [True, False], ids=["of spikes that tie", "of values"])
def test_maxima_stay_where_they_were_found(behind):
    """Differences that change the place of a maximum judged right gradients wrong by 0.03 to 1.2; a fault still is."""
    found = errors_of(pooled(behind=behind), (4, 2, 2, 16, 16))
    assert max(found.input, found.parameters, found.states) < 1e-5
    faulty = errors_of(pooled(behind=behind, at_input=lambda g: 1.01 * g), (4, 2, 2, 16, 16))
    assert faulty.input == pytest.approx(0.01, rel=0.2)


def test_float64_is_judged_to_its_own_tolerance():
    """In float64 the differences are exact to 1e-7, so the tolerance of that dtype can be held."""
    assert errors_of(planted_faults.Planted(), dtype=torch.float64).input < 1e-7


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (planted_faults.HiddenSpikes(), "does not fire through a surrogate"),
        (StandardLIF(detach_reset=True, step_mode="m", backend="torch"), "its reset is detached"),
    ],
    ids=["hidden spikes", "detached reset"],
)
def test_what_cannot_be_judged_says_why(model, why):
    """Where differences cannot decide, there is no error to show, but a reason."""
    with pytest.raises(NoOracle, match=why):
        errors_of(model)


FIDELITY = Settings(passes=("fidelity",))


@pytest.fixture
def verdict_on(monkeypatch):
    """Gives the record of a foreign node, measured by its name as every node is."""

    def measured(make, node="planted", **changes):
        monkeypatch.setitem(registry._NODES, node, make)
        return measure(Case(node=node, timesteps=6, **{"batch": 2, "shape": (64,)} | changes), FIDELITY)

    return measured


def test_a_foreign_node_is_judged_by_differences(verdict_on):
    """Right nodes are ok and say by what they were judged; a tripled and flipped gradient is wrong, not "right"."""
    record = verdict_on(planted_faults.Planted)
    assert (record.status, record.fidelity.judged_by) == (Status.OK, "differences")
    assert record.fidelity.output_error is None
    assert verdict_on(planted_faults.WRONG["three times and flipped"]).status is Status.WRONG


def test_what_nothing_can_judge_is_unverified(verdict_on):
    """It is shown with the reason, and it is not ok; nor is a node that has the name of a user's model as it is."""
    for name in ("planted", "as-is"):
        record = verdict_on(planted_faults.HiddenSpikes, name)
        assert (record.status, record.fidelity) == (Status.UNVERIFIED, None)
    assert "does not fire through a surrogate" in record.reason


def test_no_node_is_its_own_reference(verdict_on):
    """A node that names itself is judged by differences all the same."""

    class Itself(planted_faults.Planted):
        def reference(self):
            return self

    record = verdict_on(lambda: Itself(at_input=lambda g: 3 * g))
    assert (record.status, record.fidelity.judged_by) == (Status.WRONG, "differences")


def test_a_node_without_a_membrane_is_not_its_own_reference(verdict_on):
    """A foreign module that carries no state is judged by differences too; its copy never stands for it."""

    class Stateless(nn.Module):
        def __init__(self):
            super().__init__()
            self.surrogate_function = surrogate.Sigmoid()

        def forward(self, x_seq):
            return self.surrogate_function(planted_faults.twisted(x_seq, lambda g: 3 * g) - 1.0)

    record = verdict_on(Stateless)
    assert (record.status, record.fidelity.judged_by) == (Status.WRONG, "differences")


def test_a_node_may_name_its_reference(verdict_on):
    """Where it does, output and gradient are held against that."""

    class Named(planted_faults.HiddenSpikes):
        def reference(self):
            return StandardLIF(step_mode="m", backend="torch")

    record = verdict_on(Named)
    assert (record.status, record.fidelity.judged_by, record.fidelity.output_error) == (Status.OK, "reference", 0.0)


def test_a_subclass_with_a_further_parameter_is_measured(verdict_on):
    """Its parameter's gradient is judged too, by differences, since the reference has no such parameter."""

    class Scaled(StandardLIF):
        def __init__(self, **options):
            super().__init__(**options)
            self.scale = nn.Parameter(torch.tensor(1.2))

        def torch_sequence(self, x_seq, v):
            return super().torch_sequence(x_seq * self.scale, v)

    record = verdict_on(Scaled)
    assert (record.status, record.fidelity.judged_by) == (Status.OK, "differences")
    assert record.fidelity.parameter_gradient_error < TOLERANCE


def test_a_small_parameter_is_not_lost_among_large_ones(verdict_on):
    """Its gradient is zero, which is less than the tolerance of all gradients together; the record says which error."""

    class Named(planted_faults.Offset):
        def reference(self):
            return planted_faults.Offset()

    assert verdict_on(Named).status is Status.OK
    record = verdict_on(lambda: Named(lambda g: g * 0))
    assert (record.status, record.fidelity.judged_by) == (Status.WRONG, "reference")
    assert record.fidelity.parameter_gradient_error < record.fidelity.tolerance
    assert record.reason.startswith("largest_parameter_error ")


def test_a_fault_of_the_carried_state_is_found_against_a_reference(verdict_on):
    """A node that names its reference, right in one call, is wrong where the membrane's gradient is lost."""

    class Cut(StandardLIF):
        def __init__(self, **options):
            super().__init__(**{"step_mode": "m"} | options)

        def torch_sequence(self, x_seq, v):
            return super().torch_sequence(x_seq, v.detach() if isinstance(v, torch.Tensor) else v)

    record = verdict_on(Cut)
    assert record.status is Status.WRONG
    assert record.reason.startswith("state_gradient_error 1")


def test_a_fault_beyond_the_slice_is_found(monkeypatch, verdict_on):
    """A layer too large for float64 is judged as a whole too: a wrong gradient of its last sample is found."""

    class Last(StandardLIF):
        def __init__(self, **options):
            super().__init__(**{"step_mode": "m"} | options)

        def torch_sequence(self, x_seq, v):
            wrong = x_seq.clone()
            wrong[:, 6:] = planted_faults.twisted(x_seq[:, 6:], lambda g: 3 * g)
            return super().torch_sequence(wrong, v)

    monkeypatch.setattr("revsnn_bench.models.reference.LARGEST_REFERENCE", 6 * 64 * 3)
    record = verdict_on(Last, batch=8)
    assert record.status is Status.WRONG
    assert record.fidelity.neurons == 8 * 64
    monkeypatch.setattr("revsnn_bench.models.reference.LARGEST_REFERENCE", 6 * 64 * 8)
    assert verdict_on(partial(StandardLIF, step_mode="m"), batch=8).status is Status.OK


def test_spikingjelly_is_held_against_our_lif():
    """Its rows are judged by our float64 LIF, soft and hard reset, not by themselves."""
    for v_reset in (0.0, None):
        case = Case(node="spikingjelly", timesteps=6, batch=2, shape=(64,), node_options={"v_reset": v_reset})
        record = measure(case, FIDELITY)
        assert (record.status, record.fidelity.judged_by, record.fidelity.output_error) == (Status.OK, "reference", 0.0)


class Tanh(torch.autograd.Function):
    """Right: two inputs, two outputs of which one decides, and a context of its own."""

    @staticmethod
    def forward(x, weight):
        return x.tanh() * weight, x > 0

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient, _):
        x, weight = ctx.saved_tensors
        return gradient * weight * (1 - x.tanh() ** 2), (gradient * x.tanh()).sum()


class ForgetsTheSquare(Tanh):
    """Wrong: as `Tanh`, without the square of its derivative."""

    @staticmethod
    def forward(x, weight):
        return Tanh.forward(x, weight)

    @staticmethod
    def backward(ctx, gradient, _):
        x, weight = ctx.saved_tensors
        return gradient * weight * (1 - x.tanh()), (gradient * x.tanh()).sum()


class Clipped(torch.autograd.Function):
    """A straight-through estimator: it passes the gradient on where it has clipped."""

    forward = staticmethod(lambda ctx, x, weight: x.clamp(-1, 1))
    backward = staticmethod(lambda ctx, gradient: (gradient, None))


class Rounded(Clipped):
    """Another one, whose forward has no derivative that could be meant."""

    forward = staticmethod(lambda ctx, x, weight: (8 * x).round() / 8)


class Drops(torch.autograd.Function):
    """Right for the mask that it drew, with a kink at 0."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.passed = (torch.rand_like(x) < 0.5) & (x > 0)
        return torch.where(ctx.passed, x, 0.0)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.passed, None


class InFloat32(torch.autograd.Function):
    """Wrong, and told nothing of: it runs in no other precision."""

    @staticmethod
    def forward(ctx, x, weight):
        if x.dtype is not torch.float32:
            raise TypeError(x.dtype)
        return x * weight

    backward = staticmethod(lambda ctx, gradient: (gradient, None))


class AroundFunction(nn.Module):
    """A custom function between two layers, before a neuron."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 4)
        self.weight = nn.Parameter(torch.tensor(1.5))
        self.neuron = StandardLIF(step_mode="m")

    def forward(self, x):
        y = self.function.apply(2 * self.first(x), self.weight)
        return self.second(self.neuron(y[0] if isinstance(y, tuple) else y))


def wrong_function():
    return AroundFunction(ForgetsTheSquare)


@pytest.mark.parametrize("function", [Tanh, ForgetsTheSquare, Clipped, Rounded, Drops, InFloat32])
def test_a_custom_function_is_held_against_its_own_forward(function):
    """By name and size where it is not its derivative; the class is left as it was."""
    forward = vars(function)["forward"]
    x = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = errors_of_functions(NodeStep(AroundFunction(function), x))
    assert vars(function)["forward"] is forward
    assert [*found] == ([function.__name__] if function in (ForgetsTheSquare, Clipped) else [])
    assert all(0.3 < error < 1.5 for error in found.values())


def test_a_wrong_custom_function_is_told():
    """No case can judge it, for the model is its own reference; each says so."""
    workload = "tests.bench.test_oracle:wrong_function"
    case = Case(node="lif+remat", workload=workload, timesteps=4, batch=8, shape=(8,))
    record = measure(case, Settings(passes=("fidelity",)))
    assert record.status is Status.OK, record.reason
    assert "the backward of ForgetsTheSquare is not the derivative of its forward" in record.fidelity.warning
