"""The fused kernels as torch operators `revsnn::*`: one row each in `OPERATORS`.

Sequences are `[T, N, *]`, states `[N, *]`, of any strides (copied where not contiguous); results are contiguous. States
(membranes, anchors and their gradients) have the `equations.state_dtype` of sequences: float32 for half precision.
`p` is a `layout.Numbers`; `kind` is the index of the surrogate's shape in `layout.KINDS`. Missing gradients count as
zeros. An operator that may leave out a result returns an empty tensor for it. Compiled code is loaded at first use.
Operations are not counted here: a counter runs the reference, see `support.equations_written_out`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from revsnn_nodes.equations import state_dtype


@dataclass(frozen=True)
class Operator:
    """One fused operator."""

    schema: str  # arguments and results, as torch writes them
    results: Callable[[SimpleNamespace], tuple[Tensor, ...]]  # the empty ones of a `call`
    on_cuda: bool = True  # whether there is a kernel for CUDA

    @cached_property
    def arguments(self) -> tuple[str, ...]:
        """The names of the arguments."""
        inside = self.schema[1 : self.schema.index(")")]
        return tuple(argument.split()[-1] for argument in inside.split(","))

    def call(self, *arguments: Any) -> SimpleNamespace:
        """The arguments of a call by name."""
        return SimpleNamespace(**dict(zip(self.arguments, arguments, strict=True)))


def _all(sequence: Tensor, wanted: bool = True) -> Tensor:
    return sequence.new_empty(sequence.shape if wanted else (0,))


def _state(sequence: Tensor, wanted: bool = True) -> Tensor:
    return sequence.new_empty(sequence.shape[1:] if wanted else (0,), dtype=state_dtype(sequence.dtype))


def _channels(sequence: Tensor, count: int) -> tuple[Tensor, ...]:
    return tuple(sequence.new_empty(sequence.shape[2]) for _ in range(count))


def _anchors(x_seq: Tensor, every: int) -> Tensor:
    return x_seq.new_empty(((x_seq.shape[0] - 1) // every, *x_seq.shape[1:]), dtype=state_dtype(x_seq.dtype))


OPERATORS = {
    "lif_forward": Operator(
        "(Tensor x_seq, Tensor? v, Tensor? rate, float[] p, bool decay, bool soft, bool keep)"
        " -> (Tensor, Tensor, Tensor)",
        # Spikes, last membrane, charges. A rate is 1 / tau, of one element, in place of that of p.
        lambda c: (_all(c.x_seq), _state(c.x_seq), _all(c.x_seq, c.keep)),
    ),
    "lif_backward": Operator(
        "(Tensor charge_seq, Tensor? sbar_seq, Tensor? vbar, Tensor? v, Tensor? rate, float[] p, int kind, bool decay,"
        " bool soft, bool detach, bool need_v, bool need_rate) -> (Tensor, Tensor, Tensor)",
        # Gradients of the input and, here as below, where needed of the first membrane; what each neuron adds to the
        # rate's.
        lambda c: (_all(c.charge_seq), _state(c.charge_seq, c.need_v), _state(c.charge_seq, c.need_rate)),
    ),
    # `inner`: channels lie so many columns apart, again and again. `form`: how the norm is rounded, `layout.FORMS`.
    "norm_lif_forward": Operator(
        "(Tensor z_seq, Tensor? v, Tensor mean, Tensor inverse_std, Tensor? weight, Tensor? bias, Tensor? residual_seq,"
        " float[] p, int inner, int form, bool decay, bool soft) -> (Tensor, Tensor)",
        # Spikes, last membrane.
        lambda c: (_all(c.z_seq), _state(c.z_seq)),
    ),
    "norm_lif_backward": Operator(
        "(Tensor z_seq, Tensor? v, Tensor mean, Tensor inverse_std, Tensor? weight, Tensor? bias, Tensor? residual_seq,"
        " Tensor? sbar_seq, Tensor? vbar, float[] p, int kind, int inner, int form, bool decay, bool soft, bool detach,"
        " bool need_v) -> (Tensor, Tensor)",
        # Gradients of the neuron's input and of the first membrane.
        lambda c: (_all(c.z_seq), _state(c.z_seq, c.need_v)),
    ),
    "carrier_forward": Operator(
        "(Tensor x_seq, Tensor? v, float[] p, bool decay, bool soft) -> (Tensor, Tensor)",
        # Output, last membrane.
        lambda c: (_all(c.x_seq), _state(c.x_seq)),
    ),
    "carrier_backward": Operator(
        "(Tensor y_seq, Tensor? v, Tensor? ybar_seq, Tensor? vbar, float[] p, int kind, bool soft, bool detach,"
        " bool need_v) -> (Tensor, Tensor)",
        lambda c: (_all(c.y_seq), _state(c.y_seq, c.need_v)),
    ),
    "coupled_forward": Operator(
        "(Tensor x_seq, Tensor? v, float[] p, bool decay, bool soft, bool by_spike, int groups, int group_dim,"
        " int every) -> (Tensor, Tensor, Tensor)",
        # Output, last membrane, the membrane before each later segment.
        lambda c: (_all(c.x_seq), _state(c.x_seq), _anchors(c.x_seq, c.every)),
    ),
    "inverse_backward": Operator(
        "(Tensor y_seq, Tensor v_last, Tensor? ybar_seq, Tensor? vbar, float[] p, int kind, bool soft, bool detach,"
        " int groups, int group_dim, bool need_v) -> (Tensor, Tensor)",
        lambda c: (_all(c.y_seq), _state(c.y_seq, c.need_v)),
    ),
    "anchored_backward": Operator(
        "(Tensor y_seq, Tensor? v, Tensor anchors, Tensor? ybar_seq, Tensor? vbar, float[] p, int kind, bool decay,"
        " bool soft, bool detach, bool by_spike, int groups, int group_dim, int every, bool need_v)"
        " -> (Tensor, Tensor)",
        lambda c: (_all(c.y_seq), _state(c.y_seq, c.need_v)),
    ),
    "norm_carrier_forward": Operator(
        "(Tensor z_seq, Tensor? v, Tensor? weight, Tensor? bias, Tensor? residual_seq, float[] p, float eps,"
        " bool decay, bool soft) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
        # Output, last membrane; mean, variance and 1/sigma per channel; how often the clamp bit.
        lambda c: (_all(c.z_seq), _state(c.z_seq), *_channels(c.z_seq, 3), c.z_seq.new_empty(1, dtype=torch.int64)),
        on_cuda=False,
    ),
    "norm_carrier_backward": Operator(
        "(Tensor y_seq, Tensor? v, Tensor? weight, Tensor? bias, Tensor? residual_seq, Tensor inverse_std,"
        " Tensor? beyond, Tensor? excess, Tensor? ybar_seq, Tensor? vbar, float[] p, int kind, bool soft, bool detach,"
        " bool need_residual, bool need_v) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
        # Gradients of the input, gamma, bias, residual and first membrane.
        lambda c: (_all(c.y_seq), *_channels(c.y_seq, 2), _all(c.y_seq, c.need_residual), _state(c.y_seq, c.need_v)),
        on_cuda=False,
    ),
}
"""Every fused operator, by its name in `torch.ops.revsnn`."""

_LIBRARY = torch.library.Library("revsnn", "DEF")


def _define(name: str, operator: Operator) -> None:
    def kernel_in(package: str) -> Callable[..., tuple[Tensor, ...]]:
        """The operator's kernel of `kernels.cpu` or `kernels.triton`, which is imported at the first call."""

        def run(*arguments: Any) -> tuple[Tensor, ...]:
            """Takes the schema's arguments; returns its results, newly made."""
            launch, call = import_module(f"revsnn_nodes.kernels.{package}.launch"), operator.call(*arguments)
            results: tuple[Tensor, ...] = launch.run(name, operator.results(call), call)
            return results

        return run

    _LIBRARY.define(name + operator.schema)
    _LIBRARY.impl(name, kernel_in("cpu"), "CPU")
    if operator.on_cuda:
        _LIBRARY.impl(name, kernel_in("triton"), "CUDA")
    torch.library.register_fake(
        f"revsnn::{name}", lambda *arguments: operator.results(operator.call(*arguments)), lib=_LIBRARY
    )


for _name, _operator in OPERATORS.items():
    _define(_name, _operator)
