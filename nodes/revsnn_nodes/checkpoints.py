"""The state that a node starts from where `torch.utils.checkpoint` runs it again.

A checkpointed function runs twice, and what it takes from a module is not among its arguments: the second run, in the
backward pass, would start from the membrane that the last step left behind. So a node notes in the region (what stands
for one call of `checkpoint`) the state of each of its calls that does not go on from the call before, and takes it from
there when it is run again. What the second run comes to can be read from the node, as a readout of membranes does; the
carried state is back when it is over. The regions are found on the Python stack.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor
from torch.utils import checkpoint as torch_checkpoint

from revsnn_nodes.parameters import require

_FIRST_RUN = torch_checkpoint.CheckpointFunction.forward.__code__
_SECOND_RUN = torch_checkpoint.CheckpointFunction.backward.__code__

_PUT_BACK: ContextVar[bool] = ContextVar("_PUT_BACK", default=False)
_LENT: WeakKeyDictionary[Any, tuple[int, Tensor]] = WeakKeyDictionary()
"""Nodes that show the membrane of a second run until that backward pass ends: which one, and the membrane."""


_GOES_ON: Any = object()
"""In place of the state of a call that goes on from the call before; the calls themselves would be a circle."""


@dataclass
class Calls:
    """One node's calls in one region."""

    starts: list[Any] = field(default_factory=list)  # the state of each, or `_GOES_ON`
    left: ref[Tensor] | None = None  # what the first run's last call left, while somebody else holds it
    last: Any = None  # the state that the last call of a second run left
    task: int | None = None  # the backward pass of the present second run
    done: int = 0  # how many calls that has made

    def next_start(self) -> Any:
        """The state of the next call of a second run."""
        task = torch._C._current_graph_task_id()
        if task != self.task:
            self.task, self.done = task, 0
        start = self.starts[self.done]
        self.done += 1
        if start is _GOES_ON:
            return self.last
        return start.detach().requires_grad_(start.requires_grad) if isinstance(start, Tensor) else start


class Turn:
    """One call of a node: the checkpointed regions that it runs in."""

    def __init__(self, node: Any) -> None:
        self.first: list[Calls] = []  # the node's calls in the regions that run for the first time
        self.again: Calls | None = None  # those in the innermost one that is run a second time
        self.cut = False  # whether a region is reentrant, whose gradient reaches its arguments alone
        self.trains = False  # whether the gradient goes through the second run, as in a reentrant checkpoint
        for region, again, cuts in _regions() if _may_be_in_one() else ():
            states = getattr(region, "_node_states", None)
            if states is None:
                states = region._node_states = WeakKeyDictionary()
            calls = states.setdefault(node, Calls())
            if again:
                # A node that the function makes anew has no first run: it starts from its own state.
                self.again = calls if calls.starts else None
                self.trains = not isinstance(region, torch_checkpoint._CheckpointFrame)
                break
            self.first.append(calls)
            self.cut = self.cut or cuts

    def begin(self, carried: Any, start: Tensor | None) -> None:
        """Notes what a first run starts from: `carried` is the node's state, `start` the same as it is used."""
        followed = [calls.left is not None and carried is calls.left() for calls in self.first]
        # What is no tensor has no attributes where it is compiled with `dynamic=True`.
        is_left = isinstance(carried, Tensor) and getattr(carried, "_left_reentrant_checkpoint", False)
        left = is_left and not any(followed)
        entering = self.cut and isinstance(start, Tensor) and start.requires_grad and not any(followed)
        require(
            self.again is not None or not (entering or (left and (self.cut or torch.is_grad_enabled()))),
            "use_reentrant", "be False where a state is carried into or out of a checkpoint", True,
            "A reentrant checkpoint passes no gradient to what is not among its arguments.",
            "Pass use_reentrant=False, or call the node's detach() or reset() between.",
        )  # fmt: skip
        for calls, follows in zip(self.first, followed, strict=True):
            calls.starts.append(_GOES_ON if follows else start)

    def end(self, node: Any, left: Tensor) -> None:
        """Hands the state on: to the region where this was a second run, else to the node."""
        for calls in self.first:
            calls.left = ref(left)
        if self.again is not None:
            self.again.last = left
            # As a leaf, for the graph behind it would keep all that was made again; but where it is trained through.
            _lend(node, left if self.trains else left.detach().requires_grad_(left.requires_grad))
            return
        if self.cut:
            left._left_reentrant_checkpoint = True  # type: ignore[attr-defined]
        node.v = left


@contextmanager
def putting_back() -> Iterator[None]:
    """Inside, second runs leave their membranes in the nodes: the caller puts the carried ones back."""
    token = _PUT_BACK.set(True)
    try:
        yield
    finally:
        _PUT_BACK.reset(token)


def _lend(node: Any, shown: Tensor) -> None:
    """Shows the membrane of a second run, which the function may read, until the backward pass ends."""
    if _PUT_BACK.get():
        node.v = shown
        return
    if (task := torch._C._current_graph_task_id()) == -1:
        return
    carried = node.v
    # A backward pass inside of another, as of a reentrant checkpoint, ends first; then the other's loan goes on.
    earlier = _LENT.get(node)
    if earlier is None or earlier[0] != task:

        def put_back() -> None:
            """Gives the node the membrane that it carried, unless somebody has done so."""
            _, last = _LENT.pop(node)
            if earlier is not None:
                _LENT[node] = earlier
            # Another one may have put it back already, as SpikingJelly's checkpoint does.
            if isinstance(node.v, Tensor) and _storage(node.v) == _storage(last):
                node.v = carried

        torch.autograd.Variable._execution_engine.queue_callback(put_back)
    _LENT[node] = (task, shown)
    node.v = shown


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def runs_again() -> bool:
    """Whether the caller is in a checkpointed region's second run."""
    return _may_be_in_one() and any(again for _, again, _ in _regions())


def _may_be_in_one() -> bool:
    """A cheap test: a region either has hooks for saved tensors, runs without grad, or is in a backward pass."""
    if torch.compiler.is_compiling():
        return False
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return hooks is not None or not torch.is_grad_enabled() or torch._C._current_graph_task_id() != -1


def _regions() -> Iterator[tuple[Any, bool, bool]]:
    """Regions around the caller, innermost first; whether each runs again, and whether it is reentrant and trains."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code is _FIRST_RUN:
            region = frame.f_locals["ctx"]
            yield region, False, any(region.needs_input_grad)
        elif code is _SECOND_RUN:
            yield frame.f_locals["ctx"], True, False
        elif code.co_filename == torch_checkpoint.__file__:
            if code.co_name == "unpack_hook":
                yield frame.f_locals["frame"], True, False
            elif (running := frame.f_locals.get("gen")) is not None and running.gi_frame is not None:
                yield running.gi_frame.f_locals["new_frame"], False, False
        frame = frame.f_back  # type: ignore[assignment]
