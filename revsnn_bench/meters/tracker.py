"""A live-storage tracker: which storage was made where, and when it died.

A dispatch mode sees every storage that an op returns, and a finalizer sees it die. It does not see scratch
inside kernels nor wrapped Python numbers, so it attributes what the profiler measures and is not the truth.

An active dispatch mode changes what it watches: autograd's engine adds gradients in place only while none is
active (`can_accumulate_inplace` in torch/csrc/autograd/input_buffer.cpp). Such an `add` is recognised by
its caller and its operand (`_engine_accumulates`); if the operand dies before the next op, then the sum is
booked in the operand's block, as the engine would have placed it.
"""

import sys
import weakref
from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from revsnn_bench.meters.step import storage_of

_ENGINE = torch.autograd.graph._engine_run_backward.__code__
_TORCH = str(Path(torch.__file__).parent)

OUTSIDE = "step"
"""Where code of the training step outside of any module is booked."""


class Block(NamedTuple):
    """One storage: its bytes, and the module and autograd node (-1: none) in which it was made."""

    nbytes: int
    module: str
    node: int


def hook_modules(model: nn.Module, enter: Callable[[str], None], leave: Callable[[], None]) -> list[Any]:
    """Calls `enter` with its name, the model's own is its class, before each module's forward and `leave` after it.

    It is left also where it raises. Returns the handles of the hooks.
    """
    handles: list[Any] = []
    for name, module in model.named_modules():
        label = name or type(model).__name__
        handles.append(module.register_forward_pre_hook(lambda *_, label=label: enter(label), prepend=True))
        handles.append(module.register_forward_hook(lambda *_: leave(), always_call=True))
    return handles


class ModuleClock:
    """Which module is running, in forward by hooks and in backward by the module that made the graph node.

    A node's sequence number tells when it was made; the numbers at which the running module changed are kept.
    """

    def __init__(self, model: nn.Module) -> None:
        self._stack = [OUTSIDE]
        self._starts = [-1]
        self._names = [OUTSIDE]
        self._last_in_backward = OUTSIDE
        self._handles = hook_modules(model, self._enter, self._leave)

    def close(self) -> None:
        """Removes the hooks."""
        for handle in self._handles:
            handle.remove()

    def now(self, node: Any) -> str:
        """The module that runs now, given the autograd node that runs now (None in forward)."""
        name = self._stack[-1]
        if name == OUTSIDE and node is not None:
            sequence, following = _sequence(node), torch._C._autograd._get_sequence_nr()
            if sequence < following:  # gradient accumulators have no number of their own
                self._last_in_backward = self.at(sequence)
            name = self._last_in_backward
            if torch.is_grad_enabled():  # nodes made by recomputation belong where the recomputing node does
                self._mark(following - 1, name)
        return name

    def at(self, sequence: int) -> str:
        """The module that made the graph node with this sequence number."""
        return self._names[bisect_right(self._starts, sequence) - 1]

    def _enter(self, label: str) -> None:
        self._stack.append(label)
        self._mark(torch._C._autograd._get_sequence_nr(), label)

    def _leave(self) -> None:
        self._stack.pop()
        self._mark(torch._C._autograd._get_sequence_nr(), self._stack[-1])

    def _mark(self, sequence: int, name: str) -> None:
        if name != self._names[-1] and sequence >= self._starts[-1]:
            self._starts.append(sequence)
            self._names.append(name)


Scratch = Callable[[Any, tuple[Any, ...], Any], int]


class StorageTracker(TorchDispatchMode):
    """Logs the life of every storage made while it is active.

    Args:
        scratch: from an operator, its arguments and its result, the bytes that it takes inside of itself.
    Attributes:
        blocks: what was made, by serial number.
        log: +(serial + 1) where a block was made and -(serial + 1) where it died, in order; and what callers put there.
    """

    def __init__(self, model: nn.Module, scratch: Scratch | None = None) -> None:
        super().__init__()
        self._scratch = scratch
        self.blocks: list[Block] = []
        self.log: list[Any] = []
        self._clock = ModuleClock(model)
        self._serials: Any = WeakIdKeyDictionary()  # UntypedStorage -> serial, or None for what is older
        self._finalizers: list[Any] = []
        self._awaiting: tuple[int, weakref.ref[Any], int] | None = None

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._settle()
        self._clock.close()
        for finalizer in self._finalizers:
            finalizer.detach()

    def serial(self, tensor: Tensor) -> int | None:
        """The number of the tensor's storage; None if it is older than the tracker or unseen."""
        found: int | None = self._serials.get(storage_of(tensor))
        return found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._settle()
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                self._serials.setdefault(storage_of(leaf), None)
        out = func(*args, **(kwargs or {}))
        node = torch._C._current_autograd_node()
        replaced = self._engine_accumulates(func, args, node)
        module = self._clock.now(node)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and storage_of(leaf) not in self._serials:
                self._book(storage_of(leaf), module, node, replaced)
        if self._scratch is not None and (nbytes := self._scratch(func, args, out)):
            serial = len(self.blocks)
            self.blocks.append(Block(nbytes, module, _sequence(node)))
            self.log += [serial + 1, -(serial + 1)]
        return out

    def _book(self, storage: torch.UntypedStorage, module: str, node: Any, replaced: int | None) -> None:
        if storage.nbytes() == 0:
            return
        serial = len(self.blocks)
        self.blocks.append(Block(storage.nbytes(), module, _sequence(node)))
        if replaced is not None:
            self._serials[storage] = serial
            self._awaiting = (replaced, weakref.ref(storage), len(self.log))
        else:
            self.log.append(serial + 1)
            self._watch(storage, serial)

    def _watch(self, storage: torch.UntypedStorage, serial: int) -> None:
        self._serials[storage] = serial
        self._finalizers.append(weakref.finalize(storage, self._died, serial))

    def _died(self, serial: int) -> None:
        if self._awaiting is not None and self._awaiting[0] == serial:
            _, result, _ = self._awaiting
            self._awaiting = None
            storage = result()
            if storage is not None:
                self._watch(storage, serial)  # the sum lives on in the operand's block
                return
        self.log.append(-(serial + 1))

    def _settle(self) -> None:
        """The operand of the last engine `add` outlived it: the engine would have made a new block too."""
        if self._awaiting is None:
            return
        _, result, position = self._awaiting
        self._awaiting = None
        storage = result()
        if storage is not None:
            serial: int = self._serials[storage]
            self.log.insert(position, serial + 1)
            self._watch(storage, serial)

    def _engine_accumulates(self, func: Any, args: tuple[Any, ...], node: Any) -> int | None:
        """The block to which the engine would have added in place; None if this op is no such addition.

        The engine adds right after a node ran, while that node still counts as the current one. Its
        addition comes from no Python code, and its left operand comes from another node, or from this one
        if it feeds one input twice. A node's own addition to its incoming gradient looks the same, but that
        gradient outlives it. To a view, such as the gradient of a linear layer's weight, which comes transposed, the
        engine does not add in place: what it is a view of holds the block too.
        """
        if node is None or func is not torch.ops.aten.add.Tensor or not _called_by_engine():
            return None
        left, right = args[:2]
        serial = None if left._is_view() else self.serial(left)
        if serial is None or not isinstance(right, Tensor) or storage_of(left) is storage_of(right):
            return None
        if self.blocks[serial].node == _sequence(node):
            fed = [edge for edge in node.next_functions if edge[0] is not None]
            if len(set(fed)) == len(fed):
                return None
        return serial


def _sequence(node: Any) -> int:
    return -1 if node is None else int(node._sequence_nr())


def _called_by_engine() -> bool:
    """Whether no Python code but torch's own lies between the running backward pass and the op."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code is _ENGINE:
            return True
        if not frame.f_code.co_filename.startswith((_TORCH, __file__)):
            return False
    return False
