"""What a kernel gets of a neuron and its surrogate: numbers, and switches."""

import math
from collections.abc import Callable
from functools import lru_cache

from revsnn_nodes.parameters import CoupledParameters, LIFParameters
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

KINDS = ("sigmoid", "atan", "quadratic", "exponential", "squared", "erf", "rect")
"""Shapes of surrogate derivatives, in the order of their numbers in `cpu_rows`."""

_SURROGATES: dict[type[SurrogateFunction], tuple[str, Callable[[float], tuple[float, float]]]] = {
    Sigmoid: ("sigmoid", lambda a: (a, a)),
    ATan: ("atan", lambda a: (a / 2, math.pi / 2 * a)),
    PiecewiseQuadratic: ("quadratic", lambda a: (a, a**2)),
    PiecewiseExp: ("exponential", lambda a: (a / 2, a)),
    SoftSign: ("squared", lambda a: (1 / (2 * a), 1 / a)),
    SuperSpike: ("squared", lambda a: (a, 1.0)),
    Erf: ("erf", lambda a: (a / math.sqrt(math.pi), a)),
    Rect: ("rect", lambda a: (a, 0.5 / a)),
}


def surrogate_code(surrogate: SurrogateFunction) -> tuple[int, float, float] | None:
    """The kind of a surrogate's derivative, and the height and the scale it is written with; None if unknown.

    A subclass is unknown: its derivative may be another.
    """
    if type(surrogate) not in _SURROGATES:
        return None
    kind, numbers = _SURROGATES[type(surrogate)]
    return KINDS.index(kind), *numbers(surrogate.alpha)


@lru_cache(maxsize=256)
def coefficients(neuron: LIFParameters, height: float = 0.0, scale: float = 0.0) -> list[float]:
    """Numbers of a kernel, in its order: see the first lines of each kernel. Not to be changed: it is shared."""
    common = [neuron.tau, neuron.v_threshold, neuron.rest, neuron.keep, neuron.input_gain, height, scale]
    if isinstance(neuron, CoupledParameters):
        drop = neuron.alpha * neuron.v_threshold
        return [*common, neuron.alpha, neuron.beta, drop, neuron.rest / neuron.tau]
    epsilon, clamp = getattr(neuron, "epsilon", 0.0), getattr(neuron, "clamp", 0.0)
    return [*common, epsilon, clamp]
