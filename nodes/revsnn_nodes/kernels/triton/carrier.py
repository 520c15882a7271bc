"""Fused carrier LIF in Triton; equations: section "Carrier" of nodes/README.md.

Layout and arguments as in `revsnn_nodes.kernels.triton.lif`. Words of memory traffic per element and step, beside
2 / T for states: forward 2 (x, y), which is the least.

The backward pass needs the charges in reverse order, and they can only be made forward. They are made in pieces of R
steps (ROWS), as few and as even as `MOST_ROWS` of `revsnn_nodes.kernels.triton.launch` allows. A first sweep runs to
the last piece and leaves the membrane before each piece in the gradient's buffer, at a step whose gradient is not
there yet. Then, last piece first, a piece's outputs are read into registers, its charges regenerated there, and its
gradients written. So with P = ceil(T / R) pieces the traffic is 3 + (P - 1) (R + 2) / T words: 3, the least, for T up
to MOST_ROWS, and below 4 + 2 / R for any T. Charges that waited in the gradient's buffer, one for each step, would
cost 6.
"""

import triton.language as tl

from revsnn_nodes.kernels.triton.equations import (
    AGAIN,
    LAST,
    USUAL,
    appended,
    clamped,
    columns_of,
    f64,
    jit,
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
    write,
)


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
