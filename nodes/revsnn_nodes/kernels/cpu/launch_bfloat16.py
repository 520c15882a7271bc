"""The operators of LIF and carrier LIF on CPU tensors in bfloat16: see `cpu`. Kernels: `cpu_bfloat16_rows`.

Those of the coupled LIF: `cpu_bfloat16_coupled`.

The operators of the coupled LIF on CPU tensors in bfloat16: see `cpu`.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from revsnn_nodes.equations import arriving
from revsnn_nodes.kernels.cpu import bfloat16 as cpu_bfloat16_coupled_backward
from revsnn_nodes.kernels.cpu import bfloat16 as cpu_bfloat16_coupled_rows
from revsnn_nodes.kernels.cpu import bfloat16 as cpu_bfloat16_rows
from revsnn_nodes.kernels.cpu.launch import Results, as_numbers, leak_code, unit_columns
from revsnn_nodes.kernels.cpu.machine import run_columns
from revsnn_nodes.kernels.layout import grouped

MOST_COLUMNS = 1024

FEWEST_COLUMNS = 128

SCRATCH_BYTES = 1 << 19
"""A block keeps its scratch in the second-level cache, if the sequence is not too long for that."""

_SINGLE = torch.empty(0)


def bits_of(tensor: Tensor | None, *shape: int) -> Any:
    """The bits of a tensor, or the empty array that stands for none; copied only where not contiguous."""
    if tensor is None:
        return np.empty((0,) * len(shape), np.uint16)
    return tensor.detach().contiguous().view(torch.int16).numpy().view(np.uint16).reshape(shape)


def block_columns(rows: int) -> int:
    """Columns of a block, a power of two, with so many rows of float32 scratch."""
    block = MOST_COLUMNS
    while block > FEWEST_COLUMNS and rows * block * 4 > SCRATCH_BYTES:
        block //= 2
    return block


def _run(kernel: Any, arguments: tuple[Any, ...], like: Tensor, rows: int) -> None:
    columns, block = like[0].numel(), block_columns(rows)
    run_columns(kernel, (*arguments, block), columns, block, like.numel())


def _forward(
    made: Results, x_seq: Tensor, v: Tensor | None, p: list[float], decay: bool, soft: bool, carries: bool, keep: bool
) -> None:
    columns = x_seq[0].numel()
    whole = (x_seq.shape[0], columns)
    leak, numbers = leak_code(p, decay, _SINGLE)
    arguments = (
        bits_of(x_seq, *whole), bits_of(v, columns), numbers, leak, soft, carries,
        bits_of(made[0], *whole), bits_of(made[1], columns), bits_of(made[2] if keep else None, *whole),
    )  # fmt: skip
    _run(cpu_bfloat16_rows.forward, arguments, x_seq, rows=4)


def _backward(
    made: Results, kept: Tensor, v: Tensor | None, ybar_seq: Tensor | None, vbar: Tensor | None, p: list[float],
    kind: int, soft: bool, detach: bool, carries: bool, need_v: bool,
) -> None:  # fmt: skip
    columns = kept[0].numel()
    whole = (kept.shape[0], columns)
    arrived = arriving(ybar_seq, kept)
    arguments = (
        bits_of(kept, *whole), bits_of(v, columns), bits_of(arrived, *whole), bits_of(vbar, columns),
        as_numbers(p, _SINGLE), (0,) * kind, soft, detach, carries,
        bits_of(made[0], *whole), bits_of(made[1] if need_v else None, columns),
    )  # fmt: skip
    _run(cpu_bfloat16_rows.backward, arguments, kept, rows=4 * kept.shape[0])


def lif_forward(
    made: Results, x_seq: Tensor, v: Tensor | None, p: list[float], decay: bool, soft: bool, keep: bool
) -> None:
    """Spikes, last membrane and charges."""
    _forward(made, x_seq, v, p, decay, soft, carries=False, keep=keep)


def lif_backward(
    made: Results, charge_seq: Tensor, sbar_seq: Tensor | None, vbar: Tensor | None, p: list[float], kind: int,
    soft: bool, detach: bool, need_v: bool,
) -> None:  # fmt: skip
    """Gradients of input and first membrane, from the charges."""
    _backward(made, charge_seq, None, sbar_seq, vbar, p, kind, soft, detach, False, need_v)


def carrier_forward(made: Results, x_seq: Tensor, v: Tensor | None, p: list[float], decay: bool, soft: bool) -> None:
    """Output and last membrane."""
    _forward(made, x_seq, v, p, decay, soft, carries=True, keep=False)


def carrier_backward(
    made: Results, y_seq: Tensor, v: Tensor | None, ybar_seq: Tensor | None, vbar: Tensor | None, p: list[float],
    kind: int, soft: bool, detach: bool, need_v: bool,
) -> None:  # fmt: skip
    """Gradients of input and first membrane, from the output."""
    _backward(made, y_seq, v, ybar_seq, vbar, p, kind, soft, detach, True, need_v)


_SINGLE_BFLOAT16_COUPLED = torch.empty(0)


def coupled_forward(
    made: Results, x_seq: Tensor, v: Tensor | None, p: list[float], decay: bool, soft: bool, by_spike: bool,
    groups: int, group_dim: int, every: int,
) -> None:  # fmt: skip
    """See `cpu_bfloat16_coupled_rows.coupled_forward`."""
    state = grouped(x_seq.shape[1:], groups, group_dim)
    whole = (x_seq.shape[0], *state)
    leak, numbers = leak_code(p, decay, _SINGLE_BFLOAT16_COUPLED)
    arguments = (
        bits_of(x_seq, *whole), bits_of(v, *state), numbers, leak, soft, by_spike, every,
        bits_of(made[0], *whole), bits_of(made[1], *state), bits_of(made[2], made[2].shape[0], *state),
    )  # fmt: skip
    _run_coupled(cpu_bfloat16_coupled_rows.coupled_forward, arguments, x_seq, state, rows=4 * groups)


def inverse_backward(
    made: Results, y_seq: Tensor, v_last: Tensor, ybar_seq: Tensor | None, vbar: Tensor | None, p: list[float],
    kind: int, soft: bool, detach: bool, groups: int, group_dim: int, need_v: bool,
) -> None:  # fmt: skip
    """See `cpu_bfloat16_coupled_backward.inverse_backward`."""
    state = grouped(y_seq.shape[1:], groups, group_dim)
    whole = (y_seq.shape[0], *state)
    arguments = (
        bits_of(y_seq, *whole), bits_of(v_last, *state), bits_of(arriving(ybar_seq, y_seq), *whole),
        bits_of(vbar, *state), as_numbers(p, _SINGLE_BFLOAT16_COUPLED), (0,) * kind, soft, detach,
        bits_of(made[0], *whole), bits_of(made[1] if need_v else None, *state),
    )  # fmt: skip
    _run_coupled(cpu_bfloat16_coupled_backward.inverse_backward, arguments, y_seq, state, rows=6 * groups + 3)


def anchored_backward(
    made: Results, y_seq: Tensor, v: Tensor | None, anchors: Tensor, ybar_seq: Tensor | None, vbar: Tensor | None,
    p: list[float], kind: int, decay: bool, soft: bool, detach: bool, by_spike: bool,
    groups: int, group_dim: int, every: int, need_v: bool,
) -> None:  # fmt: skip
    """See `cpu_bfloat16_coupled_backward.anchored_backward`."""
    state = grouped(y_seq.shape[1:], groups, group_dim)
    steps = y_seq.shape[0]
    whole = (steps, *state)
    leak, numbers = leak_code(p, decay, _SINGLE_BFLOAT16_COUPLED)
    arguments = (
        bits_of(y_seq, *whole), bits_of(v, *state), bits_of(anchors, anchors.shape[0], *state),
        bits_of(arriving(ybar_seq, y_seq), *whole), bits_of(vbar, *state), numbers,
        (0,) * kind, leak, soft, detach, by_spike, every,
        bits_of(made[0], *whole), bits_of(made[1] if need_v else None, *state),
    )  # fmt: skip
    rows = groups * (min(every, steps) + 5) + 3
    _run_coupled(cpu_bfloat16_coupled_backward.anchored_backward, arguments, y_seq, state, rows)


def _run_coupled(kernel: Any, arguments: tuple[Any, ...], like: Tensor, state: tuple[int, int, int], rows: int) -> None:
    outer, _, inner = state
    block = block_columns(rows)
    run_columns(kernel, (*arguments, block), outer * inner, unit_columns(block, inner), like.numel())
