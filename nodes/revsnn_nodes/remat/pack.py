"""What autograd saves in place of a tensor, how it is made again in the backward pass, and the table of both."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn
from torch._subclasses import FakeTensor
from torch.profiler import record_function
from torch.utils._python_dispatch import _disable_current_modes

from revsnn_nodes.remat.recipes import MOST_RECIPES, Counter, Place, Value, View

UNSEEN = "changed unseen"
"""Kept: made again where it was first saved, it came out differently; a kernel that nobody saw wrote to it."""

LABEL = "recompute"
"""The profiler's name for everything that is run again."""

_CHUNK = 1 << 20

_lock = threading.RLock()
_local = threading.local()


@contextmanager
def paused() -> Iterator[None]:
    """Inside, tensors are saved as they are: what runs is a part of the backward pass."""
    before = is_paused()
    _local.paused = True
    try:
        yield
    finally:
        _local.paused = before


def is_paused() -> bool:
    """Whether this thread is inside `paused`."""
    return getattr(_local, "paused", False)


PLAIN = (Tensor, nn.Parameter, nn.Buffer, FakeTensor)
"""Types of tensors that may be recorded."""

_PLAIN: dict[tuple[type, int], bool] = {}
"""Verdicts of `recordable` by type and dispatch keys, which tell of everything that it asks."""


def recordable(tensor: Tensor) -> bool:
    """Whether a tensor is plain memory with a version counter: no subclass, no transform, no conjugate view."""
    keys = torch._C._dispatch_keys(tensor)
    kind = type(tensor), keys.raw_repr()
    found = _PLAIN.get(kind)
    if found is None:
        found = (
            kind[0] in PLAIN
            and tensor.layout is torch.strided
            and not (tensor.is_inference() or tensor.is_conj() or tensor.is_neg() or tensor.is_quantized)
            and not (tensor.is_nested or tensor.device.type == "meta")
            and not keys.has(torch._C.DispatchKey.AutogradOther)  # of no device, as `torch.load` reads a file
        )
        if kind[0] is not FakeTensor:  # its device is not among its keys
            _PLAIN[kind] = found
    return found


def fills_its_storage(tensor: Tensor) -> bool:
    """Whether a new tensor and its storage have the same elements, in whatever order."""
    if tensor.storage_offset() or tensor.untyped_storage().nbytes() != tensor.numel() * tensor.itemsize:
        return False
    if tensor.is_contiguous():
        return True
    span = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return span == tensor.numel() - 1


@dataclass(slots=True)
class Entry:
    """One saved tensor of a forward."""

    name: str  # of the module
    because: str = ""  # the rule by which it was kept
    kept_bytes: int = 0  # kept for it that nothing kept before: its own, or those of a recipe's sources
    remade_bytes: int = 0  # of it that are made again, if no other saved tensor is the same
    passes: int = 0  # cost of making it again


@dataclass
class Saved:
    """The handle of `with remat() as saved:`; `print(saved)` gives the table.

    Fields:
        notes: why the context stepped aside, where it did.
    """

    entries: list[Entry] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def kept_bytes(self) -> int:
        """Bytes that saved tensors keep alive, parameters not counted, each storage once."""
        return sum(entry.kept_bytes for entry in self.entries)

    @property
    def remade_bytes(self) -> int:
        """Bytes that are made again in the backward pass instead, each storage once."""
        return sum(entry.remade_bytes for entry in self.entries)

    @property
    def passes(self) -> int:
        """Passes over tensors that the recipes take, if each is run alone."""
        return sum(entry.passes for entry in self.entries)

    def because(self) -> dict[str, int]:
        """Bytes kept by each rule."""
        rules: dict[str, int] = {}
        for entry in self.entries:
            if entry.kept_bytes:
                rules[entry.because] = rules.get(entry.because, 0) + entry.kept_bytes
        return rules

    def by_module(self) -> dict[str, "Saved"]:
        """The entries of each module, in the order of the forward."""
        modules: dict[str, Saved] = {}
        for entry in self.entries:
            modules.setdefault(entry.name, Saved()).entries.append(entry)
        return modules

    def note(self, text: str) -> None:
        """Says once why the context stepped aside."""
        if text not in self.notes:
            self.notes.append(text)

    def __str__(self) -> str:
        rows: list[tuple[Any, ...]] = [("module", "kept", "remade", "passes", "kept because")]
        rows += [each._row(name) for name, each in self.by_module().items() if each.kept_bytes or each.remade_bytes]
        rows.append(self._row("total"))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in (1, 2, 3)), row[4]]).rstrip()
            for row in rows
        ]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def _row(self, name: str) -> tuple[str, ...]:
        rules = ", ".join(f"{rule} {_size(count)}" for rule, count in self.because().items())
        return name, _size(self.kept_bytes), _size(self.remade_bytes), str(self.passes), rules


def _size(count: int) -> str:
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= unit:
            return f"{count / unit:.2f} {name}"
    return f"{count} B"


Leaf = tuple[Value, UntypedStorage]
"""What is kept alive to make something from it."""


@dataclass(frozen=True)
class Plan:
    """What making a value again takes."""

    obstacle: str = ""  # why it cannot be used; empty where it can
    leaves: tuple[Leaf, ...] = ()
    new_bytes: int = 0  # of those that nothing keeps yet, and `copied_bytes`
    copied_bytes: int = 0  # of tensors that stand among the arguments of its recipes
    passes: int = 0  # over the tensor; a recipe for a part of it counts as that part
    places: tuple[Place, ...] = ()  # of recipes that hold only where they come out as the forward did: `Recipe.place`


_SMALL = 1024
"""What is smaller than a tensor by this factor is kept for it where it is there, and not made again."""

_NUMBER = 8
"""Bytes of one number; a recipe takes more than that."""


def plan_for(target: Value, max_passes: int) -> Plan:
    """How to make a value again from storages that are kept, alive, or parameters."""
    if target.recipe is None:
        return Plan("no recipe")
    if target.nbytes <= _NUMBER:
        return Plan("bytes")
    work, copied, leaves, seen, ahead, places = 0, 0, {}, {target}, [target], []
    while ahead:
        value = ahead.pop()
        is_source = value.recipe is None or (value.keepers and value is not target and value.counter.current)
        if is_source or value.nbytes * _SMALL <= target.nbytes:
            storage = value.storage()
            open_to_others = value.opened and not value.copied and value.keepers == value.readers
            if storage is not None and not open_to_others:
                leaves[value] = storage
                continue
            if is_source:
                return Plan("source gone" if value.counter.current and not open_to_others else "source changed")
        assert value.recipe is not None
        work += value.recipe.passes * min(value.nbytes, target.nbytes)
        copied += value.recipe.nbytes
        if work > max_passes * target.nbytes or len(seen) > MOST_RECIPES:
            return Plan("max_passes")
        if value.recipe.place is not None:
            places.append(value.recipe.place)
        ahead += [source for source in value.recipe.sources if source not in seen]
        seen.update(value.recipe.sources)
    new_bytes = copied + sum(value.nbytes for value in leaves if not (value.keepers or value.persistent))
    passes = -(-work // max(target.nbytes, 1))
    obstacle = "" if new_bytes < target.nbytes else "bytes"
    return Plan(obstacle, tuple(leaves.items()), new_bytes, copied, passes, tuple(places))


@dataclass(slots=True)
class _Trial:
    """How often what is made at a place in the code was needed, and whether it came out as in the forward so far."""

    uses: int = 0
    holds: bool = True

    @property
    def is_due(self) -> bool:
        """At the 1st, 2nd, 4th, 8th use and so on."""
        return not self.uses & (self.uses - 1)


_MOST_PLACES = 10_000
_tried: dict[Place, _Trial] = {}
_trials_rest = False


@contextmanager
def trials_rest() -> Iterator[None]:
    """Inside, what has held at its first trial is not tried again, for a meter: a trial takes a saved tensor more."""
    global _trials_rest
    rested, _trials_rest = _trials_rest, True
    try:
        yield
    finally:
        _trials_rest = rested


def proves(plan: Plan, value: Value, packed: "Packed") -> bool:
    """Whether all recipes of a plan hold; those in doubt are run and compared when a trial is due.

    RuntimeError where one has held so far, and now it does not.
    """
    kept = packed.kept
    if not plan.places or kept is None or isinstance(kept, FakeTensor):
        return True
    if len(_tried) > _MOST_PLACES:  # of inputs of ever other sizes; they are tried again
        _tried.clear()
    tried = [_tried.setdefault(place, _Trial()) for place in set(plan.places)]
    if not all(each.holds for each in tried):
        return False
    for each in tried:
        each.uses += 1
    if not any(each.is_due and not (_trials_rest and each.uses > 1) for each in tried):
        return True
    if kept.is_cuda and torch.cuda.is_current_stream_capturing():  # where nothing can be compared
        return all(each.uses > 1 for each in tried)
    with torch.no_grad(), _disable_current_modes():
        storages = make(value, plan.leaves), kept.untyped_storage()
        bits = (torch.empty(0, dtype=torch.uint8, device=kept.device).set_(each) for each in storages)
        if torch.equal(*bits):
            return True
    for each in tried:
        each.holds = False
    if all(each.uses > 1 for each in tried):
        raise RuntimeError(
            f"what {packed.entry.name} saves, {list(kept.shape)}, must come out of the functions that made it; it did "
            "so far, and now it does not. A kernel that nobody sees writes to it, and gradients may have been wrong "
            "since it did. Run this part of the forward outside of `remat`."
        )
    return False


class Kept:
    """A saved tensor that is kept as it is, and the version that it had."""

    __slots__ = ("kept", "version")

    def __init__(self, tensor: Tensor) -> None:
        self.kept: Tensor | None = tensor.detach()
        self.version = tensor._version

    @property
    def current(self) -> bool:
        """Whether nothing has been written to what is kept."""
        return self.kept is not None and self.kept._version == self.version

    def tensor(self) -> Tensor:
        """The saved tensor; RuntimeError where it was modified in place."""
        assert self.kept is not None
        if not self.current:
            Counter(self.kept, self.version).check()
        return self.kept


class Packed(Kept):
    """A saved tensor that counts: kept as it is, or a value and the storages that it is made from.

    What is kept has the version counter itself; one without memory, and the place in the storage, are for what is not.
    """

    __slots__ = ("__weakref__", "copied", "counter", "entry", "leaves", "may_change", "sum", "value", "verify", "view")

    def __init__(self, tensor: Tensor, value: Value, entry: Entry, verify: bool, may_change: bool = False) -> None:
        super().__init__(tensor)
        self.value, self.entry, self.verify = value, entry, verify
        self.may_change = may_change  # whether it may be written to later: without `remat` nobody would save it
        self.leaves: tuple[Value, ...] = ()
        self.copied = 0
        self.sum: int | None = None
        entry.kept_bytes = 0 if value.keepers else value.nbytes
        value.keepers += 1

    def replace(self, value: Value, plan: Plan) -> None:
        """Drops the tensor for a recipe that makes it again."""
        assert self.kept is not None
        if self.verify:
            self.sum = checksum(self.kept)
        self.view, self.counter = View.of(self.kept), Counter(self.kept, self.version)
        self.kept = None
        self.value.keepers -= 1
        self.value, self.leaves, self.copied = value, tuple(leaf for leaf, _ in plan.leaves), plan.copied_bytes
        self.entry.remade_bytes = 0 if value.asks or value in self.leaves else value.nbytes
        self.entry.kept_bytes, self.entry.passes = plan.new_bytes, plan.passes
        for leaf, storage in plan.leaves:
            leaf.pin(storage)
        value.asks |= {id(self)}

    def keep_contents(self) -> None:
        """Keeps what the tensor holds now: a copy of it, from where the storage is written to."""
        assert self.kept is not None
        leaf = self.value, self.kept.untyped_storage()
        self.replace(self.value, Plan(leaves=(leaf,), new_bytes=self.entry.kept_bytes))

    def __del__(self) -> None:
        if self.kept is not None:
            self.value.keepers -= 1
            return
        for leaf in self.leaves:
            leaf.unpin()
        self.value.forget(self)

    def tensor(self) -> Tensor:
        """See `Kept.tensor`; also raises where a source of it was, or, with `verify`, where it came out differently."""
        if self.kept is not None:
            return super().tensor()
        if not self.may_change:
            self.counter.check()
        with _lock, torch._C.DisableTorchFunction(), torch.no_grad():
            for leaf in self.leaves:
                if not leaf.copied:
                    leaf.counter.check("`remat` makes another saved tensor again from it. ")
            there = self.value.storage()
            if there is None:
                with record_function(LABEL):
                    storage = make(self.value)
            self.value.forget(self)
            made = self.view.on(storage if there is None else there)
            if there is not None or self.value.held is not None:
                made = self.counter.alias(made)  # a write to what others read, too, is counted for them
            if self.sum is not None and checksum(made) != self.sum:
                raise RuntimeError(
                    f"a tensor made again in the backward pass must equal the one of the forward; {self.entry.name} "
                    f"{list(self.view.size)} does not. A function that was taken for deterministic is not, or "
                    "something that it reads has changed. Run this part of the forward outside of `remat`."
                )
        return made


def count(entries: list[Entry], alive: Sequence[Packed | None]) -> None:
    """Counts each storage that is kept, or made again, with the first of its saved tensors that are `alive`."""
    kept: set[Value] = set()
    remade: set[Value] = set()
    for entry, packed in zip(entries, alive, strict=True):
        entry.kept_bytes = entry.remade_bytes = 0
        if packed is None:
            entry.passes = 0
            continue
        held = {packed.value} if packed.kept is not None else set(packed.leaves)
        entry.kept_bytes = packed.copied + sum(value.nbytes for value in held - kept if not value.persistent)
        kept |= held
        if packed.kept is None and packed.value not in remade and packed.value not in packed.leaves:
            remade.add(packed.value)
            entry.remade_bytes = packed.value.nbytes


def values_to_make(packed: list[Packed]) -> set[Value]:
    """The values whose recipes are run when these saved tensors are asked for, if nothing on the way is there."""
    needed: set[Value] = set()
    for each in packed:
        seen = set(each.leaves)
        ahead = [] if each.kept is not None else [each.value]
        while ahead:
            value = ahead.pop()
            if value not in seen:
                seen.add(value)
                needed.add(value)
                ahead += value.recipe.sources if value.recipe else ()
    return needed


def make(target: Value, leaves: tuple[Leaf, ...] | None = None) -> UntypedStorage:
    """Runs the recipes from what is there to a value; holds what another saved tensor asks for next.

    A trial begins from `leaves`, whatever else is there, and holds nothing.
    """
    storages: dict[Value, UntypedStorage] = dict(leaves or ())
    order: list[Value] = []
    uses: dict[Value, int] = {}
    _order(target, target, storages, order, uses, leaves is not None)
    held = set() if leaves is not None else _asked_next(target, set(order))
    for value in order:
        recipe, available = value.recipe, storages
        assert recipe is not None, "a saved tensor holds its sources"
        base = recipe.overwrites
        if base is not None and (base not in order or base in held or uses[base] > 1):
            available = {**storages, base: storages[base].clone()}
        storages[value] = recipe.run(available)
        for source in recipe.sources:
            uses[source] -= 1
            if not uses[source]:
                del storages[source]
        if value in held:
            value.held = storages[value]
    return storages[target]


def _order(
    value: Value,
    target: Value,
    storages: dict[Value, UntypedStorage],
    order: list[Value],
    uses: dict[Value, int],
    is_trial: bool,
) -> None:
    """Fills in what is there, what is to be made (sources first), and how often each is read."""
    found = storages.get(value) if is_trial else None if value is target else value.storage()
    if found is not None:
        storages[value] = found
        return
    for source in value.recipe.sources if value.recipe else ():
        if source not in uses:
            uses[source] = 0
            _order(source, target, storages, order, uses, is_trial)
        uses[source] += 1
    order.append(value)


def _asked_next(target: Value, made: set[Value]) -> set[Value]:
    """Of the values made on the way to a target, those that a saved tensor waits for, the nearest on each path."""
    asked: set[Value] = set()
    ahead, seen = [target], {target}
    while ahead:
        recipe = ahead.pop().recipe
        for source in recipe.sources if recipe else ():
            if source in made and source not in seen:
                seen.add(source)
                if source.asks:
                    asked.add(source)
                else:
                    ahead.append(source)
    return asked | ({target} if len(target.asks) > 1 else set())


def checksum(tensor: Tensor) -> int:
    """A sum of a tensor's bits, each weighted by its place: equal tensors have equal sums."""
    plain = tensor.detach().resolve_conj().resolve_neg()
    bits = plain.clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8)
    total = 0
    for start in range(0, bits.numel(), _CHUNK):
        part = bits[start : start + _CHUNK].to(torch.int64)
        places = torch.arange(start, start + part.numel(), device=part.device) * 2654435761 % 4294967291 + 1
        total += int((part * places).sum())
    return total
