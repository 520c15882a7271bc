"""Fused LIF in Triton; equations: section "Standard LIF" of nodes/README.md.

Sequences are `[T, columns]`, states `[columns]`, all contiguous. A program runs a block of neurons through all steps
with their membranes in registers, so each number is read once and written once. Words of memory traffic per element
and step, with 2 / T more for states that are read or written: forward 2 (x, s), 3 with the charges h kept; backward 3
(h, sbar, xbar). No kernel that takes and gives these tensors can move less.

Every kernel of this package takes its operator's tensors, then the tensors it writes, None for those not given or not
wanted; then the numbers of `revsnn_nodes.kernels.layout.Numbers` and its sizes; then what it is compiled for.
"""

import triton.language as tl

from revsnn_nodes.kernels.triton.equations import (
    charge_of,
    columns_of,
    f64,
    fired,
    kept_charge,
    kernel,
    lif_step_vjp,
    numbers_of,
    read,
    read_or,
    reset_of,
    with_rate,
    write,
)


@kernel
def lif_forward(
    x_seq, v0, rate, s_seq, v_last, h_seq,
    tau: f64, threshold: f64, rest: f64, keep: f64, gain: f64, height: f64, scale: f64,
    epsilon: f64, clamp: f64, alpha: f64, beta: f64, drop: f64, inflow: f64, least: f64, greatest: f64,
    steps: tl.int32, columns: tl.int64, mode, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Writes the spikes, the last membrane, and the charges where wanted."""
    dtype: tl.constexpr = x_seq.dtype.element_ty
    p = numbers_of(dtype, tau, threshold, rest, keep, gain, height, scale, epsilon, clamp, alpha, beta, drop, inflow)
    p = with_rate(p, rate, mode)
    at, mask = columns_of(columns, BLOCK)
    v = read_or(v0, 0, at, mask, p.rest, dtype)
    for t in tl.range(0, steps, num_stages=STAGES):
        row = t * columns
        x = read(x_seq + row + at, mask)
        h = charge_of(x, v, p, mode)
        s = fired(h, p)
        v = reset_of(h, s, p, mode)
        write(s_seq + row + at, s, mask)
        if h_seq is not None:
            write(h_seq + row + at, kept_charge(h, s, least, greatest, dtype), mask)
    write(v_last + at, v, mask)


@kernel
def lif_backward(
    h_seq, sbar_seq, vbar_last, v0, rate, xbar_seq, vbar0, ratebar,
    tau: f64, threshold: f64, rest: f64, keep: f64, gain: f64, height: f64, scale: f64,
    epsilon: f64, clamp: f64, alpha: f64, beta: f64, drop: f64, inflow: f64,
    steps: tl.int32, columns: tl.int64, mode, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Writes the gradient of the input; where wanted, of the first membrane, and what each neuron adds to 1/tau's."""
    dtype: tl.constexpr = h_seq.dtype.element_ty
    p = numbers_of(dtype, tau, threshold, rest, keep, gain, height, scale, epsilon, clamp, alpha, beta, drop, inflow)
    p = with_rate(p, rate, mode)
    at, mask = columns_of(columns, BLOCK)
    vbar = read_or(vbar_last, 0, at, mask, 0.0, dtype)
    total = tl.zeros_like(vbar)
    for back in tl.range(0, steps, num_stages=STAGES):
        row = (steps - 1 - back) * columns
        h = read(h_seq + row + at, mask)
        sbar = read_or(sbar_seq, row, at, mask, 0.0, dtype)
        hbar = lif_step_vjp(h, fired(h, p), sbar, vbar, p, mode)
        vbar = p.keep * hbar
        write(xbar_seq + row + at, p.gain * hbar, mask)
        if ratebar is not None:
            v = read_or(v0, 0, at, mask, p.rest, dtype)
            if back + 1 < steps:
                before = read(h_seq + row - columns + at, mask)
                v = reset_of(before, fired(before, p), p, mode)
            # h - v is the input's distance times 1 / tau, by which the total is divided at the end.
            total += hbar * (h - v if mode.decay else p.rest - v)
    if vbar0 is not None:
        write(vbar0 + at, vbar, mask)
    if ratebar is not None:
        write(ratebar + at, total / p.tau if mode.decay else total, mask)
