"""The operators by Triton: results are made, kernels get their pointers, numbers and switches.

`launch(name, *arguments)` takes a name and the arguments of `operators.SCHEMAS`. It is what the operators run on CUDA
tensors; in Triton's interpreter (see `triton_jit`) it takes CPU tensors. Results are contiguous; inputs are copied
where they are not. Block sizes are measured at the first call for a size: leave it out of CUDA graph captures.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from revsnn_nodes.kernels.ops import backward_results, forward_results, grouped
from revsnn_nodes.kernels.triton import (
    carrier as triton_carrier,
)
from revsnn_nodes.kernels.triton import (
    coupled as triton_anchored,
)
from revsnn_nodes.kernels.triton import (
    coupled as triton_coupled,
)
from revsnn_nodes.kernels.triton import (
    lif as triton_lif,
)

Results = tuple[Tensor, ...]
Numbers = list[float]

MOST_ROWS = 16
"""Rows of a sequence, at most, of which a backward pass holds output, gradient and charge in registers."""


def launch(name: str, *arguments: Any) -> Results:
    """Runs one operator; its results, by its schema."""
    sequence = arguments[0]
    made = (forward_results if name.endswith("forward") else backward_results)(name, *arguments)
    if made[0].numel():
        guard = torch.cuda.device(sequence.device) if sequence.is_cuda else nullcontext()
        with guard:
            _LAUNCHERS[name](made, *arguments)
    return made


def pieces_of(steps: int, rows: int) -> tuple[int, int]:
    """How many pieces `steps` are cut into so that none is longer than `rows`, and the length of all but the last."""
    pieces = math.ceil(steps / max(rows, 1))
    return pieces, math.ceil(steps / pieces)


def _run(kernel: Any, columns: int, **given: Any) -> None:
    def grid(chosen: dict[str, Any]) -> tuple[int]:
        return (math.ceil(columns / chosen["BLOCK"]),)

    kernel[grid](columns=columns, enable_fp_fusion=False, **given)


def _pointer(tensor: Tensor | None, instead: Tensor) -> Tensor:
    """What a kernel gets for a tensor: where there is none, one of the right type that it will not look at."""
    return instead if tensor is None else tensor.contiguous()


def _leak(p: Numbers, decay: bool) -> dict[str, Any]:
    exact = math.frexp(p[0])[0] == 0.5
    return {"tau": 1 / p[0] if exact else p[0], "DECAY": decay, "EXACT": exact}


def _gradient(p: Numbers, kind: int, soft: bool, detach: bool) -> dict[str, Any]:
    numbers = dict(zip(("threshold", "rest", "keep", "gain", "height", "scale"), p[1:7], strict=True))
    return {**numbers, "KIND": kind, "SOFT": soft, "DETACH": detach}


def _lif_forward(
    made: Results, x_seq: Tensor, v: Tensor | None, p: Numbers, decay: bool, soft: bool, keep: bool
) -> None:
    _run(
        triton_lif.lif_forward, x_seq[0].numel(), x=x_seq.contiguous(), v0=_pointer(v, x_seq),
        spike=made[0], v_last=made[1], charge=made[2] if keep else made[0], **_leak(p, decay), threshold=p[1],
        rest=p[2], steps=x_seq.shape[0], CARRIED=v is not None, KEEP=keep, SOFT=soft,
    )  # fmt: skip


def _lif_backward(
    made: Results, charge_seq: Tensor, sbar_seq: Tensor | None, vbar: Tensor | None, p: Numbers, kind: int,
    soft: bool, detach: bool, need_v: bool,
) -> None:  # fmt: skip
    _run(
        triton_lif.lif_backward, charge_seq[0].numel(), charge=charge_seq.contiguous(),
        sbar=_pointer(sbar_seq, charge_seq), vbar=_pointer(vbar, charge_seq), xbar=made[0],
        vbar0=made[1] if need_v else made[0], **_gradient(p, kind, soft, detach), steps=charge_seq.shape[0],
        HAS_SBAR=sbar_seq is not None, HAS_VBAR=vbar is not None, NEED_V=need_v,
    )  # fmt: skip


def _carrier_forward(made: Results, x_seq: Tensor, v: Tensor | None, p: Numbers, decay: bool, soft: bool) -> None:
    _run(
        triton_carrier.carrier_forward, x_seq[0].numel(), x=x_seq.contiguous(), v0=_pointer(v, x_seq),
        y=made[0], v_last=made[1], **_leak(p, decay), threshold=p[1], rest=p[2], epsilon=p[7], clamp=p[8],
        steps=x_seq.shape[0], CARRIED=v is not None, SOFT=soft,
    )  # fmt: skip


def _carrier_backward(
    made: Results, y_seq: Tensor, v: Tensor | None, ybar_seq: Tensor | None, vbar: Tensor | None, p: Numbers,
    kind: int, soft: bool, detach: bool, need_v: bool,
) -> None:  # fmt: skip
    steps = y_seq.shape[0]
    pieces, rows = pieces_of(steps, MOST_ROWS)
    _run(
        triton_carrier.carrier_backward, y_seq[0].numel(), y=y_seq.contiguous(), v0=_pointer(v, y_seq),
        ybar=_pointer(ybar_seq, y_seq), vbar=_pointer(vbar, y_seq), xbar=made[0],
        vbar0=made[1] if need_v else made[0], **_gradient(p, kind, soft, detach), epsilon=p[7], clamp=p[8],
        steps=steps, pieces=pieces, CARRIED=v is not None, HAS_YBAR=ybar_seq is not None,
        HAS_VBAR=vbar is not None, NEED_V=need_v, ROWS=rows, EVEN=pieces * rows == steps,
    )  # fmt: skip


def _coupling(p: Numbers) -> dict[str, Any]:
    return dict(zip(("alpha", "beta", "drop"), p[7:10], strict=True))


def _coupled_forward(
    made: Results, x_seq: Tensor, v: Tensor | None, p: Numbers, decay: bool, soft: bool, by_spike: bool,
    groups: int, group_dim: int, every: int,
) -> None:  # fmt: skip
    outer, _, inner = grouped(x_seq.shape[1:], groups, group_dim)
    _run(
        triton_coupled.coupled_forward, outer * inner, x=x_seq.contiguous(), v0=_pointer(v, x_seq),
        y=made[0], v_last=made[1], anchors=made[2] if made[2].numel() else made[1], **_leak(p, decay),
        threshold=p[1], rest=p[2], **_coupling(p), steps=x_seq.shape[0], every=every, inner=inner,
        CARRIED=v is not None, SOFT=soft, BY_SPIKE=by_spike, GROUPS=groups,
    )  # fmt: skip


def _inverse_backward(
    made: Results, y_seq: Tensor, v_last: Tensor, ybar_seq: Tensor | None, vbar: Tensor | None, p: Numbers,
    kind: int, soft: bool, detach: bool, groups: int, group_dim: int, need_v: bool,
) -> None:  # fmt: skip
    outer, _, inner = grouped(y_seq.shape[1:], groups, group_dim)
    _run(
        triton_coupled.inverse_backward, outer * inner, y=y_seq.contiguous(), v_last=v_last.contiguous(),
        ybar=_pointer(ybar_seq, y_seq), vbar=_pointer(vbar, y_seq), xbar=made[0],
        vbar0=made[1] if need_v else made[0], **_gradient(p, kind, soft, detach), **_coupling(p), inflow=p[10],
        steps=y_seq.shape[0], inner=inner, HAS_YBAR=ybar_seq is not None, HAS_VBAR=vbar is not None,
        NEED_V=need_v, GROUPS=groups,
    )  # fmt: skip


def _anchored_backward(
    made: Results, y_seq: Tensor, v: Tensor | None, anchors: Tensor, ybar_seq: Tensor | None, vbar: Tensor | None,
    p: Numbers, kind: int, decay: bool, soft: bool, detach: bool, by_spike: bool,
    groups: int, group_dim: int, every: int, need_v: bool,
) -> None:  # fmt: skip
    outer, _, inner = grouped(y_seq.shape[1:], groups, group_dim)
    steps = y_seq.shape[0]
    every = min(every, steps)
    pieces, rows = pieces_of(every, MOST_ROWS // groups)
    _run(
        triton_anchored.anchored_backward, outer * inner, y=y_seq.contiguous(), v0=_pointer(v, y_seq),
        anchors=_pointer(anchors if anchors.numel() else None, y_seq), ybar=_pointer(ybar_seq, y_seq),
        vbar=_pointer(vbar, y_seq), xbar=made[0], vbar0=made[1] if need_v else made[0], **_leak(p, decay),
        **_gradient(p, kind, soft, detach), **_coupling(p), steps=steps, every=every, inner=inner,
        CARRIED=v is not None, HAS_YBAR=ybar_seq is not None, HAS_VBAR=vbar is not None, NEED_V=need_v,
        BY_SPIKE=by_spike, GROUPS=groups, ROWS=rows, EVEN=pieces * rows == every and steps % every == 0,
    )  # fmt: skip


_LAUNCHERS: dict[str, Callable[..., None]] = {
    "lif_forward": _lif_forward,
    "lif_backward": _lif_backward,
    "carrier_forward": _carrier_forward,
    "carrier_backward": _carrier_backward,
    "coupled_forward": _coupled_forward,
    "inverse_backward": _inverse_backward,
    "anchored_backward": _anchored_backward,
}
