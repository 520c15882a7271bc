"""Fused coupled LIF in Triton: forward, and backward by inverse in time.

Layout: see `triton_coupled_step`. A program runs its columns through all steps with the membranes of all groups in
registers. Words of memory traffic per element and step, beside 2 / T to 4 / T for states: forward 2 (input, output)
and 1 / k for anchors every k steps; inverse backward 3 (output, its gradient, gradient of the input). Both are the
least.
"""

import triton.language as tl

from revsnn_nodes.kernels.triton_coupled_step import (
    first_group_of,
    gate_of,
    product,
    read_groups,
    reset_membrane,
    step_back,
    write_groups,
)
from revsnn_nodes.kernels.triton_jit import kernel
from revsnn_nodes.kernels.triton_step import appended, charge_of, fired, number, rounded


@kernel(key=("columns", "steps", "GROUPS"), values=lambda given: 4 * given["GROUPS"])
def coupled_forward(
    x, v0, y, v_last, anchors,
    tau: tl.float64, threshold: tl.float64, rest: tl.float64, alpha: tl.float64, beta: tl.float64, drop: tl.float64,
    steps: tl.int32, every: tl.int32, columns: tl.int64, inner: tl.int64,
    CARRIED: tl.constexpr, DECAY: tl.constexpr, EXACT: tl.constexpr, SOFT: tl.constexpr, BY_SPIKE: tl.constexpr,
    GROUPS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Writes the output, the last membrane, and the membrane before steps every, 2 every, ... into `anchors`."""
    DTYPE: tl.constexpr = x.dtype.element_ty
    at, mask = first_group_of(columns, inner, GROUPS, BLOCK)
    row = columns * GROUPS
    states = read_groups(v0 + at, inner, mask, rest, GROUPS, CARRIED)
    like = states[0]
    tau, threshold, rest = number(tau, like), number(threshold, like), number(rest, like)
    alpha, beta, drop = number(alpha, like), number(beta, like), number(drop, like)
    for first in range(0, steps, every):
        if first > 0:
            write_groups(anchors + (first // every - 1) * row + at, states, inner, mask, GROUPS)
        for t in tl.range(first, min(first + every, steps), num_stages=STAGES):
            inputs = read_groups(x + t * row + at, inner, mask, 0.0, GROUPS, True)
            drive = inputs[0]
            outs, after = (), ()
            for i in tl.static_range(GROUPS):
                charge = charge_of(drive, states[i], tau, rest, DECAY, EXACT)
                drive = rounded(fired(charge, threshold) + beta * inputs[(i + 1) % GROUPS], DTYPE)
                gate = gate_of(drive, charge, threshold, BY_SPIKE)
                outs = appended(outs, drive)
                after = appended(after, reset_membrane(charge, gate, rest, alpha, drop, DTYPE, SOFT))
            write_groups(y + t * row + at, outs, inner, mask, GROUPS)
            states = after
    write_groups(v_last + at, states, inner, mask, GROUPS)


@kernel(key=("columns", "steps", "GROUPS"), values=lambda given: 6 * given["GROUPS"])
def inverse_backward(
    y, v_last, ybar, vbar, xbar, vbar0,
    threshold: tl.float64, rest: tl.float64, keep: tl.float64, gain: tl.float64, height: tl.float64, scale: tl.float64,
    alpha: tl.float64, beta: tl.float64, drop: tl.float64, inflow: tl.float64,
    steps: tl.int32, columns: tl.int64, inner: tl.int64,
    HAS_YBAR: tl.constexpr, HAS_VBAR: tl.constexpr, NEED_V: tl.constexpr,
    KIND: tl.constexpr, SOFT: tl.constexpr, DETACH: tl.constexpr,
    GROUPS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Writes the gradient of the input, and of the first membrane if NEED_V."""
    at, mask = first_group_of(columns, inner, GROUPS, BLOCK)
    row = columns * GROUPS
    states = read_groups(v_last + at, inner, mask, 0.0, GROUPS, True)
    later = read_groups(vbar + at, inner, mask, 0.0, GROUPS, HAS_VBAR)
    like = states[0]
    threshold, rest, keep, gain = number(threshold, like), number(rest, like), number(keep, like), number(gain, like)
    height, scale, alpha, beta = number(height, like), number(scale, like), number(alpha, like), number(beta, like)
    drop, inflow = number(drop, like), number(inflow, like)
    unkeep, unscale = 1 / keep, 1 / beta
    for back in tl.range(0, steps, num_stages=STAGES):
        t = steps - 1 - back
        outs = read_groups(y + t * row + at, inner, mask, 0.0, GROUPS, True)
        arrived = read_groups(ybar + t * row + at, inner, mask, 0.0, GROUPS, HAS_YBAR)
        charges, states = step_back(
            outs, states, threshold, rest, unkeep, gain, alpha, drop, unscale, inflow, SOFT, GROUPS
        )  # fmt: skip
        gradients, later = product(
            outs, charges, arrived, later, threshold, rest, keep, gain, height, scale, alpha, beta, drop,
            KIND, SOFT, DETACH, False, GROUPS,
        )  # fmt: skip
        write_groups(xbar + t * row + at, gradients, inner, mask, GROUPS)
    if NEED_V:
        write_groups(vbar0 + at, later, inner, mask, GROUPS)
