"""The context `remat`: watches a forward, and decides for each saved tensor whether it is kept or made again.

Two hooks of torch work together: a `TorchFunctionMode` sees calls of cheap functions and notes recipes, and
`saved_tensors_hooks` replace what autograd saves. Neurons announce themselves: see `rerun`. Source of the idea:
Chen et al. 2016 (arXiv 1604.06174), recomputation of cheap layers; here chosen for each tensor, and run lazily.
"""

import inspect
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Set
from contextlib import AbstractContextManager, ContextDecorator, contextmanager
from functools import partial
from itertools import chain, compress
from types import FunctionType
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from revsnn_nodes.parameters import require
from revsnn_nodes.remat import pack as packing
from revsnn_nodes.remat.functions import (
    CONSTANTS,
    FILLS,
    MAX_POOLS,
    NORM_PASSES,
    NOTHING,
    Function,
    copied_operands,
    is_fixed_type,
    set_item,
    treatment,
    writes_once,
)
from revsnn_nodes.remat.norm import layout_of_norm, saved_statistics
from revsnn_nodes.remat.pack import Entry, Kept, Leaf, Packed, Plan, Saved, fills_its_storage, plan_for, recordable
from revsnn_nodes.remat.recipes import (
    FEW,
    MOST_RECIPES,
    Autocast,
    Call,
    Norm,
    Place,
    PoolWindows,
    Recipe,
    Ref,
    Value,
    View,
    arguments_of,
    copy_small,
    keeps_type,
    map_leaves,
    norm_again,
)
from revsnn_nodes.surrogate import in_transform

NOT_CHEAP = "not cheap"
"""Kept: the function that made it is not run again."""

_MANY = 10_000
"""Values and saved tensors that are noted before those that are gone are looked for."""

_NO_KWARGS: dict[str, Any] = {}  # shared by all calls without any

_active = threading.local()

Result = TypeVar("Result")


class _Unrecorded(Exception):
    """An argument that no recipe can refer to."""


class Recorder(TorchFunctionMode):
    """Values of the storages that a forward has touched, and the saved tensors of its current call."""

    def __init__(self, max_passes: int, verify: bool, saved: Saved) -> None:
        super().__init__()
        self.max_passes, self.verify, self.saved = max_passes, verify, saved
        self.recording = True
        self.values: dict[int, Value] = {}  # by address of the storage, which its weak reference keeps from reuse
        self.fresh: list[Packed] = []
        self.packed: list[weakref.ref[Packed]] = []  # of the entries, in their order
        self.in_backward = False
        self.since: list[Value] = []  # noted since a backward pass: what the next step makes before its first save
        self.most = _MANY
        self.due = 0  # how many saved tensors must be noted before a backward pass makes it look for what is gone
        self.earlier = 0  # how many of them are of steps before the running one, where it has not looked since
        self.names: dict[int, str] = {}
        self.instead: tuple[Value, Leaf] | None = None  # what a call saves for its layout alone, and what serves for it
        self.may_change: Set[int] = frozenset()  # storages that nobody would save without it, and others may write to
        self.name: str | None = None  # of the module, inside `in_one_module`; "" where it was not needed yet

    def records(self) -> bool:
        """Whether what is saved now comes to this recorder and may be made again."""
        return self.recording and self.decides() and not in_transform()

    def decides(self) -> bool:
        """Whether what is saved now comes to this recorder."""
        top = torch._C._autograd._top_saved_tensors_default_hooks(False)
        return top is not None and getattr(top[0], "__self__", None) is self  # its `pack`

    def value_of(self, tensor: Tensor) -> Value:
        """The contents of a tensor's storage: noted before, or a source."""
        address = tensor.untyped_storage()._cdata
        value = self.values.get(address)
        if value is None or value.counter.version != tensor._version or not value.counter.current:
            value = self.values[address] = Value(tensor, before=value)
        return value

    def pack(self, tensor: Tensor) -> Any:
        """Called by autograd for each tensor that it saves; what lives anyway has no line in the report."""
        with torch._C.DisableTorchFunction():
            if packing.is_paused() or not recordable(tensor) or torch._C._get_tracing_state() is not None:
                if type(tensor) not in packing.PLAIN:
                    name = type(tensor).__name__
                    self.saved.note(f"{name} is a subclass of Tensor, and kept uncounted: pass x.as_subclass(Tensor)")
                return tensor.detach()
            if tensor.is_leaf and (tensor.requires_grad or type(tensor) is nn.Parameter):
                return Kept(tensor)
            value = self.value_of(tensor)
            if value.persistent:
                return Kept(tensor)
            if self.in_backward and len(self.packed) < self.due:
                self.in_backward, self.earlier = False, len(self.packed)
                self.since.clear()
            elif self.in_backward or len(self.packed) > self.most:
                self.forget_what_is_gone()
            entry = Entry(self.name or self.module_name(), NOT_CHEAP)
            self.saved.entries.append(entry)
            packed = Packed(tensor, value, entry, self.verify, value.address in self.may_change)
            self.packed.append(weakref.ref(packed))
            if value.recipe is not None:
                self.decide(packed, value)
            if packed.kept is not None and packed.may_change:
                packed.keep_contents()
            elif packed.kept is not None:
                self.fresh.append(packed)
            return packed

    def unpack(self, kept: Any) -> Any:
        """Called for each saved tensor that is asked for, by autograd or, as statistics of a norm, by hand."""
        self.in_backward |= torch._C._current_graph_task_id() != -1
        return kept.tensor() if isinstance(kept, Kept) else kept

    def close(self) -> None:
        """Counts again what is kept at the end of the forward, where some of what was saved is gone; lets go of it all.

        Not where a backward pass has begun, or nobody holds the result, and what was kept until then is told.
        """
        alive = [reference() for reference in self.packed]
        there = [at >= self.earlier or packed is not None for at, packed in enumerate(alive)]
        alive = [*compress(alive, there)]
        self.saved.entries[:] = compress(self.saved.entries, there)
        if not self.in_backward and None in alive and any(alive):
            packing.count(self.saved.entries, alive)
        self.values.clear()
        self.since.clear()
        self.fresh.clear()  # what the last call saved would live on after its backward
        self.packed.clear()

    def forget_what_is_gone(self) -> None:
        """Drops what is noted of earlier steps, where one context is around many; their lines in the table as well.

        Where a backward pass has begun since, tensors that were there before become sources, unless a saved tensor is
        to be made by their recipes: a sum over all steps would hold on to what every step has noted. What is there now
        puts off the next look until as many saved tensors have come: else each step would go through all that wait.
        """
        alive = [reference() for reference in self.packed]
        lines = [entry for entry, packed in zip(self.saved.entries, alive, strict=True) if packed is not None]
        there = [packed for packed in alive if packed is not None]
        packing.count(lines, there)
        self.saved.entries[:] = lines
        self.packed = [weakref.ref(packed) for packed in there]
        self.values = {address: value for address, value in self.values.items() if not value.expired}
        if self.in_backward:
            needed = packing.values_to_make(there).union(self.since)
            before = (source for value in self.since if value.recipe for source in value.recipe.sources)
            for value in chain(self.values.values(), before):
                if value not in needed:
                    value.recipe = None
        self.in_backward = False
        self.since.clear()
        self.most = max(_MANY, 2 * max(len(self.values), len(self.packed)))
        self.due, self.earlier = 2 * len(self.packed), 0

    def in_one_module(self, call: Callable[..., Result], *args: Any) -> Result:
        """Calls something that runs in a single module: what it saves has that one's name, looked up once."""
        self.name = ""
        try:
            return call(*args)
        finally:
            self.name = None

    def decide(self, packed: Packed, value: Value) -> None:
        """Replaces a kept tensor by its value's recipe if the rules allow it."""
        if value.keepers > (packed.value is value):
            return
        plan = plan_for(value, self.max_passes)
        if self.instead is not None and value is self.instead[0]:
            leaf = self.instead[1]
            value, plan = leaf[0], Plan(leaves=(leaf,))
        obstacle = plan.obstacle or ("" if packing.proves(plan, value, packed) else packing.UNSEEN)
        if obstacle:
            packed.entry.because = obstacle
            value.serve_for_original()
            return
        packed.replace(value, plan)
        # A collective writes to buffers, and counts no version.
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for source, _ in plan.leaves:
                if not source.persistent and source.nbytes * FEW <= value.nbytes and source.part_from():
                    self.values.pop(source.address, None)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
            return func(*args, **(kwargs or {}))
        return self.call(func, args, kwargs or _NO_KWARGS)

    def call(self, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Calls a function, and notes how to make its result again if it is cheap."""
        how = treatment(function)
        if how is NOTHING and "out" not in kwargs:
            return function(*args, **kwargs)
        self.fresh.clear()
        if how.opens and not in_transform():
            map_leaves((args, kwargs), Tensor, self.open_memory)
        written = None if in_transform() else how.written(args, kwargs)
        if written is not None:
            map_leaves(written, Tensor, self.before_write)
        if not (how.passes or how.is_pool or how.is_product) or not self.records():
            return function(*args, **kwargs)
        if how.is_product:
            return function(*(args if kwargs else self.with_copies(args)), **kwargs)
        is_plain = not torch.is_grad_enabled() and (how.is_pool or how.writes == "statistics")
        if is_plain or (function is Tensor.__setitem__ and not writes_once(args[1])):
            return function(*args, **kwargs)
        if how.is_pool:
            return self.in_one_module(self.call_pool, function, args, kwargs)
        if how.writes == "statistics":
            return self.in_one_module(self.call_norm, function, args, kwargs)
        if how.writes == "first" and self.is_source(args[0] if args else kwargs.get("input")):
            return function(*args, **kwargs)
        # What is only read can be referred to afterwards, when it shows that most results are views and need no recipe.
        call = None if written is None else self.refer(args, kwargs)
        result = made = function(*args, **kwargs)
        if function is Tensor.__setitem__:
            function, made = set_item, args[0]
        if isinstance(made, Tensor) and recordable(made):
            if function in FILLS:
                function = FILLS[function]
                call = Call((made.shape,), {"dtype": made.dtype, "device": made.device}, {})
            elif function in CONSTANTS:
                call = self.refer(args, {**kwargs, "dtype": made.dtype, "device": made.device})
            elif written is None and not (args and _is_view_of(args[0], made)):
                call = self.refer(args, kwargs)
            if call is not None:
                doubted = not (made.requires_grad and torch.is_grad_enabled())
                self.note(function, call, made, how.passes or 1, _place(function, made) if doubted else None)
        return result

    def with_copies(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Arguments of a matrix product, with copies that are made again for operands that it would copy unseen."""
        if len(args) < 2 or not (torch.is_grad_enabled() and all(map(recordable, args[:2]))):
            return args
        if len(args) > 2 and args[2] is not None:  # a bias, which is added at once where the operand is contiguous
            return args
        made = [*args]
        for at, is_copied in enumerate(copied_operands(*args[:2])):
            autocast = Autocast.now(args[at].device.type)
            if is_copied and not (autocast.enabled and args[at].dtype != autocast.dtype):  # which casts it, unseen too
                made[at] = self.call(Tensor.contiguous, (args[at],), _NO_KWARGS)
        return tuple(made)

    def is_source(self, tensor: Any) -> bool:
        """Whether a tensor has no recipe, and then has none after a change in place either."""
        if not (isinstance(tensor, Tensor) and recordable(tensor)):  # a sparse one has no storage
            return True
        value = self.values.get(tensor.untyped_storage()._cdata)
        return value is None or value.recipe is None

    def call_norm(self, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Calls a norm that changes running statistics, and notes how to make its result again with those of now."""
        call = self.refer(args, kwargs)
        if call is None:
            return function(*args, **kwargs)
        refs = arguments_of(function, call.args, call.kwargs)
        changed = {ref.value for ref in (refs["running_mean"], refs["running_var"]) if ref is not None}
        for value in changed:
            value.persistent = True
        result = function(*args, **kwargs)
        if recordable(result):
            again = norm_again(refs, arguments_of(function, args, kwargs))
            values = {each.value for each in again if isinstance(each, Ref)}
            read = {address: value for address, value in call.before.items() if value in values}
            self.note(function, Call(again, {}, read, _nbytes(again)), result, NORM_PASSES)
            if function is functional.batch_norm:
                self.note_norm(result)
        return result

    def note_norm(self, result: Any) -> None:
        """Adds the statistics that a batch norm used to its recipe."""
        recipe = self.value_of(result).recipe
        if recipe is None:
            return
        z, running_mean, running_var, weight, bias, training, _, eps = recipe.args
        if not training:
            recipe.norm = Norm(z, weight, bias, running=(running_mean, running_var, eps))
            return
        mean, inverse_std = (
            None if each is None else Ref(self.value_of(each), View.of(each)) for each in saved_statistics(result)
        )
        recipe.norm = Norm(z, weight, bias, mean, inverse_std)

    def refer(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        """A call with references in place of its tensors; None where no recipe can refer to one of its arguments."""
        before: dict[int, Value] = {}
        try:
            return Call(self.refer_to(args, before), self.refer_to(kwargs, before) if kwargs else kwargs, before)
        except _Unrecorded:
            return None

    def refer_to(self, leaf: Any, before: dict[int, Value]) -> Any:
        """An argument with a reference in place of each tensor, whose values are added to `before`."""
        kind: Any = type(leaf)
        if kind is not Tensor and is_fixed_type(kind):
            return leaf
        if kind is tuple or kind is list:
            return kind([self.refer_to(each, before) for each in leaf])
        if kind is dict:
            return {name: self.refer_to(each, before) for name, each in leaf.items()}
        if kind is slice:
            bounds = (leaf.start, leaf.stop, leaf.step)
            return slice(*(int(each) if isinstance(each, Tensor) else self.refer_to(each, before) for each in bounds))
        if not (isinstance(leaf, Tensor) and recordable(leaf)):
            raise _Unrecorded
        value = self.value_of(leaf)
        before[value.address] = value
        return Ref(value, View.of(leaf))

    def note(self, run: Function, call: Call, result: Tensor, passes: int, place: Place | None = None) -> None:
        """Notes the recipe of a new storage, or of one that was changed in place; a view needs none."""
        address = result.untyped_storage()._cdata
        overwrites = call.before.get(address)
        if overwrites is not None:
            if overwrites.counter.version == result._version:
                return
            self.values.pop(address, None)
            if overwrites.recipe is None:
                return
        elif not fills_its_storage(result):
            return
        if len(self.values) > self.most:
            self.forget_what_is_gone()
        args, kwargs, before, copied = copy_small(call, result)
        depth = 1 + max((value.recipe.depth for value in before.values() if value.recipe is not None), default=0)
        if depth > MOST_RECIPES:  # a source: so long a way is not gone, and what is on it would never be let go of
            self.values.pop(address, None)
            return
        how = View.of(result), Autocast.now(result.device.type), passes, overwrites, depth, place
        value = self.values[address] = Value(result, Recipe(run, args, kwargs, tuple(before.values()), copied, *how))
        if self.in_backward and torch._C._current_graph_task_id() == -1:
            self.since.append(value)
        for packed in self.fresh:  # saved by the function itself, before there was a recipe
            kept = packed.kept
            if kept is not None and kept.untyped_storage()._cdata == address and packed.current:
                self.decide(packed, value)

    def call_pool(self, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Calls a max pooling; notes how to make its result again, and the places of its maxima from fewer bytes."""
        call, with_places = self.refer(args[:1], {}), MAX_POOLS[function]
        if call is None or not call.before:
            return function(*args, **kwargs)
        if not (args[0].requires_grad and keeps_type(function, args[0])):  # nobody keeps places, or as torch does
            result = function(*args, **kwargs)
            if isinstance(result, Tensor):
                self.note(lambda tensor: function(tensor, *args[1:], **kwargs), call, result, 1)
            return result
        self.instead = None if self.verify else layout_of_norm(call.args[0].value, with_places, args, kwargs)
        try:
            result, places = with_places(*args, **kwargs)
        finally:
            self.instead = None
        windows = PoolWindows(with_places, args, kwargs)
        short = windows.shorten(places)
        read = self.refer((short,), {})
        if read is not None:
            self.note(windows.places, read, places, 1)
            self.note(windows.values, Call(call.args + read.args, {}, call.before | read.before), result, 1)
        return (result, places) if function is with_places else result

    def new_bytes(self, call: Call) -> int:
        """Bytes that saving what a call refers to would keep, beyond what is kept."""
        total = 0
        for value in call.before.values():
            if not (value.keepers or value.persistent):
                plan = plan_for(value, self.max_passes)
                total += value.nbytes if plan.obstacle else plan.new_bytes
        return total

    def open_memory(self, tensor: Tensor) -> None:
        """Keeps a tensor whose memory is handed out: it may change unseen."""
        if recordable(tensor):
            self.before_write(tensor)
            before = self.value_of(tensor)
            before.opened = True
            self.values[before.address] = Value(tensor, before=before)

    def before_write(self, tensor: Tensor) -> None:
        """Copies what recipes read of a tensor that may be about to change."""
        if recordable(tensor):
            address = tensor.untyped_storage()._cdata
            for value in Value.read_at(address):
                if value.part_from() and value is self.values.get(address):
                    del self.values[address]

    def module_name(self) -> str:
        """The innermost module whose forward is running: its path from the outermost one, or that one's type."""
        running = _running_modules()
        inner = next(running, None)
        name = "(no module)" if inner is None else self.names.get(id(inner))
        if name is None:
            assert inner is not None
            outer = inner
            for outer in running:  # noqa: B007  (the last one)
                pass
            modules = {each: path for path, each in outer.named_modules()}
            self.names.update((id(each), path or type(each).__name__) for each, path in modules.items())
            for module in (inner, *modules):
                if isinstance(module, torch._dynamo.OptimizedModule) or module._compiled_call_impl is not None:
                    self.saved.note(
                        f"{type(module).__name__} is compiled: the compiler decides what to recompute there"
                    )
            name = self.names.setdefault(id(inner), type(inner).__name__)
        if self.name is not None:
            self.name = name
        return name


_CALL_OF_A_MODULE = nn.Module._call_impl.__code__


def _running_modules() -> Iterator[nn.Module]:
    """Modules whose forward is running in this thread, the innermost first."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code is _CALL_OF_A_MODULE:
            yield frame.f_locals["self"]
        frame = frame.f_back  # type: ignore[assignment]


def _place(function: Function, result: Tensor) -> Place:
    """Where in the code a function was called: the four innermost calls around it, and what it made there."""
    frame = sys._getframe()
    while frame is not None and frame.f_code is not Recorder.__torch_function__.__code__:
        frame = frame.f_back  # type: ignore[assignment]
    calls: list[Any] = []
    while len(calls) < 8 and (frame := frame and frame.f_back) is not None:  # type: ignore[assignment]
        calls += [frame.f_code, frame.f_lasti]
    return (function, result.shape, result.dtype, result.device, *calls)


def _nbytes(arguments: tuple[Any, ...]) -> int:
    return sum(each.nbytes for each in arguments if isinstance(each, Tensor))


def _is_view_of(tensor: Any, result: Tensor) -> bool:
    """Whether a result is a view that autograd knows of what a function was given."""
    base = result._base
    return base is not None and (base is tensor or (isinstance(tensor, Tensor) and base is tensor._base))


class ManyTimes(ContextDecorator, Generic[Result]):
    """A context that may be entered many times, nested and in several threads; one of `contextmanager` may not.

    Args:
        open: makes the context of one entry.
    """

    def __init__(self, open: Callable[[], AbstractContextManager[Result]]) -> None:
        self._open = open
        self._entered: dict[int, list[AbstractContextManager[Result]]] = {}  # by thread

    def __enter__(self) -> Result:
        context = self._open()
        given = context.__enter__()
        self._entered.setdefault(threading.get_ident(), []).append(context)
        return given

    def __exit__(self, *error: Any) -> None:
        contexts = self._entered[threading.get_ident()]
        context = contexts.pop()
        if not contexts:
            del self._entered[threading.get_ident()]
        context.__exit__(*error)


class remat(ManyTimes[Saved]):
    """Inside, autograd saves how to make a tensor again instead of the tensor, where that is cheap and exact.

    `with remat() as saved:` gives a handle that tells, by module, what was kept and what is made again. One object may
    be entered many times, and decorates a function, as `torch.no_grad()` does; `@remat` alone has the defaults.

    Args:
        max_passes: most passes over a tensor that making it again may take; deeper chains keep a tensor on the way.
        verify: whether to compare a checksum of everything that is made again.
    Raises:
        ValueError: max_passes < 1, or no whole number.
    Exactness: outputs, gradients and buffers have the bits that they have without it.
    Source: docs/remat.md.
    """

    def __new__(cls, max_passes: int | FunctionType = 16, verify: bool = False) -> Any:
        """The context; where a function stands first, as under `@remat`, that function inside of one."""
        return cls()(max_passes) if isinstance(max_passes, FunctionType) else super().__new__(cls)

    def __init__(self, max_passes: int = 16, verify: bool = False) -> None:
        require(
            isinstance(max_passes, int) and max_passes >= 1,
            "max_passes", "be a whole number, at least 1",
            type(max_passes).__name__ if isinstance(max_passes, nn.Module) else max_passes,
            "It bounds the work for one tensor.",
            "Write `with remat():` around the forward, for 16; or leave it out to keep everything.",
        )  # fmt: skip
        super().__init__(partial(_watched, max_passes, verify))

    def __call__(self, function: Any) -> Any:
        """The function, run inside.

        Raises:
            ValueError: a generator or an async function, whose body runs after the call.
        """
        kinds = (inspect.isgeneratorfunction, inspect.iscoroutinefunction, inspect.isasyncgenfunction)
        require(
            not any(each(function) for each in kinds), "function", "run when it is called",
            getattr(function, "__name__", function), "The body of a generator or an async function runs later.",
            "Write `with remat():` inside of it, around what does not wait.",
        )  # fmt: skip
        return super().__call__(function)


@contextmanager
def _watched(max_passes: int, verify: bool) -> Iterator[Saved]:
    """One entry into `remat`, with a recorder of its own."""
    saved = Saved()
    if torch._C._autograd._top_saved_tensors_default_hooks(False) is not None:
        saved.note("other saved tensor hooks (checkpoint, save_on_cpu, an outer remat) decide here")
        yield saved
        return
    _active.recorder = recorder = Recorder(max_passes, verify, saved)
    # A compiled function breaks its graph here; what follows, this recorder too, runs as it is written.
    compiler = torch._C._dynamo.eval_frame.set_eval_frame(None)
    try:
        if compiler is not None:
            saved.note("a compiled function enters it: what is inside runs as it is written")
        with saved_tensors_hooks(recorder.pack, recorder.unpack), recorder:
            yield saved
    finally:
        torch._C._dynamo.eval_frame.set_eval_frame(compiler)
        _active.recorder = None
        recorder.close()


@contextmanager
def recording(max_passes: int | None) -> Iterator[None]:
    """For a part of a forward inside `remat`: other `max_passes`, or None to note no recipes.

    What was noted before stays: a tensor of another part is made again where it would be saved in this one.
    """
    recorder = recorder_now()
    if recorder is None:
        yield
        return
    before = recorder.recording, recorder.max_passes
    recorder.recording, recorder.max_passes = max_passes is not None, max_passes or before[1]
    try:
        yield
    finally:
        recorder.recording, recorder.max_passes = before


def recorder_now() -> Recorder | None:
    """The recorder of the innermost `remat` that this thread is in."""
    return getattr(_active, "recorder", None)


def note_recipe(function: Function, arguments: tuple[Any, ...], result: Tensor) -> None:
    """Inside `remat`, tells of another way to make a new tensor: `function(*arguments)`, whose tensors are kept."""
    recorder = recorder_now()
    if recorder is not None and recorder.decides() and recordable(result):
        with torch._C.DisableTorchFunction():
            recorder.fresh.clear()
            recorder.note(function, Call(arguments, {}, {}, _nbytes(arguments)), result, 1)
