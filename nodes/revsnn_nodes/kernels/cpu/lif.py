"""Fused LIF for the CPU: a block of neurons at a time, with the loop over time inside.

All arrays are contiguous: sequences `[T, N]`, states `[N]`; one call does neurons `start` to `stop`. `p` holds the
parameters in the type of the data, in the order of `selection.parameters`. A row is done in pieces of `piece` columns:
see `cpu_memory`; where the sequence fits the caches a piece is the whole row.
"""

from typing import Any

import numpy as np

from revsnn_nodes.kernels.cpu.equations import charge_of, fired, phi_of, reset_of
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
