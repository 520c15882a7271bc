"""Runs an operator by its Triton kernel: the one path from the operator's arguments to the kernel's.

`launch` is what the operators of `revsnn_nodes.kernels.ops` run on CUDA tensors; in Triton's interpreter (see
`revsnn_nodes.kernels.triton.equations`) it takes CPU tensors. Results are contiguous; inputs are copied where they are
not. Block sizes are measured at the first call for a size: leave it out of CUDA graph captures.

A new kernel needs its row in `KERNELS`. It takes the operator's tensors and results, in their order, under any names;
and by name whichever it lists of the numbers, sizes and constants that `_kernel_arguments` makes.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from revsnn_nodes.equations import sides_of
from revsnn_nodes.kernels.layout import Numbers, grouped, reciprocal_is_exact
from revsnn_nodes.kernels.ops import OPERATORS
from revsnn_nodes.kernels.triton import carrier, coupled, lif, norm_lif
from revsnn_nodes.kernels.triton.equations import Mode

KERNELS: dict[str, Any] = {
    "lif_forward": lif.lif_forward,
    "lif_backward": lif.lif_backward,
    "norm_lif_forward": norm_lif.norm_lif_forward,
    "norm_lif_backward": norm_lif.norm_lif_backward,
    "carrier_forward": carrier.carrier_forward,
    "carrier_backward": carrier.carrier_backward,
    "coupled_forward": coupled.coupled_forward,
    "inverse_backward": coupled.inverse_backward,
    "anchored_backward": coupled.anchored_backward,
}

MOST_ROWS = 16
"""Rows of a sequence, at most, of which a backward pass holds output, gradient and charge in registers."""


def launch(name: str, *arguments: Any) -> tuple[Tensor, ...]:
    """Runs one operator on its arguments; its results, by its schema."""
    call = OPERATORS[name].call(*arguments)
    results = OPERATORS[name].results(call)
    if results[0].numel():
        with torch.cuda.device(results[0].device) if results[0].is_cuda else nullcontext():
            _run(KERNELS[name], _kernel_arguments(KERNELS[name].arg_names, vars(call), results))
    return results


def pieces_of(steps: int, rows: int) -> tuple[int, int]:
    """How many pieces `steps` are cut into so that none is longer than `rows`, and the length of all but the last."""
    pieces = math.ceil(steps / max(rows, 1))
    return pieces, math.ceil(steps / pieces)


def _run(kernel: Any, given: dict[str, Any]) -> None:
    def grid(chosen: dict[str, Any]) -> tuple[int]:
        return (math.ceil(given["columns"] / chosen["BLOCK"]),)

    # Without multiply-adds forward values are the reference's, and a charge that is regenerated is the charge that
    # fired. It costs nothing: the kernels wait for memory, not for arithmetic.
    kernel[grid](enable_fp_fusion=False, **given)


def _kernel_arguments(names: Sequence[str], call: dict[str, Any], results: tuple[Tensor, ...]) -> dict[str, Any]:
    """All that a kernel with arguments `names` takes but BLOCK and STAGES; None for an absent or empty tensor.

    Args:
        names: first those of the operator's tensors and results.
        call: the operator's arguments by name; in every schema the tensors come before `p`.
        results: tensors to write.
    """
    inputs = list(call.values())[: list(call).index("p")]
    sequence, p = inputs[0], Numbers(*call["p"])
    tensors = [each.contiguous() if each is not None and each.numel() else None for each in (*inputs, *results)]

    steps, groups = sequence.shape[0], call.get("groups", 1)
    every = min(call.get("every", steps), steps)
    pieces, rows = pieces_of(every, MOST_ROWS // groups)
    exact = reciprocal_is_exact(p.tau)
    switches = {**call, "exact": exact or call.get("rate") is not None, "leaky": not math.isinf(p.tau)}
    named = {
        **p._asdict(),
        "tau": 1 / p.tau if exact else p.tau,
        "least": sides_of(p.threshold, sequence.dtype)[0],
        "greatest": sides_of(p.threshold, sequence.dtype)[1],
        "steps": steps,
        "every": every,
        "columns": sequence[0].numel() // groups,
        "inner": grouped(sequence.shape[1:], groups, call["group_dim"])[2] if groups > 1 else call.get("inner", 1),
        "channels": call["mean"].numel() if "mean" in call else 1,
        "mode": Mode(*(tl.constexpr(switches.get(field, 0)) for field in Mode._fields)),
        "GROUPS": groups,
        "ROWS": rows,
        "EVEN": pieces * rows == every and steps % every == 0,
    }
    return {**dict(zip(names, tensors, strict=False)), **{name: named[name] for name in names if name in named}}
