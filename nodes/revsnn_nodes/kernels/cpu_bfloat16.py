"""The operators of LIF and carrier LIF on CPU tensors in bfloat16: see `cpu`. Kernels: `cpu_bfloat16_rows`.

Those of the coupled LIF: `cpu_bfloat16_coupled`.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from revsnn_nodes.kernels import cpu_bfloat16_rows
from revsnn_nodes.kernels.cpu import Results, as_numbers, leak_code
from revsnn_nodes.kernels.threads import run_columns
from revsnn_nodes.reversible import arriving

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
