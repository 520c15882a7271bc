"""The neuron's equations for a block of columns in Triton, and how the kernels are compiled.

Symbols are those of nodes/README.md: input x, membrane v, charge h, spike s, output y; `xbar` is the loss's gradient
at x. `p` is `revsnn_nodes.kernels.layout.Numbers` in the type of the arithmetic, `mode` the kernel's `Mode`; helpers
take both whole. A kernel takes the numbers one by one, since Triton narrows the floats of a tuple to float32.

Arithmetic and states are in float64 for float64 tensors, and in float32 for all others. An output is rounded to the
tensor's type where it comes about, so that the backward pass reads what the forward pass decided by.

With TRITON_INTERPRET=1 in the environment before triton is imported, kernels run in Triton's interpreter, on CPU
tensors: slow, and the way to check their arithmetic without a GPU.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import triton
import triton.language as tl

from revsnn_nodes.kernels.layout import FORMS, KINDS, Numbers

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether kernels run in the interpreter."""

SIGMOID, ATAN, QUADRATIC, EXPONENTIAL, SQUARED, ERF, RECT = map(tl.constexpr, range(len(KINDS)))
FMA, SHIFTED, SCALED, CENTRED = map(tl.constexpr, range(len(FORMS)))

USUAL, AGAIN, LAST = map(tl.constexpr, ("", "evict_last", "evict_first"))
"""Policies of the cache: AGAIN for what this kernel reads again, which the cache holds if it can; LAST for what it
reads or writes for the last time, and which would else take that place."""

f64 = tl.float64
"""Annotates a kernel's numbers: without it Triton passes a float as float32."""


class Mode(NamedTuple):
    """What a kernel is compiled for, as `tl.constexpr`; an operator leaves out what it does not distinguish."""

    decay: Any  # the input is divided by tau, as the leak is
    leaky: Any  # there is a leak
    exact: Any  # tau is a power of two, and p.tau holds 1 / tau: a product with the quotient's bits
    soft: Any  # reset by subtraction, else to rest
    detach: Any  # no gradient through the reset
    by_spike: Any  # the spike opens a coupled reset, else the output clamped to [0, 1]
    kind: Any  # shape of the surrogate derivative, an index of KINDS
    form: Any  # rounding of a batch norm, an index of FORMS


def jit(function: Callable[..., Any]) -> Any:
    """Makes a function callable from kernels."""
    return triton.jit(function)


kernel = partial(triton.jit, do_not_specialize=["steps", "every"])
"""Makes a function a kernel; its code is the same for every number of steps."""


@jit
def appended(parts, part):
    """A tuple with one part more at its end."""
    return parts + (part,)  # noqa: RUF005  (kernels have no unpacking)


@jit
def prepended(part, parts):
    """A tuple with one part more at its beginning."""
    return (part,) + parts  # noqa: RUF005


@jit
def number(value, dtype: tl.constexpr):
    """A scalar in the type of the arithmetic on tensors of this type."""
    return tl.full((), value, tl.float64 if dtype == tl.float64 else tl.float32)


@jit
def numbers_of(
    dtype: tl.constexpr, tau, threshold, rest, keep, gain, height, scale, epsilon, clamp, alpha, beta, drop, inflow
):
    """A kernel's numbers by name, in the type of the arithmetic on tensors of this type."""
    return Numbers(
        number(tau, dtype), number(threshold, dtype), number(rest, dtype), number(keep, dtype), number(gain, dtype),
        number(height, dtype), number(scale, dtype), number(epsilon, dtype), number(clamp, dtype),
        number(alpha, dtype), number(beta, dtype), number(drop, dtype), number(inflow, dtype),
    )  # fmt: skip


@jit
def with_rate(p, rate, mode):
    """The numbers with a learned 1 / tau in place of theirs, where one is given; p.tau then holds it."""
    if rate is None:
        return p
    else:  # noqa: RET505  (Triton compiles what follows an `if`, and would read from None)
        learned = tl.load(rate).to(p.tau.dtype)
        gain = learned if mode.decay else tl.zeros_like(learned) + 1
        return Numbers(
            learned, p.threshold, p.rest, 1 - learned, gain, p.height, p.scale, p.epsilon, p.clamp, p.alpha, p.beta,
            p.drop, p.inflow,
        )  # fmt: skip


@jit
def rounded(block, dtype: tl.constexpr):
    """A block with the values it will have when read back from a tensor of this type."""
    return block.to(dtype).to(block.dtype)


@jit
def kept_charge(h, s, least, greatest, dtype: tl.constexpr):
    """A charge as it is written for the backward pass: rounded to its side of the threshold, so that no spike flips.

    See `revsnn_nodes.equations.rounded_charge`; `least` and `greatest` are `sides_of` the threshold.
    """
    near, least, greatest = rounded(h, dtype), number(least, dtype), number(greatest, dtype)
    return tl.where(s > 0.5, tl.where(near < least, least, near), tl.where(near > greatest, greatest, near))


@jit
def quotient(a, b):
    """a / b, correctly rounded: Triton's division is not, in float32."""
    return a / b if a.dtype == tl.float64 else tl.div_rn(a, b)


@jit
def columns_of(columns, BLOCK: tl.constexpr):
    """The columns of this program, and which of them exist."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return at, at < columns


@jit
def widened(block):
    """A block in the type of the arithmetic."""
    return block if block.dtype == tl.float64 else block.to(tl.float32)


@jit
def read(pointers, mask, policy: tl.constexpr = USUAL):
    """A block in the type of the arithmetic; zeros where masked."""
    return widened(tl.load(pointers, mask=mask, other=0.0, eviction_policy=policy))


@jit
def read_narrow(tensor, row, at, mask, dtype: tl.constexpr, policy: tl.constexpr = USUAL):
    """A block of a tensor from its row in the tensor's type, which in half precision takes half the registers.

    Zeros where masked, or where no tensor is given.
    """
    if tensor is None:
        return tl.zeros(at.shape, dtype)
    else:  # noqa: RET505  (Triton compiles what follows an `if`, and would read from None)
        return tl.load(tensor + row + at, mask=mask, other=0.0, eviction_policy=policy)


@jit
def read_or(tensor, row, at, mask, fill, dtype: tl.constexpr, policy: tl.constexpr = USUAL):
    """A block of a tensor from its row; `fill` where no tensor is given."""
    if tensor is None:
        return tl.zeros(at.shape, tl.float64 if dtype == tl.float64 else tl.float32) + fill
    else:  # noqa: RET505  (Triton compiles what follows an `if`, and would read from None)
        return read(tensor + row + at, mask, policy)


@jit
def write(pointers, block, mask, policy: tl.constexpr = USUAL):
    """Stores a block in the type of the tensor."""
    tl.store(pointers, block.to(pointers.dtype.element_ty), mask=mask, eviction_policy=policy)


@jit
def park(pointers, block, width, mask):
    """Keeps states in a row of a sequence, to the bit: in half precision a half of each in the row `width` before."""
    element: tl.constexpr = pointers.dtype.element_ty
    if element.primitive_bitwidth == 16:
        bits = block.to(tl.int32, bitcast=True)
        tl.store(pointers - width, (bits & 0xFFFF).to(tl.int16).to(element, bitcast=True), mask=mask)
        tl.store(pointers, (bits >> 16).to(tl.int16).to(element, bitcast=True), mask=mask)
    else:
        write(pointers, block, mask)


@jit
def parked(pointers, width, mask):
    """What `park` kept; zeros where masked."""
    if pointers.dtype.element_ty.primitive_bitwidth == 16:
        low = tl.load(pointers - width, mask=mask, other=0.0).to(tl.int16, bitcast=True).to(tl.int32)
        high = tl.load(pointers, mask=mask, other=0.0).to(tl.int16, bitcast=True).to(tl.int32)
        return ((low & 0xFFFF) | (high << 16)).to(tl.float32, bitcast=True)
    else:  # noqa: RET505  (Triton compiles what follows an `if`)
        return read(pointers, mask)


@jit
def charge_of(x, v, p, mode):
    """Charge h of input x and membrane v."""
    if not mode.leaky:
        return v + x
    above = v - p.rest
    part = x - above if mode.decay else above
    part = part * p.tau if mode.exact else quotient(part, tl.zeros_like(part) + p.tau)
    return v + part if mode.decay else v - part + x


@jit
def fired(h, p):
    """Spike s, 0 or 1 in the type of the charge."""
    return (h - p.threshold >= 0).to(h.dtype)


@jit
def reset_of(h, s, p, mode):
    """Membrane v after firing."""
    if mode.soft:
        return h - s * p.threshold
    return tl.where(s > 0.5, p.rest, h)


@jit
def step_of(x, v, p, mode):
    """Charge, spike, and membrane after the step."""
    h = charge_of(x, v, p, mode)
    s = fired(h, p)
    return h, s, reset_of(h, s, p, mode)


@jit
def clamped(x, low, high):
    """x within [low, high]."""
    x = tl.where(x < low, low, x)
    return tl.where(x > high, high, x)


@jit
def phi_of(h, p, mode):
    """Surrogate derivative at charge h; p.height and p.scale are those of `layout.surrogate_code`."""
    z = h - p.threshold
    if mode.kind == SIGMOID:
        e = tl.exp(-p.scale * tl.abs(z))
        return p.height * e / ((1 + e) * (1 + e))
    if mode.kind == ATAN:
        return p.height / tl.fma(z * p.scale, z * p.scale, 1.0)
    if mode.kind == QUADRATIC:
        height = p.height - p.scale * tl.abs(z)
        return tl.where(height < 0.0, 0.0, height)  # NaN stays NaN, which tl.maximum drops
    if mode.kind == EXPONENTIAL:
        return p.height * tl.exp(-p.scale * tl.abs(z))
    if mode.kind == SQUARED:
        return p.height / ((p.scale + tl.abs(z)) * (p.scale + tl.abs(z)))
    if mode.kind == ERF:
        return p.height * tl.exp(-(p.scale * z) * (p.scale * z))
    return tl.where(tl.abs(z) < p.scale, p.height, 0.0)  # RECT


@jit
def lif_step_vjp(h, s, sbar, vbar, p, mode):
    """Gradient at the charge, of those at the spike and at the membrane after the step.

    Multiply-adds are written out, here and wherever else a gradient is made: the compiler makes none.
    """
    if not mode.detach:
        sbar = tl.fma(-vbar, p.threshold if mode.soft else h - p.rest, sbar)
    kept = vbar if mode.soft else tl.fma(-s, vbar, vbar)
    return tl.fma(sbar, phi_of(h, p, mode), kept)
