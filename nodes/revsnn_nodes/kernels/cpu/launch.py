"""The operators on the CPU: tensors to arrays, sizes of blocks, and the compiled kernels run over all columns.

Every function fills the results that it is given; the rest of its arguments are the operator's.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from revsnn_nodes.equations import arriving
from revsnn_nodes.kernels.cpu import (
    carrier as cpu_carrier,
)
from revsnn_nodes.kernels.cpu import (
    coupled as cpu_coupled,
)
from revsnn_nodes.kernels.cpu import (
    coupled as cpu_coupled_backward,
)
from revsnn_nodes.kernels.cpu import (
    lif as cpu_lif,
)
from revsnn_nodes.kernels.cpu.machine import LINE_BYTES, PIECE, PIECES_PER_THREAD, run_columns
from revsnn_nodes.kernels.layout import grouped

Results = tuple[Tensor, ...]

MOST_COLUMNS = 1 << 14
"""Columns of a block, at most: longer rows no longer help the processor to read ahead."""

FEW_COLUMNS = 1 << 10
"""Rows this short begin to cost: a block gets shorter only to stay within `MOST_SCRATCH_BYTES`."""

SCRATCH_BYTES = 1 << 19
"""A block keeps its scratch in the second-level cache, if the sequence is not too long for that."""

MOST_SCRATCH_BYTES = 1 << 22

SEGMENT = 64
"""Steps whose charges a carrier's backward pass holds at once; with more, it goes over the output once more."""

LARGE_BYTES = 16 << 20
"""The rows of a sequence this large come from memory: backward passes ask for them ahead (see `cpu_memory`)."""

STREAM_BYTES = 128 << 20
"""So large a result has left the caches before it is read again: forward passes write it past them."""

COLUMNS_OF_PIECES = 1 << 11
"""Columns of a block done in pieces, at most: what was asked for ahead must not be pushed out again."""


def block_columns(rows: int, itemsize: int, columns: int, by_pieces: bool) -> int:
    """Columns of a block: a power of two.

    Args:
        rows: of scratch, for every column.
        itemsize: bytes of an element.
        columns: how many there are in all; every thread gets several blocks.
        by_pieces: whether rows are done in pieces.
    """
    block = COLUMNS_OF_PIECES if by_pieces else MOST_COLUMNS
    row_bytes, pieces = rows * itemsize, torch.get_num_threads() * PIECES_PER_THREAD
    while block > FEW_COLUMNS and (row_bytes * block > SCRATCH_BYTES or block * pieces > columns):
        block //= 2
    while block > 1 and row_bytes * block > MOST_SCRATCH_BYTES:
        block //= 2
    return block


def unit_columns(block: int, inner: int) -> int:
    """Threads begin where blocks do: anywhere in a long inner row, but only at the start of short ones."""
    return block if inner >= block else inner * max(1, block // max(inner, 1))


def as_array(tensor: Tensor | None, like: Tensor, *shape: int) -> Any:
    """A view as an array, or the empty array that stands for none; copied only where not contiguous."""
    if tensor is None:
        return np.empty((0,) * len(shape), np.float32 if like.dtype is torch.float32 else np.float64)
    return tensor.detach().contiguous().numpy().reshape(shape)


def _run(
    kernel: Callable[..., None], arguments: tuple[Any, ...], like: Tensor, state: tuple[int, int, int], rows: int = 0
) -> None:
    """Runs a kernel over all columns of a state `[outer, groups, inner]`.

    Args:
        rows: of scratch that a backward pass needs, for every column; 0 for a forward pass, which may stream.
    """
    outer, _, inner = state
    if rows:
        by_pieces = like.nbytes >= LARGE_BYTES
    else:
        by_pieces = like.nbytes >= STREAM_BYTES and inner * like.itemsize % LINE_BYTES == 0
        arguments = (*arguments, (0,) * by_pieces)
    block = block_columns(max(rows, 1), like.itemsize, outer * inner, by_pieces)
    pieces = PIECE if by_pieces else block
    run_columns(kernel, (*arguments, pieces, block), outer * inner, unit_columns(block, inner), like.numel())


def as_numbers(p: list[float], like: Tensor) -> Any:
    """Parameters in the type of the data."""
    return np.array(p, dtype=np.float32 if like.dtype is torch.float32 else np.float64)


def leak_code(p: list[float], decay: bool, like: Tensor) -> tuple[tuple[int, ...], Any]:
    """The leak's code (see `cpu_rows.charge_of`), and the numbers with 1 / tau in place of tau where that is exact."""
    exact = math.frexp(p[0])[0] == 0.5
    return (0,) * (decay + 2 * exact), as_numbers([1 / p[0] if exact else p[0], *p[1:]], like)


def lif_forward(
    made: Results, x_seq: Tensor, v: Tensor | None, p: list[float], decay: bool, soft: bool, keep: bool
) -> None:
    """See `cpu_lif.lif_forward`."""
    steps, columns = x_seq.shape[0], x_seq[0].numel()
    whole = (steps, columns)
    spike, v_last, charge = made
    leak, numbers = leak_code(p, decay, x_seq)
    arguments = (
        as_array(x_seq, x_seq, *whole), as_array(v, x_seq, columns), numbers, leak, soft, (0,) * keep,
        as_array(spike, x_seq, *whole), as_array(v_last, x_seq, columns),
        as_array(charge if keep else None, x_seq, *whole),
    )  # fmt: skip
    _run(cpu_lif.lif_forward, arguments, x_seq, (1, 1, columns))


def lif_backward(
    made: Results, charge_seq: Tensor, sbar_seq: Tensor | None, vbar: Tensor | None, p: list[float], kind: int,
    soft: bool, detach: bool, need_v: bool,
) -> None:  # fmt: skip
    """See `cpu_lif.lif_backward`."""
    columns = charge_seq[0].numel()
    whole = (charge_seq.shape[0], columns)
    arguments = (
        as_array(charge_seq, charge_seq, *whole), as_array(arriving(sbar_seq, charge_seq), charge_seq, *whole),
        as_array(vbar, charge_seq, columns), as_numbers(p, charge_seq), (0,) * kind, soft, detach,
        as_array(made[0], charge_seq, *whole), as_array(made[1] if need_v else None, charge_seq, columns),
    )  # fmt: skip
    _run(cpu_lif.lif_backward, arguments, charge_seq, (1, 1, columns), rows=1)


def carrier_forward(made: Results, x_seq: Tensor, v: Tensor | None, p: list[float], decay: bool, soft: bool) -> None:
    """See `cpu_carrier.carrier_forward`."""
    columns = x_seq[0].numel()
    whole = (x_seq.shape[0], columns)
    leak, numbers = leak_code(p, decay, x_seq)
    arguments = (
        as_array(x_seq, x_seq, *whole), as_array(v, x_seq, columns), numbers, leak, soft,
        as_array(made[0], x_seq, *whole), as_array(made[1], x_seq, columns),
    )  # fmt: skip
    _run(cpu_carrier.carrier_forward, arguments, x_seq, (1, 1, columns))


def carrier_backward(
    made: Results, y_seq: Tensor, v: Tensor | None, ybar_seq: Tensor | None, vbar: Tensor | None, p: list[float],
    kind: int, soft: bool, detach: bool, need_v: bool,
) -> None:  # fmt: skip
    """See `cpu_carrier.carrier_backward`."""
    steps, columns = y_seq.shape[0], y_seq[0].numel()
    whole = (steps, columns)
    arguments = (
        as_array(y_seq, y_seq, *whole), as_array(v, y_seq, columns), as_array(arriving(ybar_seq, y_seq), y_seq, *whole),
        as_array(vbar, y_seq, columns), as_numbers(p, y_seq), (0,) * kind, soft, detach,
        as_array(made[0], y_seq, *whole), as_array(made[1] if need_v else None, y_seq, columns), SEGMENT,
    )  # fmt: skip
    _run(cpu_carrier.carrier_backward, arguments, y_seq, (1, 1, columns), min(steps, SEGMENT) + (steps - 1) // SEGMENT)


def coupled_forward(
    made: Results, x_seq: Tensor, v: Tensor | None, p: list[float], decay: bool, soft: bool, by_spike: bool,
    groups: int, group_dim: int, every: int,
) -> None:  # fmt: skip
    """See `cpu_coupled.coupled_forward`."""
    state = grouped(x_seq.shape[1:], groups, group_dim)
    whole = (x_seq.shape[0], *state)
    leak, numbers = leak_code(p, decay, x_seq)
    arguments = (
        as_array(x_seq, x_seq, *whole), as_array(v, x_seq, *state), numbers, leak, soft, by_spike, every,
        as_array(made[0], x_seq, *whole), as_array(made[1], x_seq, *state),
        as_array(made[2], x_seq, made[2].shape[0], *state),
    )  # fmt: skip
    _run(cpu_coupled.coupled_forward, arguments, x_seq, state)


def inverse_backward(
    made: Results, y_seq: Tensor, v_last: Tensor, ybar_seq: Tensor | None, vbar: Tensor | None, p: list[float],
    kind: int, soft: bool, detach: bool, groups: int, group_dim: int, need_v: bool,
) -> None:  # fmt: skip
    """See `cpu_coupled_backward.inverse_backward`."""
    state = grouped(y_seq.shape[1:], groups, group_dim)
    whole = (y_seq.shape[0], *state)
    arguments = (
        as_array(y_seq, y_seq, *whole), as_array(v_last, y_seq, *state),
        as_array(arriving(ybar_seq, y_seq), y_seq, *whole),
        as_array(vbar, y_seq, *state), as_numbers(p, y_seq), (0,) * kind, soft, detach,
        as_array(made[0], y_seq, *whole), as_array(made[1] if need_v else None, y_seq, *state),
    )  # fmt: skip
    _run(cpu_coupled_backward.inverse_backward, arguments, y_seq, state, rows=3 * groups)


def anchored_backward(
    made: Results, y_seq: Tensor, v: Tensor | None, anchors: Tensor, ybar_seq: Tensor | None, vbar: Tensor | None,
    p: list[float], kind: int, decay: bool, soft: bool, detach: bool, by_spike: bool,
    groups: int, group_dim: int, every: int, need_v: bool,
) -> None:  # fmt: skip
    """See `cpu_coupled_backward.anchored_backward`."""
    state = grouped(y_seq.shape[1:], groups, group_dim)
    whole = (y_seq.shape[0], *state)
    leak, numbers = leak_code(p, decay, y_seq)
    arguments = (
        as_array(y_seq, y_seq, *whole), as_array(v, y_seq, *state), as_array(anchors, y_seq, anchors.shape[0], *state),
        as_array(arriving(ybar_seq, y_seq), y_seq, *whole), as_array(vbar, y_seq, *state), numbers,
        (0,) * kind, leak, soft, detach, by_spike, every,
        as_array(made[0], y_seq, *whole), as_array(made[1] if need_v else None, y_seq, *state),
    )  # fmt: skip
    rows = groups * min(every, y_seq.shape[0])
    _run(cpu_coupled_backward.anchored_backward, arguments, y_seq, state, rows)
