"""One step of the coupled LIF for a block of columns, in Triton: groups are the elements of a tuple.

Equations: section "Coupled LIF" of nodes/README.md; `revsnn_nodes.equations`. Sequences are
`[T, outer, groups, inner]`, states `[outer, groups, inner]`, all contiguous. A program has a block of the columns
`[outer, inner]` with all their groups. See `triton_step` for arithmetic and rounding.

Fused coupled LIF in Triton: forward, and backward by inverse in time.

Layout: see `triton_coupled_step`. A program runs its columns through all steps with the membranes of all groups in
registers. Words of memory traffic per element and step, beside 2 / T to 4 / T for states: forward 2 (input, output)
and 1 / k for anchors every k steps; inverse backward 3 (output, its gradient, gradient of the input). Both are the
least.

Fused coupled LIF in Triton: backward from anchors.

Layout: see `triton_coupled_step`. A segment of k = `every` steps is regenerated forward from its anchor in pieces of R
steps (ROWS), as few and as even as allow R times the groups to stay within `triton_launch.MOST_ROWS`. Where a segment
has more than one piece, a first sweep leaves the membranes before the later ones in the gradient's buffer, at a step
whose gradient is not there yet; then, last piece first, a piece's outputs and their gradients are read into registers,
its charges regenerated there, and its gradients written.

Words of memory traffic per element and step, with P = ceil(k / R) pieces for each segment: 3 + 1 / k for the output,
its gradient, the gradient of the input and the anchors, and (P - 1) (R + 2) / k for the first sweep: none for k times
groups up to MOST_ROWS, and never more than 1 + 2 / R.
"""

import triton.language as tl

from revsnn_nodes.kernels.triton.equations import (
    appended,
    charge_of,
    clamped,
    columns_of,
    fired,
    jit,
    kernel,
    number,
    phi_of,
    prepended,
    quotient,
    read_or,
    rounded,
    write,
)


@jit
def first_group_of(columns, inner, GROUPS: tl.constexpr, BLOCK: tl.constexpr):
    """Where in a step the first group of this program's columns lies, and which of them exist."""
    column, mask = columns_of(columns, BLOCK)
    return (column // inner) * (inner * GROUPS) + column % inner, mask


@jit
def read_groups(pointers, inner, mask, fill, GROUPS: tl.constexpr, GIVEN: tl.constexpr):
    """A block of every group, in their order; `fill` where no tensor is given."""
    parts = ()
    for i in tl.static_range(GROUPS):
        parts = appended(parts, read_or(pointers + i * inner, mask, fill, GIVEN))
    return parts


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
def gate_of(y, charge, threshold, BY_SPIKE: tl.constexpr):
    """How far the reset is open: by the spike, or by the clamped output."""
    if BY_SPIKE:
        return fired(charge, threshold)
    return clamped(y, 0.0, 1.0)


@jit
def reset_membrane(
    charge,
    gate,
    rest,
    alpha,
    drop,
    DTYPE: tl.constexpr,
    SOFT: tl.constexpr,
):
    """See `revsnn_nodes.equations._reset`; `drop` is alpha times the threshold."""
    if SOFT:
        return rounded(charge - drop * gate, DTYPE)
    return rounded(charge - alpha * gate * (charge - rest), DTYPE)


@jit
def carried_input(y, charge, threshold, unscale):
    """The input that an output carries; `unscale` is 1 / beta."""
    return (y - fired(charge, threshold)) * unscale


@jit
def regenerated(
    outs, states, tau, threshold, rest, alpha, drop, unscale,
    DTYPE: tl.constexpr, DECAY: tl.constexpr, EXACT: tl.constexpr, SOFT: tl.constexpr, BY_SPIKE: tl.constexpr,
    GROUPS: tl.constexpr,
):  # fmt: skip
    """See `revsnn_nodes.equations.regenerate_step`: charges, and membranes after the step."""
    charges = ()
    for i in tl.static_range(1, GROUPS):
        charges = appended(charges, charge_of(outs[i - 1], states[i], tau, rest, DECAY, EXACT))
    x_first = carried_input(outs[GROUPS - 1], charges[GROUPS - 2], threshold, unscale)
    charges = prepended(charge_of(x_first, states[0], tau, rest, DECAY, EXACT), charges)
    after = ()
    for i in tl.static_range(GROUPS):
        gate = gate_of(outs[i], charges[i], threshold, BY_SPIKE)
        after = appended(after, reset_membrane(charges[i], gate, rest, alpha, drop, DTYPE, SOFT))
    return charges, after


@jit
def _group_product(
    y, m, ybar, later, threshold, rest, keep, gain, height, scale,
    alpha, beta, drop,
    KIND: tl.constexpr, SOFT: tl.constexpr, DETACH: tl.constexpr, BY_SPIKE: tl.constexpr,
):  # fmt: skip
    """See `revsnn_nodes.equations._reset_vjp`: gradients of the partner's input, the drive, and the membrane before."""
    into_output = ybar
    into_spike = ybar
    if not DETACH:
        into_gate = drop * later if SOFT else alpha * later * (m - rest)
        if BY_SPIKE:
            into_spike = ybar - into_gate
        else:
            into_output = ybar - tl.where((y > 0) & (y < 1), into_gate, 0.0)
            into_spike = into_output
    kept = later if SOFT else later * (1 - alpha * gate_of(y, m, threshold, BY_SPIKE))
    mbar = kept + into_spike * phi_of(m - threshold, height, scale, KIND)
    return beta * into_output, gain * mbar, keep * mbar


@jit
def product(
    outs, charges, arrived, later, threshold, rest, keep, gain,
    height, scale, alpha, beta, drop,
    KIND: tl.constexpr, SOFT: tl.constexpr, DETACH: tl.constexpr, BY_SPIKE: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """See `revsnn_nodes.equations.coupled_step_vjp`: gradients of the input and of the membrane before the step."""
    last, drive, before = _group_product(
        outs[GROUPS - 1], charges[GROUPS - 1], arrived[GROUPS - 1], later[GROUPS - 1], threshold, rest, keep, gain,
        height, scale, alpha, beta, drop, KIND, SOFT, DETACH, BY_SPIKE,
    )  # fmt: skip
    xbar, vbar = (), appended((), before)
    for i in tl.static_range(GROUPS - 2, -1, -1):
        partner, drive, before = _group_product(
            outs[i], charges[i], arrived[i] + drive, later[i], threshold, rest, keep, gain,
            height, scale, alpha, beta, drop, KIND, SOFT, DETACH, BY_SPIKE,
        )  # fmt: skip
        xbar = prepended(partner, xbar)
        vbar = prepended(before, vbar)
    return prepended(drive + last, xbar), vbar


@jit
def step_back(
    outs, after, threshold, rest, unkeep, gain, alpha, drop, unscale,
    inflow, SOFT: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """See `revsnn_nodes.equations.invert_membranes`: charges, and membranes before the step."""
    charges = ()
    for i in tl.static_range(GROUPS):
        gate = clamped(outs[i], 0.0, 1.0)
        opened = alpha * gate
        charge = after[i] + drop * gate if SOFT else quotient(after[i] - opened * rest, 1 - opened)
        charges = appended(charges, charge)
    x_first = carried_input(outs[GROUPS - 1], charges[GROUPS - 1], threshold, unscale)
    before = ()
    for i in tl.static_range(GROUPS):
        drive = x_first if i == 0 else outs[i - 1]
        before = appended(before, (charges[i] - gain * drive - inflow) * unkeep)
    return charges, before


@kernel(key=("columns", "steps", "GROUPS"), values=lambda given: 4 * given["GROUPS"])
def coupled_forward(
    x, v0, y, v_last, anchors,
    tau: tl.float64, threshold: tl.float64, rest: tl.float64, alpha: tl.float64, beta: tl.float64, drop: tl.float64,
    steps: tl.int32, every: tl.int32, columns: tl.int64, inner: tl.int64,
    CARRIED: tl.constexpr, DECAY: tl.constexpr, EXACT: tl.constexpr, SOFT: tl.constexpr, BY_SPIKE: tl.constexpr,
    GROUPS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Writes the output, the last membrane, and the membrane before steps every, 2 every, ... into `anchors`."""
    DTYPE: tl.constexpr = x.dtype.element_ty
    at, mask = first_group_of(columns, inner, GROUPS, BLOCK)
    row = columns * GROUPS
    states = read_groups(v0 + at, inner, mask, rest, GROUPS, CARRIED)
    like = states[0]
    tau, threshold, rest = number(tau, like), number(threshold, like), number(rest, like)
    alpha, beta, drop = number(alpha, like), number(beta, like), number(drop, like)
    for first in range(0, steps, every):
        if first > 0:
            write_groups(anchors + (first // every - 1) * row + at, states, inner, mask, GROUPS)
        for t in tl.range(first, min(first + every, steps), num_stages=STAGES):
            inputs = read_groups(x + t * row + at, inner, mask, 0.0, GROUPS, True)
            drive = inputs[0]
            outs, after = (), ()
            for i in tl.static_range(GROUPS):
                charge = charge_of(drive, states[i], tau, rest, DECAY, EXACT)
                drive = rounded(fired(charge, threshold) + beta * inputs[(i + 1) % GROUPS], DTYPE)
                gate = gate_of(drive, charge, threshold, BY_SPIKE)
                outs = appended(outs, drive)
                after = appended(after, reset_membrane(charge, gate, rest, alpha, drop, DTYPE, SOFT))
            write_groups(y + t * row + at, outs, inner, mask, GROUPS)
            states = after
    write_groups(v_last + at, states, inner, mask, GROUPS)


@kernel(key=("columns", "steps", "GROUPS"), values=lambda given: 6 * given["GROUPS"])
def inverse_backward(
    y, v_last, ybar, vbar, xbar, vbar0,
    threshold: tl.float64, rest: tl.float64, keep: tl.float64, gain: tl.float64, height: tl.float64, scale: tl.float64,
    alpha: tl.float64, beta: tl.float64, drop: tl.float64, inflow: tl.float64,
    steps: tl.int32, columns: tl.int64, inner: tl.int64,
    HAS_YBAR: tl.constexpr, HAS_VBAR: tl.constexpr, NEED_V: tl.constexpr,
    KIND: tl.constexpr, SOFT: tl.constexpr, DETACH: tl.constexpr,
    GROUPS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Writes the gradient of the input, and of the first membrane if NEED_V."""
    at, mask = first_group_of(columns, inner, GROUPS, BLOCK)
    row = columns * GROUPS
    states = read_groups(v_last + at, inner, mask, 0.0, GROUPS, True)
    later = read_groups(vbar + at, inner, mask, 0.0, GROUPS, HAS_VBAR)
    like = states[0]
    threshold, rest, keep, gain = number(threshold, like), number(rest, like), number(keep, like), number(gain, like)
    height, scale, alpha, beta = number(height, like), number(scale, like), number(alpha, like), number(beta, like)
    drop, inflow = number(drop, like), number(inflow, like)
    unkeep, unscale = 1 / keep, 1 / beta
    for back in tl.range(0, steps, num_stages=STAGES):
        t = steps - 1 - back
        outs = read_groups(y + t * row + at, inner, mask, 0.0, GROUPS, True)
        arrived = read_groups(ybar + t * row + at, inner, mask, 0.0, GROUPS, HAS_YBAR)
        charges, states = step_back(
            outs, states, threshold, rest, unkeep, gain, alpha, drop, unscale, inflow, SOFT, GROUPS
        )  # fmt: skip
        gradients, later = product(
            outs, charges, arrived, later, threshold, rest, keep, gain, height, scale, alpha, beta, drop,
            KIND, SOFT, DETACH, False, GROUPS,
        )  # fmt: skip
        write_groups(xbar + t * row + at, gradients, inner, mask, GROUPS)
    if NEED_V:
        write_groups(vbar0 + at, later, inner, mask, GROUPS)


@jit
def _membranes(
    v0, anchors, xbar, at, row, inner, mask, rest,
    first, begin, segment, GROUPS: tl.constexpr, CARRIED: tl.constexpr,
):  # fmt: skip
    """Membranes before step `first`: from the state, from the segment's anchor, or from where the sweep left them."""
    at_start, at_anchor = mask & (first == 0), mask & (first == begin) & (segment > 0)
    start = read_groups(v0 + at, inner, at_start, rest, GROUPS, CARRIED)
    anchor = read_groups(anchors + (segment - 1) * row + at, inner, at_anchor, 0.0, GROUPS, True)
    swept = read_groups(xbar + first * row + at, inner, mask & (first > begin), 0.0, GROUPS, True)
    return chosen(at_start, start, chosen(at_anchor, anchor, swept, GROUPS), GROUPS)


@kernel(
    key=("columns", "steps", "GROUPS", "ROWS"), values=lambda given: 3 * given["GROUPS"] * given["ROWS"], stages=(3,)
)
def anchored_backward(
    y, v0, anchors, ybar, vbar, xbar, vbar0,
    tau: tl.float64, threshold: tl.float64, rest: tl.float64, keep: tl.float64, gain: tl.float64, height: tl.float64,
    scale: tl.float64, alpha: tl.float64, beta: tl.float64, drop: tl.float64,
    steps: tl.int32, every: tl.int32, columns: tl.int64, inner: tl.int64,
    CARRIED: tl.constexpr, HAS_YBAR: tl.constexpr, HAS_VBAR: tl.constexpr, NEED_V: tl.constexpr,
    KIND: tl.constexpr, DECAY: tl.constexpr, EXACT: tl.constexpr, SOFT: tl.constexpr, DETACH: tl.constexpr,
    BY_SPIKE: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr, EVEN: tl.constexpr,
    BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Writes the gradient of the input, and of the first membrane if NEED_V; EVEN: all pieces have ROWS steps."""
    DTYPE: tl.constexpr = y.dtype.element_ty
    at, mask = first_group_of(columns, inner, GROUPS, BLOCK)
    row = columns * GROUPS
    later = read_groups(vbar + at, inner, mask, 0.0, GROUPS, HAS_VBAR)
    like = later[0]
    tau, threshold, rest, keep = number(tau, like), number(threshold, like), number(rest, like), number(keep, like)
    gain, height, scale, alpha = number(gain, like), number(height, like), number(scale, like), number(alpha, like)
    beta, drop = number(beta, like), number(drop, like)
    unscale = 1 / beta

    segments = (steps + every - 1) // every
    for segment_back in range(segments):
        segment = segments - 1 - segment_back
        begin = segment * every
        end = min(begin + every, steps)
        pieces = (end - begin + ROWS - 1) // ROWS
        if pieces > 1:
            ahead = _membranes(v0, anchors, xbar, at, row, inner, mask, rest, begin, begin, segment, GROUPS, CARRIED)
            for piece in range(1, pieces):
                for t in tl.range(begin + (piece - 1) * ROWS, begin + piece * ROWS, num_stages=STAGES):
                    outs = read_groups(y + t * row + at, inner, mask, 0.0, GROUPS, True)
                    _, ahead = regenerated(
                        outs, ahead, tau, threshold, rest, alpha, drop, unscale,
                        DTYPE, DECAY, EXACT, SOFT, BY_SPIKE, GROUPS,
                    )  # fmt: skip
                write_groups(xbar + (begin + piece * ROWS) * row + at, ahead, inner, mask, GROUPS)
            tl.debug_barrier()  # another thread of this program may read what this one wrote

        for back in range(pieces):
            first = begin + (pieces - 1 - back) * ROWS
            states = _membranes(v0, anchors, xbar, at, row, inner, mask, rest, first, begin, segment, GROUPS, CARRIED)
            # All reads before the first write: none has to wait for another.
            piece_outs, piece_arrived = (), ()
            for r in tl.static_range(ROWS):
                there = mask if EVEN else mask & (first + r < end)
                here = (first + r) * row + at
                piece_outs = appended(piece_outs, read_groups(y + here, inner, there, 0.0, GROUPS, True))
                piece_arrived = appended(piece_arrived, read_groups(ybar + here, inner, there, 0.0, GROUPS, HAS_YBAR))
            piece_charges = ()
            for r in tl.static_range(ROWS):
                charges, states = regenerated(
                    piece_outs[r], states, tau, threshold, rest, alpha, drop, unscale,
                    DTYPE, DECAY, EXACT, SOFT, BY_SPIKE, GROUPS,
                )  # fmt: skip
                piece_charges = appended(piece_charges, charges)
            for r in tl.static_range(ROWS - 1, -1, -1):
                there = mask if EVEN else mask & (first + r < end)
                gradients, before = product(
                    piece_outs[r], piece_charges[r], piece_arrived[r], later, threshold, rest, keep, gain,
                    height, scale, alpha, beta, drop, KIND, SOFT, DETACH, BY_SPIKE, GROUPS,
                )  # fmt: skip
                write_groups(xbar + (first + r) * row + at, gradients, inner, there, GROUPS)
                later = chosen(there, before, later, GROUPS)
    if NEED_V:
        write_groups(vbar0 + at, later, inner, mask, GROUPS)
