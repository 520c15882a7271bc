"""Fused backward passes of the coupled LIF for the CPU: by inverse in time, and from anchors.

Equations: section "Coupled LIF" of nodes/README.md. Layout and blocks: see `cpu_coupled`. Within a block, states are
`[groups, block]` scratch; the outer rows of the block lie one after the other in it.
"""

from typing import Any

import numpy as np

from revsnn_nodes.kernels.cpu_coupled import block_end, gate_of, reset_membrane
from revsnn_nodes.kernels.cpu_rows import charge_of, clamped, fired, phi_of
from revsnn_nodes.kernels.jit import contracted, exact


@contracted
def _product_row(
    y: Any, charge: Any, vbar: Any, arrived: Any, before: Any, total: Any, partner: Any,
    p: Any, kind: Any, soft: bool, detach: bool, by_spike: bool,
) -> None:  # fmt: skip
    """See `revsnn_nodes.coupling._reset_vjp`. Writes the gradient of the drive, added to `before`, into `total`, and
    that of the partner's input into `partner`. No two rows may overlap: the loop would not be vectorised."""
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
        partner[j] = beta * (ybar - into_output)
        total[j] = before[j] + gain * mbar


@exact
def _step_product(
    y: Any, ybar: Any, xbar: Any, t: int, o: int, a: int, b: int,
    charge: Any, vbar: Any, carry: Any, c: int, p: Any, kind: Any, soft: bool, detach: bool, by_spike: bool,
) -> None:  # fmt: skip
    """Vector-Jacobian product of step t for columns a to b of outer row o, groups from last to first.

    `charge` and `vbar` are `[groups, block]`; these columns are at c in them. `carry` is `[3, block]`: the gradient on
    its way from a group to the one before, in turn in rows 0 and 1, and that of the first group's input as a partner.
    """
    groups, d, n = y.shape[2], c + b - a, b - a
    for i in range(groups - 1, -1, -1):
        arrived = ybar[t, o, i, a:b] if i == groups - 1 else carry[(i + 1) % 2, :n]
        before = ybar[t, o, i - 1, a:b] if i else carry[2, :n]
        total = carry[i % 2, :n] if i else xbar[t, o, 0, a:b]
        partner = carry[2, :n] if i == groups - 1 else xbar[t, o, i + 1, a:b]
        _product_row(
            y[t, o, i, a:b], charge[i, c:d], vbar[i, c:d], arrived, before, total, partner,
            p, kind, soft, detach, by_spike,
        )  # fmt: skip


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
def _charge_after(y: Any, v: Any, rest: Any, alpha: Any, drop: Any, soft: bool) -> Any:
    """From the membrane after the reset to the charge."""
    gate = clamped(y, type(y)(0), type(y)(1))
    if soft:
        return v + drop * gate
    opened = alpha * gate
    return (v - opened * rest) / (type(y)(1) - opened)


@exact
def _invert_last_row(y: Any, drive: Any, v: Any, charge: Any, x: Any, p: Any, soft: bool) -> None:
    """The last group of a step, backward in time; also writes the first group's input, which its output carries."""
    threshold, rest, alpha, drop = p[1], p[2], p[7], p[9]
    unkeep, gain, inflow, unscale = type(p[3])(1) / p[3], p[4], p[10], type(p[8])(1) / p[8]
    for j in range(y.shape[0]):
        m = _charge_after(y[j], v[j], rest, alpha, drop, soft)
        charge[j] = m
        x[j] = (y[j] - fired(m, threshold)) * unscale
        v[j] = (m - gain * drive[j] - inflow) * unkeep


@exact
def _invert_row(y: Any, drive: Any, v: Any, charge: Any, p: Any, soft: bool) -> None:
    """Another group of a step, backward in time."""
    rest, alpha, drop = p[2], p[7], p[9]
    unkeep, gain, inflow = type(p[3])(1) / p[3], p[4], p[10]
    for j in range(y.shape[0]):
        m = _charge_after(y[j], v[j], rest, alpha, drop, soft)
        charge[j] = m
        v[j] = (m - gain * drive[j] - inflow) * unkeep


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
    carry = np.empty((3, block), y.dtype)
    x_first = carry[2]
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
                i = groups - 1
                _invert_last_row(
                    y[t, o, i, a:b], y[t, o, i - 1, a:b], v[i, c:d], charge[i, c:d], x_first[: b - a], p, soft
                )  # fmt: skip
                for i in range(groups - 2, -1, -1):
                    drive = y[t, o, i - 1, a:b] if i else x_first[: b - a]
                    _invert_row(y[t, o, i, a:b], drive, v[i, c:d], charge[i, c:d], p, soft)
                _step_product(
                    y, ybar, xbar, t, o, a, b, charge, vbar, carry, c, p, kind, soft, detach, False
                )  # fmt: skip
        _store(vbar, vbar0, first, last, a, b)
        column = end


@exact
def _regenerate_row(y: Any, drive: Any, v: Any, charge: Any, p: Any, leak: Any, soft: bool, by_spike: bool) -> None:
    """A group of a step, forward in time, from the membrane before it and the output."""
    tau, threshold, rest, alpha, drop = p[0], p[1], p[2], p[7], p[9]
    for j in range(y.shape[0]):
        m = charge_of(drive[j], v[j], tau, rest, leak)
        charge[j] = m
        v[j] = reset_membrane(m, gate_of(y[j], m, threshold, by_spike), rest, alpha, drop, soft)


@exact
def _regenerate_last_row(
    y: Any, drive: Any, v: Any, charge: Any, x: Any, p: Any, leak: Any, soft: bool, by_spike: bool
) -> None:
    """As `_regenerate_row`; also writes the first group's input, which the last group's output carries."""
    tau, threshold, rest, alpha, drop, unscale = p[0], p[1], p[2], p[7], p[9], type(p[8])(1) / p[8]
    for j in range(y.shape[0]):
        m = charge_of(drive[j], v[j], tau, rest, leak)
        charge[j] = m
        x[j] = (y[j] - fired(m, threshold)) * unscale
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
    carry = np.empty((3, block), y.dtype)
    x_first = carry[2]
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
                    for i in range(1, groups - 1):
                        _regenerate_row(
                            y[t, o, i, a:b], y[t, o, i - 1, a:b], v[i, c:d], charge[s, i, c:d], p, leak, soft, by_spike
                        )  # fmt: skip
                    i = groups - 1
                    _regenerate_last_row(
                        y[t, o, i, a:b], y[t, o, i - 1, a:b], v[i, c:d], charge[s, i, c:d], x_first[: b - a],
                        p, leak, soft, by_spike,
                    )  # fmt: skip
                    _regenerate_row(
                        y[t, o, 0, a:b], x_first[: b - a], v[0, c:d], charge[s, 0, c:d], p, leak, soft, by_spike
                    )  # fmt: skip
            for t in range(to_step - 1, from_step - 1, -1):
                for o in range(first, last):
                    c = (o - first) * (b - a)
                    _step_product(
                        y, ybar, xbar, t, o, a, b, charge[t - from_step], vbar, carry, c, p, kind,
                        soft, detach, by_spike,
                    )  # fmt: skip
        _store(vbar, vbar0, first, last, a, b)
        column = end
