"""One step of the coupled LIF for a block of columns, in Triton: groups are the elements of a tuple.

Equations: section "Coupled LIF" of nodes/README.md; `revsnn_nodes.coupling`. Sequences are
`[T, outer, groups, inner]`, states `[outer, groups, inner]`, all contiguous. A program has a block of the columns
`[outer, inner]` with all their groups. See `triton_step` for arithmetic and rounding.
"""

import triton.language as tl

from revsnn_nodes.kernels.triton_jit import jit
from revsnn_nodes.kernels.triton_step import (
    appended,
    charge_of,
    clamped,
    columns_of,
    fired,
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
    """See `revsnn_nodes.coupling._reset`; `drop` is alpha times the threshold."""
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
    """See `revsnn_nodes.coupling.regenerate_step`: charges, and membranes after the step."""
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
    """See `revsnn_nodes.coupling._reset_vjp`: gradients of the partner's input, the drive, and the membrane before."""
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
    """See `revsnn_nodes.coupling.coupled_step_vjp`: gradients of the input and of the membrane before the step."""
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
    """See `revsnn_nodes.coupling.invert_membranes`: charges, and membranes before the step."""
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
