"""One training step, cut where the meters look, and the bytes of tensors by their storages."""

import copy
import io
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy
import torch
from revsnn_nodes.remat.record import Recorder
from torch import Tensor, nn
from torch._higher_order_ops import utils as hop_utils
from torch._ops import HigherOrderOperator
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    is_traceable_wrapper_subclass,
    is_traceable_wrapper_subclass_type,
)
from torch.utils._pytree import tree_leaves

from revsnn_bench.records import NoOracle


class TrainingStep:
    """Forward and backward of one case, on fixed data, repeatable any number of times; here of a module without state.

    The input is a non-leaf that `forward` makes and drops before it returns, so that a model that keeps its
    input alive is charged for it. Gradients arrive in `source.grad` and in the parameters.

    Args:
        source: leaf that the input is made from; alive before the step, so never charged to it.
    """

    def __init__(self, model: nn.Module, source: Tensor) -> None:
        self.model = model
        self.source = source
        self.left_by_trial: list[StorageWeakRef] = []  # storages that a first run, before the step was ready, left

    def replaced(self, model: nn.Module, source: Tensor) -> "TrainingStep":
        """The same step of another model, from another source."""
        other = copy.copy(self)
        other.model, other.source = model, source
        return other

    def prepare(self) -> None:
        """Drops the state and clears every gradient: the state in which a step begins."""
        self.reset_state()
        self.source.grad = None
        self.model.zero_grad(set_to_none=True)

    def make_input(self) -> Tensor:
        """Returns a fresh non-leaf input with storage of its own, connected to `source`."""
        return self.source.clone()

    def run(self, x: Tensor) -> Tensor:
        """Runs the model, and the loss where there is one, on an input of `make_input`; returns the output."""
        output: Tensor = self.model(x)
        return output

    def forward(self) -> Tensor:
        """Runs on a fresh input, which nobody but the graph holds afterwards."""
        return self.run(self.make_input())

    def output_gradient(self, output: Tensor) -> Tensor:
        """Makes the gradient that arrives at the output: ones."""
        return output.new_ones(output.shape)

    def backward(self, output: Tensor) -> None:
        """Makes the output's gradient and runs backward through the step."""
        output.backward(self.output_gradient(output))

    def reset_state(self) -> None:
        """Drops the neuron state that is carried between calls, and nothing else."""

    def state_tensors(self) -> list[Tensor]:
        """The neuron state that is carried to the next call."""
        return []


_turns = count()


def change_input(step: TrainingStep) -> None:
    """Changes one number of the source, another each time: a result that a model remembers is not that of this step.

    A spike among spikes comes or goes: one at another height would not be kept at a bit. What lies between 0 and 1
    stays there. Integers change places with another number; there is nothing to change where all are one.
    """
    values, turn = step.source.detach(), next(_turns)
    if not values.numel():
        return
    at = _place(turn % values.numel(), values.shape)
    was = values[at].item()
    if values.is_floating_point() and was in (0.0, 1.0) and ((values == 0) | (values == 1)).all():
        values[at] = 1 - was
    elif values.is_floating_point():
        share = 1 + 0.618034 * turn % 1  # another sum, too, than after any other turns
        by = 2 * share * max(2**-10, torch.finfo(values.dtype).eps) * max(1.0, abs(was))
        values[at] += by if was < 0.5 else -by
    elif len(others := (values != was).flatten().nonzero()):
        beside = _place(int(others[turn % len(others)]), values.shape)
        values[at], values[beside] = values[beside].clone(), was


def _place(index: int, shape: torch.Size) -> tuple[int, ...]:
    """Where the element of a number is, counted row by row."""
    return tuple(int(each) for each in torch.unravel_index(torch.tensor(index), shape))


_HOP_COMPILE_AND_CALL: Any = getattr(hop_utils, "_hop_compile_and_call", None)  # where there is none, nothing calls it


def _compile_and_call(*args: Any) -> Any:
    with torch.compiler.set_stance("default"):
        return _HOP_COMPILE_AND_CALL(*args)


class EagerMode(TorchDispatchMode):
    """A mode that sees operators, under which functions of `torch.compile` run as they are written.

    Afterwards they are compiled as before. Under a mode of torch's own, a function that must be compiled is left eager,
    and stays so for the rest of the process. What is made of operators, as a branch, a scan, or a tensor that wraps
    others, is seen as those. What a branch closes over, as its parameters, only the compiler finds: that runs there.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self._entered: list[ExitStack] = []  # each entry's effect on the compiler: it may be entered inside itself

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """See `TorchDispatchMode`."""
        return True

    def __enter__(self) -> Any:
        effects = ExitStack()
        effects.enter_context(patch.object(hop_utils, "_hop_compile_and_call", _compile_and_call, create=True))
        effects.enter_context(torch.compiler.set_stance("force_eager"))
        self._entered.append(effects)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._entered.pop().close()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Hands an operator to `operator`; returns what that does."""
        if isinstance(func, HigherOrderOperator):
            return func(*(partial(self._inside, each) if callable(each) else each for each in args), **(kwargs or {}))
        if any(map(is_traceable_wrapper_subclass_type, types)):
            return NotImplemented  # what it runs on the tensors inside of it comes here too
        return self.operator(func, args, kwargs or {})

    def _inside(self, function: Callable[..., Any], *args: Any) -> Any:
        """Calls a function that an operator is given, such as a branch: that runs where no mode is."""
        super().__enter__()
        try:
            return function(*args)
        finally:
            super().__exit__(None, None, None)

    def operator(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs one operator, and does with it what the mode is for."""
        raise NotImplementedError


_ENGINE = torch.autograd.graph._engine_run_backward.__code__
_OURS = (str(Path(torch.__file__).parent), str(Path(__file__).parent))


def called_by_engine() -> bool:
    """Whether no Python code but torch's own and that of a mode lies between the running backward pass and an op."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code is _ENGINE:
            return True
        if not frame.f_code.co_filename.startswith(_OURS):
            return False
    return False


_NEURONS = tuple(
    str(Path(spec.origin or "").parent) for name in ("revsnn_nodes", "spikingjelly") if (spec := find_spec(name))
)

_OF_REMAT = (Recorder.__torch_function__.__code__, Recorder.call.__code__)
"""What hands on the functions that are called inside `remat`."""

REMAT = str(Path(_OF_REMAT[0].co_filename).parent)


def calling_file() -> str:
    """The file of the code that calls an op, which is none of torch or of a mode."""
    frame: Any = sys._getframe(1)
    while frame is not None and (frame.f_code.co_filename.startswith(_OURS) or frame.f_code in _OF_REMAT):
        frame = frame.f_back
    return "" if frame is None else str(frame.f_code.co_filename)


def called_by_user() -> bool:
    """Whether the code that calls an op is of the user, not of a package whose neurons are known.

    What SpikingJelly has for learning online counts as the user's: it cuts values from their graph as they want it.
    """
    file = calling_file()
    return bool(file) and (file.endswith("online_learning.py") or not file.startswith(_NEURONS))


_APPLIES = torch.autograd.Function.apply.__func__.__code__  # type: ignore[attr-defined]
"""What calls the forward of an `autograd.Function`."""


def in_custom_function(of_torch: bool = True) -> bool:
    """Whether the forward of an `autograd.Function` runs; one of torch's own, as of a checkpoint, if asked for."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _APPLIES and (of_torch or not frame.f_locals["cls"].__module__.startswith("torch.")):
            return True
        frame = frame.f_back
    return False


def is_compiled(model: nn.Module) -> bool:
    """Whether a module of the model, or a method of one, has gone through `torch.compile`."""
    for module in model.modules():
        own = [value for kind in type(module).__mro__ for value in vars(kind).values()]
        if module._compiled_call_impl is not None or isinstance(module, torch._dynamo.OptimizedModule):
            return True
        if any(hasattr(value, "_torchdynamo_orig_callable") for value in (*own, *vars(module).values())):
            return True
    return False


def copied(model: nn.Module) -> nn.Module:
    """A deep copy. What cannot be copied, such as a lock or an open file, the copy shares with the model; a tensor that
    belongs to a graph, such as the weight of `weight_norm`, is copied without it. Hooks on the gradients of parameters,
    which torch leaves out, are the copy's too.

    Raises:
        NoOracle: there is none, and the model's own would be used up: an iterator; or it has parameters or buffers of
            the model, as of a part whose `__deepcopy__` returns itself.
    """
    try:
        made = copy.deepcopy(model)
    except Exception:  # whatever a foreign object raises
        shared = {id(value): own for module in model.modules() for value, own in _without_copy(module)}
        try:
            for module in reversed([*model.modules()]):  # the parts of one first
                try:
                    copy.deepcopy(module, dict(shared))
                except AttributeError:  # in its own `__deepcopy__`, as in that of sinabs' recurrent layers
                    made = shared[id(module)] = object.__new__(type(module))
                    made.__setstate__(copy.deepcopy(vars(module), shared))
            made = copy.deepcopy(model, shared)
        except Exception as error:
            raise NoOracle(f"it cannot be copied ({type(error).__name__}: {error})") from error
    mine = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    for name, tensor in (*made.named_parameters(), *made.named_buffers()):
        if id(tensor) in mine:
            raise NoOracle(
                f"a copy of it has its own {name!r}, which a type of higher precision would change in it too"
            )
    for theirs, own in zip(made.parameters(), model.parameters(), strict=False):
        for hook in (own._backward_hooks or {}).values():  # such as the mask of a pruned weight
            theirs.register_hook(hook)
    return made


def _without_copy(module: nn.Module) -> Iterator[tuple[Any, Any]]:
    """Attributes and buffers of a module itself that have no copy, each with what a copy of the module gets."""
    parts = ("_modules", "_parameters", "_buffers")
    attributes = [value for name, value in vars(module).items() if name not in parts]
    for value in (*attributes, *module._buffers.values()):
        try:
            copy.deepcopy(value)
        except Exception:
            if isinstance(value, Tensor):
                yield value, value.detach().clone()
            elif isinstance(value, io.IOBase) or not hasattr(value, "__next__"):
                yield value, value


def learned(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that get a gradient."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def backward_gradients(output: Tensor, arriving: Tensor, tensors: Sequence[Tensor]) -> list[Tensor | None]:
    """Gradients of leaves, as `backward()` leaves them in `grad`: after hooks on accumulation. These are cleared."""
    for tensor in tensors:
        tensor.grad = None
    output.backward(arriving)
    found = [tensor.grad for tensor in tensors]
    for tensor in tensors:
        tensor.grad = None
    return found


def in_precision(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The model, its parameters and buffers now of a type of floats; complex ones of that type's complex numbers."""

    def cast(tensor: Tensor) -> Tensor:
        if tensor.is_complex():
            return tensor.to(dtype.to_complex())
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    model._apply(cast)
    return model


def in_reals(tensor: Tensor) -> Tensor:
    """A tensor in float64; of complex numbers both parts, side by side."""
    return (torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor).double()


def relative_error(values: Sequence[Tensor], expected: Sequence[Tensor], least: float = 0.0) -> float:
    """Relative L2 error of several tensors taken as one vector; 0 for no tensors, NaN where a value is not finite.

    Args:
        least: a length that the error is relative to at least.
    """
    pairs = [(in_reals(a), in_reals(b)) for a, b in zip(values, expected, strict=True)]
    wrong = sum(((a - b).square().sum().item() for a, b in pairs), 0.0)
    scale = max(sum((b.square().sum().item() for _, b in pairs), 0.0), least**2)
    return float((wrong / scale) ** 0.5) if scale else float(wrong > 0)


@contextmanager
def in_place_of(step: TrainingStep, model: nn.Module) -> Iterator[nn.Module]:
    """Inside, the step's own model is another one in all but its identity: a loss that reads it reads that one.

    Gives the model to run. That is the other one itself where there is no loss, where the two are of different classes,
    or where one has a method that is bound to it.
    """
    own = step.model
    bound = any(hasattr(value, "__self__") for each in (own, model) for value in vars(each).values())
    if getattr(step, "loss", None) is None or type(own) is not type(model) or own is model or bound:
        yield model
        return
    # A forward that `apply_plan` has put in runs the module that it was put in.
    planned = {name: value for name, value in vars(model).items() if getattr(value, "module", None) is model}
    own.__dict__, model.__dict__ = model.__dict__, own.__dict__
    vars(own).update({name: copy.deepcopy(value, {id(model): own}) for name, value in planned.items()})
    try:
        yield own
    finally:
        vars(own).update(planned)
        own.__dict__, model.__dict__ = model.__dict__, own.__dict__


@contextmanager
def hooked(modules: Iterable[nn.Module], hook: Callable[..., Any]) -> Iterator[None]:
    """Inside, a hook is called after the forward of each module."""
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(module.register_forward_hook(hook))
        yield


@contextmanager
def same_draws(device: torch.device, seed: int) -> Iterator[None]:
    """Inside, torch, numpy and Python draw the numbers of a seed; afterwards, what they would have drawn anyway."""
    drawn, drawn_by_numpy = random.getstate(), numpy.random.get_state()
    on_device = device.type == "cuda"
    # Without a GPU, `torch.manual_seed` formats the stack of its caller every time, and keeps it for a later one.
    seeded = torch.manual_seed if on_device else torch.default_generator.manual_seed
    with torch.random.fork_rng([device] if on_device else []):
        seeded(seed)
        random.seed(seed)
        numpy.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(drawn)
            numpy.random.set_state(drawn_by_numpy)


def storage_of(tensor: Tensor) -> torch.UntypedStorage:
    """The storage of a strided tensor; equal storages have equal `_cdata`.

    To `remat`, which watches functions, a tensor whose storage is asked for may change unseen: a meter changes none.
    """
    with torch._C.DisableTorchFunction():
        return tensor.untyped_storage()


def parts_of(tensor: Tensor) -> tuple[Tensor, ...]:
    """The tensors that hold a tensor's memory: itself; of a sparse one, indices and values; of other layouts none.

    Of a class of tensors that wraps others, such as nested ones, those of the others.
    """
    if type(tensor) is not Tensor and is_traceable_wrapper_subclass(tensor):
        inside, _ = tensor.__tensor_flatten__()
        return tuple(part for name in inside for part in parts_of(getattr(tensor, name)))
    if tensor.layout is torch.strided:
        return (tensor,) if torch._C._has_storage(tensor) else ()
    if tensor.layout is torch.sparse_coo:
        return tensor._indices(), tensor._values()
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return tensor.ccol_indices(), tensor.row_indices(), tensor.values()
    return ()


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same, sparse ones in the same places."""
    if one.layout is torch.strided:
        return torch.equal(one, other)
    return one.layout is other.layout and all(map(torch.equal, parts_of(one), parts_of(other)))


def tensors_in(value: Any) -> list[Tensor]:
    """Tensors in the arguments or the results of a call."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def storages_of(tensors: Iterable[Tensor]) -> Iterator[torch.UntypedStorage]:
    """The storages behind tensors, as often as they are there."""
    for tensor in tensors:
        with torch._C.DisableTorchFunction():
            parts = parts_of(tensor)
        yield from map(storage_of, parts)


def unique_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages behind `tensors`."""
    return sum({storage._cdata: storage.nbytes() for storage in storages_of(tensors)}.values())


def own_bytes(tensor: Tensor) -> int:
    """Bytes of the tensor's elements; never more than its storage, which a view may share with others."""
    return sum(min(part.numel() * part.element_size(), storage_of(part).nbytes()) for part in parts_of(tensor))


@contextmanager
def watched(model: nn.Module, note: Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]) -> Iterator[None]:
    """Inside, each call of a model is noted with its arguments, outside of what `model.compile()` compiled."""
    compiled = model._compiled_call_impl
    if compiled is None:
        with model.register_forward_pre_hook(note, with_kwargs=True):
            yield
        return

    def call(*args: Any, **kwargs: Any) -> Any:
        note(model, args, kwargs)
        return compiled(*args, **kwargs)

    model._compiled_call_impl = call
    try:
        yield
    finally:
        model._compiled_call_impl = compiled
