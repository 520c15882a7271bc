"""Fused coupled LIF for the CPU: forward, and two backward passes, by inverse in time and from anchors.

Equations: section "Coupled LIF" of nodes/README.md; `revsnn_nodes.equations` in compiled code. Of a group, the drive is
what charges it: the first group's input, or the output of the group before; the partner is the input that its output
carries, which is the next group's.

Sequences are `[T, outer, groups, inner]`, states `[outer, groups, inner]`, all contiguous; one call does the columns
`start` to `stop` of `[outer, inner]`, in blocks that `_block_at` cuts. Pieces and rows: see
`revsnn_nodes.kernels.cpu.lif`. In a backward pass the states of a block are `[groups, block]` scratch; the outer rows
of the block lie one after the other in it.

bfloat16. Rows of sequences are widened into scratch before they are worked on, and narrowed after (`_opened`,
`_closed`), since scratch of floats takes their place in some groups. An output drives the next group, and opens the
reset, with the value that the backward pass will read. So a charge that is regenerated is the one that fired, to the
bit, in all groups but the first, whose input comes with the rounding of the output that carries it; under the spike's
gate in that one too (`_agree_row`). The inverse rounds nothing.
"""

from typing import Any

import numpy as np

from revsnn_nodes.kernels.cpu.equations import (
    Mode,
    by_type,
    charge_of,
    clamped,
    copy_row,
    fired,
    is_bfloat16,
    phi_of,
    read,
    rounded,
    scratch,
    start_row,
)
from revsnn_nodes.kernels.cpu.machine import (
    contracted,
    contracted_row,
    exact,
    exact_kernel,
    exact_row,
    following,
    preceding,
    read_ahead,
    row_of,
    settle,
    shared_out,
    stream,
    write_ahead,
)
from revsnn_nodes.kernels.layout import Numbers


@exact
def _block_at(column: int, stop: int, inner: int, block: int) -> Any:
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
def _place(x: Any, t: int, o: int, i: int, column: int) -> Any:
    """A flat index in `[T, outer, groups, inner]`."""
    return ((t * x.shape[1] + o) * x.shape[2] + i) * x.shape[3] + column


@exact
def _row_after(x: Any, t: int, o: int, i: int, column: int, block: int) -> Any:
    """See `machine.following`, for `[T, outer, groups, inner]`."""
    steps, outer, groups, inner = x.shape
    return following(t, steps, outer * groups * inner, (o * groups + i) * inner + column, block)


@exact
def _row_before(x: Any, t: int, o: int, i: int, column: int, block: int) -> Any:
    """See `machine.preceding`, for `[T, outer, groups, inner]`."""
    steps, outer, groups, inner = x.shape
    return preceding(t, steps, outer * groups * inner, (o * groups + i) * inner + column, block)


def _opened(row: Any, spare: Any) -> Any:
    """A row as floats: itself, or in bfloat16 a copy in a spare row."""


def _place_for(row: Any, spare: Any) -> Any:
    """Where floats for a row are written: the row itself, or in bfloat16 a spare row, for `_closed`."""


def _closed(row: Any, spare: Any) -> None:
    """Brings what `_place_for` took into the row."""


def _streamed(row: Any, spare: Any) -> None:
    """Brings a spare row into the row past the caches; in bfloat16 as `_closed`."""


def _widened(row: Any, spare: Any) -> Any:
    copy_row(row, spare)
    return spare


by_type(_opened, _widened, lambda row, spare: row)
by_type(_place_for, lambda row, spare: spare, lambda row, spare: row)
by_type(_closed, lambda row, spare: copy_row(spare, row), lambda row, spare: None)
by_type(_streamed, lambda row, spare: copy_row(spare, row), lambda row, spare: stream(row, spare))


@exact
def _gate_of(y: Any, m: Any, p: Numbers, mode: Mode) -> Any:
    """How far the reset is open: by the spike of charge m, or by the clamped output y."""
    if len(mode.by_spike):
        return fired(m, p.threshold)
    return clamped(y, type(y)(0), type(y)(1))


@exact
def _reset(m: Any, gate: Any, p: Numbers, mode: Mode) -> Any:
    """The membrane after a reset, from the charge m: see `revsnn_nodes.equations.coupled_step`."""
    if len(mode.soft):
        return m - p.drop * gate
    return m - p.alpha * gate * (m - p.rest)


@exact_row
def _forward_row(drive: Any, partner: Any, v: Any, y: Any, like: Any, p: Numbers, mode: Mode) -> None:
    """A group of a step: v becomes the membrane after it. Outputs are rounded as those of `like`."""
    for j in range(y.shape[0]):
        m = charge_of(drive[j], v[j], p, mode.leak)
        out = rounded(fired(m, p.threshold) + p.beta * read(partner, j), like)
        v[j] = _reset(m, _gate_of(out, m, p, mode), p, mode)
        y[j] = out


@exact_row
def _spike_row(drive: Any, v: Any, s: Any, p: Numbers, mode: Mode) -> None:
    """The spikes that `_forward_row` will decide."""
    for j in range(s.shape[0]):
        s[j] = fired(charge_of(drive[j], v[j], p, mode.leak), p.threshold)


@exact
def _carried_input(y: Any, s: Any, p: Numbers) -> Any:
    """The first group's input, which the last group's output y and spike s give."""
    return (y - s) * (type(p.beta)(1) / p.beta)


@exact
def _neighbour(y: Any, up: bool) -> Any:
    """The next bfloat16 above y, or below."""
    if y == type(y)(0):
        return np.uint32(0x00010000 if up else 0x80010000).view(np.float32)
    bits = np.float32(y).view(np.uint32)
    away = np.uint32(bits + np.uint32(0x10000)).view(np.float32)
    towards = np.uint32(bits - np.uint32(0x10000)).view(np.float32)
    return away if (y > type(y)(0)) == up else towards


@exact_row
def _agree_row(x: Any, before: Any, s_last: Any, y: Any, v: Any, p: Numbers, mode: Mode) -> None:
    """Makes the first group's membrane, under the spike's gate, the one that the output will give again.

    Its charge is regenerated from the input that the last group's output carries, with the rounding of that output;
    near the threshold this could fire where the input did not, and open the gate. There the output is rounded the
    other way, which puts the carried input on the side of the true one. The gate of no group depends on it.

    Args:
        x, before: true input of the first group, and its membrane before the step.
        s_last, y: spike and output of the last group; y is changed.
        v: the first group's membrane after the step, written.
    """
    for j in range(y.shape[0]):
        s = fired(charge_of(x[j], before[j], p, mode.leak), p.threshold)
        m = charge_of(_carried_input(y[j], s_last[j], p), before[j], p, mode.leak)
        if fired(m, p.threshold) != s:
            y[j] = _neighbour(y[j], (s > type(s)(0.5)) == (p.beta > 0))
            m = charge_of(_carried_input(y[j], s_last[j], p), before[j], p, mode.leak)
        v[j] = _reset(m, fired(m, p.threshold), p, mode)


SPARE_FORWARD = 3
"""Rows of scratch that a step of the forward pass needs beside the outputs: see `_forward_step`."""


@exact
def _forward_step(
    x: Any, y: Any, t: int, o: int, a: int, b: int, v: Any, at: int, rows: Any, piece: int, p: Numbers, mode: Mode
) -> None:
    """Step t for columns a to b of outer row o; their membranes are at `at` in v, `[groups, block]`.

    `rows` is scratch, `[groups + SPARE_FORWARD, piece]`: the outputs that are streamed or rounded; in bfloat16 the
    first group's input, its membrane before the step, and the last group's spikes.
    """
    groups, block = x.shape[2], v.shape[1]
    agrees = is_bfloat16(x) and len(mode.by_spike) > 0
    for c in range(a, b, piece):
        n = min(c + piece, b) - c
        x_first, before = row_of(rows, groups * piece, n), row_of(rows, (groups + 1) * piece, n)
        s_last, v_first = row_of(rows, (groups + 2) * piece, n), row_of(v, at + c - a, n)
        if agrees:
            copy_row(v_first, before)
        x_first = _opened(row_of(x, _place(x, t, o, 0, c), n), x_first)
        drive = out = x_first
        for i in range(groups):
            partner = row_of(x, _place(x, t, o, (i + 1) % groups, c), n)
            w, staged = row_of(v, i * block + at + c - a, n), row_of(rows, i * piece, n)
            if len(mode.streams):
                read_ahead(x, _row_after(x, t, o, i, c, b - a))
                out = staged
            else:
                out = _place_for(row_of(y, _place(x, t, o, i, c), n), staged)
            if agrees and i == groups - 1:  # before its membrane is overwritten
                _spike_row(drive, w, s_last, p, mode)
            _forward_row(drive, partner, w, out, x, p, mode)
            drive = out
        if agrees:
            _agree_row(x_first, before, s_last, out, v_first, p, mode)
        for i in range(groups):
            target, staged = row_of(y, _place(x, t, o, i, c), n), row_of(rows, i * piece, n)
            if len(mode.streams):
                _streamed(target, staged)
            else:
                _closed(target, staged)


@exact
def _given_row(state: Any, o: int, i: int, a: int, b: int) -> Any:
    """Columns a to b of a state's outer row o, group i; an empty row of an empty array."""
    return row_of(state, (o * state.shape[1] + i) * state.shape[2] + a, b - a if state.shape[0] else 0)


@exact
def _load_block(local: Any, given: Any, fill: Any, first: int, last: int, a: int, b: int) -> None:
    """Copies a block of a state into scratch; `fill` where an empty array is given."""
    for o in range(first, last):
        c = (o - first) * (b - a)
        for i in range(local.shape[0]):
            start_row(local[i, c : c + b - a], _given_row(given, o, i, a, b), fill)


@exact
def _store_block(local: Any, state: Any, first: int, last: int, a: int, b: int) -> None:
    """Copies scratch into a block of a state, unless that is empty."""
    for o in range(first, last):
        c = (o - first) * (b - a)
        for i in range(local.shape[0]):
            copy_row(local[i, c : c + b - a], _given_row(state, o, i, a, b))


@exact_kernel
def coupled_forward(
    x: Any, v0: Any, y: Any, v_last: Any, anchors: Any, every: int, p: Numbers, mode: Mode,
    piece: int, block: int, start: int, stop: int, size: int, threads: int,
) -> None:  # fmt: skip
    """Writes the output, the last membrane, and the membrane before steps every, 2 every, ... into `anchors`."""
    if shared_out(start, stop, size, threads):
        return
    groups, inner = x.shape[2], x.shape[3]
    v, rows = scratch((groups, block), x), scratch((groups + SPARE_FORWARD, piece), x)
    column = start
    while column < stop:
        end, first, last, a, b = _block_at(column, stop, inner, block)
        _load_block(v, v0, p.rest, first, last, a, b)
        for t in range(x.shape[0]):
            if t % every == 0 and 0 < t // every <= anchors.shape[0]:
                _store_block(v, anchors[t // every - 1], first, last, a, b)
            for o in range(first, last):
                _forward_step(x, y, t, o, a, b, v, (o - first) * (b - a), rows, piece, p, mode)
        _store_block(v, v_last, first, last, a, b)
        column = end
    settle()


@contracted_row
def _product_row(
    y: Any, charge: Any, vbar: Any, ybar: Any, before: Any, total: Any, partner: Any, p: Numbers, mode: Mode
) -> None:
    """See `revsnn_nodes.equations.coupled_step_vjp`. Writes the gradient of the drive, added to `before`, into `total`,
    and that of the partner's input into `partner`. No two rows may overlap: the loop would not be vectorised."""
    zero = type(p.keep)(0)
    one = type(p.keep)(1)
    for j in range(y.shape[0]):
        m, out, later, arrived = charge[j], y[j], vbar[j], ybar[j]
        into_gate = zero
        if not len(mode.detach):
            into_gate = p.drop * later if len(mode.soft) else p.alpha * later * (m - p.rest)
        into_output = zero if len(mode.by_spike) or not (out > zero and out < one) else into_gate
        into_spike = into_gate if len(mode.by_spike) else into_output
        kept = later if len(mode.soft) else later * (one - p.alpha * _gate_of(out, m, p, mode))
        mbar = kept + (arrived - into_spike) * phi_of(m - p.threshold, p, mode.kind)
        vbar[j] = p.keep * mbar
        partner[j] = p.beta * (arrived - into_output)
        total[j] = before[j] + p.gain * mbar


SPARE_BACKWARD = 8
"""Rows of scratch that a step of a backward pass needs beside the states: see `_step_product`."""


@contracted
def _step_product(
    y: Any, ybar: Any, xbar: Any, t: int, o: int, a: int, b: int, charge: Any, vbar: Any, spare: Any, at: int,
    piece: int, p: Numbers, mode: Mode,
) -> None:  # fmt: skip
    """Vector-Jacobian product of step t for columns a to b of outer row o, groups from last to first.

    `charge` and `vbar` are `[groups, block]`; these columns are at `at` in them. `spare` is `[SPARE_BACKWARD, piece]`:
    the gradient on its way from a group to the one before, in turn in rows 0 and 1; that of the first group's input as
    a partner in row 2; in bfloat16 rows of y, ybar and xbar in the others.
    """
    groups, block = y.shape[2], vbar.shape[1]
    for c in range(a, b, piece):
        n = min(c + piece, b) - c
        for i in range(groups - 1, -1, -1):
            is_last = i == groups - 1
            here, held = _place(y, t, o, i, c), i * block + at + c - a
            xbar_here, xbar_next = row_of(xbar, here, n), row_of(xbar, _place(y, t, o, (i + 1) % groups, c), n)
            to_first = row_of(spare, 2 * piece, n)
            out = _opened(row_of(y, here, n), row_of(spare, 3 * piece, n))
            if is_last:
                arrived = _opened(row_of(ybar, here, n), row_of(spare, 4 * piece, n))
            else:
                arrived = row_of(spare, (i + 1) % 2 * piece, n)
            if i:
                before = _opened(row_of(ybar, _place(y, t, o, i - 1, c), n), row_of(spare, 5 * piece, n))
                total = row_of(spare, i % 2 * piece, n)
            else:
                before, total = to_first, _place_for(xbar_here, row_of(spare, 6 * piece, n))
            partner = to_first if is_last else _place_for(xbar_next, row_of(spare, 7 * piece, n))
            ahead = _row_before(y, t, o, i, c, b - a)
            read_ahead(ybar, ahead)
            write_ahead(xbar, ahead)
            h, w = row_of(charge, held, n), row_of(vbar, held, n)
            _product_row(out, h, w, arrived, before, total, partner, p, mode)
            if i == 0:
                _closed(xbar_here, total)
            if not is_last:
                _closed(xbar_next, partner)


@exact
def _charge_after(y: Any, v: Any, p: Numbers, mode: Mode) -> Any:
    """From the membrane after the reset to the charge."""
    gate = clamped(y, type(y)(0), type(y)(1))
    if len(mode.soft):
        return v + p.drop * gate
    opened = p.alpha * gate
    return (v - opened * p.rest) / (type(y)(1) - opened)


@exact_row
def _invert_row(y: Any, drive: Any, v: Any, charge: Any, p: Numbers, mode: Mode) -> None:
    """A group of a step, backward in time."""
    unkeep = type(p.keep)(1) / p.keep
    for j in range(y.shape[0]):
        m = _charge_after(y[j], v[j], p, mode)
        charge[j] = m
        v[j] = (m - p.gain * drive[j] - p.inflow) * unkeep


@exact_row
def _first_inputs(y: Any, charge: Any, x: Any, p: Numbers) -> None:
    """Writes the first group's input, which the last group's output carries."""
    for j in range(y.shape[0]):
        x[j] = _carried_input(y[j], fired(charge[j], p.threshold), p)


@exact
def _invert_step(
    y: Any, t: int, o: int, a: int, b: int, v: Any, charge: Any, spare: Any, at: int, piece: int, p: Numbers, mode: Mode
) -> None:
    """Charges of step t, and the membranes before it, for columns a to b of outer row o, at `at` in scratch.

    Rows of `spare`: 2 the first group's input; in bfloat16 3 and 4 a group's output and its drive, in turn.
    """
    groups, block = y.shape[2], v.shape[1]
    for c in range(a, b, piece):
        n = min(c + piece, b) - c
        x_first = row_of(spare, 2 * piece, n)
        out = _opened(row_of(y, _place(y, t, o, groups - 1, c), n), row_of(spare, (3 + groups % 2) * piece, n))
        for i in range(groups - 1, -1, -1):
            read_ahead(y, _row_before(y, t, o, i, c, b - a))
            held = i * block + at + c - a
            w, h = row_of(v, held, n), row_of(charge, held, n)
            if i:
                drive = _opened(row_of(y, _place(y, t, o, i - 1, c), n), row_of(spare, (3 + i % 2) * piece, n))
            else:
                drive = x_first
            _invert_row(out, drive, w, h, p, mode)
            if i == groups - 1:
                _first_inputs(out, h, x_first, p)
            out = drive


@exact_kernel
def inverse_backward(
    y: Any, v_last: Any, ybar: Any, vbar_last: Any, xbar: Any, vbar0: Any, p: Numbers, mode: Mode,
    piece: int, block: int, start: int, stop: int, size: int, threads: int,
) -> None:  # fmt: skip
    """Writes the gradient of the input, and of the first membrane unless an empty array is given for it."""
    if shared_out(start, stop, size, threads):
        return
    groups, inner = y.shape[2], y.shape[3]
    v, vbar, charge = scratch((groups, block), y), scratch((groups, block), y), scratch((groups, block), y)
    spare = scratch((SPARE_BACKWARD, piece), y)
    zero = type(p.tau)(0)
    column = start
    while column < stop:
        end, first, last, a, b = _block_at(column, stop, inner, block)
        _load_block(v, v_last, zero, first, last, a, b)
        _load_block(vbar, vbar_last, zero, first, last, a, b)
        for t in range(y.shape[0] - 1, -1, -1):
            for o in range(first, last):
                at = (o - first) * (b - a)
                _invert_step(y, t, o, a, b, v, charge, spare, at, piece, p, mode)
                _step_product(y, ybar, xbar, t, o, a, b, charge, vbar, spare, at, piece, p, mode)
        _store_block(vbar, vbar0, first, last, a, b)
        column = end


@exact_row
def _regenerate_row(y: Any, drive: Any, v: Any, charge: Any, p: Numbers, mode: Mode) -> None:
    """A group of a step, forward in time, from the membrane before it and the output."""
    for j in range(y.shape[0]):
        m = charge_of(drive[j], v[j], p, mode.leak)
        charge[j] = m
        v[j] = _reset(m, _gate_of(y[j], m, p, mode), p, mode)


@exact
def _regenerate_step(
    y: Any, ybar: Any, t: int, to_step: int, o: int, a: int, b: int, v: Any, charge: Any, spare: Any, at: int,
    piece: int, p: Numbers, mode: Mode,
) -> None:  # fmt: skip
    """Charges of step t, before `to_step`, and the membranes after it; places and `spare` as in `_invert_step`."""
    groups, block = y.shape[2], v.shape[1]
    for c in range(a, b, piece):
        n = min(c + piece, b) - c
        x_first = row_of(spare, 2 * piece, n)
        drive = _opened(row_of(y, _place(y, t, o, 0, c), n), row_of(spare, 3 * piece, n))
        for k in range(1, groups + 1):
            i = k % groups  # the first group comes last: its input is known when the last group's charge is
            if t + 1 < to_step:
                read_ahead(y, _row_after(y, t, o, i, c, b - a))
            else:
                read_ahead(ybar, _place(y, t, o, i, c))
            held = i * block + at + c - a
            h = row_of(charge, held, n)
            out = _opened(row_of(y, _place(y, t, o, i, c), n), row_of(spare, (3 + k % 2) * piece, n))
            _regenerate_row(out, drive if i else x_first, row_of(v, held, n), h, p, mode)
            if i == groups - 1:
                _first_inputs(out, h, x_first, p)
            drive = out


@exact_kernel
def anchored_backward(
    y: Any, v0: Any, anchors: Any, ybar: Any, vbar_last: Any, xbar: Any, vbar0: Any, every: int, p: Numbers, mode: Mode,
    piece: int, block: int, start: int, stop: int, size: int, threads: int,
) -> None:  # fmt: skip
    """As `inverse_backward`; the charges of a segment are regenerated forward into scratch, from its anchor."""
    if shared_out(start, stop, size, threads):
        return
    steps, groups, inner = y.shape[0], y.shape[2], y.shape[3]
    v, vbar = scratch((groups, block), y), scratch((groups, block), y)
    charge = scratch((min(every, steps), groups, block), y)
    spare = scratch((SPARE_BACKWARD, piece), y)
    column = start
    while column < stop:
        end, first, last, a, b = _block_at(column, stop, inner, block)
        _load_block(vbar, vbar_last, type(p.tau)(0), first, last, a, b)
        for segment in range((steps - 1) // every, -1, -1):
            from_step, to_step = segment * every, min(steps, (segment + 1) * every)
            _load_block(v, anchors[segment - 1] if segment else v0, p.rest, first, last, a, b)
            for t in range(from_step, to_step):
                for o in range(first, last):
                    _regenerate_step(
                        y, ybar, t, to_step, o, a, b, v, charge[t - from_step], spare, (o - first) * (b - a),
                        piece, p, mode,
                    )  # fmt: skip
            for t in range(to_step - 1, from_step - 1, -1):
                for o in range(first, last):
                    _step_product(
                        y, ybar, xbar, t, o, a, b, charge[t - from_step], vbar, spare, (o - first) * (b - a),
                        piece, p, mode,
                    )  # fmt: skip
        _store_block(vbar, vbar0, first, last, a, b)
        column = end
