"""Floating-point operations of one training step, counted at the dispatcher, phases apart.

A dispatch mode sees every operator below autograd, so composites are counted once, in the pieces that really
run, and the code inside an autograd Function is counted like any other. An operator without a formula raises:
a count that silently misses work would flatter whoever fuses most. The rule is in `flop_rules.py`.

The phases are those that the timing meter times, with recomputation taken out of backward:

* forward: what `step.forward()` runs;
* backward: what `step.backward()` runs, the output's gradient (a loss, if any) included;
* recompute: forward work inside a backward pass. That is anything with grad mode on inside a graph task
  (checkpointing, classic reversible backpropagation), and anything inside a
  `torch.profiler.record_function` range whose label contains "recompute".

This project's nodes are counted on their reference backend, whichever they run on: one count per equation, as
nodes/README.md lists them. Other work that is launched past the dispatcher (a bare numba or triton kernel) cannot be
seen: wrap it as a `torch.library` operator and register its formula.

Gradient accumulation is an addition per element, first gradients excepted, which autograd only moves. Under
`create_graph=True` all of backward has grad mode on, and reads as recomputation. fvcore's count of the convolutions
and matrix products in forward is taken beside all this, as a cross-check.
"""

import logging
import threading
import warnings
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Literal

import torch
from revsnn_nodes.kernels.support import equations_written_out
from torch import Tensor, nn
from torch._library.custom_ops import CustomOpDef
from torch._ops import OpOverload, OpOverloadPacket
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from revsnn_bench.meters.flop_rules import FORMULAS, MOVEMENT, POINTWISE, REDUCTIONS, Call, Formula, elements, written
from revsnn_bench.meters.step import TrainingStep
from revsnn_bench.records import FlopsRecord, PhaseFlops

with warnings.catch_warnings():
    # Its imports warn of deprecations that neither a user nor we can change.
    warnings.simplefilter("ignore")
    from fvcore.nn import FlopCountAnalysis

_PRODUCTS = ("conv", "linear", "addmm", "mm", "matmul", "bmm", "baddbmm", "einsum")


def fvcore_forward_flops(model: nn.Module, input: Tensor) -> int | None:
    """Operations that fvcore finds in the convolutions and matrix products of one forward pass, 2 per MAC.

    It traces the model once under `torch.no_grad`, and neurons keep the state of that run; None where it cannot. A
    product inside an autograd Function is missing here, since it sees nothing in there.
    """
    with warnings.catch_warnings():
        # So does torch's tracer.
        warnings.simplefilter("ignore")
        analysis = FlopCountAnalysis(model, (input,)).unsupported_ops_warnings(False)
        analysis = analysis.uncalled_modules_warnings(False).tracer_warnings("none")
        logger = logging.getLogger("fvcore")
        level = logger.level
        logger.setLevel(logging.CRITICAL)
        try:
            with torch.no_grad():
                counts = analysis.by_operator()
        except Exception:  # The tracer raises whatever the traced model raises.
            return None
        finally:
            logger.setLevel(level)
    return 2 * int(sum(counts[name] for name in _PRODUCTS))


Phase = Literal["forward", "backward", "recompute"]
Operator = str | OpOverload | OpOverloadPacket | CustomOpDef

Count = Callable[..., PhaseFlops | int]
_registered: dict[str, Count] = {}


class UnknownOperation(LookupError):
    """An operator ran that has no FLOPs formula."""


def register_flop_formula(operator: Operator, formula: Count) -> None:
    """Gives an operator its count; needed once for every fused kernel, and overrides a formula of ours.

    Args:
        operator: `torch.ops.ns.name`, one overload of it, what `torch.library.custom_op` returned, or its
            name "ns::name". The formula holds for all overloads.
        formula: called as `formula(*args, out=result, **kwargs)` with what the operator was called with;
            returns PhaseFlops, or an int, which counts as pointwise work.
    Raises:
        ValueError: a name without a namespace.
    """
    if isinstance(operator, OpOverload):
        name = operator._schema.name
    elif isinstance(operator, OpOverloadPacket):
        name = str(operator).replace(".", "::", 1)
    else:
        name = operator if isinstance(operator, str) else operator._qualname
    if "::" not in name:
        raise ValueError(
            f"`operator` must be a qualified name such as 'aten::add'; got {name!r}. Operators of different "
            f"libraries share names. Pass 'namespace::{name}' or the operator itself."
        )
    _registered[name] = formula


def measure_flops(step: TrainingStep, cross_check: bool = True) -> FlopsRecord:
    """Runs one forward and backward of `step` under the counter, then fvcore's cross-check of its products.

    Args:
        cross_check: whether to ask fvcore, which cannot trace fake tensors.
    Raises:
        UnknownOperation: an operator ran that has no formula; the message says how to register one.
    """
    counter = _Counter()
    step.prepare()
    with equations_written_out(), counter:
        output = step.forward()
        counter.stage = "backward"
        step.backward(output)
    del output
    step.prepare()
    phases = counter.phases()
    check = None
    if cross_check and phases["forward"].multiply_accumulate:  # fvcore counts nothing else, and its tracing is slow
        check = fvcore_forward_flops(step.model, step.make_input())
        step.prepare()
    return FlopsRecord(**phases, fvcore_forward_flops=check)


class _Counter(TorchDispatchMode):
    """Adds up operations by phase; on devices, autograd's own threads call it too."""

    def __init__(self) -> None:
        super().__init__()
        self.stage: Phase = "forward"
        self._counts: dict[Phase, list[int]] = {"forward": [0, 0], "backward": [0, 0], "recompute": [0, 0]}
        # Open ranges of each thread, innermost last: is it a recomputation?
        self._ranges: dict[int, list[bool]] = defaultdict(list)
        self._lock = threading.Lock()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name: str = func._schema.name
        if name.startswith("prim::"):  # a fake tensor is asked for its device
            return func(*args, **kwargs)
        if name.startswith("profiler::"):
            self._follow_range(name, args)
            return func(*args, **kwargs)
        if _is_composite(func, name):
            with self:
                pieces = func.decompose(*args, **kwargs)
            if pieces is not NotImplemented:
                return pieces
        phase = self._phase()
        out = func(*args, **kwargs)
        flops = count(func, args, kwargs, out)
        with self._lock:
            self._counts[phase][0] += flops.pointwise
            self._counts[phase][1] += flops.multiply_accumulate
        return out

    def phases(self) -> dict[Phase, PhaseFlops]:
        return {
            phase: PhaseFlops(pointwise=pointwise, multiply_accumulate=multiply_accumulate)
            for phase, (pointwise, multiply_accumulate) in self._counts.items()
        }

    def _follow_range(self, name: str, args: tuple[Any, ...]) -> None:
        ranges = self._ranges[threading.get_ident()]
        if "_record_function_enter" in name:
            ranges.append("recompute" in args[0])
        elif ranges:
            ranges.pop()

    def _phase(self) -> Phase:
        in_graph_task = torch._C._current_graph_task_id() != -1
        if any(self._ranges[threading.get_ident()]) or (in_graph_task and torch.is_grad_enabled()):
            return "recompute"
        return "backward" if in_graph_task else self.stage


def count(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> PhaseFlops:
    """Operations of one call of `func`, which returned `out`; raises `UnknownOperation` without a formula."""
    if (registered := _registered.get(func._schema.name)) is not None:
        return _as_flops(registered(*args, out=out, **kwargs))
    if (formula := _formula(func)) is not None:
        values = {argument.name: argument.default_value for argument in func._schema.arguments}
        values.update(zip(values, args, strict=False))
        return _as_flops(formula(Call(values | kwargs, out)))
    if func.overloadpacket in flop_registry:
        macs = flop_registry[func.overloadpacket](*args, **kwargs, out_val=out)
        return PhaseFlops(pointwise=0, multiply_accumulate=macs)
    raise UnknownOperation(
        f"`{func.name()}` must have a FLOPs formula; got none. Without it work would go uncounted. "
        f"Register one: revsnn_bench.meters.flops.register_flop_formula({func._schema.name!r}, "
        "lambda *args, out, **kwargs: out.numel())."
    )


def _formula(func: OpOverload) -> Formula | None:
    namespace, name = func._schema.name.split("::")
    if func.is_view:
        return lambda _: 0
    if namespace != "aten":
        return None
    if name in FORMULAS:
        return FORMULAS[name]
    if name in MOVEMENT:
        return lambda _: 0
    # `max` and `equal` carry the pointwise tag on some overloads only, so reductions are known by name.
    if name in REDUCTIONS and not (name in ("max", "min") and torch.Tag.pointwise in func.tags):
        return lambda call: elements(call.first)
    return written if _is_pointwise(name) else None


def _is_pointwise(name: str) -> bool:
    """Whether any overload carries torch's tag; in-place and foreach variants often lack it themselves."""
    plain = name.removeprefix("_foreach_")
    plain = plain[:-1] if plain.endswith("_") and not plain.endswith("__") else plain
    packet = getattr(torch.ops.aten, plain, None)
    return plain in POINTWISE or (
        packet is not None
        and any(torch.Tag.pointwise in getattr(packet, overload).tags for overload in packet.overloads())
    )


def _is_composite(func: OpOverload, name: str) -> bool:
    """Composites reach the counter only where autograd is bypassed (inference mode)."""
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    return name not in _registered and torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key)


def _as_flops(flops: PhaseFlops | int) -> PhaseFlops:
    if isinstance(flops, PhaseFlops):
        return flops
    return PhaseFlops(pointwise=int(flops), multiply_accumulate=0)
