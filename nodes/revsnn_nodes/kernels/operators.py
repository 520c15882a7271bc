"""The fused kernels as torch operators `revsnn::*`, with fake implementations for tracing and memory prediction.

Sequences are `[T, N, *]`, states `[N, *]`, of any strides (copied where not contiguous); results are contiguous.
`p` is `coefficients.coefficients(...)`; `kind` numbers the surrogate. Missing gradients count as zeros. An
operator that may leave out a result returns an empty tensor for it. Compiled code is loaded at the first call.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor

from revsnn_nodes.kernels.pages import prepare

SCHEMAS = {
    "lif_forward": "(Tensor x_seq, Tensor? v, float[] p, bool decay, bool soft, bool keep) -> (Tensor, Tensor, Tensor)",
    "lif_backward": (
        "(Tensor charge_seq, Tensor? sbar_seq, Tensor? vbar, float[] p, int kind, bool soft, bool detach, bool need_v)"
        " -> (Tensor, Tensor)"
    ),
    "carrier_forward": "(Tensor x_seq, Tensor? v, float[] p, bool decay, bool soft) -> (Tensor, Tensor)",
    "carrier_backward": (
        "(Tensor y_seq, Tensor? v, Tensor? ybar_seq, Tensor? vbar, float[] p, int kind, bool soft, bool detach,"
        " bool need_v) -> (Tensor, Tensor)"
    ),
    "coupled_forward": (
        "(Tensor x_seq, Tensor? v, float[] p, bool decay, bool soft, bool by_spike, int groups, int group_dim,"
        " int every) -> (Tensor, Tensor, Tensor)"
    ),
    "inverse_backward": (
        "(Tensor y_seq, Tensor v_last, Tensor? ybar_seq, Tensor? vbar, float[] p, int kind, bool soft, bool detach,"
        " int groups, int group_dim, bool need_v) -> (Tensor, Tensor)"
    ),
    "anchored_backward": (
        "(Tensor y_seq, Tensor? v, Tensor anchors, Tensor? ybar_seq, Tensor? vbar, float[] p, int kind, bool decay,"
        " bool soft, bool detach, bool by_spike, int groups, int group_dim, int every, bool need_v) -> (Tensor, Tensor)"
    ),
    "norm_carrier_forward": (
        "(Tensor z_seq, Tensor? v, Tensor? weight, Tensor? bias, Tensor? residual_seq, float[] p, float eps,"
        " bool decay, bool soft) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
    "norm_carrier_backward": (
        "(Tensor y_seq, Tensor? v, Tensor? weight, Tensor? bias, Tensor? residual_seq, Tensor inverse_std,"
        " Tensor? beyond, Tensor? excess, Tensor? ybar_seq, Tensor? vbar, float[] p, int kind, bool soft, bool detach,"
        " bool need_residual, bool need_v) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
}
"""Operators by name, with their schemas."""

CPU_ONLY = ("norm_carrier_forward", "norm_carrier_backward")
"""Operators without a kernel for CUDA."""

_LIBRARY = torch.library.Library("revsnn", "DEF")


def forward_results(name: str, x_seq: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """Empty results of a forward operator: output, last membrane, and what else it gives.

    That is the charges; the anchors; or of a norm mean, variance and 1/sigma per channel, and how often the clamp bit.
    """
    step = x_seq.shape[1:]
    results = [x_seq.new_empty(x_seq.shape), x_seq.new_empty(step)]
    if name == "norm_carrier_forward":
        results += [x_seq.new_empty(x_seq.shape[2]) for _ in range(3)]
        results.append(x_seq.new_empty(1, dtype=torch.int64))
    if name == "lif_forward":
        results.append(x_seq.new_empty(x_seq.shape if arguments[-1] else (0,)))
    if name == "coupled_forward":
        results.append(x_seq.new_empty(((x_seq.shape[0] - 1) // arguments[-1], *step)))
    return tuple(results)


def backward_results(name: str, y_seq: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """Empty results of a backward operator: gradients of the input and, where needed, of the first membrane.

    A norm gives between them those of gamma, bias and, where needed, residual.
    """
    results = [y_seq.new_empty(y_seq.shape)]
    if name == "norm_carrier_backward":
        results += [y_seq.new_empty(y_seq.shape[2]) for _ in range(2)]
        results.append(y_seq.new_empty(y_seq.shape if arguments[-2] else (0,)))
    return *results, y_seq.new_empty(y_seq.shape[1:] if arguments[-1] else (0,))


def grouped(shape: torch.Size, groups: int, group_dim: int) -> tuple[int, int, int]:
    """A step's shape `[N, *]` as `[outer, groups, inner]`."""
    dim = group_dim % len(shape)
    return prod(shape[:dim]), groups, prod(shape[dim:]) // groups


def _cpu_module(name: str, dtype: torch.dtype) -> Any:
    """Where the operator is implemented for CPU tensors of a type."""
    from revsnn_nodes.kernels import cpu, cpu_bfloat16, cpu_bfloat16_coupled, cpu_norm

    if name in CPU_ONLY:
        return cpu_norm
    if dtype is not torch.bfloat16:
        return cpu
    return cpu_bfloat16_coupled if hasattr(cpu_bfloat16_coupled, name) else cpu_bfloat16


def _define(name: str, schema: str) -> None:
    results = forward_results if name.endswith("forward") else backward_results

    def fake(*arguments: Any) -> tuple[Tensor, ...]:
        return results(name, *arguments)

    def on_cpu(*arguments: Any) -> tuple[Tensor, ...]:
        made = results(name, *arguments)
        for result in made:
            prepare(result)
        implementation: Callable[..., None] = getattr(_cpu_module(name, arguments[0].dtype), name)
        implementation(made, *arguments)
        return made

    def on_cuda(*arguments: Any) -> tuple[Tensor, ...]:
        from revsnn_nodes.kernels import triton_launch

        return triton_launch.launch(name, *arguments)

    _LIBRARY.define(name + schema)
    _LIBRARY.impl(name, on_cpu, "CPU")
    if name not in CPU_ONLY:
        _LIBRARY.impl(name, on_cuda, "CUDA")
    torch.library.register_fake(f"revsnn::{name}", fake, lib=_LIBRARY)


for _name, _schema in SCHEMAS.items():
    _define(_name, _schema)
