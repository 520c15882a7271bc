"""Surrogate gradients: the spike Theta(z) forward, the derivative phi(z) of a smooth primitive backward.

Names, parameters and derivatives agree with SpikingJelly's `activation_based.surrogate`. `z` is the distance of
the charge to the threshold, any shape, floating. Theta(0) = 1.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from revsnn_nodes.parameters import require


def in_transform() -> bool:
    """Whether a `torch.func` transform, such as vmap, is at work."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def heaviside(z: Tensor) -> Tensor:
    """Spikes: 1 where z >= 0, else 0, in the dtype of z."""
    if torch.compiler.is_compiling() or in_transform():  # vmap knows no comparison in place
        return (z >= 0).to(z.dtype)
    return z.detach().clone().ge_(0)  # on a CPU several times faster than bool and its conversion


class _Spike(torch.autograd.Function):
    """Theta forward, phi backward; keeps z."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, derivative: Callable[[Tensor], Tensor]) -> Tensor:
        return heaviside(z)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        z, ctx.derivative = inputs
        ctx.save_for_backward(z)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (z,) = ctx.saved_tensors
        return grad * ctx.derivative(z), None


class SurrogateFunction(nn.Module):
    """Spike function of a neuron: call it to fire, ask `derivative` for phi.

    Args:
        alpha: sharpness; larger is closer to the step.
    Keeps for backward: z, as every surrogate does under plain autograd.
    """

    default_alpha = 1.0

    def __init__(self, alpha: float | None = None) -> None:
        super().__init__()
        self.alpha = self.default_alpha if alpha is None else alpha
        require(
            self.alpha > 0,
            "alpha",
            "be positive",
            self.alpha,
            "It is the sharpness of the surrogate's slope.",
            f"Leave it out for the default {self.default_alpha}.",
        )

    def forward(self, z: Tensor) -> Tensor:
        """Fires: Theta(z), with derivative phi(z) in autograd."""
        return _Spike.apply(z, self.derivative)  # type: ignore[no-any-return]

    def derivative(self, z: Tensor) -> Tensor:
        """The surrogate derivative phi(z), shape and dtype of z."""
        raise NotImplementedError

    def multiply_by_derivative_(self, grad: Tensor, z: Tensor) -> None:
        """Multiplies `grad` by phi(z) in place, outside of autograd; `z`, of its shape and dtype, is overwritten."""
        grad.mul_(self.derivative(z))

    def primitive(self, z: Tensor) -> Tensor:
        """The smooth function whose derivative is phi(z)."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Parameters, as they were passed."""
        return f"alpha={self.alpha}"


class Sigmoid(SurrogateFunction):
    """phi(z) = alpha s (1 - s), s = sigmoid(alpha z)."""

    default_alpha = 4.0

    def derivative(self, z: Tensor) -> Tensor:
        """See the class."""
        s = torch.sigmoid(z * self.alpha)
        return (1.0 - s) * s * self.alpha

    def multiply_by_derivative_(self, grad: Tensor, z: Tensor) -> None:
        """See `SurrogateFunction`."""
        s = z.mul_(self.alpha).sigmoid_()
        torch.ops.aten.sigmoid_backward.grad_input(grad, s, grad_input=grad).mul_(self.alpha)

    def primitive(self, z: Tensor) -> Tensor:
        """sigmoid(alpha z)."""
        return torch.sigmoid(z * self.alpha)


class ATan(SurrogateFunction):
    """phi(z) = (alpha / 2) / (1 + (pi alpha z / 2)^2)."""

    default_alpha = 2.0

    def derivative(self, z: Tensor) -> Tensor:
        """See the class."""
        return self.alpha / 2 / (1.0 + (z * (math.pi / 2 * self.alpha)).square())

    def primitive(self, z: Tensor) -> Tensor:
        """atan(pi alpha z / 2) / pi + 1/2."""
        return torch.atan(z * (math.pi / 2 * self.alpha)) / math.pi + 0.5


class PiecewiseQuadratic(SurrogateFunction):
    """The triangle: phi(z) = max(0, alpha - alpha^2 |z|)."""

    def derivative(self, z: Tensor) -> Tensor:
        """See the class."""
        return torch.relu(self.alpha - self.alpha**2 * z.abs())

    def primitive(self, z: Tensor) -> Tensor:
        """A step whose edge is two parabolas."""
        inside = -(self.alpha**2) / 2 * z * z.abs() + self.alpha * z + 0.5
        return torch.where(z.abs() <= 1 / self.alpha, inside, heaviside(z))


class PiecewiseExp(SurrogateFunction):
    """phi(z) = (alpha / 2) exp(-alpha |z|)."""

    def derivative(self, z: Tensor) -> Tensor:
        """See the class."""
        return self.alpha / 2 * torch.exp(-self.alpha * z.abs())

    def primitive(self, z: Tensor) -> Tensor:
        """The Laplace distribution function."""
        half = torch.exp(-self.alpha * z.abs()) / 2
        return torch.where(z >= 0, 1 - half, half)


class SoftSign(SurrogateFunction):
    """phi(z) = 1 / (2 alpha (1/alpha + |z|)^2)."""

    default_alpha = 2.0

    def derivative(self, z: Tensor) -> Tensor:
        """See the class."""
        return 1.0 / (2 * self.alpha * (1 / self.alpha + z.abs()).square())

    def primitive(self, z: Tensor) -> Tensor:
        """(softsign(alpha z) + 1) / 2."""
        return (nn.functional.softsign(z * self.alpha) + 1.0) / 2.0


class SuperSpike(SurrogateFunction):
    """phi(z) = alpha / (1 + |z|)^2."""

    def derivative(self, z: Tensor) -> Tensor:
        """See the class."""
        return self.alpha / (1.0 + z.abs()).square()

    def primitive(self, z: Tensor) -> Tensor:
        """alpha softsign(z)."""
        return self.alpha * nn.functional.softsign(z)


class Erf(SurrogateFunction):
    """phi(z) = alpha / sqrt(pi) exp(-(alpha z)^2)."""

    default_alpha = 2.0

    def derivative(self, z: Tensor) -> Tensor:
        """See the class."""
        return torch.exp(-(z * self.alpha).square()) * (self.alpha / math.sqrt(math.pi))

    def primitive(self, z: Tensor) -> Tensor:
        """erfc(-alpha z) / 2."""
        return torch.erfc(-self.alpha * z) / 2


class Rect(SurrogateFunction):
    """The window: phi(z) = alpha where |z| < 1 / (2 alpha), else 0."""

    def derivative(self, z: Tensor) -> Tensor:
        """See the class."""
        return self.alpha * (z.abs() < 0.5 / self.alpha).to(z.dtype)

    def primitive(self, z: Tensor) -> Tensor:
        """A ramp of slope alpha between 0 and 1."""
        return torch.clamp(z * self.alpha + 0.5, 0.0, 1.0)


class ForeignSurrogate(SurrogateFunction):
    """A spike function of another package, used through its own forward and autograd.

    Args:
        function: maps z to spikes with a surrogate derivative in autograd, such as any surrogate object of
            SpikingJelly or of snnTorch.
    Raises:
        ValueError: it does not fire exactly where z >= 0, or has trainable parameters.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        fired = function(torch.tensor([-1.0, 0.5])).tolist()
        require(
            fired == [0.0, 1.0],
            "surrogate_function",
            "fire 0 below and 1 above the threshold",
            f"{fired} at z = -1 and 0.5",
            "The backward passes know the spike to be Theta(z).",
            "In SpikingJelly, leave its `spiking=True`.",
        )
        trainable = isinstance(function, nn.Module) and any(p.requires_grad for p in function.parameters())
        require(
            not trainable,
            "surrogate_function",
            "have no trainable parameters",
            function,
            "The closed-form backward passes return no gradient for them.",
            "Freeze them with requires_grad_(False).",
        )

    def forward(self, z: Tensor) -> Tensor:
        """Fires with the given function."""
        return self.function(z)

    def derivative(self, z: Tensor) -> Tensor:
        """phi(z), by the given function's own backward pass."""
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            spikes = self.function(leaf)
        (phi,) = torch.autograd.grad(spikes, leaf, torch.ones_like(spikes))
        return phi

    def primitive(self, z: Tensor) -> Tensor:
        """The given object's own primitive.

        Raises:
            NotImplementedError: it has none.
        """
        primitive = getattr(self.function, "primitive_function", None)
        if primitive is None:
            raise NotImplementedError(f"{self.function!r} has no primitive_function.")
        return primitive(z, **getattr(self.function, "_sg_params", {}))  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """The wrapped function; empty where it is a module and shows itself."""
        return "" if isinstance(self.function, nn.Module) else repr(self.function)


def as_surrogate(function: Callable[[Tensor], Tensor] | None) -> SurrogateFunction:
    """Returns a surrogate of this package as it is, wraps any other callable, and makes `Sigmoid()` of None."""
    if function is None:
        return Sigmoid()
    if isinstance(function, SurrogateFunction):
        return function
    require(
        callable(function),
        "surrogate_function",
        "be a surrogate object or a callable on tensors",
        function,
        "The neuron fires by calling it.",
        "Pass for example revsnn_nodes.surrogate.ATan().",
    )
    return ForeignSurrogate(function)
