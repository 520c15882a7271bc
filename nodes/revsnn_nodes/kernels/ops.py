"""The fused kernels as torch operators `revsnn::*`, with fake implementations for tracing and memory prediction.

Sequences are `[T, N, *]`, states `[N, *]`, of any strides (copied where not contiguous); results are contiguous.
`p` is `coefficients.coefficients(...)`; `kind` numbers the surrogate. Missing gradients count as zeros. An
operator that may leave out a result returns an empty tensor for it. Compiled code is loaded at the first call.

What the fused operators compute, in closed form: a counter at the dispatcher cannot see inside of them.

The rule: 1 per element of every pointwise operation that a kernel executes (compare and select included, exp is 1).
`OPERATIONS` maps an operator's qualified name to a function of its arguments.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from revsnn_nodes.kernels.cpu.machine import prepare
from revsnn_nodes.kernels.layout import KINDS, grouped  # noqa: F401

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


def _cpu_module(name: str, dtype: torch.dtype) -> Any:
    """Where the operator is implemented for CPU tensors of a type."""
    from revsnn_nodes.kernels.cpu import (
        launch as cpu,
    )
    from revsnn_nodes.kernels.cpu import (
        launch_bfloat16 as cpu_bfloat16,
    )
    from revsnn_nodes.kernels.cpu import (
        launch_bfloat16 as cpu_bfloat16_coupled,
    )
    from revsnn_nodes.kernels.cpu import (
        launch_norm as cpu_norm,
    )

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
        from revsnn_nodes.kernels.triton import launch as triton_launch

        return triton_launch.launch(name, *arguments)

    _LIBRARY.define(name + schema)
    _LIBRARY.impl(name, on_cpu, "CPU")
    if name not in CPU_ONLY:
        _LIBRARY.impl(name, on_cuda, "CUDA")
    torch.library.register_fake(f"revsnn::{name}", fake, lib=_LIBRARY)


for _name, _schema in SCHEMAS.items():
    _define(_name, _schema)


@dataclass(frozen=True)
class Operations:
    """Pointwise operations of one call: work of its own phase, and of the forward pass done again."""

    work: int
    recompute: int = 0


CHARGE = 4
"""v - rest, x minus that, divided by tau, added to v."""

FIRE = 3
"""Minus the threshold, compare, select."""

RESET = 2
"""Compare and select (hard), or multiply and subtract (soft)."""

CLAMP = 1
"""One operation, as torch's hardtanh is."""

DECODE_SPIKE = 2
DECODE_INPUT = 2

PHI = dict(zip(KINDS, (8, 5, 5, 5, 5, 5, 4), strict=True))
"""Surrogate derivative, the distance to the threshold included."""


def _charge_gradient(kind: int, soft: bool, detach: bool) -> int:
    through_reset = 0 if detach else 2 if soft else 3
    kept = 0 if soft else 2
    return through_reset + kept + PHI[KINDS[kind]] + 2


def lif_forward(x_seq: Tensor, *_: Any, **__: Any) -> Operations:
    """Charge, fire, reset."""
    return Operations(x_seq.numel() * (CHARGE + FIRE + RESET))


def lif_backward(
    charge_seq: Tensor, sbar: Any, vbar: Any, p: Any, kind: int, soft: bool, detach: bool, need_v: bool, **_: Any
) -> Operations:
    """Spike of the charge, the product, and the two factors keep and gain."""
    return Operations(charge_seq.numel() * (FIRE + _charge_gradient(kind, soft, detach) + 2))


def carrier_forward(x_seq: Tensor, *_: Any, **__: Any) -> Operations:
    """Clamp, charge, fire, reset, and the output spike + epsilon x."""
    return Operations(x_seq.numel() * (CLAMP + CHARGE + FIRE + RESET + 2))


def carrier_backward(
    y_seq: Tensor, v: Any, ybar: Any, vbar: Any, p: Any, kind: int, soft: bool, detach: bool, need_v: bool, **_: Any
) -> Operations:
    """Recomputed: decoding, charge and reset; decoding once more, and whether the clamp bit. Then the product."""
    recompute = DECODE_SPIKE + DECODE_INPUT + CHARGE + RESET + DECODE_SPIKE + DECODE_INPUT + 2
    work = _charge_gradient(kind, soft, detach) + 5
    return Operations(y_seq.numel() * work, y_seq.numel() * recompute)


def _gate(by_spike: bool) -> int:
    return 0 if by_spike else CLAMP


def _coupled_reset(soft: bool) -> int:
    return 2 if soft else 4


def coupled_forward(
    x_seq: Tensor, v: Any, p: Any, decay: bool, soft: bool, by_spike: bool, *_: Any, **__: Any
) -> Operations:
    """Charge, fire, output, gate, reset."""
    return Operations(x_seq.numel() * (CHARGE + FIRE + 2 + _gate(by_spike) + _coupled_reset(soft)))


def _coupled_product(kind: int, soft: bool, detach: bool, by_spike: bool) -> int:
    into_gate = 0 if detach else (1 if soft else 3) + 1 + (0 if by_spike else OUTPUT_INSIDE)
    kept = 0 if soft else 3 + (FIRE if by_spike else CLAMP)
    # Sum of what arrives, product with phi, and the factors keep, gain and beta.
    return 1 + into_gate + kept + PHI[KINDS[kind]] + 2 + 3


OUTPUT_INSIDE = 4
"""Whether 0 < y < 1: two compares, their conjunction, select."""

CARRIED_INPUT = FIRE + 2
"""Spike, difference, division by beta: for the last group alone, to give the first its drive."""


def inverse_backward(
    y_seq: Tensor, v_last: Any, ybar: Any, vbar: Any, p: Any, kind: int, soft: bool, detach: bool, groups: int,
    *_: Any, **__: Any,
) -> Operations:  # fmt: skip
    """Recomputed: reset and charge undone. Then the product."""
    elements = y_seq.numel()
    recompute = CLAMP + (2 if soft else 5) + 4
    return Operations(
        elements * _coupled_product(kind, soft, detach, False),
        elements * recompute + elements // groups * CARRIED_INPUT,
    )


def anchored_backward(
    y_seq: Tensor, v: Any, anchors: Any, ybar: Any, vbar: Any, p: Any, kind: int, decay: bool, soft: bool, detach: bool,
    by_spike: bool, groups: int, *_: Any, **__: Any,
) -> Operations:  # fmt: skip
    """Recomputed: charge, gate and reset. Then the product."""
    elements = y_seq.numel()
    recompute = CHARGE + (FIRE if by_spike else CLAMP) + _coupled_reset(soft)
    return Operations(
        elements * _coupled_product(kind, soft, detach, by_spike),
        elements * recompute + elements // groups * CARRIED_INPUT,
    )


MOMENTS = 4
"""Minus a centre, added; squared, added."""

NORMALISE = 2


def _affine(weight: Any, bias: Any, residual: Any) -> int:
    return sum(each is not None for each in (weight, bias, residual))


def norm_carrier_forward(
    z_seq: Tensor, v: Any, weight: Any, bias: Any, residual: Any, *_: Any, **__: Any
) -> Operations:
    """Moments, normalisation, clamp, gamma n + bias + residual; then as `carrier_forward`."""
    neuron = CHARGE + FIRE + RESET + 2
    return Operations(z_seq.numel() * (MOMENTS + NORMALISE + CLAMP + _affine(weight, bias, residual) + neuron))


def norm_carrier_backward(
    y_seq: Tensor, v: Any, weight: Any, bias: Any, residual: Any, inverse_std: Any, beyond: Any, excess: Any, ybar: Any,
    vbar: Any, p: Any, kind: int, soft: bool, detach: bool, *_: Any, **__: Any,
) -> Operations:  # fmt: skip
    """Recomputed: input, charge and reset; decoding thrice more, and whether the clamp bit.

    Then the product, its two factors, the gradient at n (gamma, epsilon y, sum, select), the four sums, and the norm's.
    """
    decode = DECODE_SPIKE + DECODE_INPUT
    recompute = 4 * decode + _affine(weight, bias, residual) + CHARGE + RESET + 2
    work = _charge_gradient(kind, soft, detach) + 2 + (weight is not None) + 3 + 6 + 4
    return Operations(y_seq.numel() * work, y_seq.numel() * recompute)


OPERATIONS: dict[str, Callable[..., Operations]] = {
    f"revsnn::{formula.__name__}": formula
    for formula in (
        lif_forward, lif_backward, carrier_forward, carrier_backward,
        coupled_forward, inverse_backward, anchored_backward, norm_carrier_forward, norm_carrier_backward,
    )
}  # fmt: skip
"""Operations of a call by the operator's qualified name; called with the operator's arguments."""
