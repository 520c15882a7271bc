"""The fused kernels as torch operators `revsnn::*`: one row each in `OPERATORS`.

Sequences are `[T, N, *]`, states `[N, *]`, of any strides (copied where not contiguous); results are contiguous.
`p` is a `layout.Numbers`; `kind` is the index of the surrogate's shape in `layout.KINDS`. Missing gradients count as
zeros. An operator that may leave out a result returns an empty tensor for it. Compiled code is loaded at first use.

A row counts its operations in closed form, since a counter at the dispatcher cannot see inside an operator. The rule: 1
per element of every pointwise operation that a kernel executes (compare and select included, exp is 1).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from revsnn_nodes.kernels.layout import ATAN, ERF, EXPONENTIAL, QUADRATIC, RECT, SIGMOID, SQUARED


@dataclass(frozen=True)
class Operations:
    """Pointwise operations of one call: work of its own phase, and of the forward pass done again."""

    work: int
    recompute: int = 0


class Call(SimpleNamespace):
    """The arguments of one call, by the names in the operator's schema."""


@dataclass(frozen=True)
class Operator:
    """One fused operator.

    Args:
        schema: arguments and results, as torch writes them.
        results: the empty results of a call.
        operations: what the kernel executes in a call.
        on_cuda: whether there is a kernel for CUDA.
    """

    schema: str
    results: Callable[[Call], tuple[Tensor, ...]]
    operations: Callable[[Call], Operations]
    on_cuda: bool = True

    @cached_property
    def arguments(self) -> tuple[str, ...]:
        """The names of the arguments."""
        inside = self.schema[1 : self.schema.index(")")]
        return tuple(argument.split()[-1] for argument in inside.split(","))

    def call(self, *arguments: Any, **named: Any) -> Call:
        """A call's record."""
        return Call(**dict(zip(self.arguments, arguments, strict=False)), **named)

    def count(self, *arguments: Any, **named: Any) -> Operations:
        """Operations of a call."""
        return self.operations(self.call(*arguments, **named))


def _all(sequence: Tensor, wanted: bool = True) -> Tensor:
    return sequence.new_empty(sequence.shape if wanted else (0,))


def _step(sequence: Tensor, wanted: bool = True) -> Tensor:
    return sequence.new_empty(sequence.shape[1:] if wanted else (0,))


def _channels(sequence: Tensor, count: int) -> tuple[Tensor, ...]:
    return tuple(sequence.new_empty(sequence.shape[2]) for _ in range(count))


def _anchors(x_seq: Tensor, every: int) -> Tensor:
    return x_seq.new_empty(((x_seq.shape[0] - 1) // every, *x_seq.shape[1:]))


# Operations per element.

CHARGE = 4
"""v - rest, x minus that, divided by tau, added to v."""

INTEGRATE = 1
"""Charge without a leak: a sum."""

RATE_GRADIENT = 5
"""Membrane before the step from the charge (2), its distance to the charge or to rest, product with hbar, sum."""

FIRE = 3
"""Minus the threshold, compare, select."""

RESET = 2
"""Compare and select (hard), or multiply and subtract (soft)."""

CLAMP = 1
"""One operation, as torch's hardtanh is."""

DECODE = 4
"""Spike: compare, select; input: minus the spike, divided by epsilon."""

OUTPUT = 2
"""Product with epsilon or beta, sum."""

INSIDE = 2
"""Whether a clamp bit: absolute value, compare."""

GATE_INSIDE = 4
"""Whether 0 < y < 1: two compares, their conjunction, select."""

CARRIED_INPUT = FIRE + 2
"""Spike, difference, division by beta: for the last group alone, to give the first its drive."""

NORM = 6
"""Minus a centre, added; squared, added; normalisation: minus the mean, times 1/sigma."""

PHI = {SIGMOID: 8, ATAN: 5, QUADRATIC: 5, EXPONENTIAL: 5, SQUARED: 5, ERF: 5, RECT: 4}
"""Surrogate derivative, the distance to the threshold included."""


def _lif_forward(c: Call) -> Operations:
    charge = INTEGRATE if math.isinf(c.p[0]) else CHARGE
    return Operations(c.x_seq.numel() * (charge + FIRE + RESET))


def _charge_gradient(c: Call) -> int:
    through_reset = 0 if c.detach else 2 if c.soft else 3
    kept = 0 if c.soft else 2
    return through_reset + kept + PHI[c.kind] + 2


def _coupled_reset(c: Call) -> int:
    return 2 if c.soft else 4


def _coupled_gradient(c: Call, by_spike: bool) -> int:
    into_gate = 0 if c.detach else (1 if c.soft else 3) + 1 + (0 if by_spike else GATE_INSIDE)
    kept = 0 if c.soft else 3 + (FIRE if by_spike else CLAMP)
    # Sum of what arrives, product with phi, and the factors keep, gain and beta.
    return 1 + into_gate + kept + PHI[c.kind] + 2 + 3


def _coupled_forward(c: Call) -> Operations:
    gate = 0 if c.by_spike else CLAMP
    return Operations(c.x_seq.numel() * (CHARGE + FIRE + OUTPUT + gate + _coupled_reset(c)))


def _inverse_backward(c: Call) -> Operations:
    """Recomputed: reset and charge undone. Then the product."""
    elements = c.y_seq.numel()
    recompute = CLAMP + (2 if c.soft else 5) + CHARGE
    return Operations(
        elements * _coupled_gradient(c, by_spike=False), elements * recompute + elements // c.groups * CARRIED_INPUT
    )


def _anchored_backward(c: Call) -> Operations:
    """Recomputed: charge, gate and reset. Then the product."""
    elements = c.y_seq.numel()
    recompute = CHARGE + (FIRE if c.by_spike else CLAMP) + _coupled_reset(c)
    return Operations(
        elements * _coupled_gradient(c, c.by_spike), elements * recompute + elements // c.groups * CARRIED_INPUT
    )


NORMALISE = 2
"""A channel's scale and shift: fma, counted as a product and a sum."""


def _norm_charge(c: Call) -> int:
    return NORMALISE + (c.residual_seq is not None) + CHARGE


def _affine(c: Call) -> int:
    return sum(each is not None for each in (c.weight, c.bias, c.residual_seq))


def _norm_forward(c: Call) -> Operations:
    return Operations(c.z_seq.numel() * (NORM + CLAMP + _affine(c) + CHARGE + FIRE + RESET + OUTPUT))


def _norm_backward(c: Call) -> Operations:
    """Recomputed: input, charge and reset; decoding thrice more, and whether the clamp bit.

    Then the product, its two factors, the gradient at n (gamma, epsilon y, sum, select), the four sums, and the norm's.
    """
    recompute = 4 * DECODE + _affine(c) + CHARGE + RESET + INSIDE
    work = _charge_gradient(c) + 2 + (c.weight is not None) + 3 + 6 + 4
    return Operations(c.y_seq.numel() * work, c.y_seq.numel() * recompute)


OPERATORS = {
    "lif_forward": Operator(
        "(Tensor x_seq, Tensor? v, Tensor? rate, float[] p, bool decay, bool soft, bool keep)"
        " -> (Tensor, Tensor, Tensor)",
        # Spikes, last membrane, charges. A rate is 1 / tau, of one element, in place of that of p.
        lambda c: (_all(c.x_seq), _step(c.x_seq), _all(c.x_seq, c.keep)),
        _lif_forward,
    ),
    "lif_backward": Operator(
        "(Tensor charge_seq, Tensor? sbar_seq, Tensor? vbar, Tensor? v, Tensor? rate, float[] p, int kind, bool decay,"
        " bool soft, bool detach, bool need_v, bool need_rate) -> (Tensor, Tensor, Tensor)",
        # Gradients of the input and, here as below, where needed of the first membrane; what each neuron adds to the
        # rate's.
        lambda c: (
            _all(c.charge_seq),
            _step(c.charge_seq, c.need_v),
            _step(c.charge_seq, c.need_rate).to(torch.promote_types(c.charge_seq.dtype, torch.float32)),
        ),
        # Spike of the charge, the product, the two factors keep and gain; the sum for the rate.
        lambda c: Operations(c.charge_seq.numel() * (FIRE + _charge_gradient(c) + 2 + RATE_GRADIENT * c.need_rate)),
    ),
    # `inner`: channels lie so many columns apart, again and again.
    "norm_lif_forward": Operator(
        "(Tensor z_seq, Tensor? v, Tensor mean, Tensor inverse_std, Tensor? weight, Tensor? bias, Tensor? residual_seq,"
        " float[] p, int inner, bool decay, bool soft) -> (Tensor, Tensor)",
        # Spikes, last membrane.
        lambda c: (_all(c.z_seq), _step(c.z_seq)),
        lambda c: Operations(c.z_seq.numel() * (_norm_charge(c) + FIRE + RESET)),
    ),
    "norm_lif_backward": Operator(
        "(Tensor z_seq, Tensor? v, Tensor mean, Tensor inverse_std, Tensor? weight, Tensor? bias, Tensor? residual_seq,"
        " Tensor? sbar_seq, Tensor? vbar, float[] p, int kind, int inner, bool decay, bool soft, bool detach,"
        " bool need_v) -> (Tensor, Tensor)",
        # Gradients of the neuron's input and of the first membrane.
        lambda c: (_all(c.z_seq), _step(c.z_seq, c.need_v)),
        # As lif_backward; again: the norm, the charge, its spike and reset.
        lambda c: Operations(
            c.z_seq.numel() * (FIRE + _charge_gradient(c) + 2), c.z_seq.numel() * (_norm_charge(c) + FIRE + RESET)
        ),
    ),
    "carrier_forward": Operator(
        "(Tensor x_seq, Tensor? v, float[] p, bool decay, bool soft) -> (Tensor, Tensor)",
        # Output, last membrane.
        lambda c: (_all(c.x_seq), _step(c.x_seq)),
        lambda c: Operations(c.x_seq.numel() * (CLAMP + CHARGE + FIRE + RESET + OUTPUT)),
    ),
    "carrier_backward": Operator(
        "(Tensor y_seq, Tensor? v, Tensor? ybar_seq, Tensor? vbar, float[] p, int kind, bool soft, bool detach,"
        " bool need_v) -> (Tensor, Tensor)",
        lambda c: (_all(c.y_seq), _step(c.y_seq, c.need_v)),
        # The product, keep, gain, epsilon, sum, select. Again: decoding, charge, reset; decoding and the clamp.
        lambda c: Operations(
            c.y_seq.numel() * (_charge_gradient(c) + 5), c.y_seq.numel() * (2 * DECODE + CHARGE + RESET + INSIDE)
        ),
    ),
    "coupled_forward": Operator(
        "(Tensor x_seq, Tensor? v, float[] p, bool decay, bool soft, bool by_spike, int groups, int group_dim,"
        " int every) -> (Tensor, Tensor, Tensor)",
        # Output, last membrane, the membrane before each later segment.
        lambda c: (_all(c.x_seq), _step(c.x_seq), _anchors(c.x_seq, c.every)),
        _coupled_forward,
    ),
    "inverse_backward": Operator(
        "(Tensor y_seq, Tensor v_last, Tensor? ybar_seq, Tensor? vbar, float[] p, int kind, bool soft, bool detach,"
        " int groups, int group_dim, bool need_v) -> (Tensor, Tensor)",
        lambda c: (_all(c.y_seq), _step(c.y_seq, c.need_v)),
        _inverse_backward,
    ),
    "anchored_backward": Operator(
        "(Tensor y_seq, Tensor? v, Tensor anchors, Tensor? ybar_seq, Tensor? vbar, float[] p, int kind, bool decay,"
        " bool soft, bool detach, bool by_spike, int groups, int group_dim, int every, bool need_v)"
        " -> (Tensor, Tensor)",
        lambda c: (_all(c.y_seq), _step(c.y_seq, c.need_v)),
        _anchored_backward,
    ),
    "norm_carrier_forward": Operator(
        "(Tensor z_seq, Tensor? v, Tensor? weight, Tensor? bias, Tensor? residual_seq, float[] p, float eps,"
        " bool decay, bool soft) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
        # Output, last membrane; mean, variance and 1/sigma per channel; how often the clamp bit.
        lambda c: (_all(c.z_seq), _step(c.z_seq), *_channels(c.z_seq, 3), c.z_seq.new_empty(1, dtype=torch.int64)),
        _norm_forward,
        on_cuda=False,
    ),
    "norm_carrier_backward": Operator(
        "(Tensor y_seq, Tensor? v, Tensor? weight, Tensor? bias, Tensor? residual_seq, Tensor inverse_std,"
        " Tensor? beyond, Tensor? excess, Tensor? ybar_seq, Tensor? vbar, float[] p, int kind, bool soft, bool detach,"
        " bool need_residual, bool need_v) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
        # Gradients of the input, gamma, bias, residual and first membrane.
        lambda c: (_all(c.y_seq), *_channels(c.y_seq, 2), _all(c.y_seq, c.need_residual), _step(c.y_seq, c.need_v)),
        _norm_backward,
        on_cuda=False,
    ),
}
"""Every fused operator, by its name in `torch.ops.revsnn`."""

_LIBRARY = torch.library.Library("revsnn", "DEF")


def _define(name: str, operator: Operator) -> None:
    def on_cpu(*arguments: Any) -> tuple[Tensor, ...]:
        from revsnn_nodes.kernels.cpu import launch

        call = operator.call(*arguments)
        return launch.run(name, operator.results(call), call)

    def on_cuda(*arguments: Any) -> tuple[Tensor, ...]:
        from revsnn_nodes.kernels.triton import launch

        return launch.launch(name, *arguments)

    _LIBRARY.define(name + operator.schema)
    _LIBRARY.impl(name, on_cpu, "CPU")
    if operator.on_cuda:
        _LIBRARY.impl(name, on_cuda, "CUDA")
    torch.library.register_fake(
        f"revsnn::{name}", lambda *arguments: operator.results(operator.call(*arguments)), lib=_LIBRARY
    )


for _name, _operator in OPERATORS.items():
    _define(_name, _operator)


OPERATIONS: dict[str, Callable[..., Operations]] = {f"revsnn::{name}": each.count for name, each in OPERATORS.items()}
"""Operations of a call by the operator's qualified name; called with the operator's arguments."""
