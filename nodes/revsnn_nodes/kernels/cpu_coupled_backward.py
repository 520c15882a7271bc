"""Fused backward passes of the coupled LIF for the CPU: by inverse in time, and from anchors.

Equations: section "Coupled LIF" of nodes/README.md. Layout and blocks: see `cpu_coupled`. Within a block, states are
`[groups, block]` scratch; the outer rows of the block lie one after the other in it.
"""

from typing import Any

import numpy as np

from revsnn_nodes.kernels.cpu_coupled import block_end, gate_of, reset_membrane
from revsnn_nodes.kernels.cpu_rows import charge_of, clamped, fired, phi_of
from revsnn_nodes.kernels.jit import contracted, exact


@exact
def _copy(target: Any, source: Any) -> None:
    # An assignment of slices would first look for overlap, and is several times slower.
    for j in range(source.shape[0]):
        target[j] = source[j]


@exact
def _add(total: Any, term: Any) -> None:
    for j in range(term.shape[0]):
        total[j] += term[j]


@exact
def _carried_row(y: Any, charge: Any, p: Any, x: Any) -> None:
    """The input that output y carries."""
    threshold, unscale = p[1], type(p[8])(1) / p[8]
    for j in range(x.shape[0]):
        x[j] = (y[j] - fired(charge[j], threshold)) * unscale


@contracted
def _product_row(
    y: Any, charge: Any, vbar: Any, arrived: Any, p: Any, kind: Any, soft: bool, detach: bool, by_spike: bool
) -> None:
    """See `revsnn_nodes.coupling._reset_vjp`. In place of what it has used it leaves, in `charge`, the gradient of
    the partner's input, and in `arrived` that of the drive. (Few arrays: with more, the check that they do not
    overlap keeps LLVM from making vector instructions.)"""
    threshold, rest, keep, gain, height, scale = p[1], p[2], p[3], p[4], p[5], p[6]
    alpha, beta, drop = p[7], p[8], p[9]
    zero = type(keep)(0)
    one = type(keep)(1)
    for j in range(y.shape[0]):
        m, out, later, ybar = charge[j], y[j], vbar[j], arrived[j]
        into_gate = zero
        if not detach:
            into_gate = drop * later if soft else alpha * later * (m - rest)
        into_output = zero if by_spike or not (out > zero and out < one) else into_gate
        into_spike = into_gate if by_spike else into_output
        kept = later if soft else later * (one - alpha * gate_of(out, m, threshold, by_spike))
        mbar = kept + (ybar - into_spike) * phi_of(kind, height, scale, m - threshold)
        vbar[j] = keep * mbar
        charge[j] = beta * (ybar - into_output)
        arrived[j] = gain * mbar


@exact
def _step_product(
    y: Any, ybar: Any, xbar: Any, t: int, o: int, a: int, b: int,
    charge: Any, vbar: Any, carry: Any, c: int, p: Any, kind: Any, soft: bool, detach: bool, by_spike: bool,
) -> None:  # fmt: skip
    """Vector-Jacobian product of step t for columns a to b of outer row o, groups from last to first.

    `charge` and `vbar` are `[groups, block]` and `carry` is `[block]`; these columns are at c in them.
    """
    groups, d = y.shape[2], c + b - a
    for i in range(groups - 1, -1, -1):
        if i == groups - 1:
            _copy(carry[c:d], ybar[t, o, i, a:b])
        else:
            _add(carry[c:d], ybar[t, o, i, a:b])
        _product_row(
            y[t, o, i, a:b], charge[i, c:d], vbar[i, c:d], carry[c:d], p, kind, soft, detach, by_spike
        )  # fmt: skip
        if i < groups - 1:
            _copy(xbar[t, o, i + 1, a:b], charge[i, c:d])
    _add(carry[c:d], charge[groups - 1, c:d])
    _copy(xbar[t, o, 0, a:b], carry[c:d])


@exact
def _load(local: Any, given: Any, fill: Any, first: int, last: int, a: int, b: int) -> None:
    """Copies a block of a state into scratch; `fill` where an empty array is given."""
    if given.shape[0] == 0:
        local[:] = fill
        return
    for o in range(first, last):
        c = (o - first) * (b - a)
        for i in range(local.shape[0]):
            local[i, c : c + b - a] = given[o, i, a:b]


@exact
def _store(local: Any, state: Any, first: int, last: int, a: int, b: int) -> None:
    """Copies scratch into a block of a state, unless that is empty."""
    if state.shape[0] == 0:
        return
    for o in range(first, last):
        c = (o - first) * (b - a)
        for i in range(local.shape[0]):
            state[o, i, a:b] = local[i, c : c + b - a]


@exact
def _invert_row(y: Any, drive: Any, v: Any, charge: Any, p: Any) -> None:
    """From the charge to the membrane before."""
    unkeep, gain, inflow = type(p[3])(1) / p[3], p[4], p[10]
    for j in range(y.shape[0]):
        v[j] = (charge[j] - gain * drive[j] - inflow) * unkeep


@exact
def _undo_reset_row(y: Any, v: Any, charge: Any, p: Any, soft: bool) -> None:
    """From the membrane after to the charge."""
    rest, alpha, drop = p[2], p[7], p[9]
    zero = type(rest)(0)
    one = type(rest)(1)
    for j in range(y.shape[0]):
        gate = clamped(y[j], zero, one)
        opened = alpha * gate
        charge[j] = v[j] + drop * gate if soft else (v[j] - opened * rest) / (one - opened)


@exact
def inverse_backward(
    y: Any, v_last: Any, ybar: Any, vbar_last: Any, p: Any, kind: Any, soft: bool, detach: bool,
    xbar: Any, vbar0: Any, block: int, start: int, stop: int,
) -> None:  # fmt: skip
    """Writes the gradient of the input, and of the first membrane unless an empty array is given for it."""
    groups, inner = y.shape[2], y.shape[3]
    v = np.empty((groups, block), y.dtype)
    vbar = np.empty((groups, block), y.dtype)
    charge = np.empty((groups, block), y.dtype)
    x_first = np.empty(block, y.dtype)
    carry = np.empty(block, y.dtype)
    zero = type(p[0])(0)
    column = start
    while column < stop:
        end = block_end(column, stop, inner, block)
        first, last, a = column // inner, (end - 1) // inner + 1, column % inner
        b = min(inner, a + end - column)
        _load(v, v_last, zero, first, last, a, b)
        _load(vbar, vbar_last, zero, first, last, a, b)
        for t in range(y.shape[0] - 1, -1, -1):
            for o in range(first, last):
                c = (o - first) * (b - a)
                d = c + b - a
                for i in range(groups - 1, -1, -1):
                    _undo_reset_row(y[t, o, i, a:b], v[i, c:d], charge[i, c:d], p, soft)
                    if i == groups - 1:
                        _carried_row(y[t, o, i, a:b], charge[i, c:d], p, x_first[c:d])
                    drive = x_first[c:d] if i == 0 else y[t, o, i - 1, a:b]
                    _invert_row(y[t, o, i, a:b], drive, v[i, c:d], charge[i, c:d], p)
                _step_product(
                    y, ybar, xbar, t, o, a, b, charge, vbar, carry, c, p, kind, soft, detach, False
                )  # fmt: skip
        _store(vbar, vbar0, first, last, a, b)
        column = end


@exact
def _regenerate_row(y: Any, drive: Any, v: Any, charge: Any, p: Any, leak: Any, soft: bool, by_spike: bool) -> None:
    tau, threshold, rest, alpha, drop = p[0], p[1], p[2], p[7], p[9]
    for j in range(y.shape[0]):
        m = charge_of(drive[j], v[j], tau, rest, leak)
        charge[j] = m
        v[j] = reset_membrane(m, gate_of(y[j], m, threshold, by_spike), rest, alpha, drop, soft)


@exact
def anchored_backward(
    y: Any, v0: Any, anchors: Any, ybar: Any, vbar_last: Any, p: Any, kind: Any,
    leak: Any, soft: bool, detach: bool, by_spike: bool, every: int,
    xbar: Any, vbar0: Any, block: int, start: int, stop: int,
) -> None:  # fmt: skip
    """As `inverse_backward`; the charges of a segment are regenerated forward into scratch, from its anchor."""
    steps, groups, inner = y.shape[0], y.shape[2], y.shape[3]
    v = np.empty((groups, block), y.dtype)
    vbar = np.empty((groups, block), y.dtype)
    charge = np.empty((min(every, steps), groups, block), y.dtype)
    x_first = np.empty(block, y.dtype)
    zero = type(p[0])(0)
    column = start
    while column < stop:
        end = block_end(column, stop, inner, block)
        first, last, a = column // inner, (end - 1) // inner + 1, column % inner
        b = min(inner, a + end - column)
        _load(vbar, vbar_last, zero, first, last, a, b)
        for segment in range((steps - 1) // every, -1, -1):
            from_step, to_step = segment * every, min(steps, (segment + 1) * every)
            if segment == 0:
                _load(v, v0, p[2], first, last, a, b)
            else:
                _load(v, anchors[segment - 1], p[2], first, last, a, b)
            for t in range(from_step, to_step):
                for o in range(first, last):
                    c = (o - first) * (b - a)
                    d = c + b - a
                    s = t - from_step
                    for i in range(1, groups):
                        _regenerate_row(
                            y[t, o, i, a:b], y[t, o, i - 1, a:b], v[i, c:d], charge[s, i, c:d], p, leak, soft, by_spike
                        )  # fmt: skip
                    _carried_row(y[t, o, groups - 1, a:b], charge[s, groups - 1, c:d], p, x_first[c:d])
                    _regenerate_row(
                        y[t, o, 0, a:b], x_first[c:d], v[0, c:d], charge[s, 0, c:d], p, leak, soft, by_spike
                    )  # fmt: skip
            for t in range(to_step - 1, from_step - 1, -1):
                for o in range(first, last):
                    c = (o - first) * (b - a)
                    _step_product(
                        y, ybar, xbar, t, o, a, b, charge[t - from_step], vbar, x_first, c, p, kind,
                        soft, detach, by_spike,
                    )  # fmt: skip
        _store(vbar, vbar0, first, last, a, b)
        column = end
