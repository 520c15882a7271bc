"""A live-storage tracker: which storage was made where, and when it died.

A dispatch mode sees every storage that an op returns, and a finalizer sees it die. It does not see scratch
inside kernels nor wrapped Python numbers, so it attributes what the profiler measures and is not the truth.

An active dispatch mode changes what it watches: autograd's engine adds gradients in place only while none is
active (`isTensorSubclassLike` in `input_buffer.cpp`). Such an `add` is recognised (inside a graph task,
outside of any node of it), and if the left operand dies before the next op, then the sum is booked in the
operand's block, as the engine would have placed it.
"""

import weakref
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from revsnn_bench.meters.storages import storage_of

OUTSIDE = "step"
"""Where code of the training step outside of any module is booked."""


@dataclass(frozen=True)
class Block:
    """One storage: its bytes, and the phase and module in which it was made."""

    nbytes: int
    phase: str
    module: str


class ModuleClock:
    """Which module is running, in forward by hooks and in backward by the module that made the graph node.

    A node's sequence number tells when it was made; the numbers at which the running module changed are kept.
    """

    def __init__(self, model: nn.Module) -> None:
        self._stack = [OUTSIDE]
        self._starts = [-1]
        self._names = [OUTSIDE]
        self._last_in_backward = OUTSIDE
        self._handles = []
        for name, module in model.named_modules():
            label = name or type(model).__name__
            self._handles.append(module.register_forward_pre_hook(self._enter(label), prepend=True))
            self._handles.append(module.register_forward_hook(self._leave, always_call=True))

    def close(self) -> None:
        """Removes the hooks."""
        for handle in self._handles:
            handle.remove()

    def now(self, node: Any) -> str:
        """The module that runs now, given the autograd node that runs now (None in forward)."""
        name = self._stack[-1]
        if name == OUTSIDE and node is not None:
            sequence = node._sequence_nr()
            if (
                sequence < torch._C._autograd._get_sequence_nr()
            ):  # gradient accumulators have no number of their own
                self._last_in_backward = self._names[bisect_right(self._starts, sequence) - 1]
            name = self._last_in_backward
            if (
                torch.is_grad_enabled()
            ):  # recomputation makes nodes; they belong where the recomputing node belongs
                self._mark(torch._C._autograd._get_sequence_nr() - 1, name)
        return name

    def _enter(self, label: str) -> Callable[..., None]:
        def enter(*_: Any) -> None:
            self._stack.append(label)
            self._mark(torch._C._autograd._get_sequence_nr(), label)

        return enter

    def _leave(self, *_: Any) -> None:
        self._stack.pop()
        self._mark(torch._C._autograd._get_sequence_nr(), self._stack[-1])

    def _mark(self, sequence: int, name: str) -> None:
        if name != self._names[-1] and sequence >= self._starts[-1]:
            self._starts.append(sequence)
            self._names.append(name)


class StorageTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Logs the life of every storage made while it is active.

    Attributes:
        blocks: what was made, by serial number.
        log: +(serial + 1) where a block was made and -(serial + 1) where it died, in order.
        phase: label for blocks made from now on; the caller sets it.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.blocks: list[Block] = []
        self.log: list[int] = []
        self.phase = "forward"
        self._clock = ModuleClock(model)
        self._serials: Any = WeakIdKeyDictionary()  # UntypedStorage -> serial, or None for what is older
        self._finalizers: list[Any] = []
        self._task_of_node: dict[int, int] = {}
        self._awaiting: tuple[int, weakref.ref[Any], int] | None = None

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        self._settle()
        self._clock.close()
        for finalizer in self._finalizers:
            finalizer.detach()

    def serial(self, tensor: Tensor) -> int | None:
        """The number of the tensor's storage; None if it is older than the tracker or unseen."""
        found: int | None = self._serials.get(storage_of(tensor))
        return found

    def live(self) -> set[int]:
        """Serial numbers of the blocks that are alive now."""
        self._settle()
        alive: set[int] = set()
        for entry in self.log:
            (alive.add if entry > 0 else alive.remove)(abs(entry) - 1)
        return alive

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._settle()
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                self._serials.setdefault(storage_of(leaf), None)
        out = func(*args, **(kwargs or {}))
        node = torch._C._current_autograd_node()
        in_place = self._engine_accumulates(func, node) and storage_of(args[0]) is not storage_of(args[1])
        replaced = self.serial(args[0]) if in_place else None
        module = self._clock.now(node)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and storage_of(leaf) not in self._serials:
                self._book(storage_of(leaf), module, replaced)
        return out

    def _book(self, storage: torch.UntypedStorage, module: str, replaced: int | None) -> None:
        if storage.nbytes() == 0:
            return
        if replaced is not None:
            self._awaiting = (replaced, weakref.ref(storage), len(self.log))
            self._serials[storage] = len(self.blocks)
            self.blocks.append(Block(storage.nbytes(), self.phase, module))
            return
        serial = len(self.blocks)
        self.blocks.append(Block(storage.nbytes(), self.phase, module))
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

    def _engine_accumulates(self, func: Any, node: Any) -> bool:
        task = torch._C._current_graph_task_id()
        if task < 0:
            return False
        if node is None:
            return func is torch.ops.aten.add.Tensor
        owner = self._task_of_node.setdefault(node._sequence_nr(), task)
        return func is torch.ops.aten.add.Tensor and owner != task
