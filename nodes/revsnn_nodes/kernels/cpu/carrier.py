"""Fused carrier LIF for the CPU: forward, and backward from the output alone; without a norm, and in one with its norm.

Equations: sections "Carrier" and "Carrier with its norm" of nodes/README.md. Layout, blocks, pieces and rows: see
`revsnn_nodes.kernels.cpu.lif`.

The output y = s + epsilon x holds spike and input; charges are regenerated from it. They are needed last step first,
and can only be made first step first. So a block's steps are cut into segments of `segment` steps: a first sweep finds
the membrane with which each segment begins; then, last segment first, its charges are regenerated into scratch, small
enough for the caches, and its gradients written. A sequence of one segment is read once.

With its norm n = (z - mean) / sigma, clamped; x = gamma n + bias + residual; y = s + epsilon n. Channels lie `inner`
columns apart, again and again: `[N, C, inner]`. Sums over a channel go to `sums[column // unit]`, which one call alone
writes: what they add up to does not depend on threads. A row of a block is done in several loops over few arrays each:
with more, the check that they do not overlap keeps LLVM from making vector instructions.
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
    spread,
    start_row,
    write,
)
from revsnn_nodes.kernels.cpu.machine import (
    contracted,
    contracted_kernel,
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
    x: Any, v0: Any, y: Any, v_last: Any, p: Numbers, mode: Mode,
    piece: int, block: int, start: int, stop: int, size: int, threads: int,
) -> None:  # fmt: skip
    """Writes the output, spike + epsilon x, and the last membrane."""
    if shared_out(start, stop, size, threads):
        return
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
        is_cut = abs(decoded_input(out, decoding)) >= p.clamp  # not for NaN, which is to be seen
        write(xbar, j, type(p.keep)(0) if is_cut else p.gain * hbar + p.epsilon * arrived)


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
    piece: int, block: int, start: int, stop: int, size: int, threads: int,
) -> None:  # fmt: skip
    """Writes the gradient of the input, and of the first membrane unless an empty array is given for it."""
    if shared_out(start, stop, size, threads):
        return
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


@exact
def _total(row: Any) -> float:
    """Sum in float64; four at a time, since one addition waits for the other."""
    s0 = s1 = s2 = s3 = 0.0
    whole = row.shape[0] // 4 * 4
    for j in range(0, whole, 4):
        s0 += row[j]
        s1 += row[j + 1]
        s2 += row[j + 2]
        s3 += row[j + 3]
    for j in range(whole, row.shape[0]):
        s0 += row[j]
    return (s0 + s1) + (s2 + s3)


@exact
def collect(row: Any, first: int, inner: int, sums: Any) -> None:
    """Adds a row that begins at column `first` of `[C, inner]` to the sums of its channels, and empties it."""
    channel, begin = first // inner, 0
    end = inner - first % inner
    while begin < row.shape[0]:
        if inner == 1:
            end = begin + sums.shape[0] - channel
            for j in range(begin, min(end, row.shape[0])):
                sums[channel + j - begin] += row[j]
            channel = 0
        else:
            sums[channel] += _total(row[begin : min(end, row.shape[0])])
            channel = channel + 1 if channel + 1 < sums.shape[0] else 0
        begin, end = end, end + inner
    row[:] = 0


@contracted
def _moments_row(z: Any, centre: Any, first: Any, second: Any) -> None:
    for j in range(z.shape[0]):
        d = np.float64(z[j] - centre[j])
        first[j] += d
        second[j] += d * d


@contracted_kernel
def norm_moments(
    z: Any, centre: Any, inner: int, sums: Any, unit: int, block: int, start: int, stop: int, size: int, threads: int
) -> None:
    """Adds z - centre and its square to `sums`, `[slots, 2, C]`, in float64; centre, `[C]`, is any value of z."""
    if shared_out(start, stop, size, threads):
        return
    channels = centre.shape[0]
    middle = np.empty(block, z.dtype)
    first, second = np.zeros(block), np.zeros(block)
    for a in range(start, stop, block):
        d, origin = min(a + block, stop) - a, a % (channels * inner)
        spread(centre, origin, inner, middle[:d])
        for t in range(z.shape[0]):
            _moments_row(z[t, a : a + d], middle, first, second)
        collect(first[:d], origin, inner, sums[a // unit, 0])
        collect(second[:d], origin, inner, sums[a // unit, 1])


@exact
def _normalise_row(z: Any, mean: Any, scale: Any, clamp: Any, n: Any) -> int:
    """Writes n, clamped; returns how many the clamp cut."""
    cut = 0
    for j in range(n.shape[0]):
        whole = (z[j] - mean[j]) * scale[j]
        n[j] = clamped(whole, -clamp, clamp)
        cut += whole > clamp or whole < -clamp
    return cut


@exact
def _affine_row(n: Any, gamma: Any, shift: Any, x: Any) -> None:
    for j in range(n.shape[0]):
        x[j] = n[j] * gamma[j] + shift[j]


@exact
def add_row(x: Any, term: Any) -> None:
    """Adds a row to another."""
    for j in range(term.shape[0]):
        x[j] += term[j]


@exact
def _neuron_row(x: Any, v: Any, y: Any, p: Numbers, mode: Mode) -> None:
    """Runs the neuron on x, and adds its spikes to epsilon times what y holds."""
    for j in range(y.shape[0]):
        h = charge_of(x[j], v[j], p, mode.leak)
        s = fired(h, p.threshold)
        y[j] = s + p.epsilon * y[j]
        v[j] = reset_of(h, s, p, mode)


@exact_kernel
def norm_carrier_forward(
    z: Any, v0: Any, mean: Any, scale: Any, gamma: Any, shift: Any, residual: Any, y: Any, v: Any, cut: Any, inner: int,
    p: Numbers, mode: Mode, unit: int, block: int, start: int, stop: int, size: int, threads: int,
) -> None:  # fmt: skip
    """Writes the output, spike + epsilon n, the last membrane, and to `cut`, `[slots]`, how often the clamp bit."""
    if shared_out(start, stop, size, threads):
        return
    rows = np.empty((5, block), z.dtype)
    means, scales, gammas, shifts, x = rows[0], rows[1], rows[2], rows[3], rows[4]
    for a in range(start, stop, block):
        b, origin = min(a + block, stop), a % (mean.shape[0] * inner)
        for values, row in ((mean, means), (scale, scales), (gamma, gammas), (shift, shifts)):
            spread(values, origin, inner, row[: b - a])
        start_row(v[a:b], v0[a:b], p.rest)
        for t in range(z.shape[0]):
            cut[a // unit] += _normalise_row(z[t, a:b], means, scales, p.clamp, y[t, a:b])
            _affine_row(y[t, a:b], gammas, shifts, x)
            if residual.shape[0]:
                add_row(x, residual[t, a:b])
            _neuron_row(x, v[a:b], y[t, a:b], p, mode)


FLUSH = 32
"""Steps whose terms are added in the type of the data, neuron by neuron, before they enter the sums in float64."""


@contracted
def _input_row(y: Any, gamma: Any, shift: Any, decoding: Any, x: Any) -> None:
    for j in range(y.shape[0]):
        x[j] = decoded_input(y[j], decoding) * gamma[j] + shift[j]


@contracted
def _charge_row(y: Any, v: Any, x: Any, p: Numbers, mode: Mode) -> None:
    """Turns x into the charge, with the spikes of y: none is decided twice."""
    inflow = p.rest - p.keep * p.rest
    for j in range(y.shape[0]):
        h = p.keep * v[j] + p.gain * x[j] + inflow
        x[j] = h
        v[j] = reset_of(h, decoded_spike(y[j]), p, mode)


@contracted
def _product_row(y: Any, ybar: Any, charge: Any, vbar: Any, p: Numbers, mode: Mode) -> None:
    """Turns the charge into the gradient at the neuron's input."""
    for j in range(y.shape[0]):
        hbar = gradient_at_charge(charge[j], decoded_spike(y[j]), ybar[j], vbar[j], p, mode)
        vbar[j] = p.keep * hbar
        charge[j] = p.gain * hbar


@contracted
def _carried_row(y: Any, ybar: Any, xbar: Any, gamma: Any, decoding: Any, nbar: Any, p: Numbers) -> None:
    """The gradient at n: through x, and as carried by the output; none where n was clamped."""
    for j in range(y.shape[0]):
        is_cut = abs(decoded_input(y[j], decoding)) >= p.clamp
        nbar[j] = type(p.epsilon)(0) if is_cut else gamma[j] * xbar[j] + p.epsilon * ybar[j]


@contracted
def _sums_row(y: Any, bar: Any, decoding: Any, plain: Any, sloped: Any) -> None:
    """Adds a gradient, and its product with n."""
    for j in range(y.shape[0]):
        plain[j] += bar[j]
        sloped[j] += bar[j] * decoded_input(y[j], decoding)


@contracted_kernel
def norm_carrier_product(
    y: Any, v0: Any, gamma: Any, shift: Any, residual: Any, ybar: Any, vbar: Any, nbar: Any, residual_bar: Any,
    vbar0: Any, sums: Any, inner: int, p: Numbers, mode: Mode, unit: int, block: int,
    start: int, stop: int, size: int, threads: int,
) -> None:  # fmt: skip
    """Writes the gradient at n, and those of residual and first membrane unless empty arrays are given for them.

    Adds to `sums`, `[slots, 4, C]`: the gradient at x, the same times n, the gradient at n, the same times n.
    """
    if shared_out(start, stop, size, threads):
        return
    decoding = type(p.epsilon)(1) / p.epsilon
    rows = np.empty((3, block), y.dtype)
    gammas, shifts, w = rows[0], rows[1], rows[2]  # the last: membrane, then the gradient at it
    partial = np.zeros((4, block), y.dtype)
    charge = np.empty((y.shape[0], block), y.dtype)
    for a in range(start, stop, block):
        b, origin = min(a + block, stop), a % (gamma.shape[0] * inner)
        spread(gamma, origin, inner, gammas[: b - a])
        spread(shift, origin, inner, shifts[: b - a])
        start_row(w[: b - a], v0[a:b], p.rest)
        for t in range(y.shape[0]):
            _input_row(y[t, a:b], gammas, shifts, decoding, charge[t])
            if residual.shape[0]:
                add_row(charge[t], residual[t, a:b])
            _charge_row(y[t, a:b], w, charge[t], p, mode)
        start_row(w[: b - a], vbar[a:b], type(p.rest)(0))
        for t in range(y.shape[0] - 1, -1, -1):
            here, arrived, xbar = y[t, a:b], ybar[t, a:b], charge[t]
            _product_row(here, arrived, xbar, w, p, mode)
            if residual_bar.shape[0]:
                copy_row(xbar, residual_bar[t, a:b])
            _carried_row(here, arrived, xbar, gammas, decoding, nbar[t, a:b], p)
            _sums_row(here, xbar, decoding, partial[0], partial[1])
            _sums_row(here, nbar[t, a:b], decoding, partial[2], partial[3])
            if t % FLUSH == 0:
                for i in range(4):
                    collect(partial[i, : b - a], origin, inner, sums[a // unit, i])
        copy_row(w, vbar0[a:b])


@contracted
def _through_row(y: Any, scale: Any, mean: Any, slope: Any, decoding: Any, bar: Any) -> None:
    for j in range(y.shape[0]):
        bar[j] = bar[j] * scale[j] - mean[j] - decoded_input(y[j], decoding) * slope[j]


@contracted_kernel
def norm_gradient(
    y: Any, scale: Any, mean: Any, slope: Any, bar: Any, inner: int, epsilon: Any,
    unit: int, block: int, start: int, stop: int, size: int, threads: int,
) -> None:  # fmt: skip
    """Turns the gradient at n into that at z, in place: bar scale - mean - n slope, with `[C]` numbers."""
    if shared_out(start, stop, size, threads):
        return
    decoding = type(epsilon)(1) / epsilon
    rows = np.empty((3, block), y.dtype)
    scales, means, slopes = rows[0], rows[1], rows[2]
    for a in range(start, stop, block):
        b, origin = min(a + block, stop), a % (scale.shape[0] * inner)
        for values, row in ((scale, scales), (mean, means), (slope, slopes)):
            spread(values, origin, inner, row[: b - a])
        for t in range(y.shape[0]):
            _through_row(y[t, a:b], scales, means, slopes, decoding, bar[t, a:b])
