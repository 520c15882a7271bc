"""What the fused operators compute, in closed form: a counter at the dispatcher cannot see inside of them.

The rule: 1 per element of every pointwise operation that a kernel executes (compare and select included, exp is 1).
`OPERATIONS` maps an operator's qualified name to a function of its arguments.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from revsnn_nodes.kernels.coefficients import KINDS


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
