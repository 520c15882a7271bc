"""Fused carrier LIF in Triton: forward, and backward from the output alone.

Layout as in `triton_lif`. Words of memory traffic per element and step, beside 2 / T for states: forward 2 (input,
output), which is the least.

The backward pass needs the charges in reverse order, and they can only be made forward. They are made in pieces of R
steps (ROWS), as few and as even as `triton_launch.MOST_ROWS` allows. A first sweep runs to the last piece and leaves
the membrane before each piece in the gradient's buffer, at a step whose gradient is not there yet; then, last piece
first, a piece's outputs are read into registers, its charges regenerated there, and its gradients written. So with
P = ceil(T / R) pieces the traffic is 3 + (P - 1) (R + 2) / T words: 3, the least, for T up to MOST_ROWS, and below
4 + 2 / R for any T. Charges that waited in the gradient's buffer, one for each step, would cost 6.
"""

import triton.language as tl

from revsnn_nodes.kernels.triton.equations import (
    appended,
    charge_of,
    clamped,
    columns_of,
    fired,
    gradient_at_charge,
    jit,
    kernel,
    number,
    read,
    read_or,
    reset_of,
    rounded,
    write,
)


@kernel(key=("columns", "steps"), values=lambda _: 4)
def carrier_forward(
    x, v0, y, v_last,
    tau: tl.float64, threshold: tl.float64, rest: tl.float64, epsilon: tl.float64, clamp: tl.float64,
    steps: tl.int32, columns: tl.int64,
    CARRIED: tl.constexpr, DECAY: tl.constexpr, EXACT: tl.constexpr, SOFT: tl.constexpr,
    BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Writes the output, spike + epsilon x, and the last membrane."""
    DTYPE: tl.constexpr = x.dtype.element_ty
    at, mask = columns_of(columns, BLOCK)
    v = read_or(v0 + at, mask, rest, CARRIED)
    tau, threshold, rest = number(tau, v), number(threshold, v), number(rest, v)
    epsilon, clamp = number(epsilon, v), number(clamp, v)
    for t in tl.range(0, steps, num_stages=STAGES):
        carried = clamped(read(x + t * columns + at, mask), -clamp, clamp)
        h = rounded(charge_of(carried, v, tau, rest, DECAY, EXACT), DTYPE)
        s = fired(h, threshold)
        v = rounded(reset_of(h, s, threshold, rest, SOFT), DTYPE)
        write(y + t * columns + at, s + epsilon * carried, mask)
    write(v_last + at, v, mask)


@jit
def _decoded(y, decoding):
    """Spike and clamped input of an output."""
    s = (y > 0.5).to(y.dtype)
    return s, (y - s) * decoding


@jit
def _regenerated(
    y,
    v,
    keep,
    gain,
    inflow,
    decoding,
    threshold,
    rest,
    SOFT: tl.constexpr,
):
    """Charge and membrane after a step, by the decoded spike: none can flip."""
    s, x = _decoded(y, decoding)
    h = keep * v + gain * x + inflow
    return h, reset_of(h, s, threshold, rest, SOFT)


@kernel(key=("columns", "steps", "ROWS"), values=lambda given: 3 * given["ROWS"], stages=(3,))
def carrier_backward(
    y, v0, ybar, vbar, xbar, vbar0,
    threshold: tl.float64, rest: tl.float64, keep: tl.float64, gain: tl.float64, height: tl.float64, scale: tl.float64,
    epsilon: tl.float64, clamp: tl.float64, steps: tl.int32, pieces: tl.int32, columns: tl.int64,
    CARRIED: tl.constexpr, HAS_YBAR: tl.constexpr, HAS_VBAR: tl.constexpr, NEED_V: tl.constexpr,
    KIND: tl.constexpr, SOFT: tl.constexpr, DETACH: tl.constexpr, ROWS: tl.constexpr, EVEN: tl.constexpr,
    BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Writes the gradient of the input, and of the first membrane if NEED_V; EVEN: all pieces have ROWS steps."""
    at, mask = columns_of(columns, BLOCK)
    start = read_or(v0 + at, mask, rest, CARRIED)
    w = read_or(vbar + at, mask, 0.0, HAS_VBAR)
    threshold, rest, keep, gain = number(threshold, w), number(rest, w), number(keep, w), number(gain, w)
    height, scale, epsilon, clamp = number(height, w), number(scale, w), number(epsilon, w), number(clamp, w)
    inflow, decoding = rest - keep * rest, 1 / epsilon

    v = start
    for piece in range(1, pieces):
        for t in tl.range((piece - 1) * ROWS, piece * ROWS, num_stages=STAGES):
            out = read(y + t * columns + at, mask)
            _, v = _regenerated(out, v, keep, gain, inflow, decoding, threshold, rest, SOFT)
        write(xbar + piece * ROWS * columns + at, v, mask)
    tl.debug_barrier()  # another thread of this program may read what this one wrote

    for back in range(pieces):
        first = (pieces - 1 - back) * ROWS
        v = tl.where(first > 0, read(xbar + first * columns + at, mask & (first > 0)), start)
        # All reads before the first write: none has to wait for another.
        outs, arrived = (), ()
        for r in tl.static_range(ROWS):
            there = mask if EVEN else mask & (first + r < steps)
            outs = appended(outs, read(y + (first + r) * columns + at, there))
            arrived = appended(arrived, read_or(ybar + (first + r) * columns + at, there, 0.0, HAS_YBAR))
        charges = ()
        for r in tl.static_range(ROWS):
            h, v = _regenerated(outs[r], v, keep, gain, inflow, decoding, threshold, rest, SOFT)
            charges = appended(charges, h)
        for r in tl.static_range(ROWS - 1, -1, -1):
            s, x = _decoded(outs[r], decoding)
            hbar = gradient_at_charge(
                charges[r], s, arrived[r], w, threshold, rest, height, scale, KIND, SOFT, DETACH
            )  # fmt: skip
            there = mask if EVEN else mask & (first + r < steps)
            w = tl.where(there, keep * hbar, w)
            gradient = tl.where(tl.abs(x) < clamp, gain * hbar + epsilon * arrived[r], 0.0)
            write(xbar + (first + r) * columns + at, gradient, there)
    if NEED_V:
        write(vbar0 + at, w, mask)
