"""Fused coupled LIF for the CPU: forward, and the two backward passes, by inverse in time and from anchors.

Equations: section "Coupled LIF" of nodes/README.md; `revsnn_nodes.equations` in compiled code. Sequences are
`[T, outer, groups, inner]`, states `[outer, groups, inner]`, all contiguous; one call does the columns `start` to
`stop` of `[outer, inner]`, in blocks that `block_at` cuts. `p` holds the parameters in the type of the data, in the
order of `selection.coupled_parameters`.

Fused backward passes of the coupled LIF for the CPU: by inverse in time, and from anchors.

Equations: section "Coupled LIF" of nodes/README.md. Layout and blocks: see `cpu_coupled`. Within a block, states are
`[groups, block]` scratch; the outer rows of the block lie one after the other in it.
"""

from typing import Any

import numpy as np

from revsnn_nodes.kernels.cpu.equations import charge_of, clamped, fired, phi_of
from revsnn_nodes.kernels.cpu.machine import (
    contracted,
    contracted_row,
    exact,
    exact_row,
    following,
    preceding,
    read_ahead,
    row_of,
    settle,
    stream,
    write_ahead,
)


@exact
def block_at(column: int, stop: int, inner: int, block: int) -> Any:
    """The block that begins at a column: where it ends, its outer rows from first to last - 1, and its columns a to b.

    It is a piece of one inner row, or whole inner rows where these are short.
    """
    if inner >= block:
        end = min(column + block, stop, (column // inner + 1) * inner)
    else:
        end = min(column + (block // inner) * inner, stop)
    a = column % inner
    return end, column // inner, (end - 1) // inner + 1, a, min(inner, a + end - column)


@exact
def gate_of(y: Any, charge: Any, threshold: Any, by_spike: bool) -> Any:
    """How far the reset is open: by the spike, or by the clamped output."""
    if by_spike:
        return fired(charge, threshold)
    return clamped(y, type(y)(0), type(y)(1))


@exact
def reset_membrane(charge: Any, gate: Any, rest: Any, alpha: Any, drop: Any, soft: bool) -> Any:
    """See `revsnn_nodes.equations._reset`; `drop` is alpha times the threshold."""
    if soft:
        return charge - drop * gate
    return charge - alpha * gate * (charge - rest)


@exact_row
def _forward_row(drive: Any, partner: Any, v: Any, y: Any, p: Any, leak: Any, soft: bool, by_spike: bool) -> None:
    tau, threshold, rest, alpha, beta, drop = p[0], p[1], p[2], p[9], p[10], p[11]
    for j in range(y.shape[0]):
        charge = charge_of(drive[j], v[j], tau, rest, leak)
        out = fired(charge, threshold) + beta * partner[j]
        v[j] = reset_membrane(charge, gate_of(out, charge, threshold, by_spike), rest, alpha, drop, soft)
        y[j] = out


@exact
def coupled_forward(
    x: Any, v0: Any, p: Any, leak: Any, soft: bool, by_spike: bool, every: int,
    y: Any, v: Any, anchors: Any, streams: Any, piece: int, block: int, start: int, stop: int,
) -> None:  # fmt: skip
    """Writes the output, the last membrane, and the membrane before steps every, 2 every, ... into `anchors`."""
    groups, inner = x.shape[2], x.shape[3]
    rows = np.empty((groups, piece), x.dtype)
    column = start
    while column < stop:
        end, first, last, a, b = block_at(column, stop, inner, block)
        if v0.shape[0]:
            v[first:last, :, a:b] = v0[first:last, :, a:b]
        else:
            v[first:last, :, a:b] = p[2]
        for t in range(x.shape[0]):
            if t % every == 0 and 0 < t // every <= anchors.shape[0]:
                anchors[t // every - 1, first:last, :, a:b] = v[first:last, :, a:b]
            for o in range(first, last):
                _forward_step(x, y, v, t, o, a, b, rows, p, leak, soft, by_spike, streams, piece)
        column = end
    settle()


@exact
def _forward_step(
    x: Any, y: Any, v: Any, t: int, o: int, a: int, b: int, rows: Any,
    p: Any, leak: Any, soft: bool, by_spike: bool, streams: Any, piece: int,
) -> None:  # fmt: skip
    """Step t for columns a to b of outer row o; `rows`, `[groups, piece]`, holds what will be streamed."""
    groups = x.shape[2]
    for c in range(a, b, piece):
        n = min(c + piece, b) - c
        for i in range(groups):
            here = place(x, t, o, i, c)
            partner = row_of(x, place(x, t, o, (i + 1) % groups, c), n)
            w = row_of(v, (o * groups + i) * x.shape[3] + c, n)
            if len(streams):
                read_ahead(x, row_after(x, t, o, i, c, b - a))
                drive = row_of(rows, (i - 1) * piece, n) if i else row_of(x, here, n)
                _forward_row(drive, partner, w, row_of(rows, i * piece, n), p, leak, soft, by_spike)
            else:
                drive = row_of(y, place(x, t, o, i - 1, c), n) if i else row_of(x, here, n)
                _forward_row(drive, partner, w, row_of(y, here, n), p, leak, soft, by_spike)
        if len(streams):
            for i in range(groups):
                stream(row_of(y, place(x, t, o, i, c), n), row_of(rows, i * piece, n))


@exact
def place(x: Any, t: int, o: int, i: int, column: int) -> Any:
    """A flat index in `[T, outer, groups, inner]`."""
    return ((t * x.shape[1] + o) * x.shape[2] + i) * x.shape[3] + column


@exact
def row_after(x: Any, t: int, o: int, i: int, column: int, block: int) -> Any:
    """See `cpu_memory.following`, for `[T, outer, groups, inner]`."""
    steps, outer, groups, inner = x.shape
    return following(t, steps, outer * groups * inner, (o * groups + i) * inner + column, block)


@exact
def row_before(x: Any, t: int, o: int, i: int, column: int, block: int) -> Any:
    """See `cpu_memory.preceding`, for `[T, outer, groups, inner]`."""
    steps, outer, groups, inner = x.shape
    return preceding(t, steps, outer * groups * inner, (o * groups + i) * inner + column, block)


@exact
def load_block(local: Any, given: Any, fill: Any, first: int, last: int, a: int, b: int) -> None:
    """Copies a block of a state into scratch; `fill` where an empty array is given."""
    if given.shape[0] == 0:
        local[:] = fill
        return
    for o in range(first, last):
        c = (o - first) * (b - a)
        for i in range(local.shape[0]):
            local[i, c : c + b - a] = given[o, i, a:b]


@exact
def store_block(local: Any, state: Any, first: int, last: int, a: int, b: int) -> None:
    """Copies scratch into a block of a state, unless that is empty."""
    if state.shape[0] == 0:
        return
    for o in range(first, last):
        c = (o - first) * (b - a)
        for i in range(local.shape[0]):
            state[o, i, a:b] = local[i, c : c + b - a]


@contracted_row
def _product_row(
    y: Any, charge: Any, vbar: Any, arrived: Any, before: Any, total: Any, partner: Any,
    p: Any, kind: Any, soft: bool, detach: bool, by_spike: bool,
) -> None:  # fmt: skip
    """See `revsnn_nodes.equations._reset_vjp`. Writes the gradient of the drive, added to `before`, into `total`, and
    that of the partner's input into `partner`. No two rows may overlap: the loop would not be vectorised."""
    threshold, rest, keep, gain, height, scale = p[1], p[2], p[3], p[4], p[5], p[6]
    alpha, beta, drop = p[9], p[10], p[11]
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


@contracted
def step_product(
    y: Any, ybar: Any, xbar: Any, t: int, o: int, a: int, b: int, charge: Any, vbar: Any, carry: Any, at: int,
    piece: int, p: Any, kind: Any, soft: bool, detach: bool, by_spike: bool,
) -> None:  # fmt: skip
    """Vector-Jacobian product of step t for columns a to b of outer row o, groups from last to first.

    `charge` and `vbar` are `[groups, block]`; these columns are at `at` in them. `carry` is `[3, piece]`: the gradient
    on its way from a group to the one before, in turn in rows 0 and 1, and that of the first group's input as a
    partner.
    """
    groups, block = y.shape[2], vbar.shape[1]
    for c in range(a, b, piece):
        n = min(c + piece, b) - c
        for i in range(groups - 1, -1, -1):
            here, scratch = place(y, t, o, i, c), i * block + at + c - a
            arrived = row_of(ybar, here, n) if i == groups - 1 else row_of(carry, (i + 1) % 2 * piece, n)
            before = row_of(ybar, place(y, t, o, i - 1, c), n) if i else row_of(carry, 2 * piece, n)
            total = row_of(carry, i % 2 * piece, n) if i else row_of(xbar, here, n)
            partner = row_of(carry, 2 * piece, n) if i == groups - 1 else row_of(xbar, place(y, t, o, i + 1, c), n)
            ahead = row_before(y, t, o, i, c, b - a)
            read_ahead(ybar, ahead)
            write_ahead(xbar, ahead)
            _product_row(
                row_of(y, here, n), row_of(charge, scratch, n), row_of(vbar, scratch, n), arrived, before, total,
                partner, p, kind, soft, detach, by_spike,
            )  # fmt: skip


@exact
def _charge_after(y: Any, v: Any, rest: Any, alpha: Any, drop: Any, soft: bool) -> Any:
    """From the membrane after the reset to the charge."""
    gate = clamped(y, type(y)(0), type(y)(1))
    if soft:
        return v + drop * gate
    opened = alpha * gate
    return (v - opened * rest) / (type(y)(1) - opened)


@exact_row
def invert_last_row(y: Any, drive: Any, v: Any, charge: Any, x: Any, p: Any, soft: bool) -> None:
    """The last group of a step, backward in time; also writes the first group's input, which its output carries."""
    threshold, rest, alpha, drop = p[1], p[2], p[9], p[11]
    unkeep, gain, inflow, unscale = type(p[3])(1) / p[3], p[4], p[12], type(p[10])(1) / p[10]
    for j in range(y.shape[0]):
        m = _charge_after(y[j], v[j], rest, alpha, drop, soft)
        charge[j] = m
        x[j] = (y[j] - fired(m, threshold)) * unscale
        v[j] = (m - gain * drive[j] - inflow) * unkeep


@exact_row
def invert_row(y: Any, drive: Any, v: Any, charge: Any, p: Any, soft: bool) -> None:
    """Another group of a step, backward in time."""
    rest, alpha, drop = p[2], p[9], p[11]
    unkeep, gain, inflow = type(p[3])(1) / p[3], p[4], p[12]
    for j in range(y.shape[0]):
        m = _charge_after(y[j], v[j], rest, alpha, drop, soft)
        charge[j] = m
        v[j] = (m - gain * drive[j] - inflow) * unkeep


@exact
def _invert_step(
    y: Any, t: int, o: int, a: int, b: int, v: Any, charge: Any, x_first: Any, at: int, piece: int, p: Any, soft: bool
) -> None:
    """Charges of step t, and the membranes before it, for columns a to b of outer row o, at `at` in scratch."""
    groups, block = y.shape[2], v.shape[1]
    for c in range(a, b, piece):
        n = min(c + piece, b) - c
        for i in range(groups - 1, -1, -1):
            read_ahead(y, row_before(y, t, o, i, c, b - a))
            scratch = i * block + at + c - a
            here = row_of(y, place(y, t, o, i, c), n)
            drive = row_of(y, place(y, t, o, i - 1, c), n) if i else row_of(x_first, 0, n)
            w, h = row_of(v, scratch, n), row_of(charge, scratch, n)
            if i == groups - 1:
                invert_last_row(here, drive, w, h, row_of(x_first, 0, n), p, soft)
            else:
                invert_row(here, drive, w, h, p, soft)


@exact
def inverse_backward(
    y: Any, v_last: Any, ybar: Any, vbar_last: Any, p: Any, kind: Any, soft: bool, detach: bool,
    xbar: Any, vbar0: Any, piece: int, block: int, start: int, stop: int,
) -> None:  # fmt: skip
    """Writes the gradient of the input, and of the first membrane unless an empty array is given for it."""
    groups, inner = y.shape[2], y.shape[3]
    v = np.empty((groups, block), y.dtype)
    vbar = np.empty((groups, block), y.dtype)
    charge = np.empty((groups, block), y.dtype)
    carry = np.empty((3, piece), y.dtype)
    zero = type(p[0])(0)
    column = start
    while column < stop:
        end, first, last, a, b = block_at(column, stop, inner, block)
        load_block(v, v_last, zero, first, last, a, b)
        load_block(vbar, vbar_last, zero, first, last, a, b)
        for t in range(y.shape[0] - 1, -1, -1):
            for o in range(first, last):
                at = (o - first) * (b - a)
                _invert_step(y, t, o, a, b, v, charge, carry[2], at, piece, p, soft)
                step_product(
                    y, ybar, xbar, t, o, a, b, charge, vbar, carry, at, piece, p, kind, soft, detach, False
                )  # fmt: skip
        store_block(vbar, vbar0, first, last, a, b)
        column = end


@exact_row
def _regenerate_row(y: Any, drive: Any, v: Any, charge: Any, p: Any, leak: Any, soft: bool, by_spike: bool) -> None:
    """A group of a step, forward in time, from the membrane before it and the output."""
    tau, threshold, rest, alpha, drop = p[0], p[1], p[2], p[9], p[11]
    for j in range(y.shape[0]):
        m = charge_of(drive[j], v[j], tau, rest, leak)
        charge[j] = m
        v[j] = reset_membrane(m, gate_of(y[j], m, threshold, by_spike), rest, alpha, drop, soft)


@exact_row
def _first_inputs(y: Any, charge: Any, x: Any, threshold: Any, beta: Any) -> None:
    """Writes the first group's input, which the last group's output carries."""
    unscale = type(beta)(1) / beta
    for j in range(y.shape[0]):
        x[j] = (y[j] - fired(charge[j], threshold)) * unscale


@exact
def _regenerate_step(
    y: Any, ybar: Any, t: int, to_step: int, o: int, a: int, b: int, v: Any, charge: Any, x_first: Any, at: int,
    piece: int, p: Any, leak: Any, soft: bool, by_spike: bool,
) -> None:  # fmt: skip
    """Charges of step t, before `to_step`, and the membranes after it; places as in `_invert_step`."""
    groups, block = y.shape[2], v.shape[1]
    for c in range(a, b, piece):
        n = min(c + piece, b) - c
        for k in range(1, groups + 1):
            i = k % groups  # the first group comes last: its input is known when the last group's charge is
            if t + 1 < to_step:
                read_ahead(y, row_after(y, t, o, i, c, b - a))
            else:
                read_ahead(ybar, place(y, t, o, i, c))
            scratch = i * block + at + c - a
            here, h = row_of(y, place(y, t, o, i, c), n), row_of(charge, scratch, n)
            drive = row_of(y, place(y, t, o, i - 1, c), n) if i else row_of(x_first, 0, n)
            _regenerate_row(here, drive, row_of(v, scratch, n), h, p, leak, soft, by_spike)
            if i == groups - 1:
                _first_inputs(here, h, row_of(x_first, 0, n), p[1], p[10])


@exact
def anchored_backward(
    y: Any, v0: Any, anchors: Any, ybar: Any, vbar_last: Any, p: Any, kind: Any,
    leak: Any, soft: bool, detach: bool, by_spike: bool, every: int,
    xbar: Any, vbar0: Any, piece: int, block: int, start: int, stop: int,
) -> None:  # fmt: skip
    """As `inverse_backward`; the charges of a segment are regenerated forward into scratch, from its anchor."""
    steps, groups, inner = y.shape[0], y.shape[2], y.shape[3]
    v = np.empty((groups, block), y.dtype)
    vbar = np.empty((groups, block), y.dtype)
    charge = np.empty((min(every, steps), groups, block), y.dtype)
    carry = np.empty((3, piece), y.dtype)
    zero = type(p[0])(0)
    column = start
    while column < stop:
        end, first, last, a, b = block_at(column, stop, inner, block)
        load_block(vbar, vbar_last, zero, first, last, a, b)
        for segment in range((steps - 1) // every, -1, -1):
            from_step, to_step = segment * every, min(steps, (segment + 1) * every)
            load_block(v, anchors[segment - 1] if segment else v0, p[2], first, last, a, b)
            for t in range(from_step, to_step):
                for o in range(first, last):
                    _regenerate_step(
                        y, ybar, t, to_step, o, a, b, v, charge[t - from_step], carry[2], (o - first) * (b - a),
                        piece, p, leak, soft, by_spike,
                    )  # fmt: skip
            for t in range(to_step - 1, from_step - 1, -1):
                for o in range(first, last):
                    step_product(
                        y, ybar, xbar, t, o, a, b, charge[t - from_step], vbar, carry, (o - first) * (b - a),
                        piece, p, kind, soft, detach, by_spike,
                    )  # fmt: skip
        store_block(vbar, vbar0, first, last, a, b)
        column = end
