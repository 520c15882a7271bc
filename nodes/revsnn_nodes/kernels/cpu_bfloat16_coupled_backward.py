"""Fused backward passes of the coupled LIF for tensors in bfloat16 on the CPU: by inverse in time, and from anchors.

Rounding: see `cpu_bfloat16_coupled_rows`. A charge that is regenerated is the one that fired, to the bit, in all groups
but the first, whose input comes with the rounding of the output that carries it; under the spike's gate in that one
too. The inverse rounds nothing. Gradients are rounded once, at the end.
"""

from typing import Any

import numpy as np

from revsnn_nodes.kernels.cpu_bfloat16_coupled_rows import carried_input, load, store
from revsnn_nodes.kernels.cpu_bfloat16_rows import rounded
from revsnn_nodes.kernels.cpu_coupled import block_at, gate_of, reset_membrane
from revsnn_nodes.kernels.cpu_coupled_backward import invert_last_row, invert_row, step_product
from revsnn_nodes.kernels.cpu_rows import charge_of
from revsnn_nodes.kernels.jit import exact


@exact
def _step_gradient(
    ybar: Any, xbar: Any, first: int, last: int, a: int, b: int, charge: Any, vbar: Any, rows: Any, carry: Any,
    p: Any, kind: Any, soft: bool, detach: bool, by_spike: bool,
) -> None:  # fmt: skip
    """Vector-Jacobian product of a step; `rows` is `[3, 1, 1, groups, block]` scratch that begins with its output."""
    n = (last - first) * (b - a)
    load(ybar, p[2], first, last, a, b, rows[1, 0, 0])
    step_product(
        rows[0], rows[1], rows[2], 0, 0, 0, n, charge, vbar, carry, 0, n,
        p, kind, soft, detach, by_spike,
    )  # fmt: skip
    store(rows[2, 0, 0], first, last, a, b, xbar)


@exact
def inverse_backward(
    y: Any, v_last: Any, ybar: Any, vbar_last: Any, p: Any, kind: Any, soft: bool, detach: bool,
    xbar: Any, vbar0: Any, block: int, start: int, stop: int,
) -> None:  # fmt: skip
    """See `cpu_coupled_backward.inverse_backward`."""
    groups, inner = y.shape[2], y.shape[3]
    v = np.empty((groups, block), np.float32)
    vbar = np.empty((groups, block), np.float32)
    charge = np.empty((groups, block), np.float32)
    rows = np.empty((3, 1, 1, groups, block), np.float32)
    carry = np.empty((3, block), np.float32)
    outs = rows[0, 0, 0]
    zero = type(p[0])(0)
    column = start
    while column < stop:
        end, first, last, a, b = block_at(column, stop, inner, block)
        n = (last - first) * (b - a)
        load(v_last, zero, first, last, a, b, v)
        load(vbar_last, zero, first, last, a, b, vbar)
        for t in range(y.shape[0] - 1, -1, -1):
            load(y[t], zero, first, last, a, b, outs)
            i = groups - 1
            invert_last_row(outs[i, :n], outs[i - 1, :n], v[i, :n], charge[i, :n], carry[2, :n], p, soft)
            for i in range(groups - 2, -1, -1):
                drive = outs[i - 1, :n] if i else carry[2, :n]
                invert_row(outs[i, :n], drive, v[i, :n], charge[i, :n], p, soft)
            _step_gradient(
                ybar[t], xbar[t], first, last, a, b, charge, vbar, rows, carry, p, kind, soft, detach, False
            )  # fmt: skip
        store(vbar, first, last, a, b, vbar0)
        column = end


@exact
def _regenerate_row(y: Any, drive: Any, v: Any, charge: Any, p: Any, leak: Any, soft: bool, by_spike: bool) -> None:
    """A group of a step, forward in time, from the membrane before it and the output."""
    tau, threshold, rest, alpha, drop = p[0], p[1], p[2], p[7], p[9]
    for j in range(y.shape[0]):
        m = rounded(charge_of(drive[j], v[j], tau, rest, leak))
        charge[j] = m
        gate = gate_of(y[j], m, threshold, by_spike)
        v[j] = rounded(reset_membrane(m, gate, rest, alpha, drop, soft))


@exact
def _decode_row(y: Any, charge: Any, x: Any, p: Any) -> None:
    """The first group's input, from the last group."""
    threshold, unscale = p[1], type(p[8])(1) / p[8]
    for j in range(y.shape[0]):
        x[j] = carried_input(y[j], charge[j], threshold, unscale)


@exact
def _regenerate_step(
    outs: Any, n: int, v: Any, charge: Any, x_first: Any, p: Any, leak: Any, soft: bool, by_spike: bool
) -> None:
    """The first n columns of `[groups, block]` scratch, one step forward in time; the first group needs the last."""
    groups = outs.shape[0]
    for i in range(1, groups):
        _regenerate_row(outs[i, :n], outs[i - 1, :n], v[i, :n], charge[i, :n], p, leak, soft, by_spike)
    _decode_row(outs[groups - 1, :n], charge[groups - 1, :n], x_first[:n], p)
    _regenerate_row(outs[0, :n], x_first[:n], v[0, :n], charge[0, :n], p, leak, soft, by_spike)


@exact
def anchored_backward(
    y: Any, v0: Any, anchors: Any, ybar: Any, vbar_last: Any, p: Any, kind: Any,
    leak: Any, soft: bool, detach: bool, by_spike: bool, every: int,
    xbar: Any, vbar0: Any, block: int, start: int, stop: int,
) -> None:  # fmt: skip
    """See `cpu_coupled_backward.anchored_backward`."""
    steps, groups, inner = y.shape[0], y.shape[2], y.shape[3]
    v = np.empty((groups, block), np.float32)
    vbar = np.empty((groups, block), np.float32)
    charge = np.empty((min(every, steps), groups, block), np.float32)
    rows = np.empty((3, 1, 1, groups, block), np.float32)
    carry = np.empty((3, block), np.float32)
    outs = rows[0, 0, 0]
    zero = type(p[0])(0)
    column = start
    while column < stop:
        end, first, last, a, b = block_at(column, stop, inner, block)
        n = (last - first) * (b - a)
        load(vbar_last, zero, first, last, a, b, vbar)
        for segment in range((steps - 1) // every, -1, -1):
            from_step, to_step = segment * every, min(steps, (segment + 1) * every)
            load(anchors[segment - 1] if segment else v0, p[2], first, last, a, b, v)
            for t in range(from_step, to_step):
                load(y[t], zero, first, last, a, b, outs)
                _regenerate_step(outs, n, v, charge[t - from_step], carry[2], p, leak, soft, by_spike)
            for t in range(to_step - 1, from_step - 1, -1):
                load(y[t], zero, first, last, a, b, outs)
                _step_gradient(
                    ybar[t], xbar[t], first, last, a, b, charge[t - from_step], vbar, rows, carry,
                    p, kind, soft, detach, by_spike,
                )  # fmt: skip
        store(vbar, first, last, a, b, vbar0)
        column = end
