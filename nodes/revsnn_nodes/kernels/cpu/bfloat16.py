"""Fused LIF and carrier LIF for tensors in bfloat16 on the CPU: float32 arithmetic on blocks that are converted.

numba knows no bfloat16: arrays hold its bits, as uint16, which are the upper half of a float32's. As in the reference,
charges, membranes and outputs are rounded to bfloat16, so that a sequence may be cut anywhere; gradients are rounded
once, at the end. Layout and blocks: see `cpu_lif`, whose backward kernels do the work here.

Fused forward of the coupled LIF for tensors in bfloat16 on the CPU, and what its backward passes share with it.

Equations: section "Coupled LIF" of nodes/README.md. Layout and blocks: see `cpu_coupled`; bits: see
`cpu_bfloat16_rows`. A row at a time is widened into scratch, and arithmetic is in float32. Charges, outputs and
membranes are rounded to bfloat16 where they come about: so an output drives the next group, and opens the reset, with
the value that the backward pass will read, anchors lose nothing, and a sequence may be cut anywhere.

Fused backward passes of the coupled LIF for tensors in bfloat16 on the CPU: by inverse in time, and from anchors.

Rounding: see `cpu_bfloat16_coupled_rows`. A charge that is regenerated is the one that fired, to the bit, in all groups
but the first, whose input comes with the rounding of the output that carries it; under the spike's gate in that one
too. The inverse rounds nothing. Gradients are rounded once, at the end.
"""

from typing import Any

import numpy as np

from revsnn_nodes.kernels.cpu import carrier as cpu_carrier
from revsnn_nodes.kernels.cpu import lif as cpu_lif
from revsnn_nodes.kernels.cpu.coupled import (
    block_at,
    gate_of,
    invert_last_row,
    invert_row,
    reset_membrane,
    step_product,
)
from revsnn_nodes.kernels.cpu.equations import charge_of, clamped, fired, reset_of
from revsnn_nodes.kernels.cpu.machine import exact


@exact
def upper_half(value: Any) -> Any:
    """The bits of a float32, rounded to nearest even, as those of a bfloat16."""
    bits = np.float32(value).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    is_nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.uint32(0x7FC0) if is_nan else rounded


@exact
def rounded(value: Any) -> Any:
    """A float32 rounded to bfloat16."""
    return np.uint32(upper_half(value) << np.uint32(16)).view(np.float32)


@exact
def widen(source: Any, target: Any) -> None:
    """Writes a row of bfloat16 as float32."""
    bits = target.view(np.uint32)
    for j in range(source.shape[0]):
        bits[j] = np.uint32(source[j]) << np.uint32(16)


@exact
def narrow(source: Any, target: Any) -> None:
    """Writes a row of float32 as bfloat16."""
    for j in range(target.shape[0]):
        target[j] = np.uint16(upper_half(source[j]))


@exact
def _widen_or_fill(source: Any, other: Any, target: Any) -> None:
    """As `widen`; another value in every place where an empty row is given."""
    if source.shape[0]:
        widen(source, target)
    else:
        target[:] = other


@exact
def _step_row(x: Any, v: Any, y: Any, charge: Any, tau: Any, threshold: Any, rest: Any, leak: Any, soft: bool) -> None:
    """Charge, fire, reset; writes spike and charge."""
    for j in range(x.shape[0]):
        h = rounded(charge_of(x[j], v[j], tau, rest, leak))
        s = fired(h, threshold)
        y[j] = s
        charge[j] = h
        v[j] = rounded(reset_of(h, s, threshold, rest, soft))


@exact
def _clamp_row(x: Any, clamp: Any) -> None:
    for j in range(x.shape[0]):
        x[j] = clamped(x[j], -clamp, clamp)


@exact
def _carry_row(y: Any, x: Any, epsilon: Any) -> None:
    for j in range(x.shape[0]):
        y[j] += epsilon * x[j]


@exact
def forward(
    x: Any, v0: Any, p: Any, leak: Any, soft: bool, carries: bool, y: Any, v: Any, charge: Any,
    block: int, start: int, stop: int,
) -> None:  # fmt: skip
    """Writes the output, spike or spike + epsilon x, the last membrane, and charges unless given an empty array."""
    tau, threshold, rest, epsilon, clamp = p[0], p[1], p[2], p[7], p[8]
    rows = np.empty((4, block), np.float32)
    for a in range(start, stop, block):
        b = min(a + block, stop)
        drive, out, h, w = rows[0, : b - a], rows[1, : b - a], rows[2, : b - a], rows[3, : b - a]
        _widen_or_fill(v0[a:b], rest, w)
        for t in range(x.shape[0]):
            widen(x[t, a:b], drive)
            if carries:
                _clamp_row(drive, clamp)
            _step_row(drive, w, out, h, tau, threshold, rest, leak, soft)
            if carries:
                _carry_row(out, drive, epsilon)
            narrow(out, y[t, a:b])
            if charge.shape[0]:
                narrow(h, charge[t, a:b])
        narrow(w, v[a:b])


@exact
def _widen_block(source: Any, a: int, b: int, target: Any) -> None:
    for t in range(source.shape[0]):
        widen(source[t, a:b], target[t])


@exact
def backward(
    kept: Any, v0: Any, ybar: Any, vbar: Any, p: Any, kind: Any, soft: bool, detach: bool, carries: bool,
    xbar: Any, vbar0: Any, block: int, start: int, stop: int,
) -> None:  # fmt: skip
    """As `cpu_carrier.carrier_backward` from the output, or `cpu_lif.lif_backward` from the charges."""
    steps = kept.shape[0]
    scratch = np.empty((3, steps * block), np.float32)
    states = np.empty((3, block), np.float32)
    for a in range(start, stop, block):
        b = min(a + block, stop)
        n = b - a
        known = scratch[0, : steps * n].reshape(steps, n)
        arrived = scratch[1, : steps * n].reshape(steps, n)
        made = scratch[2, : steps * n].reshape(steps, n)
        _widen_block(kept, a, b, known)
        _widen_block(ybar, a, b, arrived)
        _widen_or_fill(v0[a:b], p[2], states[0])
        _widen_or_fill(vbar[a:b], p[2] - p[2], states[1])
        if carries:
            cpu_carrier.carrier_backward(
                known, states[0, :n], arrived, states[1, :n], p, kind, soft, detach, made, states[2, :n],
                steps, n, n, 0, n,
            )  # fmt: skip
        else:
            cpu_lif.lif_backward(
                known, arrived, states[1, :n], p, kind, soft, detach, made, states[2, :n], n, n, 0, n
            )  # fmt: skip
        for t in range(steps):
            narrow(made[t], xbar[t, a:b])
        if vbar0.shape[0]:
            narrow(states[2, :n], vbar0[a:b])


SHORT = 32
"""Rows below this length are converted element by element: to cut one out takes longer than vectors save."""


@exact
def load(source: Any, fill: Any, first: int, last: int, a: int, b: int, target: Any) -> None:
    """Widens columns a to b of some outer rows of a step into scratch, `[groups, block]`, one after the other.

    So short rows too become long ones in scratch. Writes `fill` where an empty array is given.
    """
    bits, n = target.view(np.uint32), b - a
    if source.shape[0] == 0:
        target[:] = fill
        return
    for o in range(first, last):
        c = (o - first) * n
        for i in range(target.shape[0]):
            if n >= SHORT:
                widen(source[o, i, a:b], target[i, c : c + n])
            else:
                for j in range(n):
                    bits[i, c + j] = np.uint32(source[o, i, a + j]) << np.uint32(16)


@exact
def store(source: Any, first: int, last: int, a: int, b: int, target: Any) -> None:
    """The opposite of `load`, rounding to nearest even; does nothing where an empty array is given."""
    n = b - a
    if target.shape[0] == 0:
        return
    for o in range(first, last):
        c = (o - first) * n
        for i in range(source.shape[0]):
            if n >= SHORT:
                narrow(source[i, c : c + n], target[o, i, a:b])
            else:
                for j in range(n):
                    target[o, i, a + j] = np.uint16(upper_half(source[i, c + j]))


@exact
def carried_input(y: Any, charge: Any, threshold: Any, unscale: Any) -> Any:
    """The first group's input, as the last group's output carries it; `unscale` is 1 / beta."""
    return (y - fired(charge, threshold)) * unscale


@exact
def _forward_row(
    drive: Any, partner: Any, v: Any, charge: Any, y: Any, p: Any, leak: Any, soft: bool, by_spike: bool
) -> None:
    tau, threshold, rest, alpha, beta, drop = p[0], p[1], p[2], p[9], p[10], p[11]
    for j in range(y.shape[0]):
        m = rounded(charge_of(drive[j], v[j], tau, rest, leak))
        out = rounded(fired(m, threshold) + beta * partner[j])
        gate = gate_of(out, m, threshold, by_spike)
        v[j] = rounded(reset_membrane(m, gate, rest, alpha, drop, soft))
        charge[j] = m
        y[j] = out


@exact
def _neighbour(y: Any, up: bool) -> Any:
    """The next bfloat16 above y, or below."""
    if y == np.float32(0):
        return np.uint32(0x00010000 if up else 0x80010000).view(np.float32)
    bits = np.float32(y).view(np.uint32)
    away = np.uint32(bits + np.uint32(0x10000)).view(np.float32)
    towards = np.uint32(bits - np.uint32(0x10000)).view(np.float32)
    return away if (y > np.float32(0)) == up else towards


@exact
def _agree_row(x: Any, before: Any, charge: Any, y: Any, v: Any, p: Any, leak: Any, soft: bool) -> None:
    """Makes the first group's membrane, under the spike's gate, the one that the output will give again.

    Its charge is regenerated from the input that the last group's output carries, with the rounding of that output;
    near the threshold this could fire where the input did not, and open the gate. There the output is rounded the
    other way, which puts the carried input on the side of the true one. The gate of no group depends on it.

    Args:
        x, before: true input of the first group, and its membrane before the step.
        charge, y: those of the last group; y is changed.
        v: the first group's membrane after the step, written.
    """
    tau, threshold, rest, alpha, beta, drop = p[0], p[1], p[2], p[9], p[10], p[11]
    unscale = type(beta)(1) / beta
    half = type(beta)(0.5)
    for j in range(y.shape[0]):
        spike = fired(rounded(charge_of(x[j], before[j], tau, rest, leak)), threshold)
        m = rounded(charge_of(carried_input(y[j], charge[j], threshold, unscale), before[j], tau, rest, leak))
        if fired(m, threshold) != spike:
            y[j] = _neighbour(y[j], (spike > half) == (unscale > 0))
            m = rounded(charge_of(carried_input(y[j], charge[j], threshold, unscale), before[j], tau, rest, leak))
        gate = fired(m, threshold)
        v[j] = rounded(reset_membrane(m, gate, rest, alpha, drop, soft))


@exact
def coupled_forward(
    x: Any, v0: Any, p: Any, leak: Any, soft: bool, by_spike: bool, every: int,
    y: Any, v: Any, anchors: Any, block: int, start: int, stop: int,
) -> None:  # fmt: skip
    """See `cpu_coupled.coupled_forward`."""
    groups, inner = x.shape[2], x.shape[3]
    states = np.empty((groups, block), np.float32)
    inputs = np.empty((groups, block), np.float32)
    outs = np.empty((groups, block), np.float32)
    charge = np.empty(block, np.float32)
    before = np.empty(block, np.float32)
    column = start
    while column < stop:
        end, first, last, a, b = block_at(column, stop, inner, block)
        n = (last - first) * (b - a)
        load(v0, p[2], first, last, a, b, states)
        for t in range(x.shape[0]):
            if t % every == 0 and 0 < t // every <= anchors.shape[0]:
                store(states, first, last, a, b, anchors[t // every - 1])
            load(x[t], p[2], first, last, a, b, inputs)
            before[:n] = states[0, :n]
            for i in range(groups):
                drive = inputs[0, :n] if i == 0 else outs[i - 1, :n]
                _forward_row(
                    drive, inputs[(i + 1) % groups, :n], states[i, :n], charge[:n], outs[i, :n],
                    p, leak, soft, by_spike,
                )  # fmt: skip
            if by_spike:
                _agree_row(
                    inputs[0, :n], before[:n], charge[:n], outs[groups - 1, :n], states[0, :n], p, leak, soft
                )  # fmt: skip
            store(outs, first, last, a, b, y[t])
        store(states, first, last, a, b, v)
        column = end


@exact
def _step_gradient(
    ybar: Any, xbar: Any, first: int, last: int, a: int, b: int, charge: Any, vbar: Any, rows: Any, carry: Any,
    p: Any, kind: Any, soft: bool, detach: bool, by_spike: bool,
) -> None:  # fmt: skip
    """Vector-Jacobian product of a step; `rows` is `[3, 1, 1, groups, block]` scratch that begins with its output."""
    n = (last - first) * (b - a)
    load(ybar, p[2], first, last, a, b, rows[1, 0, 0])
    step_product(
        rows[0], rows[1], rows[2], 0, 0, 0, n, charge, vbar, carry, 0, n,
        p, kind, soft, detach, by_spike,
    )  # fmt: skip
    store(rows[2, 0, 0], first, last, a, b, xbar)


@exact
def inverse_backward(
    y: Any, v_last: Any, ybar: Any, vbar_last: Any, p: Any, kind: Any, soft: bool, detach: bool,
    xbar: Any, vbar0: Any, block: int, start: int, stop: int,
) -> None:  # fmt: skip
    """See `cpu_coupled_backward.inverse_backward`."""
    groups, inner = y.shape[2], y.shape[3]
    v = np.empty((groups, block), np.float32)
    vbar = np.empty((groups, block), np.float32)
    charge = np.empty((groups, block), np.float32)
    rows = np.empty((3, 1, 1, groups, block), np.float32)
    carry = np.empty((3, block), np.float32)
    outs = rows[0, 0, 0]
    zero = type(p[0])(0)
    column = start
    while column < stop:
        end, first, last, a, b = block_at(column, stop, inner, block)
        n = (last - first) * (b - a)
        load(v_last, zero, first, last, a, b, v)
        load(vbar_last, zero, first, last, a, b, vbar)
        for t in range(y.shape[0] - 1, -1, -1):
            load(y[t], zero, first, last, a, b, outs)
            i = groups - 1
            invert_last_row(outs[i, :n], outs[i - 1, :n], v[i, :n], charge[i, :n], carry[2, :n], p, soft)
            for i in range(groups - 2, -1, -1):
                drive = outs[i - 1, :n] if i else carry[2, :n]
                invert_row(outs[i, :n], drive, v[i, :n], charge[i, :n], p, soft)
            _step_gradient(
                ybar[t], xbar[t], first, last, a, b, charge, vbar, rows, carry, p, kind, soft, detach, False
            )  # fmt: skip
        store(vbar, first, last, a, b, vbar0)
        column = end


@exact
def _regenerate_row(y: Any, drive: Any, v: Any, charge: Any, p: Any, leak: Any, soft: bool, by_spike: bool) -> None:
    """A group of a step, forward in time, from the membrane before it and the output."""
    tau, threshold, rest, alpha, drop = p[0], p[1], p[2], p[9], p[11]
    for j in range(y.shape[0]):
        m = rounded(charge_of(drive[j], v[j], tau, rest, leak))
        charge[j] = m
        gate = gate_of(y[j], m, threshold, by_spike)
        v[j] = rounded(reset_membrane(m, gate, rest, alpha, drop, soft))


@exact
def _decode_row(y: Any, charge: Any, x: Any, p: Any) -> None:
    """The first group's input, from the last group."""
    threshold, unscale = p[1], type(p[10])(1) / p[10]
    for j in range(y.shape[0]):
        x[j] = carried_input(y[j], charge[j], threshold, unscale)


@exact
def _regenerate_step(
    outs: Any, n: int, v: Any, charge: Any, x_first: Any, p: Any, leak: Any, soft: bool, by_spike: bool
) -> None:
    """The first n columns of `[groups, block]` scratch, one step forward in time; the first group needs the last."""
    groups = outs.shape[0]
    for i in range(1, groups):
        _regenerate_row(outs[i, :n], outs[i - 1, :n], v[i, :n], charge[i, :n], p, leak, soft, by_spike)
    _decode_row(outs[groups - 1, :n], charge[groups - 1, :n], x_first[:n], p)
    _regenerate_row(outs[0, :n], x_first[:n], v[0, :n], charge[0, :n], p, leak, soft, by_spike)


@exact
def anchored_backward(
    y: Any, v0: Any, anchors: Any, ybar: Any, vbar_last: Any, p: Any, kind: Any,
    leak: Any, soft: bool, detach: bool, by_spike: bool, every: int,
    xbar: Any, vbar0: Any, block: int, start: int, stop: int,
) -> None:  # fmt: skip
    """See `cpu_coupled_backward.anchored_backward`."""
    steps, groups, inner = y.shape[0], y.shape[2], y.shape[3]
    v = np.empty((groups, block), np.float32)
    vbar = np.empty((groups, block), np.float32)
    charge = np.empty((min(every, steps), groups, block), np.float32)
    rows = np.empty((3, 1, 1, groups, block), np.float32)
    carry = np.empty((3, block), np.float32)
    outs = rows[0, 0, 0]
    zero = type(p[0])(0)
    column = start
    while column < stop:
        end, first, last, a, b = block_at(column, stop, inner, block)
        n = (last - first) * (b - a)
        load(vbar_last, zero, first, last, a, b, vbar)
        for segment in range((steps - 1) // every, -1, -1):
            from_step, to_step = segment * every, min(steps, (segment + 1) * every)
            load(anchors[segment - 1] if segment else v0, p[2], first, last, a, b, v)
            for t in range(from_step, to_step):
                load(y[t], zero, first, last, a, b, outs)
                _regenerate_step(outs, n, v, charge[t - from_step], carry[2], p, leak, soft, by_spike)
            for t in range(to_step - 1, from_step - 1, -1):
                load(y[t], zero, first, last, a, b, outs)
                _step_gradient(
                    ybar[t], xbar[t], first, last, a, b, charge[t - from_step], vbar, rows, carry,
                    p, kind, soft, detach, by_spike,
                )  # fmt: skip
        store(vbar, first, last, a, b, vbar0)
        column = end
