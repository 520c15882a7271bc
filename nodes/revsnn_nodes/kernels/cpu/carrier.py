"""Fused carrier LIF for the CPU: forward, and backward from the output alone.

Equations: section "Carrier" of nodes/README.md. Layout, blocks, pieces and rows: see `revsnn_nodes.kernels.cpu.lif`.

The output y = s + epsilon x holds spike and input; charges are regenerated from it. They are needed last step first,
and can only be made first step first. So a block's steps are cut into segments of `segment` steps: a first sweep finds
the membrane with which each segment begins; then, last segment first, its charges are regenerated into scratch, small
enough for the caches, and its gradients written. A sequence of one segment is read once.
"""

from typing import Any

import numpy as np

from revsnn_nodes.kernels.cpu.equations import (
    Mode,
    charge_of,
    clamped,
    copy_row,
    decoded_input,
    decoded_spike,
    fired,
    gradient_at_charge,
    read,
    reset_of,
    scratch,
    start_row,
    write,
)
from revsnn_nodes.kernels.cpu.machine import (
    contracted,
    contracted_kernel,
    contracted_row,
    exact_kernel,
    exact_row,
    following,
    preceding,
    read_ahead,
    row_of,
    settle,
    stream,
    write_ahead,
)
from revsnn_nodes.kernels.layout import Numbers


@exact_row
def _carrier_row(x: Any, v: Any, y: Any, p: Numbers, mode: Mode) -> None:
    """One step: v becomes the membrane after it."""
    for j in range(x.shape[0]):
        carried = clamped(read(x, j), -p.clamp, p.clamp)
        h = charge_of(carried, v[j], p, mode.leak)
        s = fired(h, p.threshold)
        write(y, j, s + p.epsilon * carried)
        v[j] = reset_of(h, s, p, mode)


@exact_kernel
def carrier_forward(
    x: Any, v0: Any, y: Any, v_last: Any, p: Numbers, mode: Mode, piece: int, block: int, start: int, stop: int
) -> None:
    """Writes the output, spike + epsilon x, and the last membrane."""
    v = scratch(block, x)  # membranes of the block
    row = np.empty(piece, x.dtype)  # outputs of a piece, before they are streamed
    steps, columns = x.shape
    for a in range(start, stop, block):
        b = min(a + block, stop)
        start_row(v[: b - a], v0[a:b], p.rest)
        for t in range(steps):
            for c in range(a, b, piece):
                here, n = t * columns + c, min(c + piece, b) - c
                outs = row_of(y, here, n)
                out = row_of(row, 0, n) if len(mode.streams) else outs
                if len(mode.streams):
                    read_ahead(x, following(t, steps, columns, c, b - a))
                _carrier_row(row_of(x, here, n), row_of(v, c - a, n), out, p, mode)
                if len(mode.streams):
                    stream(outs, out)
        copy_row(v, v_last[a:b])
    settle()


@contracted_row
def _regenerate_row(y: Any, v: Any, charge: Any, p: Numbers, mode: Mode) -> None:
    """One step forward from its output: v becomes the membrane after it."""
    decoding = type(p.epsilon)(1) / p.epsilon
    inflow = p.rest - p.keep * p.rest
    for j in range(y.shape[0]):
        out = read(y, j)
        h = p.keep * v[j] + p.gain * decoded_input(out, decoding) + inflow
        charge[j] = h
        v[j] = reset_of(h, decoded_spike(out), p, mode)


@contracted
def _regenerate(
    y: Any, later: Any, first: int, last: int, a: int, b: int, v: Any, charge: Any, piece: int, p: Numbers, mode: Mode
) -> None:
    """Steps first to last - 1 for columns a to b: the membrane after them, and their charges in the rows of `charge`.

    Rows are used again where there are fewer than steps. `later` is read after the last step.
    """
    columns, rows, block = y.shape[1], charge.shape[0], charge.shape[1]
    for t in range(first, last):
        for c in range(a, b, piece):
            here, n = t * columns + c, min(c + piece, b) - c
            if t + 1 < last:
                read_ahead(y, here + columns)
            else:
                read_ahead(later, here)
            charges = row_of(charge, (t - first) % rows * block + c - a, n)
            _regenerate_row(row_of(y, here, n), row_of(v, c - a, n), charges, p, mode)


@contracted_row
def _carrier_gradient_row(y: Any, ybar: Any, charge: Any, vbar: Any, xbar: Any, p: Numbers, mode: Mode) -> None:
    """One step back: vbar becomes the gradient at the membrane before it. The input has none where it was clamped."""
    decoding = type(p.epsilon)(1) / p.epsilon
    for j in range(y.shape[0]):
        out, arrived = read(y, j), read(ybar, j)
        hbar = gradient_at_charge(charge[j], decoded_spike(out), arrived, vbar[j], p, mode)
        vbar[j] = p.keep * hbar
        inside = abs(decoded_input(out, decoding)) < p.clamp
        write(xbar, j, p.gain * hbar + p.epsilon * arrived if inside else type(p.keep)(0))


@contracted
def _carrier_product(
    y: Any, ybar: Any, first: int, last: int, a: int, b: int, charge: Any, vbar: Any, xbar: Any, piece: int,
    p: Numbers, mode: Mode,
) -> None:  # fmt: skip
    """Vector-Jacobian product of steps last - 1 down to first for columns a to b, from their charges."""
    steps, columns, block = y.shape[0], y.shape[1], charge.shape[1]
    for t in range(last - 1, first - 1, -1):
        for c in range(a, b, piece):
            here, n = t * columns + c, min(c + piece, b) - c
            if t > 0:
                read_ahead(ybar, here - columns)
            else:
                read_ahead(y, here + b - a)  # with which the next block begins
            write_ahead(xbar, preceding(t, steps, columns, c, b - a))
            _carrier_gradient_row(
                row_of(y, here, n), row_of(ybar, here, n), row_of(charge, (t - first) * block + c - a, n),
                row_of(vbar, c - a, n), row_of(xbar, here, n), p, mode,
            )  # fmt: skip


@contracted_kernel
def carrier_backward(
    y: Any, v0: Any, ybar: Any, vbar: Any, xbar: Any, vbar0: Any, segment: int, p: Numbers, mode: Mode,
    piece: int, block: int, start: int, stop: int,
) -> None:  # fmt: skip
    """Writes the gradient of the input, and of the first membrane unless an empty array is given for it."""
    steps = y.shape[0]
    v, w = scratch(block, y), scratch(block, y)  # membrane, and vbar, of the block
    charge = scratch((min(segment, steps), block), y)  # charges of one segment
    begins = scratch(((steps - 1) // segment + 1, block), y)  # the membrane that each segment begins with
    for a in range(start, stop, block):
        b = min(a + block, stop)
        n = b - a
        start_row(v[:n], v0[a:b], p.rest)
        for i in range(begins.shape[0]):
            copy_row(v, begins[i, :n])
            if i + 1 < begins.shape[0]:
                _regenerate(y, y, i * segment, (i + 1) * segment, a, b, v, charge[:1], piece, p, mode)
        start_row(w[:n], vbar[a:b], type(p.rest)(0))
        for i in range(begins.shape[0] - 1, -1, -1):
            first, last = i * segment, min(steps, (i + 1) * segment)
            copy_row(begins[i], v[:n])
            _regenerate(y, ybar, first, last, a, b, v, charge, piece, p, mode)
            _carrier_product(y, ybar, first, last, a, b, charge, w, xbar, piece, p, mode)
        copy_row(w, vbar0[a:b])
