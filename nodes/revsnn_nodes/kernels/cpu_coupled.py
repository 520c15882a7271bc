"""Fused coupled LIF for the CPU: forward, and the two backward passes, by inverse in time and from anchors.

Equations: section "Coupled LIF" of nodes/README.md; `revsnn_nodes.coupling` in compiled code. Sequences are
`[T, outer, groups, inner]`, states `[outer, groups, inner]`, all contiguous; one call does the columns `start` to
`stop` of `[outer, inner]`, in blocks that `block_at` cuts. `p` holds the parameters in the type of the data, in the
order of `selection.coupled_parameters`.
"""

from typing import Any

import numpy as np

from revsnn_nodes.kernels.cpu_memory import following, preceding, read_ahead, row_of, settle, stream
from revsnn_nodes.kernels.cpu_rows import charge_of, clamped, fired
from revsnn_nodes.kernels.jit import exact, exact_row


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
    """See `revsnn_nodes.coupling._reset`; `drop` is alpha times the threshold."""
    if soft:
        return charge - drop * gate
    return charge - alpha * gate * (charge - rest)


@exact_row
def _forward_row(drive: Any, partner: Any, v: Any, y: Any, p: Any, leak: Any, soft: bool, by_spike: bool) -> None:
    tau, threshold, rest, alpha, beta, drop = p[0], p[1], p[2], p[7], p[8], p[9]
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
