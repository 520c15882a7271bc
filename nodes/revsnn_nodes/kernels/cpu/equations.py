"""The neuron's equations and the surrogate derivative for one element, in compiled code.

Equations: nodes/README.md. Each function does what its namesake in lif.py, carrier.py, coupling.py and surrogate.py
does, in the same order, so that forward values are equal bit for bit. Constants take the type of the data: a plain
literal would turn float32 arithmetic into float64.
"""

import math
from typing import Any

import numba
import numpy as np
from numba.extending import overload

from revsnn_nodes.kernels.cpu.machine import contracted, exact

SIGMOID, ATAN, QUADRATIC, EXPONENTIAL, SQUARED, ERF, RECT = range(7)


@exact
def charge_of(x: Any, v: Any, tau: Any, rest: Any, leak: Any) -> Any:
    """Charge h of input x and membrane v.

    Args:
        leak: a tuple whose length, part of its type, says what is compiled: 1 is added where the input decays, 2 where
            `tau` holds 1 / tau, which for powers of two gives the same bits without a division.
    """
    above = v - rest
    if len(leak) == 0:
        return v - above / tau + x
    if len(leak) == 1:
        return v + (x - above) / tau
    if len(leak) == 2:
        return v - above * tau + x
    return v + (x - above) * tau


@exact
def fired(charge: Any, threshold: Any) -> Any:
    """Spike, 0 or 1 in the type of the charge."""
    one = type(charge)(1)
    zero = type(charge)(0)
    return one if charge - threshold >= zero else zero


@exact
def reset_of(charge: Any, spike: Any, threshold: Any, rest: Any, soft: bool) -> Any:
    """Membrane after firing."""
    if soft:
        return charge - spike * threshold
    return rest if spike > type(charge)(0.5) else charge


@exact
def clamped(x: Any, low: Any, high: Any) -> Any:
    """x within [low, high]."""
    x = low if x < low else x
    return high if x > high else x


def _exp(x: Any) -> Any:
    """exp(x) for x <= 0, to a rounding or two, in arithmetic that becomes vector instructions.

    It stays at exp(-50) or exp(-500) below these: smaller factors would give subnormal products, which are slow.
    """
    return math.exp(x)


# x = n ln 2 + r, |r| < 0.35; adding 1.5 * 2^(mantissa bits) leaves n in the low bits of the sum, which shifted into the
# exponent multiply by 2^n. exp(r) is a minimax fit of degree 5 (8e-8) in float32, the Taylor series in float64.
_FIT32 = tuple(np.float32(c) for c in (1.0000001, 0.9999997, 0.49998894, 0.16667575, 0.04191543, 0.00829765))
_TAYLOR64 = tuple(1 / math.factorial(k) for k in range(14))


@contracted
def _exp32(x: Any) -> Any:
    x = max(x, np.float32(-50.0))
    shifted = x * np.float32(1.4426950408889634) + np.float32(12582912.0)
    r = x - (shifted - np.float32(12582912.0)) * np.float32(0.6931471805599453)
    c = _FIT32
    p = ((((c[5] * r + c[4]) * r + c[3]) * r + c[2]) * r + c[1]) * r + c[0]
    exponent = np.float32(shifted).view(np.int32) << np.int32(23)
    return np.int32(np.float32(p).view(np.int32) + exponent).view(np.float32)


@contracted
def _exp64(x: Any) -> Any:
    x = max(x, -500.0)
    shifted = x * 1.4426950408889634 + 6755399441055744.0
    n = shifted - 6755399441055744.0
    r = x - n * 6.93145751953125e-1  # ln 2 in two parts: n times the first is exact
    r = r - n * 1.42860682030941723212e-6
    c = _TAYLOR64
    p = (((((c[13] * r + c[12]) * r + c[11]) * r + c[10]) * r + c[9]) * r + c[8]) * r + c[7]
    p = ((((((p * r + c[6]) * r + c[5]) * r + c[4]) * r + c[3]) * r + c[2]) * r + c[1]) * r + c[0]
    exponent = np.float64(shifted).view(np.int64) << np.int64(52)
    return np.int64(np.float64(p).view(np.int64) + exponent).view(np.float64)


@overload(_exp)
def _exp_of_type(x: Any) -> Any:
    def narrow(x: Any) -> Any:
        return _exp32(x)

    def wide(x: Any) -> Any:
        return _exp64(x)

    return narrow if x == numba.types.float32 else wide


@contracted
def phi_of(kind: Any, height: Any, scale: Any, z: Any) -> Any:
    """Surrogate derivative at z, the distance of the charge to the threshold.

    `kind`, `height` and `scale` are those of `selection.surrogate_code`. The kind is the length of a tuple, which is
    part of its type: the branches are decided by the compiler.
    """
    zero = type(height)(0)
    one = type(height)(1)
    if len(kind) == SIGMOID:
        e = _exp(-scale * abs(z))
        return height * e / ((one + e) * (one + e))
    if len(kind) == ATAN:
        return height / (one + (z * scale) * (z * scale))
    if len(kind) == QUADRATIC:
        return max(zero, height - scale * abs(z))
    if len(kind) == EXPONENTIAL:
        return height * _exp(-scale * abs(z))
    if len(kind) == SQUARED:
        return height / ((scale + abs(z)) * (scale + abs(z)))
    if len(kind) == ERF:
        return height * _exp(-(scale * z) * (scale * z))
    return height if abs(z) < scale else zero
