"""A memory plan: for each block of a model, how it keeps what its backward pass needs.

    from revsnn_nodes import apply_plan
    apply_plan(model, "plan.json")      # in the training script, before the first step

What a block may do, by name:

    plain        keeps what autograd keeps
    remat        keeps recipes in place of what is cheap (`revsnn_nodes.remat`); `remat4` those of at most 4 passes
    checkpoint   keeps its inputs, and runs again in the backward pass
    bits         the same, and its output is kept at one bit per element where it is binary
    offload      keeps what autograd keeps in the host's memory, whence it comes back; for a block on a GPU alone

A block's output is kept by whatever reads it, and in the way of the block that made it. `REST` stands for what is in no
block; it takes `plain` and `remat`. Outputs, gradients and buffers are those of the model without a plan.
"""

import json
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.autograd.graph import save_on_cpu
from torch.nn.modules.batchnorm import _NormBase
from torch.profiler import record_function
from torch.utils.checkpoint import checkpoint

from revsnn_nodes.checkpoints import putting_back
from revsnn_nodes.parameters import require
from revsnn_nodes.remat import remat
from revsnn_nodes.remat.recipes import Counter
from revsnn_nodes.remat.record import ManyTimes, note_recipe, recording

REST = "rest"
WHOLE = "(model)"
OPTIONS = ("plain", "remat", "remat4", "checkpoint", "bits")
"""Every option of a block on any device."""

OFFLOAD = "offload"
"""The option of a block on a GPU alone."""

PASSES = {"remat": 16, "remat4": 4}
"""`max_passes` of the options that record."""

_BITS = (1, 2, 4, 8, 16, 32, 64, 128)
_SLICE = re.compile(r"(.*)\[(\d+):(\d+)\]")


class Packed(NamedTuple):
    """A binary tensor in bits."""

    bits: Tensor  # eight elements per byte, [ceil(n / 8)]
    shape: torch.Size
    dtype: torch.dtype


def pack_bits(x: Tensor) -> Packed | None:
    """A tensor of zeros and ones in bits; None where any element is another number, NaN included.

    A fake tensor, which has no numbers, is taken for one of zeros and ones, unless it is a sum.
    """
    is_sum, x = type(x.grad_fn).__name__ == "AddBackward0", x.detach()
    binary = ((x == 0) | (x == 1)).all()
    if is_sum if isinstance(x, FakeTensor) else not bool(binary):
        return None
    ones = (x != 0).flatten()
    padded = torch.nn.functional.pad(ones, (0, -ones.numel() % 8)).view(-1, 8)
    weights = torch.tensor(_BITS, dtype=torch.uint8, device=x.device)
    return Packed((padded * weights).sum(1, dtype=torch.uint8), x.shape, x.dtype)


def unpack_bits(packed: Packed) -> Tensor:
    """The tensor that was packed, contiguous."""
    weights = torch.tensor(_BITS, dtype=torch.uint8, device=packed.bits.device)
    ones = (packed.bits.unsqueeze(1) & weights) != 0
    return ones.flatten()[: packed.shape.numel()].view(packed.shape).to(packed.dtype)


def is_neuron(module: Any) -> bool:
    """Whether a module keeps a membrane `v` until `reset()`, as SpikingJelly's and this project's nodes do.

    What `torch.compile` wraps around one has both, too, and is none: the neuron is inside of it. A parameter `v`, such
    as the directions of a weight norm, is no membrane.
    """
    is_membrane = hasattr(module, "v") and not isinstance(module.v, nn.Parameter)
    return is_membrane and callable(getattr(type(module), "reset", None))


def neurons_of(model: nn.Module) -> list[Any]:
    """The neurons of a model, itself among them where it is one."""
    return [module for module in model.modules() if is_neuron(module)]


@dataclass(frozen=True)
class Block:
    """A module, or some children in a row of an `nn.Sequential`."""

    path: str  # qualified name of the module, "" for the model itself
    start: int | None = None  # the first of its children, and behind the last; None for the module as a whole
    stop: int | None = None

    @classmethod
    def named(cls, name: str) -> "Block":
        """The block of a name."""
        match = _SLICE.fullmatch(name)
        if match is not None:
            return cls(match[1], int(match[2]), int(match[3]))
        return cls("" if name == WHOLE else name)

    @property
    def name(self) -> str:
        """Such as `layer1.0`, `features[0:3]`, and `(model)` for the model itself."""
        return (self.path or WHOLE) if self.start is None else f"{self.path}[{self.start}:{self.stop}]"

    def modules(self, model: nn.Module) -> list[nn.Module]:
        """The modules that run one after the other."""
        module = model.get_submodule(self.path)
        return [module] if self.start is None else _in_order(module)[self.start : self.stop]


def _in_order(sequential: nn.Module) -> list[nn.Module]:
    """What an `nn.Sequential` runs, one after the other; `children()` leaves out a second place of a module."""
    return [child for child in sequential._modules.values() if child is not None]


def find_blocks(model: nn.Module, kind: type[nn.Module] | tuple[type[nn.Module], ...] | None = None) -> list[Block]:
    """The smallest modules that hold a weight matrix and a neuron; an `nn.Sequential` is cut behind each neuron.

    A module whose inner blocks hold neither more than half of its parameters nor all of its neurons is one block: the
    shortcut of a residual block is no block of its own.
    """
    if kind is not None:
        return [Block(name) for name, module in model.named_modules() if isinstance(module, kind)]
    return list(_blocks_in("", model)) if _holds_both(model) else []


def _blocks_in(path: str, module: nn.Module) -> Iterator[Block]:
    children = [(f"{path}.{name}".removeprefix("."), child) for name, child in module.named_children()]
    inner = [(name, child) for name, child in children if _holds_both(child)]
    if type(module).forward is nn.Sequential.forward:
        start, names = 0, {child: name for name, child in children}
        for number, child in enumerate(_in_order(module)):
            if _holds_both(child):
                if child in names:  # its first place
                    yield from _blocks_in(names.pop(child), child)
                start = number + 1
            elif neurons_of(child):
                yield Block(path, start, number + 1)
                start = number + 1
    elif (
        2 * sum(_size(child) for _, child in inner) > _size(module)
        # as of a network whose head has most of the parameters
        or {each for _, child in inner for each in neurons_of(child)} == {*neurons_of(module)}
    ):
        for name, child in inner:
            yield from _blocks_in(name, child)
    else:
        yield Block(path)


def _holds_both(module: nn.Module) -> bool:
    return any(p.dim() > 1 for p in module.parameters()) and bool(neurons_of(module))


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def apply_plan(model: nn.Module, plan: Mapping[str, str] | str | PathLike[str]) -> nn.Module:
    """Makes the blocks of a model keep what a plan says; replaces a plan that was applied before.

    Args:
        model: changed in place; its parameters, buffers and the names of them stay.
        plan: option by name of the block, or the file that `revsnn-bench plan` wrote, whose neurons are put in, too.
            Blocks that it does not name are plain. Warns where the file says that its plan does not fit, and where
            neurons cannot be put in.
    Returns:
        The model.
    Raises:
        ValueError: a block that the model does not have, blocks that overlap, or an option that does not exist.
    """
    if not isinstance(plan, Mapping):
        neurons, plan = _read_plan(Path(plan))
        if neurons == "lif" and (hooked := [name for name, why in put_in_our_neurons(model).items() if "hooks" in why]):
            warnings.warn(
                f"The neurons {', '.join(hooked)} stay SpikingJelly's, for they have hooks: a step takes more than the "
                "plan says, if that was made without them. Apply the plan first, then register them.",
                stacklevel=2,
            )
    remove_plan(model)
    by_module: dict[str, list[tuple[Block, str]]] = {}
    for name, option in plan.items():
        allowed = ("plain", *PASSES) if name == REST else (*OPTIONS, OFFLOAD)
        require(
            option in allowed, "plan", f"give {name!r} one of {', '.join(allowed)}", option,
            "It says what the block keeps.", "Make the plan again with this version.",
        )  # fmt: skip
        if name != REST:
            block = Block.named(name)
            _require_block(model, block)
            _require_device(model, block, option)
            by_module.setdefault(block.path, []).append((block, option))
    for rows in by_module.values():
        rows.sort(key=lambda row: (row[0].start or 0, row[0].stop or math.inf))
        for (one, _), (other, _) in pairwise(rows):
            require(
                one.stop is not None and one.stop <= (other.start or 0), "plan", "name blocks that do not overlap",
                f"{one.name} and {other.name}", "What is in both would run twice.", "Leave one of them out.",
            )  # fmt: skip
    if not {*plan.values()} <= {"plain"}:
        for path, rows in by_module.items():
            module = model.get_submodule(path)
            module.forward = _Planned(module, rows)
        model.forward = _WithRecorder(model, plan.get(REST, "plain"))
    return model


def _read_plan(file: Path) -> tuple[str, dict[str, str]]:
    """The neurons and the options by block in a file that `revsnn-bench plan` wrote."""
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
        neurons, options = str(saved["neurons"]), {str(row["block"]): str(row["option"]) for row in saved["blocks"]}
        fits, numbers = saved.get("fits", True), (saved.get("budget_bytes", 0), saved.get("expected_bytes", 0))
        budget, expected = (f"{number / 2**20:,.2f} MiB" for number in numbers)
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(
            f"`plan` must be options by block, or a file that `revsnn-bench plan` wrote; got {file}, which is none "
            f"({type(error).__name__}: {str(error)[:80]}). Make the plan again."
        ) from None
    if not fits:
        warnings.warn(
            f"The plan in {file} does not fit its budget of {budget}: a step is expected to take {expected}.",
            stacklevel=3,
        )
    return neurons, options


def remove_plan(model: nn.Module) -> None:
    """Undoes `apply_plan`."""
    for module in model.modules():
        while isinstance(module.__dict__.get("forward"), _Forward):
            inner = module.__dict__["forward"].inner
            del module.forward
            if inner is not None:
                module.forward = inner


def put_in_our_neurons(model: nn.Module) -> dict[str, str]:
    """Exchanges SpikingJelly's LIF neurons for the fused ones of the same function; what is left, and why."""
    if not any(type(neuron).__module__.startswith("spikingjelly.") for neuron in neurons_of(model)):
        return {}
    from revsnn_nodes.spikingjelly import swap_neurons

    return swap_neurons(model).left


def _require_block(model: nn.Module, block: Block) -> None:
    module = dict(model.named_modules()).get(block.path)
    is_there = module is not None
    if module is not None and block.start is not None:
        is_sequential = type(module).forward is nn.Sequential.forward
        is_there = is_sequential and block.start < (block.stop or 0) <= len(_in_order(module))
    require(
        is_there, "plan", "name blocks of the model", block.name, f"{type(model).__name__} has no such block.",
        "Apply it to the model that it was made for.",
    )  # fmt: skip


def _require_device(model: nn.Module, block: Block, option: str) -> None:
    devices = {each.device.type for module in block.modules(model) for each in module.parameters()}
    require(
        option != OFFLOAD or devices.isdisjoint({"cpu", "meta"}), "plan",
        f"give {block.name!r} another option on the CPU", option,
        "What it would move to the host's memory is there already.",
        "Move the model to a GPU first, or make the plan for the CPU.",
    )  # fmt: skip


class _Forward:
    """A module's forward in the place of the one it had: an attribute of the module, which a copy takes along."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.inner: Callable[..., Any] | None = module.__dict__.get("forward")

    def original(self, *args: Any, **kwargs: Any) -> Any:
        """What the module does without it."""
        if self.inner is not None:
            return self.inner(*args, **kwargs)
        return type(self.module).forward(self.module, *args, **kwargs)


class _WithRecorder(_Forward):
    """The model's forward inside `remat`, which records where the plan says so."""

    def __init__(self, module: nn.Module, rest: str) -> None:
        super().__init__(module)
        self.rest = rest

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with remat(), recording(PASSES.get(self.rest)):
            return self.original(*args, **kwargs)


class _Planned(_Forward):
    """A module's forward, or each part of a sequential one, with its option."""

    def __init__(self, module: nn.Module, rows: Sequence[tuple[Block, str]]) -> None:
        super().__init__(module)
        self.rows = rows

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.rows[0][0].start is None:
            return _run(self.original, [self.module], self.rows[0][1], *args, **kwargs)
        children, at, (x,) = _in_order(self.module), 0, args
        for block, option in self.rows:
            x = _in_turn(children[at : block.start], x)
            part, at = children[block.start : block.stop], block.stop or 0
            x = _run(partial(_in_turn, part), part, option, x)
        return _in_turn(children[at:], x)


def _in_turn(modules: Sequence[nn.Module], x: Any) -> Any:
    for module in modules:
        x = module(x)
    return x


def _run(function: Callable[..., Any], modules: Sequence[nn.Module], option: str, *args: Any, **kwargs: Any) -> Any:
    """Calls a block's forward with its option."""
    if not torch.is_grad_enabled():
        return function(*args, **kwargs)
    with recording(PASSES.get(option)):
        if option == OFFLOAD:
            with save_on_cpu(pin_memory=torch.cuda.is_available()):
                return function(*args, **kwargs)
        if option not in ("checkpoint", "bits"):
            return function(*args, **kwargs)
        inner = [each for module in modules for each in module.modules()]
        start, learned = _states(inner), _learned(inner)
        read = [Counter(each) for _, _, each in learned if not each.is_inference()]
        before = [
            (module, name, buffer, None if buffer.is_inference() else buffer._version, buffer.clone())
            for module in inner
            if not (isinstance(module, _NormBase) and module.training)  # what it returns then needs no buffers
            for name, buffer in module.named_buffers(recurse=False)
        ]
        carried = [
            (state, name, each, each._version, each.clone())
            for module, state in start if not type(module).__module__.startswith(_WRITE_TO_NO_STATE)
            for name, each in state.items() if isinstance(each, Tensor) and not each.is_inference()
        ]  # fmt: skip
        given = [(each, each._version) for each in args if isinstance(each, Tensor) and not each.is_inference()]
        output = checkpoint(
            function, *args, use_reentrant=False, **kwargs,
            context_fn=lambda: (nullcontext(), run_again(inner, start, learned, read)),
        )  # fmt: skip
        require(
            all(each._version == version for each, version in given), "plan",
            "give a block that writes to its input an option under which it runs once", option,
            f"The block that begins with {type(modules[0]).__name__} would run again from what its first run left.",
            "Take `inplace=True` out of that module, or give the block 'plain', 'remat' or 'remat4'.",
        )  # fmt: skip
        for module, name, buffer, version, value in before:
            changed = module._buffers.get(name) is not buffer or version is None or buffer._version != version
            copied = changed or isinstance(module, _NormBase)
            start.append((module, {name: value if copied else buffer}))
            if not copied:
                read.append(Counter(buffer))
        for state, name, each, version, value in carried:
            if each._version != version:
                state[name] = _Written(value)
            else:
                read.append(Counter(each))
        if option == "bits" and isinstance(output, Tensor) and (packed := pack_bits(output)) is not None:
            note_recipe(lambda *parts: unpack_bits(Packed(*parts)), tuple(packed), output)
        return output


States = Sequence[tuple[nn.Module, dict[str, Any]]]
"""Modules and what they were in a forward: mode, memories and buffers, by name."""

_WRITE_TO_NO_STATE = ("revsnn_nodes.", "spikingjelly.")
"""Where neurons are from that never write to a membrane in place; a user's may."""


class _Written(NamedTuple):
    """A copy of what a neuron carried, for a forward that writes to it in place, as every further run does."""

    value: Tensor


def _states(modules: Sequence[nn.Module]) -> list[tuple[nn.Module, dict[str, Any]]]:
    """The mode of modules, and what they carry: a neuron in any attribute, SpikingJelly's layers in their memories."""
    states: list[tuple[nn.Module, dict[str, Any]]] = []
    for module in modules:
        carried: dict[str, Any] = {"training": module.training}
        if is_neuron(module):
            carried["v"] = module.v
            if not isinstance(module, torch.jit.ScriptModule):
                carried |= {name: each for name, each in vars(module).items() if name not in _OF_ANY_MODULE}
        if isinstance(memories := getattr(module, "_memories", None), dict):
            carried |= memories
        states.append((module, carried))
    return states


_OF_ANY_MODULE = frozenset({*vars(nn.Module()), "_memories"})
"""Attributes that are no state of a neuron's own."""


Learned = Sequence[tuple[nn.Module, str, Tensor]]
"""Parameters of modules, or what stood in their places, as where `torch.func.functional_call` gives others."""


def _learned(modules: Sequence[nn.Module]) -> Learned:
    """Not those of a scripted module, nor sharded ones, whose owner puts whole weights in their places."""
    return [
        (module, name, each)
        for module in modules if isinstance(module._parameters, dict)
        for name, each in module._parameters.items() if each is not None and type(each) in (Tensor, nn.Parameter)
    ]  # fmt: skip


def run_again(
    modules: Sequence[nn.Module], start: States = (), learned: Learned = (), read: Sequence[Counter] = ()
) -> AbstractContextManager[None]:
    """A second run of a forward that happened: modules start from `start`, and what it changes is put back.

    Each backward pass over a retained graph enters it anew. RuntimeError where what it `read` has changed since.
    """
    return ManyTimes(partial(_running_again, modules, start, learned, read))


@contextmanager
def _running_again(
    modules: Sequence[nn.Module], start: States, learned: Learned, read: Sequence[Counter]
) -> Iterator[None]:
    for counter in read:
        counter.check("A checkpointed block runs again with it. ")
    after, given = _states(modules), [row for row in learned if row[0]._parameters.get(row[1], row[2]) is not row[2]]
    others = [(module, name, cast("Tensor", module._parameters[name])) for module, name, _ in given]
    buffers = [(module, name, each) for module in modules for name, each in module.named_buffers(recurse=False)]
    _set_states(start)
    _set_learned(given)
    for module, name, _ in buffers:
        setattr(module, name, getattr(module, name).clone())
    try:
        with record_function("recompute"), putting_back():
            yield
    finally:
        _set_states(after)
        _set_learned(others)
        for module, name, each in buffers:
            setattr(module, name, each)


def _set_states(states: States) -> None:
    for module, memories in states:
        for name, value in memories.items():
            setattr(module, name, value.value.clone() if isinstance(value, _Written) else value)


def _set_learned(learned: Learned) -> None:
    for module, name, each in learned:
        module._parameters[name] = each  # type: ignore[assignment]
