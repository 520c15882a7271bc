"""Recipes: how the contents of a storage are made again from other storages.

A `Value` is the contents of one storage between two changes. It is a source (made by a function that is never run
again: a convolution, anything random) or has a `Recipe`: a cheap function, and the values that it reads. Values refer
to storages weakly, so that recording keeps nothing alive. A view is a value with a size, stride, offset and dtype.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from inspect import signature
from math import prod
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, UntypedStorage, nn
from torch._subclasses import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

from revsnn_nodes.remat.functions import MAX_POOLS, WITH_STATISTICS, Function

Place = tuple[Any, ...]
"""Where in the code a function was called, and the layout of what it made there."""

MOST_RECIPES = 256
"""Functions that are run for one tensor at most: each takes its time, however small what it makes."""

FEW = 16
"""What is smaller than a tensor by this factor is copied for it where others may write to it unseen."""

_MOST_KNOWN = 10_000
_known: dict[Any, Any] = {}

Fixed = TypeVar("Fixed")


def _one_of(fixed: Fixed) -> Fixed:
    """The same object for all that are equal; sizes that are symbols have no hash, and stay as they are."""
    if len(_known) > _MOST_KNOWN:
        _known.clear()
    try:
        return cast("Fixed", _known.setdefault(fixed, fixed))
    except TypeError:
        return fixed


class View(NamedTuple):
    """Where a tensor lies in its storage."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> "View":
        """The place of a tensor; one object for many tensors in the same."""
        place = (tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype, tensor.device)
        try:
            known: View | None = _known.get(place)  # a tuple has the hash of a named one
        except TypeError:  # sizes that are symbols
            known = None
        return _one_of(cls(place[0], place[1], int(place[2]), *place[3:])) if known is None else known

    def on(self, storage: UntypedStorage) -> Tensor:
        """The tensor in this place of another storage."""
        empty = torch.empty(0, dtype=self.dtype, device=self.device)
        return empty.set_(storage, self.offset, self.size, self.stride)


@cache
def _empty(dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of no elements, which counters share."""
    return torch.empty(0, dtype=dtype, device=device)


class Counter:
    """A tensor's version counter without its memory, and the version that was current."""

    __slots__ = ("shape", "tensor", "version")

    def __init__(self, tensor: Tensor, version: int | None = None) -> None:
        alias = tensor.detach()  # shares the counter; assigning `data` leaves it and drops the memory
        self.shape = _one_of(tensor.shape)
        self.version = tensor._version if version is None else version
        alias.data = _empty(tensor.dtype, tensor.device) if type(tensor) is not FakeTensor else tensor.new_empty(0)
        self.tensor = alias

    def alias(self, tensor: Tensor) -> Tensor:
        """A tensor of the same memory as another, that counts writes to it here."""
        alias = self.tensor.detach()
        alias.data = tensor
        return alias

    @property
    def current(self) -> bool:
        """Whether nothing has been written since."""
        return bool(self.tensor._version == self.version)

    def check(self, source: str = "") -> None:
        """Raises autograd's RuntimeError where the tensor was modified in place."""
        if not self.current:
            described = f"{self.tensor.type()} {list(self.shape)}"
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: "
                f"[{described}] is at version {self.tensor._version}; expected version {self.version} instead. "
                f"{source}Hint: enable anomaly detection to find the operation that failed to compute its gradient, "
                "with torch.autograd.set_detect_anomaly(True)."
            )


_NOBODY: frozenset[int] = frozenset()


_CLONES = (Tensor.clone, torch.clone)

_pinned: dict[int, list["Value"]] = {}
"""Values that recipes read, of all recorders, by the address of the storage."""


class Value:
    """The contents of a storage, until it is next changed.

    A loop over time makes thousands of these: Python's garbage collector goes through whatever each of them holds.
    """

    __slots__ = (
        *("address", "asks", "copied", "counter", "held", "keepers", "nbytes", "opened", "persistent", "pinned"),
        *("readers", "recipe", "weak"),
    )

    def __init__(self, tensor: Tensor, recipe: "Recipe | None" = None, before: "Value | None" = None) -> None:
        storage = tensor.untyped_storage()
        base = tensor._base
        base = tensor if base is None else base
        self.weak = cast("int", storage._weak_ref())  # keeps the address from reuse, and nothing else
        self.address: int = storage._cdata
        self.counter = Counter(tensor)  # version of the storage when it had these contents
        self.nbytes = storage.nbytes()  # of the whole storage
        # A parameter's, frozen or not, or a norm's statistics: it lives anyway.
        self.persistent = base.is_leaf and (base.requires_grad or isinstance(base, nn.Parameter))
        self.recipe = recipe  # how to make it again; None for a source
        self.keepers = 0  # how many saved tensors hold the storage
        self.readers = 0  # how many of them are recipes that read it
        self.pinned: UntypedStorage | None = None  # the storage while there are readers, or a copy of it
        self.copied = False  # whether `pinned` is a copy, which no later change reaches
        # Whether its memory was handed out, so that it may have changed unseen. Numpy's memory cannot be resized, nor
        # can what our kernels made, which they read by way of numpy.
        self.opened = not (storage.resizable() or storage.is_shared() or tensor.requires_grad)
        # Parts of one storage that are no views, as parameters of a flat one are, count their versions apart.
        self.opened |= base.numel() * base.itemsize != self.nbytes
        if before is not None:  # what was known of the storage; an alias such as `parameter.detach()` tells nothing
            self.persistent, self.opened = self.persistent or before.persistent, self.opened or before.opened
        self.asks = _NOBODY  # saved tensors that were replaced by its recipe and not asked for yet
        self.held: UntypedStorage | None = None  # contents made again before the next ask

    def __del__(self, free: Callable[[int], None] = UntypedStorage._free_weak_ref) -> None:  # bound: torch may go first
        free(self.weak)

    @property
    def expired(self) -> bool:
        """Whether the storage is gone."""
        return bool(UntypedStorage._expired(self.weak))

    def storage(self) -> UntypedStorage | None:
        """The storage, if it is alive with these contents or was made again."""
        if self.held is not None:
            return self.held
        if self.copied or (self.readers and self.counter.current):
            return self.pinned
        if not self.counter.current or (self.opened and not self.keepers):
            return None
        return cast("UntypedStorage | None", UntypedStorage._new_with_weak_ptr(self.weak))

    def tensor(self, view: View) -> Tensor | None:
        """An alias of the storage, if it is there, with the version counter that the contents are checked by."""
        storage = self.storage()
        if storage is None:
            return None
        if self.copied:
            return view.on(storage)
        return self.counter.alias(view.on(storage))

    def pin(self, storage: UntypedStorage) -> None:
        """Keeps the storage for a recipe that reads it."""
        if not self.readers:
            _pinned.setdefault(self.address, []).append(self)
        self.keepers, self.readers = self.keepers + 1, self.readers + 1
        if not self.copied:
            self.pinned = storage

    def unpin(self) -> None:
        """Lets go of it for that recipe."""
        self.keepers, self.readers = self.keepers - 1, self.readers - 1
        if not self.readers:
            self.pinned, self.copied = None, False
            others = _pinned[self.address]
            others.remove(self)
            if not others:
                del _pinned[self.address]

    def part_from(self) -> bool:
        """Copies the contents for the recipes that read them, before they change; True if that is needed.

        Not where autograd saved the tensor itself, which it then refuses to use.
        """
        if self.pinned is None or self.copied or self.keepers > self.readers or not self.counter.current:
            return False
        with torch.no_grad():
            tensor = torch.empty(0, dtype=torch.uint8, device=self.counter.tensor.device).set_(self.pinned)
            self.pinned, self.copied = tensor.clone().untyped_storage(), True
        return True

    @staticmethod
    def read_at(address: int) -> tuple["Value", ...]:
        """What recipes read of a storage, those of earlier forwards too."""
        return tuple(_pinned.get(address, ()))

    def serve_for_original(self) -> None:
        """Where this is a copy of a whole tensor, and kept, makes the tensor from it: the tensor itself may go.

        Some surrogates keep a copy of the charge, from which the spike and the next membrane can then be made.
        """
        copy = self.recipe
        if copy is None or copy.function not in _CLONES or not copy.args:
            return
        original, place = copy.args[0]
        if place == copy.view and original.nbytes == self.nbytes and not (original.opened or self.opened):
            self.recipe = None
            original.recipe = replace(copy, args=(Ref(self, place),), kwargs={}, sources=(self,), depth=1)

    def forget(self, packed: Any) -> None:
        """Counts a saved tensor as asked for, or as gone; drops what was held for the last one."""
        self.asks -= {id(packed)}
        if not self.asks:
            self.held = None


class Ref(NamedTuple):
    """A tensor among a recipe's arguments."""

    value: Value
    view: View


class Call(NamedTuple):
    """A function's arguments, with a `Ref` in place of each tensor."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    before: dict[int, Value]  # what it refers to, as it is before the call, by the address of the storage
    copied: int = 0  # bytes of tensors that stand among the arguments themselves


def map_leaves(structure: Any, kind: type | tuple[type, ...], change: Callable[[Any], Any]) -> Any:
    """Replaces the leaves of some types in nested tuples, lists and dicts."""
    what = type(structure)
    if what is tuple or what is list:
        return what([map_leaves(each, kind, change) for each in structure])
    if what is dict:
        return {name: map_leaves(each, kind, change) for name, each in structure.items()} if structure else {}
    return change(structure) if isinstance(structure, kind) else structure


def copy_small(call: Call, result: Tensor) -> Call:
    """A call with copies of tensors that may change unseen, if they are small beside its result.

    A norm's weights are, once they were written to a file or through `.data`, or are sharded by FSDP, which frees them.
    """
    if not any(value.opened for value in call.before.values()):
        return call
    before: dict[int, Value] = {}
    copied, most = call.copied, result.numel() * result.itemsize // FEW

    def kept(ref: Ref) -> Ref | Tensor:
        """The reference, or a copy of what it refers to."""
        nonlocal copied
        value, (size, _, _, dtype, _) = ref
        small = prod(size) * dtype.itemsize
        storage = UntypedStorage._new_with_weak_ptr(value.weak) if value.opened and small <= most else None
        if storage is None or not value.counter.current:
            before[value.address] = value
            return ref
        copied += small
        return ref.view.on(storage).clone()

    args, kwargs = map_leaves((call.args, call.kwargs), Ref, kept)
    return Call(args, kwargs, before, copied)


@dataclass(frozen=True)
class Norm:
    """What a batch norm read and normalised by, as the kernels of `revsnn_nodes.remat.norm` take it."""

    z: Ref  # its input
    weight: Ref | Tensor | None
    bias: Ref | Tensor | None
    mean: Ref | None = None  # of the batch, in training
    inverse_std: Ref | None = None
    running: tuple[Tensor, Tensor, float] | None = None  # mean, variance and eps, in evaluation


class Autocast(NamedTuple):
    """A state of autocast, to enter once more."""

    device: str
    enabled: bool
    dtype: torch.dtype

    @classmethod
    def now(cls, device: str) -> "Autocast":
        """That of a kind of device in the running forward; one object for all recipes of the same."""
        return _autocast(device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))

    def again(self) -> AbstractContextManager[Any]:
        """A context with that state."""
        now = Autocast.now(self.device)
        if now is self or not (self.enabled or now.enabled):
            return nullcontext()
        return torch.autocast(self.device, enabled=self.enabled, dtype=self.dtype, cache_enabled=False)


_autocast = cache(Autocast)


@dataclass(eq=False, slots=True)
class Recipe:
    """A function, its arguments with references in place of tensors, and the layout of its result."""

    function: Function  # returns one tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    sources: tuple[Value, ...]  # the values that they refer to
    nbytes: int  # of tensors that stand among them as they are
    view: View  # of what it returned in the forward
    autocast: Autocast
    passes: int  # its cost
    overwrites: Value | None  # the one of the sources that it changes in place
    depth: int  # how many recipes lie one behind the other, this one included
    # Where it was called, if what follows may change its result unseen: in a custom function or another part without
    # gradients, where kernels of other packages write, and for what was made to be filled.
    place: Place | None
    norm: Norm | None = None  # where the function is batch norm

    def run(self, storages: dict[Value, UntypedStorage]) -> UntypedStorage:
        """The result's storage, from those of the sources; the one that it overwrites must be free to change."""
        args, kwargs = map_leaves((self.args, self.kwargs), Ref, lambda ref: ref.view.on(storages[ref.value]))
        with self.autocast.again():
            made = self.function(*args, **kwargs)
        assert made.dtype is self.view.dtype, "a function gives its type again"
        if self.overwrites is None and made.stride() != self.view.stride:
            made = made.new_empty_strided(self.view.size, self.view.stride).copy_(made)
        return cast("UntypedStorage", made.untyped_storage())


def arguments_of(norm: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a call of a norm by name, in order."""
    defaults = WITH_STATISTICS[norm]
    return defaults | dict(zip(defaults, args, strict=False)) | kwargs


def norm_again(refs: dict[str, Any], given: dict[str, Any]) -> tuple[Any, ...]:
    """Arguments with which a norm runs again and changes nothing, from those with references and with tensors.

    Where it normalises by the batch's statistics it gets no running ones, else a copy of what they are now.
    """
    by_batch = given["training"] if "training" in given else given["use_input_stats"]
    for name in ("running_mean", "running_var"):
        statistics: Tensor | None = given[name]
        refs[name] = None if by_batch or statistics is None else statistics.detach().clone()
    return tuple(refs.values())


def keeps_type(pool: Function, tensor: Tensor) -> bool:
    """Whether a max pooling gives its input's type, with places too: autocast casts the input of some poolings."""
    autocast = Autocast.now(tensor.device.type)
    return not autocast.enabled or _keeps_type(pool, tensor.dtype, tensor.device, autocast)


@cache
def _keeps_type(pool: Function, dtype: torch.dtype, device: torch.device, autocast: Autocast) -> bool:
    with _disable_current_modes(), autocast.again():
        one = torch.ones((1,) * 5, dtype=dtype, device=device)[(0,) * (3 - int(pool.__name__.partition("pool")[2][0]))]
        results = (each(one, 1) for each in (pool, MAX_POOLS[pool]))
        types = {(each[0] if isinstance(each, tuple) else each).dtype for each in results}
    return types == {dtype}


class _Side(NamedTuple):
    """One dimension of a pooling: window i begins at `i * step // per - before`."""

    size: int  # of the input
    step: int
    per: int
    before: int
    reach: int  # from the first to the last element of a window, at most


class PoolWindows:
    """Where the windows of a max pooling lie, to write down the places of its maxima in a byte or two each.

    Torch counts a place through the whole input, in int64; here it is counted from its window's first element.

    Args:
        pool: one of `torch.nn.functional` that returns places.
        args, kwargs: those of its call.
    """

    def __init__(self, pool: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = signature(pool).bind(*args, **kwargs)
        call.apply_defaults()
        given = call.arguments
        dims = int(pool.__name__.partition("pool")[2][0])
        sizes = given["input"].shape[-dims:]

        def of_each_side(name: str) -> tuple[Any, ...]:
            """An argument as one number for each dimension."""
            value = given[name]
            values = tuple(value) if isinstance(value, tuple | list) else (value,)
            return values * dims if len(values) == 1 else values

        if "output_size" in given:
            counts = [each or size for each, size in zip(of_each_side("output_size"), sizes, strict=True)]
            self.sides = [
                _Side(size, size, count, 0, -(-size // count)) for size, count in zip(sizes, counts, strict=True)
            ]
        else:
            given["stride"] = given["stride"] or given["kernel_size"]
            each = map(of_each_side, ("kernel_size", "stride", "padding", "dilation"))
            self.sides = [
                _Side(size, stride, 1, padding, (kernel - 1) * dilation)
                for size, kernel, stride, padding, dilation in zip(sizes, *each, strict=True)
            ]

    def first(self, counts: torch.Size, device: torch.device) -> Tensor:
        """The place of the first element of each window, `counts` of them on each side."""
        first = torch.zeros((), dtype=torch.int64, device=device)
        for side, count in zip(self.sides, counts, strict=True):
            begin = torch.arange(count, device=device) * side.step // side.per - side.before
            first = first[..., None] * side.size + begin
        return first

    def shorten(self, places: Tensor) -> Tensor:
        """Places within their windows, in the smallest type that they fit in."""
        reach = 0
        for side in self.sides:
            reach = reach * side.size + side.reach
        fits = (each for each in (torch.uint8, torch.int16, torch.int32) if reach <= torch.iinfo(each).max)
        short = torch.empty_like(places, dtype=next(fits, torch.int64))
        return torch.sub(places, self.first(places.shape[-len(self.sides) :], places.device), out=short)

    def places(self, short: Tensor) -> Tensor:
        """The places that were shortened."""
        return short.to(torch.int64).add_(self.first(short.shape[-len(self.sides) :], short.device))

    def values(self, tensor: Tensor, short: Tensor) -> Tensor:
        """The pooling's result, from its input and shortened places."""
        dims = len(self.sides)
        places = self.places(short)
        return tensor.flatten(-dims).gather(-1, places.flatten(-dims)).view_as(places)
