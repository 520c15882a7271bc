"""What every fused kernel gets of a neuron, its surrogate and its groups, on every device.

A kernel takes tensors; the parameter vector `Numbers`; switches (soft or hard reset, ...), which are compiled in; and
the number of its surrogate's shape. Symbols are those of nodes/README.md.
"""

import math
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import NamedTuple, ParamSpec, TypeVar

import torch

from revsnn_nodes.parameters import CoupledParameters, LIFParameters, ParametricLIFParameters
from revsnn_nodes.surrogate import (
    ATan,
    Erf,
    PiecewiseExp,
    PiecewiseQuadratic,
    Rect,
    Sigmoid,
    SoftSign,
    SuperSpike,
    SurrogateFunction,
)

Given = ParamSpec("Given")
Result = TypeVar("Result")


def cached(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """Decorates a function as `functools.lru_cache` does; torch.compile, which warns of caches, traces it without."""
    remembered = lru_cache(maxsize=256)(function)

    @wraps(function)
    def call(*arguments: Given.args, **keywords: Given.kwargs) -> Result:
        """What the function returns, remembered where nothing is being compiled."""
        return (function if torch.compiler.is_compiling() else remembered)(*arguments, **keywords)  # type: ignore[arg-type]

    call.cache_clear = remembered.cache_clear  # type: ignore[attr-defined]
    return call


class Numbers(NamedTuple):
    """A kernel's parameters, by name; operators take them as `float[] p`, in this order."""

    tau: float = 0.0  # tau, membrane time constant; steps
    threshold: float = 0.0  # V_th, membrane at which the neuron fires; units of the membrane
    rest: float = 0.0  # V_reset, or 0 for soft reset: leak's target and first membrane; units of the membrane
    keep: float = 0.0  # dH/dV = 1 - 1/tau; no unit
    gain: float = 0.0  # dH/dX, 1/tau or 1; no unit
    height: float = 0.0  # phi's height, see `surrogate_code`; 1 / units of the membrane
    scale: float = 0.0  # phi's scale, see `surrogate_code`; its unit depends on the kind
    epsilon: float = 0.0  # share of the input in a carrier's output, epsilon over its unit; output per unit of input
    clamp: float = 0.0  # largest |input| that a carrier's output carries; units of the input
    alpha: float = 0.0  # alpha, strength of the coupled reset; no unit
    beta: float = 0.0  # beta, share of the partner's input in a coupled output; output per unit of the input
    drop: float = 0.0  # alpha V_th, what an open gate takes off in a coupled soft reset; units of the membrane
    inflow: float = 0.0  # V_reset / tau, constant part of the coupled charge; units of the membrane


@cached
def numbers(neuron: LIFParameters, height: float = 0.0, scale: float = 0.0) -> Numbers:
    """The parameter vector of a neuron, with the height and scale of `surrogate_code` for a backward pass."""
    p = Numbers(threshold=neuron.v_threshold, rest=neuron.rest, height=height, scale=scale)
    # A learned tau is not among them, nor what follows from it: as NaN they would be unlike themselves.
    if not isinstance(neuron, ParametricLIFParameters):
        p = p._replace(tau=neuron.tau, keep=neuron.keep, gain=neuron.input_gain)
    if isinstance(neuron, CoupledParameters):
        alpha, drop, inflow = neuron.alpha, neuron.alpha * neuron.v_threshold, neuron.rest / neuron.tau
        p = p._replace(alpha=alpha, beta=neuron.beta, drop=drop, inflow=inflow)
    return p._replace(epsilon=getattr(neuron, "share", 0.0), clamp=getattr(neuron, "clamp", 0.0))


KINDS = ("sigmoid", "atan", "quadratic", "exponential", "squared", "erf", "rect")
"""Shapes of surrogate derivatives; a kernel gets the index."""

SIGMOID, ATAN, QUADRATIC, EXPONENTIAL, SQUARED, ERF, RECT = range(len(KINDS))

_SURROGATES: dict[type[SurrogateFunction], tuple[int, Callable[[float], tuple[float, float]]]] = {
    Sigmoid: (SIGMOID, lambda a: (a, a)),
    ATan: (ATAN, lambda a: (a / 2, math.pi / 2 * a)),
    PiecewiseQuadratic: (QUADRATIC, lambda a: (a, a**2)),
    PiecewiseExp: (EXPONENTIAL, lambda a: (a / 2, a)),
    SoftSign: (SQUARED, lambda a: (1 / (2 * a), 1 / a)),
    SuperSpike: (SQUARED, lambda a: (a, 1.0)),
    Erf: (ERF, lambda a: (a / math.sqrt(math.pi), a)),
    Rect: (RECT, lambda a: (a, 0.5 / a)),
}


def surrogate_code(surrogate: SurrogateFunction) -> tuple[int, float, float] | None:
    """The kind of a surrogate's derivative, and the height and the scale it is written with; None if unknown.

    A subclass is unknown: its derivative may be another. One of another package may be known: see its `known`.
    """
    surrogate = surrogate.known()
    if type(surrogate) not in _SURROGATES:
        return None
    kind, height_and_scale = _SURROGATES[type(surrogate)]
    return kind, *height_and_scale(surrogate.alpha)


def grouped(shape: torch.Size, groups: int, group_dim: int) -> tuple[int, int, int]:
    """A step's shape `[N, *]` as `[outer, groups, inner]`: contiguous, it has the strides of that array."""
    dim = group_dim % len(shape)
    return math.prod(shape[:dim]), groups, math.prod(shape[dim:]) // groups


def reciprocal_is_exact(tau: float) -> bool:
    """Whether a product with 1 / tau has the bits of the quotient: for powers of two."""
    return math.frexp(tau)[0] == 0.5


FORMS = ("fma", "shifted", "scaled", "centred")
"""How a batch norm is rounded, with mean m, 1/sigma i, weight w and bias b of a channel; all products but those of fma
are rounded. What torch chooses depends on device, layout, size and mode: see `revsnn_nodes.remat.norm`.

    fma      fma(z, w i, fma(-m, w i, b))    torch on most CPUs; the only one that the CPU's kernels have
    shifted  fma(z, w i, b - m (w i))        cuDNN, few elements per channel
    scaled   fma(w (z - m), i, b)            cuDNN, many of them, and in evaluation
    centred  fma(z - m, w i, b)              cuDNN, channels_last in training
"""
