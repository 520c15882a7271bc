"""Fused coupled LIF in Triton; equations: section "Coupled LIF" of nodes/README.md.

Sequences are `[T, outer, groups, inner]`, states `[outer, groups, inner]`, all contiguous; arguments as in
`revsnn_nodes.kernels.triton.lif`. A program runs a block of the columns `[outer, inner]` through all steps, with the
membranes of all their groups in registers. x, y, v, the charge m and their gradients are tuples over the groups; d is
a group's drive, g how far the output opens its reset.

Words of memory traffic per element and step, beside 2 / T to 4 / T for states: forward 2 (x, y), and 1 / k for anchors
every k steps; inverse backward 3 (y, ybar, xbar). Both are the least.

The backward pass from anchors regenerates a segment of k = `every` steps forward from its anchor, in pieces of R steps
(ROWS), as few and as even as allow R times the groups to stay within `MOST_ROWS` of
`revsnn_nodes.kernels.triton.launch`. Sweep and pieces are those of `revsnn_nodes.kernels.triton.lif`, within each
segment. With P = ceil(k / R) pieces per segment the traffic is 3 + 1 / k for y, ybar, xbar and the anchors, and
(P - 1) (R + 2) / k for the sweep: none for k times groups up to MOST_ROWS, and never more than 1 + 2 / R.
"""

import triton.language as tl

from revsnn_nodes.kernels.triton.equations import (
    AGAIN,
    USUAL,
    appended,
    charge_of,
    clamped,
    columns_of,
    f64,
    fired,
    jit,
    kernel,
    numbers_of,
    park,
    parked,
    phi_of,
    prepended,
    quotient,
    read_narrow,
    read_or,
    rounded,
    widened,
    write,
)


@jit
def first_group_of(columns, inner, GROUPS: tl.constexpr, BLOCK: tl.constexpr):
    """Where in a step the first group of this program's columns lies, and which of them exist."""
    column, mask = columns_of(columns, BLOCK)
    return (column // inner) * (inner * GROUPS) + column % inner, mask


@jit
def read_groups(
    tensor, row, at, inner, mask, fill, dtype: tl.constexpr, GROUPS: tl.constexpr, policy: tl.constexpr = USUAL
):
    """A block of every group, in their order, from a tensor's row; `fill` where no tensor is given."""
    parts = ()
    for i in tl.static_range(GROUPS):
        parts = appended(parts, read_or(tensor, row + i * inner, at, mask, fill, dtype, policy))
    return parts


@jit
def read_narrow_groups(tensor, row, at, inner, mask, dtype: tl.constexpr, GROUPS: tl.constexpr):
    """A block of every group, in their order, in the tensor's type; zeros where no tensor is given."""
    parts = ()
    for i in tl.static_range(GROUPS):
        parts = appended(parts, read_narrow(tensor, row + i * inner, at, mask, dtype))
    return parts


@jit
def groups_of(parts, step: tl.constexpr, GROUPS: tl.constexpr):
    """The groups of one step in the type of the arithmetic, from a tuple that holds those of several steps in turn."""
    found = ()
    for i in tl.static_range(GROUPS):
        found = appended(found, widened(parts[step * GROUPS + i]))
    return found


@jit
def write_groups(pointers, parts, inner, mask, GROUPS: tl.constexpr):
    """Stores a block of every group."""
    for i in tl.static_range(GROUPS):
        write(pointers + i * inner, parts[i], mask)


@jit
def chosen(mask, parts, others, GROUPS: tl.constexpr):
    """For every group `parts` where the mask is set, else `others`."""
    result = ()
    for i in tl.static_range(GROUPS):
        result = appended(result, tl.where(mask, parts[i], others[i]))
    return result


@jit
def gate_of(y, m, p, mode):
    """How far the reset is open: by the spike, or by the clamped output."""
    if mode.by_spike:
        return fired(m, p)
    return clamped(y, 0.0, 1.0)


@jit
def coupled_reset_of(m, g, p, mode):
    """Membrane of a group after its reset."""
    if mode.soft:
        return m - p.drop * g
    return m - p.alpha * g * (m - p.rest)


@jit
def carried_input(y, m, p):
    """The partner's input that an output carries, divided by beta as a product with 1 / beta."""
    return (y - fired(m, p)) * (1 / p.beta)


@jit
def regenerate_step(y, v, p, mode, GROUPS: tl.constexpr):
    """One step forward from its output: charges, and membranes after it."""
    m = ()
    for i in tl.static_range(1, GROUPS):
        m = appended(m, charge_of(y[i - 1], v[i], p, mode))
    x_first = carried_input(y[GROUPS - 1], m[GROUPS - 2], p)  # m lacks the first group's, so this is the last one's
    m = prepended(charge_of(x_first, v[0], p, mode), m)
    after = ()
    for i in tl.static_range(GROUPS):
        after = appended(after, coupled_reset_of(m[i], gate_of(y[i], m[i], p, mode), p, mode))
    return m, after


@jit
def invert_step(y, after, p, mode, GROUPS: tl.constexpr):
    """One step back in time from its output: charges, and membranes before it."""
    m = ()
    for i in tl.static_range(GROUPS):
        g = clamped(y[i], 0.0, 1.0)
        opened = p.alpha * g
        m = appended(m, after[i] + p.drop * g if mode.soft else quotient(after[i] - opened * p.rest, 1 - opened))
    x_first = carried_input(y[GROUPS - 1], m[GROUPS - 1], p)
    v = ()
    for i in tl.static_range(GROUPS):
        d = x_first if i == 0 else y[i - 1]
        v = appended(v, tl.fma(-p.gain, d, m[i] - p.inflow) * (1 / p.keep))
    return m, v


@jit
def _group_vjp(y, m, ybar, vbar, p, mode):
    """Of one group: gradients of the partner's input, of the drive, and of the membrane before the step."""
    sbar = ybar
    if not mode.detach:
        gbar = p.drop * vbar if mode.soft else p.alpha * vbar * (m - p.rest)  # that of the gate, but for its sign
        if mode.by_spike:
            sbar = ybar - gbar
        else:
            ybar = ybar - tl.where((y > 0) & (y < 1), gbar, 0.0)
            sbar = ybar
    kept = vbar if mode.soft else tl.fma(-p.alpha * gate_of(y, m, p, mode), vbar, vbar)
    mbar = tl.fma(sbar, phi_of(m, p, mode), kept)
    return p.beta * ybar, p.gain * mbar, p.keep * mbar


@jit
def coupled_step_vjp(y, m, ybar, vbar_after, p, mode, GROUPS: tl.constexpr):
    """Gradients of the input and of the membranes before the step, for the groups from last to first."""
    x_first_bar, dbar, vbar_last = _group_vjp(
        y[GROUPS - 1], m[GROUPS - 1], ybar[GROUPS - 1], vbar_after[GROUPS - 1], p, mode
    )  # fmt: skip
    xbar, vbar = (), appended((), vbar_last)
    for i in tl.static_range(GROUPS - 2, -1, -1):
        # The drive of group i + 1 is this group's output.
        x_next_bar, dbar, vbar_i = _group_vjp(y[i], m[i], ybar[i] + dbar, vbar_after[i], p, mode)
        xbar = prepended(x_next_bar, xbar)
        vbar = prepended(vbar_i, vbar)
    return prepended(dbar + x_first_bar, xbar), vbar


@kernel
def coupled_forward(
    x_seq, v0, y_seq, v_last, anchors,
    tau: f64, threshold: f64, rest: f64, keep: f64, gain: f64, height: f64, scale: f64,
    epsilon: f64, clamp: f64, alpha: f64, beta: f64, drop: f64, inflow: f64,
    steps: tl.int32, every: tl.int32, columns: tl.int64, inner: tl.int64, mode,
    GROUPS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Writes the output, the last membrane, and the membrane before steps every, 2 every, ... into `anchors`."""
    dtype: tl.constexpr = x_seq.dtype.element_ty
    p = numbers_of(dtype, tau, threshold, rest, keep, gain, height, scale, epsilon, clamp, alpha, beta, drop, inflow)
    at, mask = first_group_of(columns, inner, GROUPS, BLOCK)
    width = columns * GROUPS
    v = read_groups(v0, 0, at, inner, mask, p.rest, dtype, GROUPS)
    for first in range(0, steps, every):
        if anchors is not None and first > 0:
            write_groups(anchors + (first // every - 1) * width + at, v, inner, mask, GROUPS)
        for t in tl.range(first, min(first + every, steps), num_stages=STAGES):
            row = t * width
            x = read_groups(x_seq, row, at, inner, mask, 0.0, dtype, GROUPS)
            d = x[0]
            y, after = (), ()
            for i in tl.static_range(GROUPS):
                m = charge_of(d, v[i], p, mode)
                d = rounded(fired(m, p) + p.beta * x[(i + 1) % GROUPS], dtype)  # y of this group drives the next
                y = appended(y, d)
                after = appended(after, coupled_reset_of(m, gate_of(d, m, p, mode), p, mode))
            write_groups(y_seq + row + at, y, inner, mask, GROUPS)
            v = after
    write_groups(v_last + at, v, inner, mask, GROUPS)


@kernel
def inverse_backward(
    y_seq, v_last, ybar_seq, vbar_last, xbar_seq, vbar0,
    tau: f64, threshold: f64, rest: f64, keep: f64, gain: f64, height: f64, scale: f64,
    epsilon: f64, clamp: f64, alpha: f64, beta: f64, drop: f64, inflow: f64,
    steps: tl.int32, columns: tl.int64, inner: tl.int64, mode,
    GROUPS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Writes the gradient of the input, and of the first membrane where wanted."""
    dtype: tl.constexpr = y_seq.dtype.element_ty
    p = numbers_of(dtype, tau, threshold, rest, keep, gain, height, scale, epsilon, clamp, alpha, beta, drop, inflow)
    at, mask = first_group_of(columns, inner, GROUPS, BLOCK)
    v = read_groups(v_last, 0, at, inner, mask, 0.0, dtype, GROUPS)
    vbar = read_groups(vbar_last, 0, at, inner, mask, 0.0, dtype, GROUPS)
    for back in tl.range(0, steps, num_stages=STAGES):
        row = (steps - 1 - back) * columns * GROUPS
        y = read_groups(y_seq, row, at, inner, mask, 0.0, dtype, GROUPS)
        ybar = read_groups(ybar_seq, row, at, inner, mask, 0.0, dtype, GROUPS)
        m, v = invert_step(y, v, p, mode, GROUPS)
        xbar, vbar = coupled_step_vjp(y, m, ybar, vbar, p, mode, GROUPS)
        write_groups(xbar_seq + row + at, xbar, inner, mask, GROUPS)
    if vbar0 is not None:
        write_groups(vbar0 + at, vbar, inner, mask, GROUPS)


@jit
def _membranes(
    v0, anchors, swept, at, width, inner, mask, rest, first, begin, segment, dtype: tl.constexpr, GROUPS: tl.constexpr
):
    """Membranes before step `first`: from the state, from the segment's anchor, or from where the sweep left them."""
    at_start, at_anchor = mask & (first == 0), mask & (first == begin) & (segment > 0)
    v_start = read_groups(v0, 0, at, inner, at_start, rest, dtype, GROUPS)
    v_anchor = read_groups(anchors, (segment - 1) * width, at, inner, at_anchor, 0.0, dtype, GROUPS)
    v_swept = ()
    for i in tl.static_range(GROUPS):
        v_swept = appended(v_swept, parked(swept + first * width + at + i * inner, width, mask & (first > begin)))
    return chosen(at_start, v_start, chosen(at_anchor, v_anchor, v_swept, GROUPS), GROUPS)


@kernel
def anchored_backward(
    y_seq, v0, anchors, ybar_seq, vbar_last, xbar_seq, vbar0,
    tau: f64, threshold: f64, rest: f64, keep: f64, gain: f64, height: f64, scale: f64,
    epsilon: f64, clamp: f64, alpha: f64, beta: f64, drop: f64, inflow: f64,
    steps: tl.int32, every: tl.int32, columns: tl.int64, inner: tl.int64, mode,
    GROUPS: tl.constexpr, ROWS: tl.constexpr, EVEN: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Writes the gradient of the input, and of the first membrane where wanted; EVEN: all pieces have ROWS steps."""
    dtype: tl.constexpr = y_seq.dtype.element_ty
    p = numbers_of(dtype, tau, threshold, rest, keep, gain, height, scale, epsilon, clamp, alpha, beta, drop, inflow)
    at, mask = first_group_of(columns, inner, GROUPS, BLOCK)
    width = columns * GROUPS
    vbar = read_groups(vbar_last, 0, at, inner, mask, 0.0, dtype, GROUPS)
    segments = (steps + every - 1) // every
    for segment_back in range(segments):
        segment = segments - 1 - segment_back
        begin = segment * every
        end = min(begin + every, steps)
        pieces = (end - begin + ROWS - 1) // ROWS
        # The sweep: the membranes before every piece but the first, kept where that piece's first gradient will go.
        if pieces > 1:
            v = _membranes(v0, anchors, xbar_seq, at, width, inner, mask, p.rest, begin, begin, segment, dtype, GROUPS)
            for piece in range(1, pieces):
                for t in tl.range(begin + (piece - 1) * ROWS, begin + piece * ROWS, num_stages=STAGES):
                    y = read_groups(y_seq, t * width, at, inner, mask, 0.0, dtype, GROUPS, AGAIN)
                    _, v = regenerate_step(y, v, p, mode, GROUPS)
                for i in tl.static_range(GROUPS):
                    park(xbar_seq + (begin + piece * ROWS) * width + at + i * inner, v[i], width, mask)
            tl.debug_barrier()  # another thread of this program may read what this one wrote

        for back in range(pieces):
            first = begin + (pieces - 1 - back) * ROWS
            v = _membranes(v0, anchors, xbar_seq, at, width, inner, mask, p.rest, first, begin, segment, dtype, GROUPS)
            # y, ybar and m of the piece's steps, in registers. All reads come before the first write: none has to wait.
            y, ybar, m = (), (), ()
            for r in tl.static_range(ROWS):
                there = mask if EVEN else mask & (first + r < end)
                row = (first + r) * width
                y = y + read_narrow_groups(y_seq, row, at, inner, there, dtype, GROUPS)
                ybar = ybar + read_narrow_groups(ybar_seq, row, at, inner, there, dtype, GROUPS)
            for r in tl.static_range(ROWS):
                m_r, v = regenerate_step(groups_of(y, r, GROUPS), v, p, mode, GROUPS)
                m = m + m_r
            for r in tl.static_range(ROWS - 1, -1, -1):
                there = mask if EVEN else mask & (first + r < end)
                y_r, m_r, ybar_r = groups_of(y, r, GROUPS), groups_of(m, r, GROUPS), groups_of(ybar, r, GROUPS)
                xbar, vbar_r = coupled_step_vjp(y_r, m_r, ybar_r, vbar, p, mode, GROUPS)
                write_groups(xbar_seq + (first + r) * width + at, xbar, inner, there, GROUPS)
                vbar = vbar_r if EVEN else chosen(there, vbar_r, vbar, GROUPS)
    if vbar0 is not None:
        write_groups(vbar0 + at, vbar, inner, mask, GROUPS)
