"""Does a model hold more after every training step, and which module holds it?

A spiking network leaks where a state is never reset or never cut from its graph: each step then keeps the graphs of
all earlier ones. The growth comes from the allocator and is exact; the module is the one from whose attributes the
memory can be reached.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from revsnn_bench.meters.allocator import record_timeline
from revsnn_bench.meters.step import storage_of

_SECOND_BACKWARD = "backward through the graph a second time"


@dataclass(frozen=True)
class Leaks:
    """What grows from step to step.

    Fields:
        bytes_per_step: by which live tensor bytes grow with one more step; 0 where nothing leaks.
        by_module: the same by the module that holds it, as far as it can be reached from one; the root is "".
        carried_graphs: modules that carry a state with the graph that made it from one step to the next.
        stopped: whether backward failed because it met the graph of an earlier step.
    """

    bytes_per_step: int
    by_module: dict[str, int]
    carried_graphs: tuple[str, ...]
    stopped: bool = False

    def __bool__(self) -> bool:
        return bool(self.bytes_per_step or self.stopped)

    def __str__(self) -> str:
        holders = ", ".join(repr(name) for name in self.carried_graphs)
        fix = f"{holders} carry state with its graph: reset or detach it between steps." if holders else ""
        if self.stopped:
            return f"Backward met the graph of an earlier step. {fix}".rstrip()
        if not self.bytes_per_step:
            return "No leak: live tensor bytes are the same after every step."
        parts = ", ".join(f"{nbytes:,} B in {name!r}" for name, nbytes in self.by_module.items())
        where = f": {parts}" if parts else ""
        return f"Live tensors grow by {self.bytes_per_step:,} B with every step{where}. {fix}".rstrip()


def find_leaks(model: nn.Module, train_step: Callable[[], object]) -> Leaks:
    """Runs a training step five times and tells what grows.

    Args:
        model: whose modules are searched for what holds the memory.
        train_step: one whole step as the training loop does it: forward, loss, backward, optimizer, reset if any.
    Returns:
        What grows; false where nothing does.
    Raises:
        RuntimeError: whatever `train_step` raises, but for a backward through an earlier step's graph.
    """
    try:
        train_step()
        train_step()
        before = held_by_module(model)
        _, once = record_timeline(train_step)
        after = held_by_module(model)
        _, twice = record_timeline(lambda: (train_step(), train_step()))
    except RuntimeError as error:
        if _SECOND_BACKWARD not in str(error):
            raise
        return Leaks(0, {}, _carried_graphs(model), stopped=True)
    grown = {name: nbytes - before.get(name, 0) for name, nbytes in after.items()}
    by_module = dict(sorted(((n, b) for n, b in grown.items() if b > 0), key=lambda pair: -pair[1]))
    growth = max(0, twice.live_bytes - once.live_bytes)
    return Leaks(growth, by_module if growth else {}, _carried_graphs(model) if growth else ())


def held_by_module(model: nn.Module) -> dict[str, int]:
    """Bytes of the storages that can be reached from the attributes of each module, graphs included.

    Parameters are left out. A storage counts for the first module that reaches it.
    """
    seen_storages = {storage_of(parameter)._cdata for parameter in model.parameters()}
    seen_nodes: set[Any] = set()
    sizes: dict[str, int] = {}
    for name, module in model.named_modules():
        for tensor in _tensors(_attributes(module)):
            for reached in (tensor, *_saved(tensor, seen_nodes)):
                storage = storage_of(reached)
                if storage._cdata not in seen_storages:
                    seen_storages.add(storage._cdata)
                    sizes[name] = sizes.get(name, 0) + storage.nbytes()
    return sizes


def _carried_graphs(model: nn.Module) -> tuple[str, ...]:
    return tuple(
        name
        for name, module in model.named_modules()
        if any(tensor.grad_fn is not None for tensor in _tensors(_attributes(module)))
    )


def _attributes(module: nn.Module) -> list[Any]:
    return [value for name, value in vars(module).items() if name not in ("_parameters", "_modules")]


def _tensors(value: Any, depth: int = 4) -> Iterator[Tensor]:
    """Tensors in a value and, to some depth, in the containers that it is made of."""
    if isinstance(value, Tensor):
        if value.layout == torch.strided:
            yield value
    elif depth and isinstance(value, dict):
        yield from _tensors(list(value.values()), depth - 1)
    elif depth and isinstance(value, list | tuple | set | frozenset):
        for each in value:
            yield from _tensors(each, depth - 1)


def _saved(tensor: Tensor, seen: set[Any]) -> Iterator[Tensor]:
    """What the graph behind a tensor saved, as far as autograd shows it."""
    pending = [tensor.grad_fn]
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        pending.extend(following for following, _ in node.next_functions)
        for name in ["saved_tensors", *(each for each in dir(node) if each.startswith("_saved_"))]:
            try:
                yield from _tensors(getattr(node, name, None))
            except RuntimeError:  # freed by a backward pass
                continue
