"""Fused carrier LIF for the CPU: forward, and backward from the output alone. Layout and blocks: see `cpu_lif`."""

from typing import Any

import numpy as np

from revsnn_nodes.kernels.cpu.equations import charge_of, clamped, fired, reset_of
from revsnn_nodes.kernels.cpu.lif import gradient_at_charge, start_membrane
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


@exact_row
def _carrier_row(
    x: Any, v: Any, y: Any, tau: Any, threshold: Any, rest: Any, epsilon: Any, clamp: Any, leak: Any, soft: bool
) -> None:
    for j in range(x.shape[0]):
        carried = clamped(x[j], -clamp, clamp)
        h = charge_of(carried, v[j], tau, rest, leak)
        s = fired(h, threshold)
        y[j] = s + epsilon * carried
        v[j] = reset_of(h, s, threshold, rest, soft)


@exact
def carrier_forward(
    x: Any, v0: Any, p: Any, leak: Any, soft: bool, y: Any, v: Any,
    streams: Any, piece: int, block: int, start: int, stop: int,
) -> None:  # fmt: skip
    """Writes the output, spike + epsilon x, and the last membrane."""
    tau, threshold, rest, epsilon, clamp = p[0], p[1], p[2], p[7], p[8]
    row = np.empty(piece, x.dtype)
    steps, columns = x.shape
    for a in range(start, stop, block):
        b = min(a + block, stop)
        start_membrane(v[a:b], v0[a:b], rest)
        for t in range(x.shape[0]):
            for c in range(a, b, piece):
                here, n = t * columns + c, min(c + piece, b) - c
                made = row_of(y, here, n)
                out = row_of(row, 0, n) if len(streams) else made
                if len(streams):
                    read_ahead(x, following(t, steps, columns, c, b - a))
                _carrier_row(
                    row_of(x, here, n), row_of(v, c, n), out, tau, threshold, rest, epsilon, clamp, leak, soft
                )  # fmt: skip
                if len(streams):
                    stream(made, out)
    settle()


@contracted_row
def _regenerate_row(
    y: Any, v: Any, charge: Any, keep: Any, gain: Any, threshold: Any, rest: Any, decoding: Any, soft: bool
) -> None:
    one = type(keep)(1)
    half = type(keep)(0.5)
    zero = type(keep)(0)
    inflow = rest - keep * rest
    for j in range(y.shape[0]):
        s = one if y[j] > half else zero
        h = keep * v[j] + gain * ((y[j] - s) * decoding) + inflow
        charge[j] = h
        v[j] = reset_of(h, s, threshold, rest, soft)


@contracted_row
def _carrier_gradient_row(
    y: Any, ybar: Any, charge: Any, vbar: Any, xbar: Any,
    kind: Any, height: Any, scale: Any, threshold: Any, rest: Any, keep: Any, gain: Any,
    epsilon: Any, clamp: Any, decoding: Any, soft: bool, detach: bool,
) -> None:  # fmt: skip
    one = type(keep)(1)
    half = type(keep)(0.5)
    zero = type(keep)(0)
    for j in range(y.shape[0]):
        s = one if y[j] > half else zero
        hbar = gradient_at_charge(
            charge[j], s, ybar[j], vbar[j], kind, height, scale, threshold, rest, soft, detach
        )  # fmt: skip
        vbar[j] = keep * hbar
        inside = abs((y[j] - s) * decoding) < clamp
        xbar[j] = gain * hbar + epsilon * ybar[j] if inside else zero


@contracted
def _regenerate(
    y: Any, later: Any, first: int, last: int, a: int, b: int, v: Any, charge: Any, piece: int, p: Any, soft: bool
) -> None:
    """Steps first to last - 1 for columns a to b: the membrane after them, and their charges in the rows of `charge`.

    Rows are used again where there are fewer than steps. `later` is read after the last step.
    """
    threshold, rest, keep, gain, epsilon = p[1], p[2], p[3], p[4], p[7]
    decoding = type(epsilon)(1) / epsilon
    columns, rows, block = y.shape[1], charge.shape[0], charge.shape[1]
    for t in range(first, last):
        for c in range(a, b, piece):
            here, n = t * columns + c, min(c + piece, b) - c
            if t + 1 < last:
                read_ahead(y, here + columns)
            else:
                read_ahead(later, here)
            _regenerate_row(
                row_of(y, here, n), row_of(v, c - a, n), row_of(charge, (t - first) % rows * block + c - a, n),
                keep, gain, threshold, rest, decoding, soft,
            )  # fmt: skip


@contracted
def _carrier_product(
    y: Any, ybar: Any, first: int, last: int, a: int, b: int, charge: Any, vbar: Any, xbar: Any, piece: int,
    p: Any, kind: Any, soft: bool, detach: bool,
) -> None:  # fmt: skip
    """Vector-Jacobian product of steps last - 1 down to first for columns a to b, from their charges."""
    threshold, rest, keep, gain, height, scale = p[1], p[2], p[3], p[4], p[5], p[6]
    epsilon, clamp = p[7], p[8]
    decoding = type(epsilon)(1) / epsilon
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
                row_of(vbar, c - a, n), row_of(xbar, here, n),
                kind, height, scale, threshold, rest, keep, gain, epsilon, clamp, decoding, soft, detach,
            )  # fmt: skip


@contracted
def carrier_backward(
    y: Any, v0: Any, ybar: Any, vbar: Any, p: Any, kind: Any, soft: bool, detach: bool,
    xbar: Any, vbar0: Any, segment: int, piece: int, block: int, start: int, stop: int,
) -> None:  # fmt: skip
    """As `lif_backward`, from the output alone: the charges of a segment of steps are regenerated into scratch.

    Where there are several segments, a first pass over the steps finds the membrane that each begins with.
    """
    steps, rest = y.shape[0], p[2]
    v, w = np.empty(block, y.dtype), np.empty(block, y.dtype)  # the membrane, and the gradient at it
    charge = np.empty((min(segment, steps), block), y.dtype)
    begins = np.empty(((steps - 1) // segment + 1, block), y.dtype)
    for a in range(start, stop, block):
        b = min(a + block, stop)
        n = b - a
        start_membrane(v[:n], v0[a:b], rest)
        for i in range(begins.shape[0]):
            begins[i, :n] = v[:n]
            if i + 1 < begins.shape[0]:
                _regenerate(y, y, i * segment, (i + 1) * segment, a, b, v, charge[:1], piece, p, soft)
        start_membrane(w[:n], vbar[a:b], type(rest)(0))
        for i in range(begins.shape[0] - 1, -1, -1):
            first, last = i * segment, min(steps, (i + 1) * segment)
            v[:n] = begins[i, :n]
            _regenerate(y, ybar, first, last, a, b, v, charge, piece, p, soft)
            _carrier_product(y, ybar, first, last, a, b, charge, w, xbar, piece, p, kind, soft, detach)
        if vbar0.shape[0]:
            vbar0[a:b] = w[:n]
