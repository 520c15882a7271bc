"""Fused LIF in Triton: a program runs a block of neurons through all steps, with their membranes in registers.

Sequences are `[T, columns]`, states `[columns]`, all contiguous. Words of memory traffic per element and step, with
2 / T more for states that are read or written: forward 2 (input, spike), 3 with charges kept; backward 3 (charge,
gradient of the spike, gradient of the input). No kernel that takes and gives these tensors can move less.
"""

import triton.language as tl

from revsnn_nodes.kernels.triton.equations import (
    charge_of,
    columns_of,
    fired,
    gradient_at_charge,
    kernel,
    number,
    read,
    read_or,
    reset_of,
    rounded,
    write,
)


@kernel(key=("columns", "steps"), values=lambda _: 4)
def lif_forward(
    x, v0, spike, v_last, charge,
    tau: tl.float64, threshold: tl.float64, rest: tl.float64, steps: tl.int32, columns: tl.int64,
    CARRIED: tl.constexpr, KEEP: tl.constexpr, DECAY: tl.constexpr, EXACT: tl.constexpr, SOFT: tl.constexpr,
    BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Writes spikes, the last membrane, and the charges if KEEP."""
    DTYPE: tl.constexpr = x.dtype.element_ty
    at, mask = columns_of(columns, BLOCK)
    v = read_or(v0 + at, mask, rest, CARRIED)
    tau, threshold, rest = number(tau, v), number(threshold, v), number(rest, v)
    for t in tl.range(0, steps, num_stages=STAGES):
        h = rounded(charge_of(read(x + t * columns + at, mask), v, tau, rest, DECAY, EXACT), DTYPE)
        s = fired(h, threshold)
        v = rounded(reset_of(h, s, threshold, rest, SOFT), DTYPE)
        write(spike + t * columns + at, s, mask)
        if KEEP:
            write(charge + t * columns + at, h, mask)
    write(v_last + at, v, mask)


@kernel(key=("columns", "steps"), values=lambda _: 4)
def lif_backward(
    charge, sbar, vbar, xbar, vbar0,
    threshold: tl.float64, rest: tl.float64, keep: tl.float64, gain: tl.float64, height: tl.float64, scale: tl.float64,
    steps: tl.int32, columns: tl.int64,
    HAS_SBAR: tl.constexpr, HAS_VBAR: tl.constexpr, NEED_V: tl.constexpr,
    KIND: tl.constexpr, SOFT: tl.constexpr, DETACH: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Writes the gradient of the input, and of the first membrane if NEED_V."""
    at, mask = columns_of(columns, BLOCK)
    w = read_or(vbar + at, mask, 0.0, HAS_VBAR)
    threshold, rest, keep, gain = number(threshold, w), number(rest, w), number(keep, w), number(gain, w)
    height, scale = number(height, w), number(scale, w)
    for back in tl.range(0, steps, num_stages=STAGES):
        row = (steps - 1 - back) * columns
        h = read(charge + row + at, mask)
        arrived = read_or(sbar + row + at, mask, 0.0, HAS_SBAR)
        hbar = gradient_at_charge(
            h, fired(h, threshold), arrived, w, threshold, rest, height, scale, KIND, SOFT, DETACH
        )  # fmt: skip
        w = keep * hbar
        write(xbar + row + at, gain * hbar, mask)
    if NEED_V:
        write(vbar0 + at, w, mask)
