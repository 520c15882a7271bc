"""Fused batch norm and LIF for the CPU: spikes, and the gradient at the neuron's input, from the norm's input z.

The neuron's input is x = fma(z, scale, shift), plus a residual where one is given: scale = weight / sigma and shift =
fma(-mean, scale, bias), each rounded once, are the arithmetic of torch's batch norm, so x has its bits
(`revsnn_nodes.remat.norm` asks whether it does here). Neither x nor the charges of more than a block are written.
Sequences are `[T, columns]`; channels lie `inner` columns apart, again and again: `[N, C, inner]`. Blocks, pieces and
rows: see `revsnn_nodes.kernels.cpu.lif`.
"""

from typing import Any

from revsnn_nodes.kernels.cpu.equations import (
    Mode,
    charge_of,
    copy_row,
    fired,
    kept_charge,
    read,
    reset_of,
    rounded,
    scratch,
    start_row,
    write,
)
from revsnn_nodes.kernels.cpu.lif import lif_gradient_row
from revsnn_nodes.kernels.cpu.machine import (
    contracted_kernel,
    exact,
    exact_kernel,
    exact_row,
    fma,
    following,
    preceding,
    read_ahead,
    row_of,
    write_ahead,
)
from revsnn_nodes.kernels.cpu.norm import spread
from revsnn_nodes.kernels.layout import Numbers


@exact_kernel
def coefficients(mean: Any, inverse_std: Any, weight: Any, bias: Any, scale: Any, shift: Any) -> None:
    """Writes scale and shift of each channel."""
    for c in range(mean.shape[0]):
        scale[c] = inverse_std[c] * weight[c]
        shift[c] = fma(-mean[c], scale[c], bias[c])


@exact
def _charge(z: Any, scale: Any, shift: Any, residual: Any, v: Any, j: Any, adds: Any, p: Numbers, mode: Mode) -> Any:
    """Charge of element j."""
    x = rounded(fma(read(z, j), scale[j], shift[j]), z)
    if len(adds):
        x = rounded(x + read(residual, j), z)
    return charge_of(x, v[j], p, mode.leak)


@exact_row
def _spike_row(
    z: Any, scale: Any, shift: Any, residual: Any, v: Any, spike: Any, adds: Any, p: Numbers, mode: Mode
) -> None:
    """One step: v becomes the membrane after it."""
    for j in range(z.shape[0]):
        h = _charge(z, scale, shift, residual, v, j, adds, p, mode)
        s = fired(h, p.threshold)
        write(spike, j, s)
        v[j] = reset_of(h, s, p, mode)


@exact_row
def _charge_row(
    z: Any, scale: Any, shift: Any, residual: Any, v: Any, charge: Any, adds: Any, sides: Any, p: Numbers, mode: Mode
) -> None:
    """One step, which writes the charge in place of the spike: that which the neuron would have kept."""
    for j in range(z.shape[0]):
        h = _charge(z, scale, shift, residual, v, j, adds, p, mode)
        s = fired(h, p.threshold)
        charge[j] = kept_charge(h, s, z, sides[0], sides[1])
        v[j] = reset_of(h, s, p, mode)


@exact_kernel
def norm_lif_forward(
    z: Any, v0: Any, scale: Any, shift: Any, residual: Any, spike: Any, v_last: Any, adds: Any, inner: int,
    p: Numbers, mode: Mode, piece: int, block: int, start: int, stop: int,
) -> None:  # fmt: skip
    """Writes spikes and the last membrane; `adds` is not an empty tuple where there is a residual."""
    v, scales, shifts = scratch(block, z), scratch(block, z), scratch(block, z)
    steps, columns = z.shape
    for a in range(start, stop, block):
        b, origin = min(a + block, stop), a % (scale.shape[0] * inner)
        spread(scale, origin, inner, scales[: b - a])
        spread(shift, origin, inner, shifts[: b - a])
        start_row(v[: b - a], v0[a:b], p.rest)
        for t in range(steps):
            for c in range(a, b, piece):
                here, n = t * columns + c, min(c + piece, b) - c
                ahead = following(t, steps, columns, c, b - a)
                read_ahead(z, ahead)
                write_ahead(spike, ahead)
                _spike_row(
                    row_of(z, here, n), row_of(scales, c - a, n), row_of(shifts, c - a, n),
                    row_of(residual, here, n), row_of(v, c - a, n), row_of(spike, here, n), adds, p, mode,
                )  # fmt: skip
        copy_row(v, v_last[a:b])


@contracted_kernel
def norm_lif_backward(
    z: Any, v0: Any, scale: Any, shift: Any, residual: Any, sbar: Any, vbar: Any, xbar: Any, vbar0: Any, adds: Any,
    sides: Any, inner: int, p: Numbers, mode: Mode, piece: int, block: int, start: int, stop: int,
) -> None:  # fmt: skip
    """Writes the gradient at x, and at the first membrane unless an empty array is given for it.

    `sides`: `sides_of` the threshold. A block's charges are made into scratch, first step first; then its gradients,
    last step first.
    """
    steps, columns = z.shape
    w, scales, shifts = scratch(block, z), scratch(block, z), scratch(block, z)  # w: membrane, then vbar
    charge = scratch((steps, block), z)
    for a in range(start, stop, block):
        b, origin = min(a + block, stop), a % (scale.shape[0] * inner)
        spread(scale, origin, inner, scales[: b - a])
        spread(shift, origin, inner, shifts[: b - a])
        start_row(w[: b - a], v0[a:b], p.rest)
        for t in range(steps):
            for c in range(a, b, piece):
                here, n = t * columns + c, min(c + piece, b) - c
                if t + 1 < steps:
                    read_ahead(z, here + columns)
                else:
                    read_ahead(sbar, here)
                _charge_row(
                    row_of(z, here, n), row_of(scales, c - a, n), row_of(shifts, c - a, n),
                    row_of(residual, here, n), row_of(w, c - a, n), row_of(charge, t * block + c - a, n), adds, sides,
                    p, mode,
                )  # fmt: skip
        start_row(w[: b - a], vbar[a:b], type(p.rest)(0))
        for t in range(steps - 1, -1, -1):
            for c in range(a, b, piece):
                here, n = t * columns + c, min(c + piece, b) - c
                if t > 0:
                    read_ahead(sbar, here - columns)
                else:
                    read_ahead(z, here + b - a)  # with which the next block begins
                write_ahead(xbar, preceding(t, steps, columns, c, b - a))
                lif_gradient_row(
                    row_of(charge, t * block + c - a, n), row_of(sbar, here, n), row_of(w, c - a, n),
                    row_of(xbar, here, n), scales, scales, (), p, mode,
                )  # fmt: skip
        copy_row(w, vbar0[a:b])
