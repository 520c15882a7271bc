"""The operators of the coupled LIF on CPU tensors in bfloat16: see `cpu`."""

from typing import Any

import torch
from torch import Tensor

from revsnn_nodes.kernels import cpu_bfloat16_coupled_backward, cpu_bfloat16_coupled_rows
from revsnn_nodes.kernels.cpu import Results, as_numbers, leak_code, unit_columns
from revsnn_nodes.kernels.cpu_bfloat16 import bits_of, block_columns
from revsnn_nodes.kernels.operators import grouped
from revsnn_nodes.kernels.threads import run_columns
from revsnn_nodes.reversible import arriving

_SINGLE = torch.empty(0)


def coupled_forward(
    made: Results, x_seq: Tensor, v: Tensor | None, p: list[float], decay: bool, soft: bool, by_spike: bool,
    groups: int, group_dim: int, every: int,
) -> None:  # fmt: skip
    """See `cpu_bfloat16_coupled_rows.coupled_forward`."""
    state = grouped(x_seq.shape[1:], groups, group_dim)
    whole = (x_seq.shape[0], *state)
    leak, numbers = leak_code(p, decay, _SINGLE)
    arguments = (
        bits_of(x_seq, *whole), bits_of(v, *state), numbers, leak, soft, by_spike, every,
        bits_of(made[0], *whole), bits_of(made[1], *state), bits_of(made[2], made[2].shape[0], *state),
    )  # fmt: skip
    _run(cpu_bfloat16_coupled_rows.coupled_forward, arguments, x_seq, state, rows=4 * groups)


def inverse_backward(
    made: Results, y_seq: Tensor, v_last: Tensor, ybar_seq: Tensor | None, vbar: Tensor | None, p: list[float],
    kind: int, soft: bool, detach: bool, groups: int, group_dim: int, need_v: bool,
) -> None:  # fmt: skip
    """See `cpu_bfloat16_coupled_backward.inverse_backward`."""
    state = grouped(y_seq.shape[1:], groups, group_dim)
    whole = (y_seq.shape[0], *state)
    arguments = (
        bits_of(y_seq, *whole), bits_of(v_last, *state), bits_of(arriving(ybar_seq, y_seq), *whole),
        bits_of(vbar, *state), as_numbers(p, _SINGLE), (0,) * kind, soft, detach,
        bits_of(made[0], *whole), bits_of(made[1] if need_v else None, *state),
    )  # fmt: skip
    _run(cpu_bfloat16_coupled_backward.inverse_backward, arguments, y_seq, state, rows=6 * groups + 3)


def anchored_backward(
    made: Results, y_seq: Tensor, v: Tensor | None, anchors: Tensor, ybar_seq: Tensor | None, vbar: Tensor | None,
    p: list[float], kind: int, decay: bool, soft: bool, detach: bool, by_spike: bool,
    groups: int, group_dim: int, every: int, need_v: bool,
) -> None:  # fmt: skip
    """See `cpu_bfloat16_coupled_backward.anchored_backward`."""
    state = grouped(y_seq.shape[1:], groups, group_dim)
    steps = y_seq.shape[0]
    whole = (steps, *state)
    leak, numbers = leak_code(p, decay, _SINGLE)
    arguments = (
        bits_of(y_seq, *whole), bits_of(v, *state), bits_of(anchors, anchors.shape[0], *state),
        bits_of(arriving(ybar_seq, y_seq), *whole), bits_of(vbar, *state), numbers,
        (0,) * kind, leak, soft, detach, by_spike, every,
        bits_of(made[0], *whole), bits_of(made[1] if need_v else None, *state),
    )  # fmt: skip
    rows = groups * (min(every, steps) + 5) + 3
    _run(cpu_bfloat16_coupled_backward.anchored_backward, arguments, y_seq, state, rows)


def _run(kernel: Any, arguments: tuple[Any, ...], like: Tensor, state: tuple[int, int, int], rows: int) -> None:
    outer, _, inner = state
    block = block_columns(rows)
    run_columns(kernel, (*arguments, block), outer * inner, unit_columns(block, inner), like.numel())
