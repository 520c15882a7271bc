"""Fused LIF for the CPU: a block of neurons at a time, with the loop over time inside; alone, and behind a batch norm.

Equations: section "Standard LIF" of nodes/README.md. All arrays are contiguous: sequences `[T, N]`, states `[N]`; one
call does neurons `start` to `stop`, or shares them out among threads. The neurons are cut twice:

- A block of `block` neurons goes through all steps before the next begins, so that its membranes stay in the caches.
- A row (one step of a block) is done in pieces of `piece` neurons. Where the sequence fits the caches a piece is the
  whole row. Where it comes from memory, a piece is short, and with each the one a step further is asked for.

A loop over the neurons of a piece is a function of its own (`..._row`): rows have no strides and do not overlap, which
is what LLVM needs to make vector instructions.

Behind a batch norm the neuron's input is x = fma(z, scale, shift), plus a residual where one is given: scale = weight /
sigma and shift = fma(-mean, scale, bias), each rounded once, are the arithmetic of torch's batch norm, so x has its
bits (`revsnn_nodes.remat.norm` asks whether it does here). Neither x nor the charges of more than a block are written.
Channels lie `inner` columns apart, again and again: `[N, C, inner]`.
"""

from typing import Any

import numpy as np

from revsnn_nodes.kernels.cpu.equations import (
    Mode,
    charge_of,
    copy_row,
    fired,
    gradient_at_charge,
    kept_charge,
    read,
    reset_of,
    rounded,
    scratch,
    spread,
    start_row,
    write,
)
from revsnn_nodes.kernels.cpu.machine import (
    contracted_kernel,
    contracted_row,
    exact_kernel,
    exact_row,
    fma,
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


@exact_row
def _lif_row(x: Any, v: Any, spike: Any, charge: Any, keeps: Any, p: Numbers, mode: Mode) -> None:
    """One step: v becomes the membrane after it."""
    for j in range(x.shape[0]):
        h = charge_of(read(x, j), v[j], p, mode.leak)
        s = fired(h, p.threshold)
        write(spike, j, s)
        if len(keeps):
            write(charge, j, kept_charge(h, s, charge, keeps[0], keeps[1]))
        v[j] = reset_of(h, s, p, mode)


@exact_kernel
def lif_forward(
    x: Any, v0: Any, spike: Any, v_last: Any, charge: Any, keeps: Any, p: Numbers, mode: Mode,
    piece: int, block: int, start: int, stop: int, size: int, threads: int,
) -> None:  # fmt: skip
    """Writes spikes, the last membrane, and the charges unless `keeps`, `sides_of` the threshold, is empty."""
    if shared_out(start, stop, size, threads):
        return
    v = scratch(block, x)  # membranes of the block
    rows = np.empty((2, piece), x.dtype)  # spikes and charges of a piece, before they are streamed
    steps, columns = x.shape
    for a in range(start, stop, block):
        b = min(a + block, stop)
        start_row(v[: b - a], v0[a:b], p.rest)
        for t in range(steps):
            for c in range(a, b, piece):
                here, n = t * columns + c, min(c + piece, b) - c
                spikes, charges = row_of(spike, here, n), row_of(charge, here, n)
                s = row_of(rows, 0, n) if len(mode.streams) else spikes
                h = row_of(rows, piece, n) if len(mode.streams) else charges
                if len(mode.streams):
                    read_ahead(x, following(t, steps, columns, c, b - a))
                _lif_row(row_of(x, here, n), row_of(v, c - a, n), s, h, keeps, p, mode)
                # Nobody reads a large result before it has left the caches: a plain write would first read its lines.
                if len(mode.streams):
                    stream(spikes, s)
                    if len(keeps):
                        stream(charges, h)
        copy_row(v, v_last[a:b])
    settle()


@contracted_row
def _gradient_row(
    charge: Any, sbar: Any, vbar: Any, xbar: Any, before: Any, total: Any, sums: Any, p: Numbers, mode: Mode
) -> None:
    """One step back: vbar becomes the gradient at the membrane before it.

    Unless `sums` is an empty tuple, total gets hbar (x - (v - rest)), or hbar (rest - v) where the input does not
    decay; v is `before`.
    """
    for j in range(charge.shape[0]):
        h = read(charge, j)
        hbar = gradient_at_charge(h, fired(h, p.threshold), read(sbar, j), vbar[j], p, mode)
        vbar[j] = p.keep * hbar
        write(xbar, j, p.gain * hbar)
        if len(sums):
            v = before[j]
            # h - v is the input's distance times 1 / tau, by which the total is divided at the end.
            total[j] += hbar * (h - v if len(mode.leak) == 3 else p.rest - v)


@exact_row
def _membrane_row(charge: Any, v: Any, p: Numbers, mode: Mode) -> None:
    """Membranes after the step that had these charges."""
    for j in range(charge.shape[0]):
        h = read(charge, j)
        v[j] = reset_of(h, fired(h, p.threshold), p, mode)


@contracted_kernel
def lif_backward(
    charge: Any, sbar: Any, vbar: Any, xbar: Any, vbar0: Any, v0: Any, ratebar: Any, sums: Any, p: Numbers, mode: Mode,
    piece: int, block: int, start: int, stop: int, size: int, threads: int,
) -> None:  # fmt: skip
    """Writes the gradient of the input, and of the first membrane unless an empty array is given for it.

    Unless `sums` is an empty tuple, also each neuron's part of the gradient at 1 / tau.
    """
    if shared_out(start, stop, size, threads):
        return
    steps, columns = charge.shape
    w = scratch(block, charge)  # vbar of the block
    total = scratch(block if len(sums) else 0, charge)  # sums of the block
    before = scratch(piece if len(sums) else 0, charge)  # membranes of a piece before a step
    for a in range(start, stop, block):
        b = min(a + block, stop)
        start_row(w[: b - a], vbar[a:b], type(p.rest)(0))
        total[:] = 0
        for t in range(steps - 1, -1, -1):
            for c in range(a, b, piece):
                here, n = t * columns + c, min(c + piece, b) - c
                ahead = preceding(t, steps, columns, c, b - a)
                read_ahead(charge, ahead)
                read_ahead(sbar, ahead)
                write_ahead(xbar, ahead)
                if len(sums):
                    if t:
                        _membrane_row(row_of(charge, here - columns, n), row_of(before, 0, n), p, mode)
                    else:
                        start_row(before[:n], v0[c : c + n], p.rest)
                _gradient_row(
                    row_of(charge, here, n), row_of(sbar, here, n), row_of(w, c - a, n), row_of(xbar, here, n),
                    row_of(before, 0, n), row_of(total, c - a, n), sums, p, mode,
                )  # fmt: skip
        copy_row(w, vbar0[a:b])
        if len(sums):
            for j in range(b - a):
                ratebar[a + j] = total[j] / p.tau if len(mode.leak) == 3 else total[j]


@exact_kernel
def coefficients(mean: Any, inverse_std: Any, weight: Any, bias: Any, scale: Any, shift: Any) -> None:
    """Writes scale and shift of each channel."""
    for c in range(mean.shape[0]):
        scale[c] = inverse_std[c] * weight[c]
        shift[c] = fma(-mean[c], scale[c], bias[c])


@exact_row
def _norm_row(
    z: Any, scale: Any, shift: Any, residual: Any, v: Any, out: Any, adds: Any, sides: Any, p: Numbers, mode: Mode
) -> None:
    """One step: v becomes the membrane after it, out the spike, or given `sides` the charge that would be kept."""
    for j in range(z.shape[0]):
        x = rounded(fma(read(z, j), scale[j], shift[j]), z)
        if len(adds):
            x = rounded(x + read(residual, j), z)
        h = charge_of(x, v[j], p, mode.leak)
        s = fired(h, p.threshold)
        if len(sides):
            write(out, j, kept_charge(h, s, z, sides[0], sides[1]))
        else:
            write(out, j, s)
        v[j] = reset_of(h, s, p, mode)


@exact_kernel
def norm_lif_forward(
    z: Any, v0: Any, scale: Any, shift: Any, residual: Any, spike: Any, v_last: Any, adds: Any, inner: int,
    p: Numbers, mode: Mode, piece: int, block: int, start: int, stop: int, size: int, threads: int,
) -> None:  # fmt: skip
    """Writes spikes and the last membrane; `adds` is not an empty tuple where there is a residual."""
    if shared_out(start, stop, size, threads):
        return
    v, scales, shifts = scratch(block, z), scratch(block, z), scratch(block, z)
    steps, columns = z.shape
    for a in range(start, stop, block):
        b, origin = min(a + block, stop), a % (scale.shape[0] * inner)
        spread(scale, origin, inner, scales[: b - a])
        spread(shift, origin, inner, shifts[: b - a])
        start_row(v[: b - a], v0[a:b], p.rest)
        for t in range(steps):
            for c in range(a, b, piece):
                here, n = t * columns + c, min(c + piece, b) - c
                ahead = following(t, steps, columns, c, b - a)
                read_ahead(z, ahead)
                write_ahead(spike, ahead)
                _norm_row(
                    row_of(z, here, n), row_of(scales, c - a, n), row_of(shifts, c - a, n),
                    row_of(residual, here, n), row_of(v, c - a, n), row_of(spike, here, n), adds, (), p, mode,
                )  # fmt: skip
        copy_row(v, v_last[a:b])


@contracted_kernel
def norm_lif_backward(
    z: Any, v0: Any, scale: Any, shift: Any, residual: Any, sbar: Any, vbar: Any, xbar: Any, vbar0: Any, adds: Any,
    sides: Any, inner: int, p: Numbers, mode: Mode, piece: int, block: int,
    start: int, stop: int, size: int, threads: int,
) -> None:  # fmt: skip
    """Writes the gradient at x, and at the first membrane unless an empty array is given for it.

    `sides`: `sides_of` the threshold. A block's charges are made into scratch, first step first; then its gradients,
    last step first.
    """
    if shared_out(start, stop, size, threads):
        return
    steps, columns = z.shape
    w, scales, shifts = scratch(block, z), scratch(block, z), scratch(block, z)  # w: membrane, then vbar
    charge = scratch((steps, block), z)
    for a in range(start, stop, block):
        b, origin = min(a + block, stop), a % (scale.shape[0] * inner)
        spread(scale, origin, inner, scales[: b - a])
        spread(shift, origin, inner, shifts[: b - a])
        start_row(w[: b - a], v0[a:b], p.rest)
        for t in range(steps):
            for c in range(a, b, piece):
                here, n = t * columns + c, min(c + piece, b) - c
                if t + 1 < steps:
                    read_ahead(z, here + columns)
                else:
                    read_ahead(sbar, here)
                _norm_row(
                    row_of(z, here, n), row_of(scales, c - a, n), row_of(shifts, c - a, n),
                    row_of(residual, here, n), row_of(w, c - a, n), row_of(charge, t * block + c - a, n), adds, sides,
                    p, mode,
                )  # fmt: skip
        start_row(w[: b - a], vbar[a:b], type(p.rest)(0))
        for t in range(steps - 1, -1, -1):
            for c in range(a, b, piece):
                here, n = t * columns + c, min(c + piece, b) - c
                if t > 0:
                    read_ahead(sbar, here - columns)
                else:
                    read_ahead(z, here + b - a)  # with which the next block begins
                write_ahead(xbar, preceding(t, steps, columns, c, b - a))
                _gradient_row(
                    row_of(charge, t * block + c - a, n), row_of(sbar, here, n), row_of(w, c - a, n),
                    row_of(xbar, here, n), scales, scales, (), p, mode,
                )  # fmt: skip
        copy_row(w, vbar0[a:b])
