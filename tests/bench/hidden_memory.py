"""Nodes that hide memory, each in one known way: what the memory meter and the status are held against."""

import array
import ctypes
import mmap
import os
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from revsnn_nodes import registry, surrogate
from torch import Tensor, nn

from revsnn_bench import Case, Settings, measure
from revsnn_bench.records import MemoryRecord
from revsnn_bench.system.process import all_tensors, freeze_imported, frozen_heap

_EVERYWHERE: dict[str, Any] = {}
_OF_MODULE = torch.empty(0)
"""Imported before a case is measured; in a worker, before it is forked, when all that is there has been frozen."""


class _Keep(torch.autograd.Function):
    """Keeps an object as an attribute of the context, where no hook sees it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Any) -> Tensor:
        ctx.kept = kept
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class Hiding(nn.Module):
    """A layer that fires without memory of the past, and hides a copy of its input.

    Args:
        hide: what it does with (itself, input, output) before it returns; a tensor that it returns is the output.
    """

    def __init__(self, hide: Callable[["Hiding", Tensor, Tensor], Tensor | None]) -> None:
        super().__init__()
        self.surrogate_function = surrogate.Sigmoid()
        self.hide = hide
        self.v: Tensor | float = 0.0
        self.hidden: Any = None

    def reset(self) -> None:
        self.v, self.hidden = 0.0, None

    def forward(self, x_seq: Tensor) -> Tensor:
        y_seq = self.surrogate_function(x_seq - 1.0)
        changed = self.hide(self, x_seq.detach(), y_seq)
        return y_seq if changed is None else changed


def _in(name: str, make: Callable[[Tensor], Any]) -> Callable[[Hiding, Tensor, Tensor], None]:
    def hide(node: Hiding, x: Tensor, y: Tensor) -> None:
        setattr(node, name, make(x))

    return hide


def _mapping(x: Tensor) -> mmap.mmap:
    mapped = mmap.mmap(-1, x.nbytes)
    mapped.write(x.numpy().tobytes())
    return mapped


def _file(x: Tensor) -> Any:
    kept = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  (kept open on purpose)
    kept.write(x.numpy().tobytes())
    return kept


def _pipe_to_a_thread(x: Tensor) -> Any:
    read, write = os.pipe()
    reader = threading.Thread(target=lambda: [os.read(read, 1 << 20) for _ in range(1)], daemon=True)
    reader.start()
    data = x.numpy().tobytes()
    sent = os.write(write, data[: 1 << 16])
    reader.join()
    for each in (read, write):
        os.close(each)
    return [sent, bytearray(data)]


def _use(passing: Any) -> None:
    """Drops an object that was there for a time."""


def _in_a_thread(work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def _once(name: str, make: Callable[[Tensor], Any], where: Callable[[Hiding], dict[str, Any]]) -> Any:
    def hide(node: Hiding, x: Tensor, y: Tensor) -> None:
        kept = where(node)
        if name not in kept:
            kept[name] = make(x)

    return hide


def _of_module(node: Hiding) -> dict[str, Any]:
    return node.__dict__.setdefault("buffers_made_once", {})


def _everywhere(node: Hiding) -> dict[str, Any]:
    return _EVERYWHERE


def _given(
    take: Callable[[Tensor, Tensor], Any], empty: Callable[[], Tensor] = lambda: torch.empty(0)
) -> Callable[[], Hiding]:
    """A layer built with an empty tensor, to which the first call gives memory."""

    def make() -> Hiding:
        older = empty()

        def hide(node: Hiding, x: Tensor, y: Tensor) -> None:
            if not older.numel():
                take(older, x)

        return Hiding(hide)

    return make


def _ignore(kept: Tensor, gradient: Tensor) -> None:
    """Does nothing; who holds it holds what is kept."""


def _hook(node: Hiding, x: Tensor, y: Tensor) -> None:
    y.register_hook(partial(_ignore, x.clone()))


def _cycle(node: Hiding, x: Tensor, y: Tensor) -> None:
    box: list[Any] = [x.clone()]
    box.append(box)


def _in_a_process(work: Callable[[], None]) -> None:
    child = os.fork()
    if not child:
        work()
        os._exit(0)
    os.waitpid(child, 0)


class _Gradient:
    """Keeps a copy of a tensor as the gradient of a parameter that is in no module."""

    def __init__(self) -> None:
        self.of = nn.Parameter(torch.zeros(()))

    def __call__(self, node: "Hiding", x: Tensor, y: Tensor) -> Tensor:
        if self.of.shape != x.shape:
            self.of.data = self.of.data.expand(x.shape)
        return y + self.of if y.requires_grad else y


def _thread_local(x: Tensor) -> threading.local:
    local = threading.local()
    local.kept = x.clone()
    return local


TENSORS: dict[str, Callable[[], nn.Module]] = {
    "attribute of the context": lambda: Hiding(lambda node, x, y: _Keep.apply(y, x.clone())),
    "attribute that reset clears": lambda: Hiding(_in("hidden", torch.clone)),
    "attribute that is overwritten": lambda: Hiding(_in("other", torch.clone)),
    "list in a dictionary": lambda: Hiding(_in("hidden", lambda x: {"a": [(x.clone(),)]})),
    "attribute of the output": lambda: Hiding(lambda node, x, y: setattr(y, "extra", x.clone())),
    "closure of a hook on the output": lambda: Hiding(_hook),
    "output that is a view of twice its size": lambda: Hiding(lambda node, x, y: torch.cat([y, y])[: len(y)]),
    "reference cycle": lambda: Hiding(_cycle),
    "local of the thread": lambda: Hiding(_in("hidden", _thread_local)),
    "metadata of the graph": lambda: Hiding(lambda node, x, y: y.grad_fn.metadata.__setitem__("kept", x.clone())),
    "shared memory": lambda: Hiding(_in("hidden", lambda x: x.clone().share_memory_())),
    "buffer made by the first call": lambda: Hiding(_once("buffer", torch.clone, _of_module)),
    "global buffer made by the first call": lambda: Hiding(_once("buffer", torch.clone, _everywhere)),
    "gradient of a parameter in no module": lambda: Hiding(_Gradient()),
    "older tensor with the data of another": _given(lambda older, x: setattr(older, "data", x.clone())),
    "older tensor that is resized": _given(lambda older, x: older.resize_(x.shape)),
    "tensor of a module that is resized": _given(lambda older, x: older.resize_(x.shape), lambda: _OF_MODULE),
}
"""Ways to hide one tensor of the input's size: it is counted, to the byte."""

OTHERS: dict[str, Callable[[], nn.Module]] = {
    "numpy array": lambda: Hiding(_in("hidden", lambda x: np.array(x.numpy()))),
    "bytes": lambda: Hiding(_in("hidden", lambda x: x.numpy().tobytes())),
    "bytearray in the context": lambda: Hiding(lambda node, x, y: _Keep.apply(y, bytearray(x.numpy().tobytes()))),
    "array.array": lambda: Hiding(_in("hidden", lambda x: array.array("B", x.numpy().tobytes()))),
    "ctypes buffer": lambda: Hiding(
        _in("hidden", lambda x: ctypes.create_string_buffer(x.numpy().tobytes(), x.nbytes))
    ),
    "list of numbers": lambda: Hiding(_in("hidden", lambda x: x.flatten().tolist())),
    "anonymous mapping": lambda: Hiding(_in("hidden", _mapping)),
    "file": lambda: Hiding(_in("hidden", _file)),
    "pipe": lambda: Hiding(_in("hidden", _pipe_to_a_thread)),
    "numpy array for a time": lambda: Hiding(lambda node, x, y: _use(np.tile(x.numpy(), 2))),
    "bytes of another process": lambda: Hiding(lambda node, x, y: _in_a_process(lambda: _use(b"1" * x.nbytes))),
    "tensor of another thread": lambda: Hiding(lambda node, x, y: _in_a_thread(lambda: _use(x + 1))),
    "numpy array made by the first call": lambda: Hiding(_once("array", lambda x: np.array(x.numpy()), _of_module)),
}
"""Ways to hide memory that is no tensor: the case is unverified, and the reason says what was seen."""


def memory_of(name: str) -> MemoryRecord:
    """What the meter says of a node of `TENSORS`, measured where this is called."""
    registry.register_node("planted", TENSORS[name])
    case = Case(node="planted", timesteps=4, batch=2, shape=(131072,))
    memory = measure(case, Settings(passes=("memory",))).memory
    assert memory is not None
    return memory


def counts_of_tensors() -> list[int]:
    """How often tensors are found that were frozen as in the server, made since, and made after a meter froze those."""
    imported = torch.zeros(3)
    freeze_imported()
    made = torch.zeros(3)
    with frozen_heap():
        last = torch.zeros(3)
        found = [id(tensor) for tensor in all_tensors()]
    return [found.count(id(each)) for each in (imported, made, last)]
