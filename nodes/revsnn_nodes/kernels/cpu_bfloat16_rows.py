"""Fused LIF and carrier LIF for tensors in bfloat16 on the CPU: float32 arithmetic on blocks that are converted.

numba knows no bfloat16: arrays hold its bits, as uint16, which are the upper half of a float32's. As in the reference,
charges, membranes and outputs are rounded to bfloat16, so that a sequence may be cut anywhere; gradients are rounded
once, at the end. Layout and blocks: see `cpu_lif`, whose backward kernels do the work here.
"""

from typing import Any

import numpy as np

from revsnn_nodes.kernels import cpu_carrier, cpu_lif
from revsnn_nodes.kernels.cpu_rows import charge_of, clamped, fired, reset_of
from revsnn_nodes.kernels.jit import exact


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
