"""Fused coupled LIF in Triton: backward from anchors.

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

from revsnn_nodes.kernels.triton_coupled_step import (
    chosen,
    first_group_of,
    product,
    read_groups,
    regenerated,
    write_groups,
)
from revsnn_nodes.kernels.triton_jit import jit, kernel
from revsnn_nodes.kernels.triton_step import appended, number


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
