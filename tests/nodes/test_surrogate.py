"""Surrogates: exact spikes, derivatives of their primitives, SpikingJelly's values, and its objects in every node."""

import nodes_oracle as oracle
import pytest
import torch
from nodes_cases import ALL, Problem, assert_ends_close, differentiate, foreign_import_is_silent, make, run_node
from nodes_tolerances import ALIKE_RTOL, INVERSE_RTOL_FLOAT64
from revsnn_nodes import StandardLIF, surrogate

SHARPNESS = (None, 0.7, 3.0)
# No grid point lies on a kink: z = 0, 1 / alpha, 1 / (2 alpha).
GRID = torch.linspace(-2.999, 3.0, 1001, dtype=torch.float64)


def _phi(function, z):
    z = z.clone().requires_grad_()
    return torch.autograd.grad(function(z).sum(), z)[0]


@pytest.mark.parametrize("alpha", SHARPNESS)
@pytest.mark.parametrize("name", list(oracle.PHI))
def test_derivative_is_that_of_the_primitive(name, alpha):
    """phi by formula equals the float64 autograd derivative of the primitive, and the oracle's own formula."""
    function = getattr(surrogate, name)(alpha)
    default, phi = oracle.PHI[name]
    torch.testing.assert_close(function.derivative(GRID), _phi(function.primitive, GRID), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(function.derivative(GRID), phi(GRID, alpha or default), rtol=1e-10, atol=1e-12)
    assert torch.equal(_phi(function, GRID), function.derivative(GRID))


@pytest.mark.parametrize("alpha", SHARPNESS)
@pytest.mark.parametrize("name", list(oracle.PHI))
def test_derivative_in_place_is_the_derivative(name, alpha):
    """derivative_ gives phi(z) too, and may write it over z; that of the default surrogate does."""
    function, z = getattr(surrogate, name)(alpha), GRID.clone()
    phi = function.derivative_(z)
    torch.testing.assert_close(phi, function.derivative(GRID), rtol=1e-12, atol=1e-15)
    assert (phi.data_ptr() == z.data_ptr()) == (name == "Sigmoid")


@pytest.mark.parametrize("name", list(oracle.PHI))
def test_spike_is_exact_at_the_threshold(name):
    """Theta(0) = 1, and the numbers next to it fire as their sign says, in every dtype."""
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        tiny = torch.finfo(dtype).tiny
        z = torch.tensor([-tiny, -0.0, 0.0, tiny], dtype=dtype)
        spike = getattr(surrogate, name)()(z)
        assert spike.dtype == dtype
        assert spike.tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize("name", list(oracle.PHI))
def test_values_are_spikingjellys(name):
    """Spikes and derivatives equal those of SpikingJelly's surrogate of the same name, defaults included."""
    _, theirs = foreign_import_is_silent()
    for options in ({}, {"alpha": 2.5}):
        function, foreign = getattr(surrogate, name)(**options), getattr(theirs, name)(**options)
        assert torch.equal(function(GRID), foreign(GRID))
        torch.testing.assert_close(_phi(function, GRID), _phi(foreign, GRID), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("foreign", ["Sigmoid", "ATan", "PiecewiseLeakyReLU", "S2NN", "QPseudoSpike"])
@pytest.mark.parametrize("name", ALL)
def test_spikingjelly_surrogates_fit_every_node(name, foreign):
    """A surrogate object of SpikingJelly gives the gradient of the same node differentiated by plain autograd."""
    _, theirs = foreign_import_is_silent()
    node = make(name, surrogate_function=getattr(theirs, foreign)())
    reference = node.reference()
    assert reference.surrogate_function.function is not node.surrogate_function.function
    expected = differentiate(run_node(reference), Problem())
    assert_ends_close(differentiate(run_node(node), Problem()), expected, INVERSE_RTOL_FLOAT64)


@pytest.mark.parametrize("name", ALL)
def test_a_wrapped_surrogate_equals_the_built_in_one(name):
    """SpikingJelly's ATan and this package's give the same gradients in every node."""
    _, theirs = foreign_import_is_silent()
    got = differentiate(run_node(make(name, surrogate_function=theirs.ATan())), Problem())
    expected = differentiate(run_node(make(name, surrogate_function=surrogate.ATan())), Problem())
    assert_ends_close(got, expected, ALIKE_RTOL[torch.float64])


def test_any_callable_with_autograd_fires_a_node():
    """A plain function is a surrogate where autograd knows its derivative; it shows itself in the repr."""

    def straight_through(z):
        return (z >= 0).to(z) + z - z.detach()

    node = StandardLIF(surrogate_function=straight_through, step_mode="m")
    assert _phi(node.surrogate_function, GRID).unique().tolist() == [1.0]
    assert torch.equal(node.surrogate_function.derivative(GRID), torch.ones_like(GRID))
    assert "straight_through" in repr(node)
    with pytest.raises(NotImplementedError, match="has no primitive_function"):
        node.surrogate_function.primitive(GRID)


def test_wrapped_primitive_is_the_foreign_objects_own():
    """primitive() of a wrapped SpikingJelly surrogate is its primitive function with its parameters."""
    _, theirs = foreign_import_is_silent()
    wrapped = surrogate.as_surrogate(theirs.ATan(alpha=3.0))
    torch.testing.assert_close(wrapped.primitive(GRID), surrogate.ATan(3.0).primitive(GRID))


@pytest.mark.parametrize("name", ALL)
def test_surrogates_that_do_not_spike_are_refused(name):
    """spiking=False outputs the primitive; the closed forms would be wrong, so no node takes it."""
    _, theirs = foreign_import_is_silent()
    with pytest.raises(ValueError, match="`spiking` must be True in a node"):
        make(name, surrogate_function=theirs.Sigmoid(spiking=False))


def test_trainable_surrogates_are_refused():
    """A trainable slope would get no gradient from the closed forms: said at once; freezing it is the fix."""

    class Sloped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.slope = torch.nn.Parameter(torch.tensor(2.0))

        def forward(self, z):
            smooth = torch.sigmoid(self.slope * z)
            return (z >= 0).to(z) + smooth - smooth.detach()

    with pytest.raises(ValueError, match=r"no trainable parameters.*requires_grad_\(False\)"):
        StandardLIF(surrogate_function=Sloped(), step_mode="m")
    StandardLIF(surrogate_function=Sloped().requires_grad_(False), step_mode="m")
    sloped = Sloped()
    with pytest.raises(ValueError, match="no trainable parameters"), torch.no_grad():
        StandardLIF(surrogate_function=lambda z: sloped(z), step_mode="m")


def test_bad_surrogates_are_refused():
    """Not callable, a class in place of its object, or a sharpness that is not positive."""
    with pytest.raises(ValueError, match="`surrogate_function` must be a surrogate object or a callable"):
        StandardLIF(surrogate_function="atan", step_mode="m")
    with pytest.raises(ValueError, match=r"callable on tensors; got <class .*ATan"):
        StandardLIF(surrogate_function=surrogate.ATan, step_mode="m")
    with pytest.raises(ValueError, match=r"`alpha` must be positive; got -1.*default 2\.0"):
        surrogate.ATan(-1)
    node = StandardLIF(step_mode="m")
    with pytest.raises(ValueError, match="`surrogate_function` must be a surrogate object"):
        node.surrogate_function = 3


def test_surrogate_can_be_exchanged_later():
    """Assigning node.surrogate_function wraps and checks as the constructor does."""
    node = StandardLIF(step_mode="m")
    node.surrogate_function = surrogate.Erf(3.0)
    assert "Erf" in repr(node)
    assert "alpha=3.0" in repr(node)
