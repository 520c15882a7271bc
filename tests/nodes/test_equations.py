"""Every equation alone: its in-place form, its inverse and its vector-Jacobian product against autograd."""

import pytest
import torch
from nodes_cases import NEURONS, relative_error
from nodes_tolerances import ALIKE_RTOL
from revsnn_nodes import equations as eq
from revsnn_nodes import surrogate
from revsnn_nodes.parameters import CarrierParameters, CoupledParameters, LIFParameters
from revsnn_nodes.surrogate import heaviside

RTOL = ALIKE_RTOL[torch.float64]


def _normal(*shape):
    return torch.randn(shape, dtype=torch.float64)


def _step(options):
    """Parameters, input, membrane, charge above rest and spikes of one LIF step."""
    neuron = LIFParameters(tau=1.7, v_threshold=0.7, **options)
    x, v = 2 * _normal(64) + 1, _normal(64) / 2
    h = eq.neuronal_charge(x, v, neuron)
    return neuron, x, v, h - neuron.rest, heaviside(h - neuron.v_threshold)


@pytest.mark.parametrize("start", ["tensor", "rest"])
@pytest.mark.parametrize("options", NEURONS, ids=str)
def test_step_in_buffers_is_the_step(options, start):
    """lif_step with `out` gives the bits of lif_step without, in the given storage, also over its own membrane."""
    neuron, x, v, _, _ = _step(options)
    v = v if start == "tensor" else neuron.rest
    expected = eq.lif_step(x, v, neuron, heaviside)
    buffers = torch.empty_like(x), v.clone() if start == "tensor" else torch.empty_like(x)
    got = eq.lif_step(x.clone(), buffers[1] if start == "tensor" else v, neuron, eq.fire, out=buffers)
    for have, want, buffer in zip(got, expected, buffers, strict=True):
        assert torch.equal(have, want)
        assert have.data_ptr() == buffer.data_ptr()


@pytest.mark.parametrize("options", NEURONS, ids=str)
def test_recharge_is_the_step_with_known_spikes(options):
    """Charge and membrane above rest are those of the step; the membrane may be written over the one before."""
    neuron, x, v, h, spike = _step(options)
    drive, before = neuron.input_gain * x, v - neuron.rest
    charge, after = eq.recharge(drive.clone(), before, spike, neuron)
    assert relative_error(after, eq.neuronal_reset(h + neuron.rest, spike, neuron) - neuron.rest) < RTOL
    assert relative_error(charge, h) < RTOL
    again, over = eq.recharge(drive.clone(), before, spike, neuron, out=before)
    assert torch.equal(again, charge)
    assert torch.equal(over, after)
    assert over.data_ptr() == before.data_ptr()


@pytest.mark.parametrize("name", ["Sigmoid", "ATan"])
@pytest.mark.parametrize("options", NEURONS, ids=str)
def test_product_of_the_lif_step_is_autograds(options, name):
    """lif_step_vjp is the gradient at the charge by autograd, with and without `out`, from both ends or the spikes."""
    neuron, _, _, h, spike = _step(options)
    fire, sbar, vbar = getattr(surrogate, name)(), _normal(64), _normal(64)
    leaf = (h + neuron.rest).requires_grad_()
    fired = fire(leaf - neuron.v_threshold)
    ends = fired, eq.neuronal_reset(leaf, fired, neuron)
    for arriving in (vbar, None):
        grads = (sbar, torch.zeros_like(vbar) if arriving is None else arriving)
        (expected,) = torch.autograd.grad(ends, leaf, grads, retain_graph=True)
        got = eq.lif_step_vjp(h, spike, sbar, arriving, neuron, fire)
        assert relative_error(got, expected) < RTOL
        into = torch.empty_like(h)
        eq.lif_step_vjp(h.clone(), spike.clone(), sbar, arriving, neuron, fire, out=into)
        assert relative_error(into, expected) < RTOL


@pytest.mark.parametrize("epsilon", [1 / 2, 1 / 256])
def test_carrier_output_is_taken_apart(epsilon):
    """decode_output gives spikes and epsilon x exactly; the clamp's product is autograd's, zero at the borders too."""
    neuron = CarrierParameters(epsilon=epsilon)
    x = neuron.clamp * torch.linspace(-2, 2, 65, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    clamped = eq.clamp_input(leaf, neuron)
    spike = (_normal(65) > 0).double()
    buffers = torch.empty_like(x), torch.empty_like(x)
    for out in ((None, None), buffers):
        fired, carried = eq.decode_output(spike + epsilon * clamped.detach(), out=out)
        assert torch.equal(fired, spike)
        torch.testing.assert_close(carried, epsilon * clamped.detach(), rtol=0, atol=1e-16)
    xbar = _normal(65)
    (expected,) = torch.autograd.grad(clamped, leaf, xbar)
    assert expected[x.abs() == neuron.clamp].tolist() == [0.0, 0.0]
    assert torch.equal(eq.clamp_input_vjp(xbar, carried, neuron), expected)
    assert torch.equal(eq.clamp_input_vjp(xbar, carried, neuron, out=xbar), expected)
    assert torch.equal(xbar, expected)


def _coupled_step(options, **more):
    """Parameters, input and membrane parts, and what one coupled step makes of them."""
    neuron = CoupledParameters(tau=1.7, groups=3, beta=-0.7, **options, **more)
    x, v = (eq.split(_normal(4, 12) + 1, neuron) for _ in range(2))
    return neuron, x, v, eq.coupled_step(x, v, neuron, heaviside)


@pytest.mark.parametrize("options", NEURONS, ids=str)
def test_coupled_step_is_inverted_and_regenerated(options):
    """The output and either membrane give back the other one, the charges and the input."""
    neuron, x, v, (y, v_next, charges) = _coupled_step(options)
    x_first, v_back, charges_back = eq.invert_membranes(y, v_next, neuron)
    v_again, charges_again = eq.regenerate_step(y, v, neuron)
    x_back = eq.recover_inputs(y, charges_back, neuron)
    pairs = [(v_back, v), (charges_back, charges), (v_again, v_next), (charges_again, charges), (x_back, x)]
    for got, expected in [*pairs, ([x_first], x[:1])]:
        torch.testing.assert_close(list(got), list(expected), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("reset_gate", ["output", "spike"])
@pytest.mark.parametrize("options", NEURONS, ids=str)
def test_product_of_the_coupled_step_is_autograds(options, reset_gate):
    """coupled_step_vjp gives the gradients of input and membrane that autograd gives through the step."""
    neuron, x, v, (y, _, charges) = _coupled_step(options, reset_gate=reset_gate)
    fire = surrogate.ATan()
    leaves = [part.clone().requires_grad_() for part in (*x, *v)]
    outputs, membranes, _ = eq.coupled_step(leaves[:3], leaves[3:], neuron, fire)
    ybar, vbar = ([_normal(4, 4) for _ in range(3)] for _ in range(2))
    expected = torch.autograd.grad((*outputs, *membranes), leaves, (*ybar, *vbar))
    xbar, vbar_before = eq.coupled_step_vjp(y, charges, ybar, vbar, neuron, fire.derivative)
    for got, want in zip((*xbar, *vbar_before), expected, strict=True):
        assert relative_error(got, want) < RTOL
