"""Surrogate gradients: the spike Theta(z) forward, the derivative phi(z) of a smooth primitive backward.

Names, default sharpness and derivatives are those of SpikingJelly's `activation_based.surrogate`. `z` is the distance
of the charge to the threshold, any shape, floating. Theta(0) = 1. A new surrogate is one class with its `Formulas`, and
one row of `kernels/layout.py` where the fused kernels are to know it.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import softsign

from revsnn_nodes.parameters import is_number, require

Formula = Callable[[Tensor, float], Tensor]


def in_transform() -> bool:
    """Whether a `torch.func` transform, such as vmap, is at work."""
    return torch._C._are_functorch_transforms_active()


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
        """1 where z >= 0, else 0, in the type of z."""
        return heaviside(z)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keeps z."""
        z, ctx.derivative = inputs
        ctx.save_for_backward(z)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """The gradient times phi(z)."""
        (z,) = ctx.saved_tensors
        return grad * ctx.derivative(z), None


@dataclass(frozen=True)
class Formulas:
    """What tells one surrogate from another."""

    phi: Formula  # surrogate derivative of z and the sharpness alpha
    primitive: Formula  # smooth function of z and alpha whose derivative is phi
    alpha: float = 1.0  # sharpness where none is given, SpikingJelly's default


class SurrogateFunction(nn.Module):
    """Spike function of a neuron: call it to fire, ask `derivative` for phi.

    Args:
        alpha: sharpness; larger is closer to the step. It may be assigned later too.
    Raises:
        ValueError: alpha is not a positive number.
    Keeps for backward: z, as every surrogate does under plain autograd.
    """

    formulas: ClassVar[Formulas]

    def __init__(self, alpha: float | None = None) -> None:
        super().__init__()
        self.alpha = self.formulas.alpha if alpha is None else alpha

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "alpha":
            require(
                is_number(value) and 0 < value < math.inf, "alpha", "be positive", value,
                "It is the sharpness of the surrogate's slope, and is not learned.",
                f"Leave it out for the default {self.formulas.alpha}.",
            )  # fmt: skip
        super().__setattr__(name, value)

    def known(self) -> "SurrogateFunction":
        """The surrogate whose formulas this one has now: itself, or what another package's is in this one."""
        return self

    def as_now(self) -> "SurrogateFunction":
        """This one with the sharpness of now, for a backward pass: alpha may have been assigned anew by then."""
        return self if torch.compiler.is_compiling() else copy.copy(self.known())

    def forward(self, z: Tensor) -> Tensor:
        """Fires: Theta(z), with derivative phi(z) in autograd."""
        if torch.compiler.is_exporting():  # which would inline the forward alone
            smooth = self.primitive(z)
            return heaviside(z) + (smooth - smooth.detach())
        return _Spike.apply(z, self.as_now().derivative)  # type: ignore[no-any-return]

    def derivative(self, z: Tensor) -> Tensor:
        """The surrogate derivative phi(z), shape and dtype of z."""
        return self.formulas.phi(z, self._sharpness())

    def derivative_(self, z: Tensor) -> Tensor:
        """phi(z), outside of autograd and perhaps in the storage of z, whose values are lost."""
        return self.derivative(z)

    def primitive(self, z: Tensor) -> Tensor:
        """The smooth function whose derivative is phi(z)."""
        return self.formulas.primitive(z, self._sharpness())

    def _sharpness(self) -> float:
        """Alpha, in compiled code a constant of it: a symbol cannot be read by two calls of an autograd Function."""
        if not torch.compiler.is_compiling():
            return self.alpha
        from torch.fx.experimental.symbolic_shapes import guard_scalar

        return float(guard_scalar(self.alpha))

    def extra_repr(self) -> str:
        """Parameters, as they were passed."""
        return f"alpha={self.alpha}"


def _sigmoid_slope(z: Tensor, a: float) -> Tensor:
    s = torch.sigmoid(z * a)
    return (1.0 - s) * s * a


def _parabolas(z: Tensor, a: float) -> Tensor:
    inside = -(a**2) / 2 * z * z.abs() + a * z + 0.5
    return torch.where(z.abs() <= 1 / a, inside, heaviside(z))


def _laplace_distribution(z: Tensor, a: float) -> Tensor:
    half = torch.exp(-a * z.abs()) / 2
    return torch.where(z >= 0, 1 - half, half)


class Sigmoid(SurrogateFunction):
    """phi(z) = alpha s (1 - s), s = sigmoid(alpha z)."""

    formulas = Formulas(_sigmoid_slope, lambda z, a: torch.sigmoid(z * a), alpha=4.0)

    def derivative_(self, z: Tensor) -> Tensor:
        """See `SurrogateFunction.derivative_`; here always in the storage of z."""
        a = self._sharpness()
        s, alpha = z.mul_(a).sigmoid_(), z.new_tensor(a)
        return torch.ops.aten.sigmoid_backward.grad_input(alpha, s, grad_input=s)  # type: ignore[no-any-return]


class ATan(SurrogateFunction):
    """phi(z) = (alpha / 2) / (1 + (pi alpha z / 2)^2)."""

    formulas = Formulas(
        lambda z, a: a / 2 / (1.0 + (z * (math.pi / 2 * a)).square()),
        lambda z, a: torch.atan(z * (math.pi / 2 * a)) / math.pi + 0.5,
        alpha=2.0,
    )


class PiecewiseQuadratic(SurrogateFunction):
    """The triangle: phi(z) = max(0, alpha - alpha^2 |z|)."""

    formulas = Formulas(lambda z, a: torch.relu(a - a**2 * z.abs()), _parabolas)


class PiecewiseExp(SurrogateFunction):
    """phi(z) = (alpha / 2) exp(-alpha |z|)."""

    formulas = Formulas(lambda z, a: a / 2 * torch.exp(-a * z.abs()), _laplace_distribution)


class SoftSign(SurrogateFunction):
    """phi(z) = 1 / (2 alpha (1/alpha + |z|)^2)."""

    formulas = Formulas(
        lambda z, a: 1.0 / (2 * a * (1 / a + z.abs()).square()), lambda z, a: (softsign(z * a) + 1.0) / 2.0, alpha=2.0
    )


class SuperSpike(SurrogateFunction):
    """phi(z) = alpha / (1 + |z|)^2."""

    formulas = Formulas(lambda z, a: a / (1.0 + z.abs()).square(), lambda z, a: a * softsign(z))


class Erf(SurrogateFunction):
    """phi(z) = alpha / sqrt(pi) exp(-(alpha z)^2)."""

    formulas = Formulas(
        lambda z, a: torch.exp(-(z * a).square()) * (a / math.sqrt(math.pi)),
        lambda z, a: torch.erfc(-a * z) / 2,
        alpha=2.0,
    )


class Rect(SurrogateFunction):
    """The window: phi(z) = alpha where |z| < 1 / (2 alpha), else 0."""

    formulas = Formulas(
        lambda z, a: a * (z.abs() < 0.5 / a).to(z.dtype), lambda z, a: torch.clamp(z * a + 0.5, 0.0, 1.0)
    )


TWINS: dict[str, Callable[[float], SurrogateFunction | None]] = {
    **{
        each.__name__: each
        for each in (Sigmoid, ATan, PiecewiseQuadratic, PiecewiseExp, SoftSign, SuperSpike, Erf, Rect)
    },
    "QPseudoSpike": lambda alpha: SoftSign(2.0) if alpha == 2 else None,
}
"""SpikingJelly's surrogates that are this package's exactly, by the names of their classes, as functions of alpha."""


class ForeignSurrogate(SurrogateFunction):
    """A spike function of another package.

    SpikingJelly's of `TWINS`, by exact type, fire as this package's, with the sharpness that they have at the call; any
    other is used through its own forward and autograd. Attributes are the function's: `alpha` is read and set there.

    Args:
        function: maps z to spikes with a surrogate derivative in autograd, such as any surrogate object of
            SpikingJelly or of snnTorch.
    Raises:
        ValueError: it does not fire exactly where z >= 0, fires or differentiates at random, has no derivative, or has
            trainable parameters.
    """

    function: Callable[[Tensor], Tensor]

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        nn.Module.__init__(self)  # not SurrogateFunction's: the sharpness is the function's own
        self.function = function
        z = torch.tensor([-1.0, -0.125, 0.0, 0.125, 1.0])
        trainable = isinstance(function, nn.Module) and any(p.requires_grad for p in function.parameters())
        with torch.enable_grad():
            trainable = trainable or self.forward(z).requires_grad
        require(
            not trainable, "surrogate_function", "have no trainable parameters", function,
            "The closed-form backward passes return no gradient for them.", "Freeze them with requires_grad_(False).",
        )  # fmt: skip
        fired = [self.forward(z).round(decimals=5).tolist() for _ in range(8)]
        require(
            fired == [(z >= 0).tolist()] * 8, "surrogate_function", "fire 0 below the threshold and 1 from it on",
            f"{fired[0]} at z = {z.tolist()}" if fired == fired[:1] * 8 else "other spikes at each call",
            "The nodes know the spike to be Theta(z), with Theta(0) = 1, wherever they make it again.",
            "In SpikingJelly, leave its `spiking=True`; else pass a surrogate of revsnn_nodes.surrogate.",
        )  # fmt: skip
        slopes = [self.derivative(z) for _ in range(2)]
        require(
            torch.equal(*(slope.nan_to_num() for slope in slopes)), "surrogate_function", "have one derivative",
            "another at each call", "The backward passes ask for it anew.", "Pass a surrogate without randomness.",
        )  # fmt: skip

    def known(self) -> SurrogateFunction:
        """See `SurrogateFunction.known`: the twin, with the sharpness that the function has now."""
        require(
            getattr(self.function, "spiking", True), "spiking", "be True in a node", False,
            "The nodes know the spike to be Theta(z).", "Call set_spiking_mode(True).",
        )  # fmt: skip
        kind = type(self.function)
        twin = TWINS.get(kind.__name__) if kind.__module__ == "spikingjelly.activation_based.surrogate" else None
        return (twin(float(self.alpha)) if twin else None) or self

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "function":  # not there yet, in a copy
                raise
            return getattr(self.function, name)

    def __setattr__(self, name: str, value: Any) -> None:
        function = self.__dict__.get("function", self.__dict__.get("_modules", {}).get("function"))
        if name in {"function", "training"} or function is None or not hasattr(function, name):
            super().__setattr__(name, value)
        else:
            setattr(function, name, value)

    def forward(self, z: Tensor) -> Tensor:
        """Fires as the twin, or with the given function."""
        known = self.known()
        spikes: Tensor = self.function(z) if known is self else known(z)
        return spikes

    def derivative(self, z: Tensor) -> Tensor:
        """phi(z) of the twin, or by the given function's own backward pass."""
        known = self.known()
        if known is not self:
            return known.derivative(z)
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            spikes = self.function(leaf)
        require(
            spikes.requires_grad, "surrogate_function", "have a derivative in autograd", self.function,
            "Without one no gradient passes the spike.", "Pass for example revsnn_nodes.surrogate.ATan().",
        )  # fmt: skip
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
        callable(function) and not isinstance(function, type),
        "surrogate_function", "be a surrogate object or a callable on tensors", function,
        "The neuron fires by calling it.", "Pass for example revsnn_nodes.surrogate.ATan().",
    )  # fmt: skip
    return ForeignSurrogate(function)
