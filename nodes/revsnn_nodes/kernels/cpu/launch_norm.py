"""The operators of `NormCarrierLIF` on the CPU: statistics, normalisation and neuron; and both passes of its gradient.

Every function fills the results that it is given; the rest of its arguments are the operator's. The kernels, and why
sums lie in slots, are in `cpu_norm_rows`.
"""

from math import prod
from typing import Any

import numpy as np
from torch import Tensor

from revsnn_nodes.equations import arriving
from revsnn_nodes.kernels.cpu import norm as cpu_norm_backward
from revsnn_nodes.kernels.cpu import norm as cpu_norm_rows
from revsnn_nodes.kernels.cpu.launch import SCRATCH_BYTES, Results, as_array, as_numbers, leak_code
from revsnn_nodes.kernels.cpu.machine import run_columns

MOST_SLOTS = 128
"""Places for sums over parts of the columns, at most; each holds a few numbers per channel."""

MOST_COLUMNS = 1024
"""Columns of a block, at most: a dozen rows of them are at work at once."""

FEWEST_COLUMNS = 128


def _block_columns(column_bytes: int) -> int:
    block = MOST_COLUMNS
    while block > FEWEST_COLUMNS and block * column_bytes > SCRATCH_BYTES:
        block //= 2
    return block


class _Columns:
    """How `[T, N, C, *]` is cut: a step's elements are columns, in blocks, and blocks in units with a slot each."""

    def __init__(self, like: Tensor, rows: int) -> None:
        self.like = like
        self.steps, self.count, self.channels = like.shape[0], like[0].numel(), like.shape[2]
        self.inner = max(1, prod(like.shape[3:]))
        self.block = _block_columns(rows * like.itemsize)
        blocks = -(-self.count // self.block)
        self.unit = self.block * max(1, -(-blocks // MOST_SLOTS))
        self.slots = max(1, -(-self.count // self.unit))

    def sequence(self, tensor: Tensor | None) -> Any:
        """As `[T, columns]`, or the empty array for none."""
        return as_array(None if tensor is None else tensor.to(self.like.dtype), self.like, self.steps, self.count)

    def state(self, tensor: Tensor | None) -> Any:
        """As `[columns]`, or the empty array for none."""
        return as_array(tensor, self.like, self.count)

    def values(self, tensor: Tensor | None, otherwise: float = 0.0) -> Any:
        """Values of the channels, `[C]`, in the type of the data."""
        if tensor is None:
            return np.full(self.channels, otherwise, self.numbers([]).dtype)
        return tensor.detach().to(self.like.dtype).contiguous().numpy()

    def numbers(self, values: Any) -> Any:
        """Numbers in the type of the data."""
        return as_numbers(values, self.like)

    def run(self, kernel: Any, *arguments: Any) -> None:
        """Runs a kernel over all columns."""
        run_columns(kernel, arguments, self.count, self.unit, self.like.numel())


def norm_carrier_forward(
    made: Results, z_seq: Tensor, v: Tensor | None, weight: Tensor | None, bias: Tensor | None,
    residual_seq: Tensor | None, p: list[float], eps: float, decay: bool, soft: bool,
) -> None:  # fmt: skip
    """Statistics in one pass over the input, everything else in a second one."""
    columns = _Columns(z_seq, rows=8)
    y_seq, v_last, mean_of, var_of, inverse_std_of, cut = made
    z = columns.sequence(z_seq)
    centre = z[0].reshape(-1, columns.channels, columns.inner)[0, :, 0].copy()
    sums = np.zeros((columns.slots, 2, columns.channels))
    columns.run(
        cpu_norm_rows.norm_moments, z, centre, columns.inner, sums, columns.unit, columns.block
    )  # fmt: skip
    first, second = sums.sum(0) / (z.size // columns.channels)
    mean, var = centre + first, np.maximum(second - first * first, 0.0)
    for result, value in ((mean_of, mean), (var_of, var), (inverse_std_of, 1.0 / np.sqrt(var + eps))):
        result.numpy()[:] = value
    cuts = np.zeros(columns.slots, np.int64)
    leak, numbers = leak_code(p, decay, z_seq)
    columns.run(
        cpu_norm_rows.norm_carrier_forward, z, columns.state(v), mean_of.numpy(), inverse_std_of.numpy(),
        columns.values(weight, 1.0), columns.values(bias), columns.sequence(residual_seq), columns.inner, numbers, leak,
        soft, columns.sequence(y_seq), columns.state(v_last), cuts, columns.unit, columns.block,
    )  # fmt: skip
    cut.fill_(int(cuts.sum()))


def norm_carrier_backward(
    made: Results, y_seq: Tensor, v: Tensor | None, weight: Tensor | None, bias: Tensor | None,
    residual_seq: Tensor | None, inverse_std: Tensor, beyond: Tensor | None, excess: Tensor | None,
    ybar_seq: Tensor | None, vbar: Tensor | None, p: list[float], kind: int, soft: bool, detach: bool,
    need_residual: bool, need_v: bool,
) -> None:  # fmt: skip
    """The gradient at the normalised input with its sums per channel; then, in place, through the norm."""
    columns = _Columns(y_seq, rows=y_seq.shape[0] + 8)
    zbar_seq, weight_bar, bias_bar, residual_bar, vbar0 = made
    y, zbar = columns.sequence(y_seq), columns.sequence(zbar_seq)
    sums = np.zeros((columns.slots, 4, columns.channels))
    columns.run(
        cpu_norm_backward.norm_carrier_product, y, columns.state(v), columns.values(weight, 1.0), columns.values(bias),
        columns.sequence(residual_seq), columns.sequence(arriving(ybar_seq, y_seq)), columns.state(vbar),
        columns.inner, columns.numbers(p), (0,) * kind, soft, detach, zbar,
        columns.sequence(residual_bar if need_residual else None), columns.state(vbar0 if need_v else None), sums,
        columns.unit, columns.block,
    )  # fmt: skip
    bias_bar.numpy()[:], weight_bar.numpy()[:], total, sloped = sums.sum(0)
    scale = columns.values(inverse_std)
    per_value = scale.astype(np.float64) / (y.size // columns.channels)
    mean, slope = (columns.numbers(each * per_value) for each in (total, sloped))
    columns.run(
        cpu_norm_backward.norm_gradient, y, scale, mean, slope, columns.inner, columns.numbers(p)[7], zbar,
        columns.block,
    )  # fmt: skip
    if beyond is not None and excess is not None:
        places = tuple(beyond.numpy().T)
        zbar_seq.numpy()[places] -= excess.numpy() * slope[places[2]]
