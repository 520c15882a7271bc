"""The neuron's equations for one element, in compiled code, and how an element is read, rounded and written.

Equations: nodes/README.md. Symbols: x input, v membrane, h charge, s spike, y output; a bar is the loss's gradient at
one of them. Each function does what its namesake in `revsnn_nodes.equations` and `revsnn_nodes.surrogate` does, in the
same order, so that forward values are equal bit for bit. Constants take the type of the data: a plain literal would
turn float32 arithmetic into float64.

bfloat16. numba does not know it: arrays hold its bits as uint16, which are the upper half of a float32's, and
arithmetic is in float32. One source serves all types: `read`, `write` and `rounded` are compiled for the type of the
array, and cost nothing where it holds floats. As in the reference, states are float32, in a call and between calls;
outputs are rounded where they come about, gradients once, when they are written.
"""

import math
from inspect import signature
from typing import Any, NamedTuple

import numba
import numpy as np
from numba.extending import overload

from revsnn_nodes.kernels.cpu.machine import CALLED, contracted, exact
from revsnn_nodes.kernels.layout import ATAN, ERF, EXPONENTIAL, QUADRATIC, SIGMOID, SQUARED, Numbers

Switch = tuple[int, ...]


class Mode(NamedTuple):
    """What a kernel is to do: tuples, whose lengths are part of their types and decide what is compiled.

    Without this the compiler would decide again for every element, or for every piece of a row.
    """

    leak: Switch  # see `charge_of`
    kind: Switch  # as long as the index of the surrogate in `layout.KINDS`
    streams: Switch  # 1 where results are written past the caches
    soft: Switch  # 1 for soft reset, 0 for hard
    detach: Switch  # 1 for no gradient through the reset
    by_spike: Switch  # 1 where the coupled reset opens by the spike, 0 by the clamped output


@exact
def _bits_of(value: Any) -> Any:
    """The bits of a float as bfloat16, rounded to nearest even."""
    bits = np.float32(value).view(np.uint32)
    nearest = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    is_nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.uint32(0x7FC0) if is_nan else nearest


@exact
def _value_of(bits: Any) -> Any:
    """The float32 that has these bits of a bfloat16."""
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


def is_bfloat16(row: Any) -> Any:
    """Whether an array holds the bits of bfloat16; known to the compiler."""


def read(row: Any, j: Any) -> Any:
    """Element j of a row, as a float."""


def write(row: Any, j: Any, value: Any) -> None:
    """Writes element j of a row, in the row's type."""


def rounded(value: Any, row: Any) -> Any:
    """A float as it will be read back from a row."""


def scratch(shape: Any, like: Any) -> Any:
    """A new array for floats of the kind that an array's elements are read as."""


def by_type(function: Any, of_bits: Any, of_floats: Any) -> None:
    """What a function such as those above is, where its `row` holds bfloat16's bits, and where it holds floats."""
    place = list(signature(function).parameters).index("row")

    def of_row(*arguments: Any) -> Any:
        """The function for the type of the row."""
        return of_bits if arguments[place].dtype == numba.types.uint16 else of_floats

    overload(function, strict=False, jit_options=CALLED)(of_row)


def _write_bits(row: Any, j: Any, value: Any) -> None:
    row[j] = np.uint16(_bits_of(value))


def _write_float(row: Any, j: Any, value: Any) -> None:
    row[j] = value


by_type(is_bfloat16, lambda row: True, lambda row: False)
by_type(read, lambda row, j: _value_of(row[j]), lambda row, j: row[j])
by_type(write, _write_bits, _write_float)
by_type(rounded, lambda value, row: _value_of(_bits_of(value)), lambda value, row: value)


@overload(scratch, strict=False, jit_options=CALLED)
def _scratch(shape: Any, like: Any) -> Any:
    dtype = np.float64 if like.dtype == numba.types.float64 else np.float32
    return lambda shape, like: np.empty(shape, dtype)


@exact
def start_row(row: Any, given: Any, fill: Any) -> None:
    """Writes the membrane that a row starts from, or a gradient: the given one, or `fill` for an empty array."""
    for j in range(row.shape[0]):
        write(row, j, read(given, j) if given.shape[0] else fill)


@exact
def copy_row(source: Any, target: Any) -> None:
    """Copies a row into another, whose type may differ."""
    for j in range(target.shape[0]):
        write(target, j, read(source, j))


@exact
def spread(values: Any, first: int, inner: int, row: Any) -> None:
    """Writes each column's value of its channel into a row that begins at column `first` of `[C, inner]`."""
    channel, begin = first // inner, 0
    end = inner - first % inner
    while begin < row.shape[0]:
        if inner == 1:
            end = begin + values.shape[0] - channel
            for j in range(begin, min(end, row.shape[0])):
                row[j] = values[channel + j - begin]
            channel = 0
        else:
            row[begin : min(end, row.shape[0])] = values[channel]
            channel = channel + 1 if channel + 1 < values.shape[0] else 0
        begin, end = end, end + inner


@exact
def charge_of(x: Any, v: Any, p: Numbers, leak: Any) -> Any:
    """Charge h of input x and membrane v.

    Args:
        leak: a tuple whose length, part of its type, says what is compiled: 1 is added where the input decays, 2 where
            `p.tau` holds 1 / tau, which for powers of two gives the same bits without a division; 4 for no leak.
    """
    if len(leak) == 4:
        return v + x
    above = v - p.rest
    if len(leak) == 0:
        return v - above / p.tau + x
    if len(leak) == 1:
        return v + (x - above) / p.tau
    if len(leak) == 2:
        return v - above * p.tau + x
    return v + (x - above) * p.tau


@exact
def fired(h: Any, threshold: Any) -> Any:
    """Spike s, 0 or 1 in the type of the charge."""
    one = type(h)(1)
    zero = type(h)(0)
    return one if h - threshold >= zero else zero


@exact
def kept_charge(h: Any, s: Any, like: Any, least: Any, greatest: Any) -> Any:
    """A charge as it is written for the backward pass: rounded to its side of the threshold, so that no spike flips.

    See `revsnn_nodes.equations.rounded_charge`; `least` and `greatest` are `sides_of` the threshold.
    """
    near = rounded(h, like)
    if s > type(h)(0.5):
        return least if near < least else near
    return greatest if near > greatest else near


@exact
def reset_of(h: Any, s: Any, p: Numbers, mode: Mode) -> Any:
    """Membrane after firing."""
    if len(mode.soft):
        return h - s * p.threshold
    return p.rest if s > type(h)(0.5) else h


@exact
def clamped(x: Any, low: Any, high: Any) -> Any:
    """x within [low, high]."""
    x = low if x < low else x
    return high if x > high else x


@contracted
def decoded_spike(y: Any) -> Any:
    """The spike in a carrier's output y = s + epsilon x, where |epsilon x| < 1/2."""
    return type(y)(1) if y > type(y)(0.5) else type(y)(0)


@contracted
def decoded_input(y: Any, decoding: Any) -> Any:
    """The input in a carrier's output; `decoding` is 1 / epsilon."""
    return (y - decoded_spike(y)) * decoding


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


@overload(_exp, strict=False, jit_options=CALLED)
def _exp_of_type(x: Any) -> Any:
    return (lambda x: _exp32(x)) if x == numba.types.float32 else (lambda x: _exp64(x))


@contracted
def phi_of(z: Any, p: Numbers, kind: Any) -> Any:
    """Surrogate derivative at z, the distance of the charge to the threshold; its form: see `layout.surrogate_code`."""
    height, scale = p.height, p.scale
    zero = type(height)(0)
    one = type(height)(1)
    if len(kind) == SIGMOID:
        e = _exp(-scale * abs(z))
        return height * e / ((one + e) * (one + e))
    if len(kind) == ATAN:
        return height / (one + (z * scale) * (z * scale))
    if len(kind) == QUADRATIC:
        return max(height - scale * abs(z), zero)  # in this order NaN stays NaN
    if len(kind) == EXPONENTIAL:
        return height * _exp(-scale * abs(z))
    if len(kind) == SQUARED:
        return height / ((scale + abs(z)) * (scale + abs(z)))
    if len(kind) == ERF:
        return height * _exp(-(scale * z) * (scale * z))
    return height if abs(z) < scale else zero


@contracted
def gradient_at_charge(h: Any, s: Any, sbar: Any, vbar: Any, p: Numbers, mode: Mode) -> Any:
    """hbar of one step, from sbar and from vbar after the reset: see `revsnn_nodes.equations.lif_step_vjp`."""
    if not len(mode.detach):
        sbar = sbar - vbar * (p.threshold if len(mode.soft) else h - p.rest)
    kept = vbar if len(mode.soft) or s < type(h)(0.5) else type(h)(0)
    return kept + sbar * phi_of(h - p.threshold, p, mode.kind)
