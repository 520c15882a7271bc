"""Fused LIF and carrier LIF for the CPU: a block of neurons at a time, with the loop over time inside.

All arrays are contiguous: sequences `[T, N]`, states `[N]`; one call does neurons `start` to `stop`. `p` holds the
parameters in the type of the data, in the order of `selection.parameters`. A row is done in pieces of `piece` columns:
see `cpu_memory`; where the sequence fits the caches a piece is the whole row.
"""

from typing import Any

import numpy as np

from revsnn_nodes.kernels.cpu_memory import following, preceding, read_ahead, row_of, settle, stream, write_ahead
from revsnn_nodes.kernels.cpu_rows import charge_of, clamped, fired, phi_of, reset_of
from revsnn_nodes.kernels.jit import contracted, contracted_row, exact, exact_row


@exact
def start_membrane(v: Any, given: Any, rest: Any) -> None:
    """Writes the membrane before the first step: the given one, or rest where an empty one is given."""
    if given.shape[0]:
        v[:] = given
    else:
        v[:] = rest


@exact_row
def _lif_row(
    x: Any, v: Any, spike: Any, charge: Any, tau: Any, threshold: Any, rest: Any, leak: Any, soft: bool, keeps: Any
) -> None:
    for j in range(x.shape[0]):
        h = charge_of(x[j], v[j], tau, rest, leak)
        s = fired(h, threshold)
        spike[j] = s
        if len(keeps):
            charge[j] = h
        v[j] = reset_of(h, s, threshold, rest, soft)


@exact
def lif_forward(
    x: Any, v0: Any, p: Any, leak: Any, soft: bool, keeps: Any, spike: Any, v: Any, charge: Any,
    streams: Any, piece: int, block: int, start: int, stop: int,
) -> None:  # fmt: skip
    """Writes spikes, the last membrane, and the charges if `keeps` is not an empty tuple."""
    tau, threshold, rest = p[0], p[1], p[2]
    rows = np.empty((2, piece), x.dtype)
    steps, columns = x.shape
    for a in range(start, stop, block):
        b = min(a + block, stop)
        start_membrane(v[a:b], v0[a:b], rest)
        for t in range(x.shape[0]):
            for c in range(a, b, piece):
                here, n = t * columns + c, min(c + piece, b) - c
                spiked, charged = row_of(spike, here, n), row_of(charge, here, n)
                s = row_of(rows, 0, n) if len(streams) else spiked
                h = row_of(rows, piece, n) if len(streams) else charged
                if len(streams):
                    read_ahead(x, following(t, steps, columns, c, b - a))
                _lif_row(row_of(x, here, n), row_of(v, c, n), s, h, tau, threshold, rest, leak, soft, keeps)
                if len(streams):
                    stream(spiked, s)
                    if len(keeps):
                        stream(charged, h)
    settle()


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


@contracted
def gradient_at_charge(
    h: Any, s: Any, sbar: Any, vbar: Any,
    kind: Any, height: Any, scale: Any, threshold: Any, rest: Any, soft: bool, detach: bool,
) -> Any:  # fmt: skip
    """See `revsnn_nodes.carrier.lif_step_vjp`."""
    if not detach:
        sbar = sbar - vbar * (threshold if soft else h - rest)
    kept = vbar if soft else vbar * (type(h)(1) - s)
    return kept + sbar * phi_of(kind, height, scale, h - threshold)


@contracted_row
def _lif_gradient_row(
    charge: Any, sbar: Any, vbar: Any, xbar: Any,
    kind: Any, height: Any, scale: Any, threshold: Any, rest: Any, keep: Any, gain: Any, soft: bool, detach: bool,
) -> None:  # fmt: skip
    for j in range(charge.shape[0]):
        h = charge[j]
        hbar = gradient_at_charge(
            h, fired(h, threshold), sbar[j], vbar[j], kind, height, scale, threshold, rest, soft, detach
        )  # fmt: skip
        vbar[j] = keep * hbar
        xbar[j] = gain * hbar


@contracted
def lif_backward(
    charge: Any, sbar: Any, vbar: Any, p: Any, kind: Any, soft: bool, detach: bool,
    xbar: Any, vbar0: Any, piece: int, block: int, start: int, stop: int,
) -> None:  # fmt: skip
    """Writes the gradient of the input, and of the first membrane unless an empty array is given for it."""
    threshold, rest, keep, gain, height, scale = p[1], p[2], p[3], p[4], p[5], p[6]
    steps, columns = charge.shape
    w = np.empty(block, charge.dtype)  # gradient at the membrane
    zero = type(rest)(0)
    for a in range(start, stop, block):
        b = min(a + block, stop)
        start_membrane(w[: b - a], vbar[a:b], zero)
        for t in range(steps - 1, -1, -1):
            for c in range(a, b, piece):
                here, n = t * columns + c, min(c + piece, b) - c
                ahead = preceding(t, steps, columns, c, b - a)
                read_ahead(charge, ahead)
                read_ahead(sbar, ahead)
                write_ahead(xbar, ahead)
                _lif_gradient_row(
                    row_of(charge, here, n), row_of(sbar, here, n), row_of(w, c - a, n), row_of(xbar, here, n),
                    kind, height, scale, threshold, rest, keep, gain, soft, detach,
                )  # fmt: skip
        if vbar0.shape[0]:
            vbar0[a:b] = w[: b - a]


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
def carrier_backward(
    y: Any, v0: Any, ybar: Any, vbar: Any, p: Any, kind: Any, soft: bool, detach: bool,
    xbar: Any, vbar0: Any, piece: int, block: int, start: int, stop: int,
) -> None:  # fmt: skip
    """As `lif_backward`, from the output alone: the charges of a block are regenerated into scratch, `[T, block]`."""
    threshold, rest, keep, gain, height, scale = p[1], p[2], p[3], p[4], p[5], p[6]
    epsilon, clamp = p[7], p[8]
    decoding = type(epsilon)(1) / epsilon
    steps, columns = y.shape
    w = np.empty(block, y.dtype)  # membrane, then the gradient at it
    charge = np.empty((steps, block), y.dtype)
    zero = type(rest)(0)
    for a in range(start, stop, block):
        b = min(a + block, stop)
        start_membrane(w[: b - a], v0[a:b], rest)
        for t in range(steps):
            for c in range(a, b, piece):
                here, n = t * columns + c, min(c + piece, b) - c
                if t + 1 < steps:
                    read_ahead(y, here + columns)
                else:
                    read_ahead(ybar, here)
                _regenerate_row(
                    row_of(y, here, n), row_of(w, c - a, n), row_of(charge, t * block + c - a, n),
                    keep, gain, threshold, rest, decoding, soft,
                )  # fmt: skip
        start_membrane(w[: b - a], vbar[a:b], zero)
        for t in range(steps - 1, -1, -1):
            for c in range(a, b, piece):
                here, n = t * columns + c, min(c + piece, b) - c
                if t > 0:
                    read_ahead(ybar, here - columns)
                else:
                    read_ahead(y, here + b - a)  # with which the next block begins
                write_ahead(xbar, preceding(t, steps, columns, c, b - a))
                _carrier_gradient_row(
                    row_of(y, here, n), row_of(ybar, here, n), row_of(charge, t * block + c - a, n),
                    row_of(w, c - a, n), row_of(xbar, here, n),
                    kind, height, scale, threshold, rest, keep, gain, epsilon, clamp, decoding, soft, detach,
                )  # fmt: skip
        if vbar0.shape[0]:
            vbar0[a:b] = w[: b - a]
