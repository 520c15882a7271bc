"""Fused LIF in Triton, alone and behind a batch norm, and the carrier LIF.

Equations: sections "Standard LIF" and "Carrier" of nodes/README.md. Sequences are `[T, columns]`, states `[columns]`,
all contiguous. A program runs a block of neurons through all steps with their membranes in registers, so each number is
read once and written once. Words of memory traffic per element and step, with 2 / T more for states that are read or
written: forward 2 (x and s, or y), 3 with the charges h kept; backward 3 (h, sbar, xbar). No kernel that takes and
gives these tensors can move less.

Every kernel of this package takes its operator's tensors, then the tensors it writes, None for those not given or not
wanted; then the numbers of `revsnn_nodes.kernels.layout.Numbers` and its sizes; then what it is compiled for.

Behind a batch norm the neuron's input is the norm's output, rounded by one of `layout.FORMS`, plus a residual where one
is given; neither it nor the charges are written. Channels lie `inner` columns apart, again and again. Forward 2 words
(z, s), 3 with a residual.

There, and for the carrier, the backward pass needs charges in reverse order that can only be made forward. They are
made in pieces of R steps (ROWS), as few and as even as `MOST_ROWS` of `revsnn_nodes.kernels.triton.launch` allows. A
first sweep runs to the last piece and leaves the membrane before each piece in the gradient's buffer, at a step whose
gradient is not there yet. Then, last piece first, a piece's inputs (z, or y) are read into registers, its charges made
there, and its gradients written. So with P = ceil(T / R) pieces the traffic is 3 + (P - 1) (R + 2) / T words, and a
residual's: 3, the least, for T up to MOST_ROWS, and below 4 + 2 / R for any T. Charges that waited in the gradient's
buffer, one for each step, would cost 6.
"""

import triton.language as tl

from revsnn_nodes.kernels.triton.equations import (
    AGAIN,
    CENTRED,
    FMA,
    LAST,
    SCALED,
    USUAL,
    appended,
    clamped,
    columns_of,
    f64,
    fired,
    jit,
    kept_charge,
    kernel,
    lif_step_vjp,
    numbers_of,
    park,
    parked,
    read,
    read_narrow,
    read_or,
    reset_of,
    step_of,
    widened,
    with_rate,
    write,
)


@kernel
def lif_forward(
    x_seq, v0, rate, s_seq, v_last, h_seq,
    tau: f64, threshold: f64, rest: f64, keep: f64, gain: f64, height: f64, scale: f64,
    epsilon: f64, clamp: f64, alpha: f64, beta: f64, drop: f64, inflow: f64, least: f64, greatest: f64,
    steps: tl.int32, columns: tl.int64, mode, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Writes the spikes, the last membrane, and the charges where wanted."""
    dtype: tl.constexpr = x_seq.dtype.element_ty
    p = numbers_of(dtype, tau, threshold, rest, keep, gain, height, scale, epsilon, clamp, alpha, beta, drop, inflow)
    p = with_rate(p, rate, mode)
    at, mask = columns_of(columns, BLOCK)
    v = read_or(v0, 0, at, mask, p.rest, dtype)
    for t in tl.range(0, steps, num_stages=STAGES):
        row = t * columns
        h, s, v = step_of(read(x_seq + row + at, mask), v, p, mode)
        write(s_seq + row + at, s, mask)
        if h_seq is not None:
            write(h_seq + row + at, kept_charge(h, s, least, greatest, dtype), mask)
    write(v_last + at, v, mask)


@kernel
def lif_backward(
    h_seq, sbar_seq, vbar_last, v0, rate, xbar_seq, vbar0, ratebar,
    tau: f64, threshold: f64, rest: f64, keep: f64, gain: f64, height: f64, scale: f64,
    epsilon: f64, clamp: f64, alpha: f64, beta: f64, drop: f64, inflow: f64,
    steps: tl.int32, columns: tl.int64, mode, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Writes the gradient of the input; where wanted, of the first membrane, and what each neuron adds to 1/tau's."""
    dtype: tl.constexpr = h_seq.dtype.element_ty
    p = numbers_of(dtype, tau, threshold, rest, keep, gain, height, scale, epsilon, clamp, alpha, beta, drop, inflow)
    p = with_rate(p, rate, mode)
    at, mask = columns_of(columns, BLOCK)
    vbar = read_or(vbar_last, 0, at, mask, 0.0, dtype)
    total = tl.zeros_like(vbar)
    for back in tl.range(0, steps, num_stages=STAGES):
        row = (steps - 1 - back) * columns
        h = read(h_seq + row + at, mask)
        sbar = read_or(sbar_seq, row, at, mask, 0.0, dtype)
        hbar = lif_step_vjp(h, fired(h, p), sbar, vbar, p, mode)
        vbar = p.keep * hbar
        write(xbar_seq + row + at, p.gain * hbar, mask)
        if ratebar is not None:
            v = read_or(v0, 0, at, mask, p.rest, dtype)
            if back + 1 < steps:
                before = read(h_seq + row - columns + at, mask)
                v = reset_of(before, fired(before, p), p, mode)
            # h - v is the input's distance times 1 / tau, by which the total is divided at the end.
            total += hbar * (h - v if mode.decay else p.rest - v)
    if vbar0 is not None:
        write(vbar0 + at, vbar, mask)
    if ratebar is not None:
        write(ratebar + at, total / p.tau if mode.decay else total, mask)


@jit
def coefficients_of(mean, inverse_std, weight, bias, at, mask, channels, inner, mode, dtype: tl.constexpr):
    """What each column's norm multiplies by and adds, by its channel and form: see `input_of`."""
    channel = (at // inner) % channels
    m, i = read(mean + channel, mask), read(inverse_std + channel, mask)
    w = read_or(weight, 0, channel, mask, 1.0, dtype)
    b = read_or(bias, 0, channel, mask, 0.0, dtype)
    if mode.form == SCALED:
        return m, w, i, b
    scale = i * w
    if mode.form == CENTRED:
        return m, scale, scale, b
    shift = tl.fma(-m, scale, b) if mode.form == FMA else b - m * scale
    return m, scale, scale, shift


@jit
def input_of(z_seq, residual_seq, place, mask, norm, mode, dtype: tl.constexpr, policy: tl.constexpr = USUAL):
    """The neuron's input, with the values that the norm and the sum would have in memory, and in their type."""
    z = read(z_seq + place, mask, policy)
    if mode.form == SCALED:
        z = norm[1] * (z - norm[0])
    elif mode.form == CENTRED:
        z = z - norm[0]
    x = tl.fma(z, norm[2], norm[3]).to(dtype)
    if residual_seq is not None:
        x = (widened(x) + read(residual_seq + place, mask, policy)).to(dtype)
    return x


@kernel
def norm_lif_forward(
    z_seq, v0, mean, inverse_std, weight, bias, residual_seq, s_seq, v_last,
    tau: f64, threshold: f64, rest: f64, keep: f64, gain: f64, height: f64, scale: f64,
    epsilon: f64, clamp: f64, alpha: f64, beta: f64, drop: f64, inflow: f64,
    steps: tl.int32, columns: tl.int64, channels: tl.int64, inner: tl.int64, mode,
    BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Writes the spikes and the last membrane."""
    dtype: tl.constexpr = z_seq.dtype.element_ty
    p = numbers_of(dtype, tau, threshold, rest, keep, gain, height, scale, epsilon, clamp, alpha, beta, drop, inflow)
    at, mask = columns_of(columns, BLOCK)
    norm = coefficients_of(mean, inverse_std, weight, bias, at, mask, channels, inner, mode, dtype)
    v = read_or(v0, 0, at, mask, p.rest, dtype)
    for t in tl.range(0, steps, num_stages=STAGES):
        row = t * columns
        x = input_of(z_seq, residual_seq, row + at, mask, norm, mode, dtype)
        _, s, v = step_of(widened(x), v, p, mode)
        write(s_seq + row + at, s, mask)
    write(v_last + at, v, mask)


@kernel
def norm_lif_backward(
    z_seq, v0, mean, inverse_std, weight, bias, residual_seq, sbar_seq, vbar_last, xbar_seq, vbar0,
    tau: f64, threshold: f64, rest: f64, keep: f64, gain: f64, height: f64, scale: f64,
    epsilon: f64, clamp: f64, alpha: f64, beta: f64, drop: f64, inflow: f64, least: f64, greatest: f64,
    steps: tl.int32, columns: tl.int64, channels: tl.int64, inner: tl.int64, mode,
    ROWS: tl.constexpr, EVEN: tl.constexpr, SWEPT: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Writes the gradient at x, and of the first membrane where wanted; EVEN and SWEPT as in `carrier_backward`."""
    dtype: tl.constexpr = z_seq.dtype.element_ty
    p = numbers_of(dtype, tau, threshold, rest, keep, gain, height, scale, epsilon, clamp, alpha, beta, drop, inflow)
    at, mask = columns_of(columns, BLOCK)
    norm = coefficients_of(mean, inverse_std, weight, bias, at, mask, channels, inner, mode, dtype)
    v_first = read_or(v0, 0, at, mask, p.rest, dtype)
    vbar = read_or(vbar_last, 0, at, mask, 0.0, dtype)
    pieces = (steps + ROWS - 1) // ROWS
    last: tl.constexpr = LAST if SWEPT else USUAL

    # The sweep: the membrane before every piece but the first, kept where that piece's first gradient will go.
    v = v_first
    for piece in range(1, pieces):
        for t in tl.range((piece - 1) * ROWS, piece * ROWS, num_stages=STAGES):
            x = input_of(z_seq, residual_seq, t * columns + at, mask, norm, mode, dtype, AGAIN)
            _, _, v = step_of(widened(x), v, p, mode)
        park(xbar_seq + piece * ROWS * columns + at, v, columns, mask)
    tl.debug_barrier()  # another thread of this program may read what this one wrote

    for back in range(pieces):
        first = (pieces - 1 - back) * ROWS
        v = tl.where(first > 0, parked(xbar_seq + first * columns + at, columns, mask & (first > 0)), v_first)
        # x, sbar and h of the piece's steps, in registers. All reads come before the first write: none has to wait.
        x, sbar, h = (), (), ()
        for r in tl.static_range(ROWS):
            there = mask if EVEN else mask & (first + r < steps)
            row = (first + r) * columns
            x = appended(x, input_of(z_seq, residual_seq, row + at, there, norm, mode, dtype, last))
            sbar = appended(sbar, read_narrow(sbar_seq, row, at, there, dtype, last))
        for r in tl.static_range(ROWS):
            h_r, s, v = step_of(widened(x[r]), v, p, mode)
            h = appended(h, kept_charge(h_r, s, least, greatest, dtype))  # that which the neuron would have kept
        for r in tl.static_range(ROWS - 1, -1, -1):
            there = mask if EVEN else mask & (first + r < steps)
            hbar = lif_step_vjp(h[r], fired(h[r], p), widened(sbar[r]), vbar, p, mode)
            vbar = p.keep * hbar if EVEN else tl.where(there, p.keep * hbar, vbar)
            write(xbar_seq + (first + r) * columns + at, p.gain * hbar, there, last)
    if vbar0 is not None:
        write(vbar0 + at, vbar, mask)


@kernel
def carrier_forward(
    x_seq, v0, y_seq, v_last,
    tau: f64, threshold: f64, rest: f64, keep: f64, gain: f64, height: f64, scale: f64,
    epsilon: f64, clamp: f64, alpha: f64, beta: f64, drop: f64, inflow: f64,
    steps: tl.int32, columns: tl.int64, mode, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Writes the output y = s + epsilon x and the last membrane."""
    dtype: tl.constexpr = x_seq.dtype.element_ty
    p = numbers_of(dtype, tau, threshold, rest, keep, gain, height, scale, epsilon, clamp, alpha, beta, drop, inflow)
    at, mask = columns_of(columns, BLOCK)
    v = read_or(v0, 0, at, mask, p.rest, dtype)
    for t in tl.range(0, steps, num_stages=STAGES):
        row = t * columns
        x = clamped(read(x_seq + row + at, mask), -p.clamp, p.clamp)
        _, s, v = step_of(x, v, p, mode)
        write(y_seq + row + at, s + p.epsilon * x, mask)
    write(v_last + at, v, mask)


@jit
def _decoded(y, unscale):
    """Spike and clamped input of an output; `unscale` is 1 / epsilon."""
    s = (y > 0.5).to(y.dtype)
    return s, (y - s) * unscale


@jit
def _regenerated(y, v, p, unscale, from_rest, mode):
    """Charge, and membrane after a step, by the decoded spike: none can flip."""
    s, x = _decoded(y, unscale)
    h = tl.fma(p.keep, v, tl.fma(p.gain, x, from_rest))
    return h, reset_of(h, s, p, mode)


@kernel
def carrier_backward(
    y_seq, v0, ybar_seq, vbar_last, xbar_seq, vbar0,
    tau: f64, threshold: f64, rest: f64, keep: f64, gain: f64, height: f64, scale: f64,
    epsilon: f64, clamp: f64, alpha: f64, beta: f64, drop: f64, inflow: f64,
    steps: tl.int32, columns: tl.int64, mode, ROWS: tl.constexpr, EVEN: tl.constexpr,
    SWEPT: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Writes the gradient of the input, and of the first membrane where wanted.

    EVEN: all pieces have ROWS steps. SWEPT: there is more than one.
    """
    dtype: tl.constexpr = y_seq.dtype.element_ty
    p = numbers_of(dtype, tau, threshold, rest, keep, gain, height, scale, epsilon, clamp, alpha, beta, drop, inflow)
    at, mask = columns_of(columns, BLOCK)
    v_first = read_or(v0, 0, at, mask, p.rest, dtype)
    vbar = read_or(vbar_last, 0, at, mask, 0.0, dtype)
    unscale, from_rest = 1 / p.epsilon, p.rest - p.keep * p.rest  # from_rest: the charge's constant part
    pieces = (steps + ROWS - 1) // ROWS
    last: tl.constexpr = LAST if SWEPT else USUAL

    # The sweep: the membrane before every piece but the first, kept where that piece's first gradient will go.
    v = v_first
    for piece in range(1, pieces):
        for t in tl.range((piece - 1) * ROWS, piece * ROWS, num_stages=STAGES):
            _, v = _regenerated(read(y_seq + t * columns + at, mask, AGAIN), v, p, unscale, from_rest, mode)
        park(xbar_seq + piece * ROWS * columns + at, v, columns, mask)
    tl.debug_barrier()  # another thread of this program may read what this one wrote

    for back in range(pieces):
        first = (pieces - 1 - back) * ROWS
        v = tl.where(first > 0, parked(xbar_seq + first * columns + at, columns, mask & (first > 0)), v_first)
        # y, ybar and h of the piece's steps, in registers. All reads come before the first write: none has to wait.
        y, ybar, h = (), (), ()
        for r in tl.static_range(ROWS):
            there = mask if EVEN else mask & (first + r < steps)
            row = (first + r) * columns
            y = appended(y, read_narrow(y_seq, row, at, there, dtype, last))
            ybar = appended(ybar, read_narrow(ybar_seq, row, at, there, dtype, last))
        for r in tl.static_range(ROWS):
            h_r, v = _regenerated(widened(y[r]), v, p, unscale, from_rest, mode)
            h = appended(h, h_r)
        for r in tl.static_range(ROWS - 1, -1, -1):
            there = mask if EVEN else mask & (first + r < steps)
            s, x = _decoded(widened(y[r]), unscale)
            ybar_r = widened(ybar[r])
            hbar = lif_step_vjp(h[r], s, ybar_r, vbar, p, mode)
            vbar = p.keep * hbar if EVEN else tl.where(there, p.keep * hbar, vbar)
            xbar = tl.where(tl.abs(x) >= p.clamp, 0.0, tl.fma(p.gain, hbar, p.epsilon * ybar_r))
            write(xbar_seq + (first + r) * columns + at, xbar, there, last)
    if vbar0 is not None:
        write(vbar0 + at, vbar, mask)
