"""Fused LIF and carrier LIF for the CPU: a block of neurons at a time, with the loop over time inside.

All arrays are contiguous: sequences `[T, N]`, states `[N]`; one call does neurons `start` to `stop`. `p` holds the
parameters in the type of the data, in the order of `selection.parameters`.
"""

from typing import Any

import numpy as np

from revsnn_nodes.kernels.cpu_rows import charge_of, clamped, fired, phi_of, reset_of
from revsnn_nodes.kernels.jit import contracted, exact


@exact
def start_membrane(v: Any, given: Any, rest: Any) -> None:
    """Writes the membrane before the first step: the given one, or rest where an empty one is given."""
    if given.shape[0]:
        v[:] = given
    else:
        v[:] = rest


@exact
def _lif_row(x: Any, v: Any, spike: Any, tau: Any, threshold: Any, rest: Any, leak: Any, soft: bool) -> None:
    for j in range(x.shape[0]):
        h = charge_of(x[j], v[j], tau, rest, leak)
        s = fired(h, threshold)
        spike[j] = s
        v[j] = reset_of(h, s, threshold, rest, soft)


@exact
def _lif_row_keeping(
    x: Any, v: Any, spike: Any, charge: Any, tau: Any, threshold: Any, rest: Any, leak: Any, soft: bool
) -> None:
    for j in range(x.shape[0]):
        h = charge_of(x[j], v[j], tau, rest, leak)
        s = fired(h, threshold)
        spike[j] = s
        charge[j] = h
        v[j] = reset_of(h, s, threshold, rest, soft)


@exact
def lif_forward(
    x: Any, v0: Any, p: Any, leak: Any, soft: bool, spike: Any, v: Any, charge: Any, block: int, start: int, stop: int
) -> None:
    """Writes spikes, the last membrane, and the charges unless an empty array is given for them."""
    tau, threshold, rest = p[0], p[1], p[2]
    for a in range(start, stop, block):
        b = min(a + block, stop)
        start_membrane(v[a:b], v0[a:b], rest)
        for t in range(x.shape[0]):
            if charge.shape[0]:
                _lif_row_keeping(
                    x[t, a:b], v[a:b], spike[t, a:b], charge[t, a:b], tau, threshold, rest, leak, soft
                )  # fmt: skip
            else:
                _lif_row(x[t, a:b], v[a:b], spike[t, a:b], tau, threshold, rest, leak, soft)


@exact
def _carrier_row(
    x: Any, v: Any, y: Any, tau: Any, threshold: Any, rest: Any, epsilon: Any, clamp: Any, leak: Any, soft: bool
) -> None:
    for j in range(x.shape[0]):
        carried = clamped(x[j], -clamp, clamp)
        h = charge_of(carried, v[j], tau, rest, leak)
        s = fired(h, threshold)
        y[j] = s + epsilon * carried
        v[j] = reset_of(h, s, threshold, rest, soft)


@exact
def carrier_forward(
    x: Any, v0: Any, p: Any, leak: Any, soft: bool, y: Any, v: Any, block: int, start: int, stop: int
) -> None:
    """Writes the output, spike + epsilon x, and the last membrane."""
    tau, threshold, rest, epsilon, clamp = p[0], p[1], p[2], p[7], p[8]
    for a in range(start, stop, block):
        b = min(a + block, stop)
        start_membrane(v[a:b], v0[a:b], rest)
        for t in range(x.shape[0]):
            _carrier_row(
                x[t, a:b], v[a:b], y[t, a:b], tau, threshold, rest, epsilon, clamp, leak, soft
            )  # fmt: skip


@contracted
def gradient_at_charge(
    h: Any, s: Any, sbar: Any, vbar: Any,
    kind: Any, height: Any, scale: Any, threshold: Any, rest: Any, soft: bool, detach: bool,
) -> Any:  # fmt: skip
    """See `revsnn_nodes.carrier.lif_step_vjp`."""
    if not detach:
        sbar = sbar - vbar * (threshold if soft else h - rest)
    kept = vbar if soft else vbar * (type(h)(1) - s)
    return kept + sbar * phi_of(kind, height, scale, h - threshold)


@contracted
def _lif_gradient_row(
    charge: Any, sbar: Any, vbar: Any, xbar: Any,
    kind: Any, height: Any, scale: Any, threshold: Any, rest: Any, keep: Any, gain: Any, soft: bool, detach: bool,
) -> None:  # fmt: skip
    for j in range(charge.shape[0]):
        h = charge[j]
        hbar = gradient_at_charge(
            h, fired(h, threshold), sbar[j], vbar[j], kind, height, scale, threshold, rest, soft, detach
        )  # fmt: skip
        vbar[j] = keep * hbar
        xbar[j] = gain * hbar


@contracted
def lif_backward(
    charge: Any, sbar: Any, vbar: Any, p: Any, kind: Any, soft: bool, detach: bool,
    xbar: Any, vbar0: Any, block: int, start: int, stop: int,
) -> None:  # fmt: skip
    """Writes the gradient of the input, and of the first membrane unless an empty array is given for it."""
    threshold, rest, keep, gain, height, scale = p[1], p[2], p[3], p[4], p[5], p[6]
    w = np.empty(block, charge.dtype)  # gradient at the membrane
    zero = type(rest)(0)
    for a in range(start, stop, block):
        b = min(a + block, stop)
        start_membrane(w[: b - a], vbar[a:b], zero)
        for t in range(charge.shape[0] - 1, -1, -1):
            _lif_gradient_row(
                charge[t, a:b], sbar[t, a:b], w, xbar[t, a:b],
                kind, height, scale, threshold, rest, keep, gain, soft, detach,
            )  # fmt: skip
        if vbar0.shape[0]:
            vbar0[a:b] = w[: b - a]


@contracted
def _regenerate_row(
    y: Any, v: Any, charge: Any, keep: Any, gain: Any, threshold: Any, rest: Any, decoding: Any, soft: bool
) -> None:
    one = type(keep)(1)
    half = type(keep)(0.5)
    zero = type(keep)(0)
    inflow = rest - keep * rest
    for j in range(y.shape[0]):
        s = one if y[j] > half else zero
        h = keep * v[j] + gain * ((y[j] - s) * decoding) + inflow
        charge[j] = h
        v[j] = reset_of(h, s, threshold, rest, soft)


@contracted
def _carrier_gradient_row(
    y: Any, ybar: Any, charge: Any, vbar: Any, xbar: Any,
    kind: Any, height: Any, scale: Any, threshold: Any, rest: Any, keep: Any, gain: Any,
    epsilon: Any, clamp: Any, decoding: Any, soft: bool, detach: bool,
) -> None:  # fmt: skip
    one = type(keep)(1)
    half = type(keep)(0.5)
    zero = type(keep)(0)
    for j in range(y.shape[0]):
        s = one if y[j] > half else zero
        hbar = gradient_at_charge(
            charge[j], s, ybar[j], vbar[j], kind, height, scale, threshold, rest, soft, detach
        )  # fmt: skip
        vbar[j] = keep * hbar
        inside = abs((y[j] - s) * decoding) < clamp
        xbar[j] = gain * hbar + epsilon * ybar[j] if inside else zero


@contracted
def carrier_backward(
    y: Any, v0: Any, ybar: Any, vbar: Any, p: Any, kind: Any, soft: bool, detach: bool,
    xbar: Any, vbar0: Any, block: int, start: int, stop: int,
) -> None:  # fmt: skip
    """As `lif_backward`, from the output alone: the charges of a block are regenerated into scratch, `[T, block]`."""
    threshold, rest, keep, gain, height, scale = p[1], p[2], p[3], p[4], p[5], p[6]
    epsilon, clamp = p[7], p[8]
    decoding = type(epsilon)(1) / epsilon
    w = np.empty(block, y.dtype)  # membrane, then the gradient at it
    charge = np.empty((y.shape[0], block), y.dtype)
    zero = type(rest)(0)
    for a in range(start, stop, block):
        b = min(a + block, stop)
        start_membrane(w[: b - a], v0[a:b], rest)
        for t in range(y.shape[0]):
            _regenerate_row(y[t, a:b], w, charge[t], keep, gain, threshold, rest, decoding, soft)
        start_membrane(w[: b - a], vbar[a:b], zero)
        for t in range(y.shape[0] - 1, -1, -1):
            _carrier_gradient_row(
                y[t, a:b], ybar[t, a:b], charge[t], w, xbar[t, a:b],
                kind, height, scale, threshold, rest, keep, gain, epsilon, clamp, decoding, soft, detach,
            )  # fmt: skip
        if vbar0.shape[0]:
            vbar0[a:b] = w[: b - a]
