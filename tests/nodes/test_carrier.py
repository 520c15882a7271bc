"""CarrierLIF and its control: values, gradients, what an output gives back, and precision."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nodes_cases import NEURONS, Problem, assert_ends_close, differentiate, make, run_node, run_oracle
from nodes_replay import gradient_errors
from nodes_tolerances import RTOL
from revsnn_nodes import ClampWarning, StandardLIF, decode_spikes
from torch.utils._python_dispatch import TorchDispatchMode

TIGHT = RTOL[torch.float64]


@pytest.mark.usefixtures("on_each_backend")
@pytest.mark.parametrize("spread", [1.0, 30.0])
@pytest.mark.parametrize("epsilon", [1 / 2, 1 / 16, 1 / 256])
@pytest.mark.parametrize("v_reset", [0.4, None])
def test_carrier_at_any_scale_with_inputs_past_the_clamp(v_reset, epsilon, spread):
    """Any epsilon; inputs beyond the clamp are cut and get no gradient."""
    problem = Problem(steps=6)
    problem.x *= spread
    border = 31 / 64 / epsilon
    problem.x[0, 0, :3] = torch.tensor([border, -border, border * (1 + 1e-9)])
    node = make("lif-carrier", epsilon=epsilon, v_reset=v_reset)
    got = differentiate(run_node(node), problem)
    assert_ends_close(
        got, differentiate(run_oracle("lif-carrier", epsilon=epsilon, v_reset=v_reset), problem), 256 * TIGHT
    )
    outside = problem.x.abs() >= border
    assert torch.equal(got.x_grad == 0, outside)
    assert node.clamped_fraction(got.y) == pytest.approx(outside.double().mean().item())


@pytest.mark.usefixtures("on_each_backend")
@pytest.mark.parametrize("neuron", [*NEURONS, {"epsilon": 1 / 256}, {"carrier": "always"}], ids=str)
def test_stored_carrier_is_the_carrier_by_plain_autograd(neuron):
    """The control of CarrierLIF: the same output and membrane to the bit in float32, and the loop's gradients."""
    node = make("lif-carrier", **neuron)
    stored = node.reference()
    assert type(stored).__name__ == "StoredCarrierLIF"
    single = Problem(steps=20).to(torch.float32)
    for end in ("y", "v"):
        got, expected = (getattr(differentiate(run_node(n), single), end) for n in (node, stored))
        assert torch.equal(got, expected)
    assert_ends_close(differentiate(run_node(node), Problem()), differentiate(run_node(stored), Problem()), TIGHT)


@pytest.mark.parametrize("epsilon", [1 / 16, 1 / 256])
def test_carrier_spikes_are_the_lifs(epsilon):
    """decode_spikes of a training output equals StandardLIF on the clamped input to the bit, as do the membranes."""
    x = 4 * Problem(steps=30, shape=(3, 50)).x.float()
    for neuron in ({}, {"v_reset": None}, {"decay_input": False, "v_reset": -0.1}):
        node, plain = make("lif-carrier", epsilon=epsilon, **neuron), StandardLIF(**neuron, step_mode="m")
        border = node.neuron.clamp
        y, spikes = node(x), plain(x.clamp(-border, border))
        assert torch.equal(decode_spikes(y), spikes)
        assert torch.equal(node.v, plain.v)
        held, fired = node.decode(y)
        assert torch.equal(fired, spikes)
        assert torch.equal(held[spikes == 0], x.clamp(-border, border)[spikes == 0])


@pytest.mark.parametrize(("neuron", "unit"), [
    ({}, 1.0), ({"v_threshold": 0.3}, 0.5), ({"v_threshold": -55.0, "v_reset": -70.0}, 16.0),
    ({"v_threshold": 8.0}, 8.0),
])  # fmt: skip
def test_the_clamp_scales_with_what_fires_the_neuron(neuron, unit):
    """It lies at 7.75 times the power of two at or above threshold - rest, so that millivolts lose no input."""
    assert make("lif-carrier", **neuron).neuron.clamp == 7.75 * unit


@pytest.mark.usefixtures("on_each_backend")
@pytest.mark.filterwarnings("error")
def test_a_clamp_that_bites_is_said_once():
    """With the fraction; at calls 1, 2, 4, 8, in training alone, and not where operations are counted."""
    inside, beyond = torch.full((2, 1, 4), 7.74), torch.tensor([7.75, 0.0, -9.0, 1.0]).expand(2, 1, 4)
    node = make("lif-carrier")
    with CountOperations() as count:
        node(beyond)
    assert "aten::aminmax" not in count.names
    node.eval()(beyond)
    node.train()
    for _ in range(2):
        node(inside)
    node(beyond)  # the third
    with pytest.warns(ClampWarning, match=r"clamps its input to \[-7.75, 7.75\] in training, and 0.5 of it lies there"):
        node(beyond)
    for _ in range(4):
        node(beyond)


class CountOperations(TorchDispatchMode):
    """Names of the operations that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


def test_nothing_is_clamped_in_eval():
    """In eval() the node is StandardLIF for inputs of any size."""
    x = 100 * torch.randn(4, 2, 6)
    assert torch.equal(make("lif-carrier").eval()(x), make("lif")(x))


def test_carrier_is_binary_in_eval():
    """eval() emits the spikes alone; carrier="always" keeps the carrier there; train() brings it back."""
    x = Problem().x
    node, always = make("lif-carrier"), make("lif-carrier", carrier="always")
    carried = node(x)
    spikes = decode_spikes(carried)
    for module in (node.eval(), always.eval()):
        module.reset()
    assert torch.equal(node(x), spikes)
    assert torch.equal(always(x), carried)
    node.train().reset()
    assert torch.equal(node(x), carried)


def test_carrier_in_eval_has_the_lifs_gradient():
    """A gradient asked for in eval(), as in saliency maps, is that of the plain LIF."""
    x = Problem(carried=False).x.requires_grad_()
    got = torch.autograd.grad(make("lif-carrier").eval()(x).sum(), x)[0]
    assert torch.equal(got, torch.autograd.grad(StandardLIF(backend="torch", step_mode="m")(x).sum(), x)[0])


@pytest.mark.usefixtures("on_each_backend")
@pytest.mark.parametrize("v_reset", [0.0, None])
def test_carrier_error_grows_with_one_over_epsilon_only(v_reset):
    """1/256 costs the sixteenfold of 1/16 in rounding, is below 1e-5 still, and both are flat in T."""
    for epsilon, bound in ((1 / 16, 1e-6), (1 / 256, RTOL[torch.float32])):
        short, long = (
            gradient_errors("lif-carrier", torch.float32, steps, epsilon=epsilon, v_reset=v_reset)[0]
            for steps in (4, 64)
        )
        assert max(short, long) < bound
        assert long < 2 * short


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    exponent=st.integers(1, 10), seed=st.integers(0, 999), scale=st.floats(0.01, 1000.0),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
)  # fmt: skip
def test_carrier_gives_back_what_it_was_given(exponent, seed, scale, dtype):
    """Spikes to the bit; inputs to half an ulp(1) over epsilon, and to the bit where silent and epsilon x is normal."""
    x = (scale * torch.randn(6, 2, 16, generator=torch.Generator().manual_seed(seed))).to(dtype)
    node = make("lif-carrier", epsilon=2.0**-exponent)
    y = node(x)
    held, spikes = node.decode(y)
    clamped = x.clamp(-node.neuron.clamp, node.neuron.clamp)
    assert torch.equal(spikes, make("lif")(clamped))
    assert torch.equal(decode_spikes(y), spikes)
    exact = (spikes == 0) & (clamped.abs() * 2.0**-exponent >= torch.finfo(dtype).tiny)
    assert torch.equal(held[exact], clamped[exact])
    ulp = torch.finfo(dtype).eps * 2.0**exponent
    assert (held.double() - clamped.double()).abs().max().item() <= ulp / 2
    assert math.isclose(node.clamped_fraction(y), (x.abs() >= node.neuron.clamp).double().mean().item(), abs_tol=0.02)
