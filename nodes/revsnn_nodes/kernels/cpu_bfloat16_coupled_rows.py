"""Fused forward of the coupled LIF for tensors in bfloat16 on the CPU, and what its backward passes share with it.

Equations: section "Coupled LIF" of nodes/README.md. Layout and blocks: see `cpu_coupled`; bits: see
`cpu_bfloat16_rows`. A row at a time is widened into scratch, and arithmetic is in float32. Charges, outputs and
membranes are rounded to bfloat16 where they come about: so an output drives the next group, and opens the reset, with
the value that the backward pass will read, anchors lose nothing, and a sequence may be cut anywhere.
"""

from typing import Any

import numpy as np

from revsnn_nodes.kernels.cpu_bfloat16_rows import narrow, rounded, upper_half, widen
from revsnn_nodes.kernels.cpu_coupled import block_at, gate_of, reset_membrane
from revsnn_nodes.kernels.cpu_rows import charge_of, fired
from revsnn_nodes.kernels.jit import exact

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
    tau, threshold, rest, alpha, beta, drop = p[0], p[1], p[2], p[7], p[8], p[9]
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
    tau, threshold, rest, alpha, beta, drop = p[0], p[1], p[2], p[7], p[8], p[9]
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
