"""Neurons of SpikingJelly's own kind, and the exchange of a model's neurons for them.

    from revsnn_nodes.spikingjelly import swap_neurons
    print(swap_neurons(model))          # LIFNode -> ours: same parameters, surrogate, state; says what it left and why

The classes here are both a node of this package and a neuron of SpikingJelly: `isinstance(node, neuron.BaseNode)`
holds, and `isinstance(node, neuron.LIFNode)` where the node has that function. So `reset_net`, `detach_net`,
`set_step_mode`, `named_memories`, `to_functional_forward`, `memopt` (levels 0 and 1), monitors and their counters of
operations and energy treat them as their own.

Import this module only where SpikingJelly is installed: version 2.0, with which it is tested, or 0.0.0.0.14, which has
no memopt and no functional protocol.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from spikingjelly.activation_based import base as their_base
from spikingjelly.activation_based import neuron as their_neuron
from spikingjelly.activation_based import surrogate as their_surrogate
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from revsnn_nodes import surrogate
from revsnn_nodes.base import SpikingNode, StepMode, moved_state
from revsnn_nodes.carrier import CarrierLIF
from revsnn_nodes.coupled import AnchoredReversibleLIF, ReversibleLIF
from revsnn_nodes.equations import state_dtype
from revsnn_nodes.kernels.support import Backend
from revsnn_nodes.lif import CheckpointedLIF, StandardIF, StandardLIF, StandardParametricLIF
from revsnn_nodes.parameters import require
from revsnn_nodes.swap import Exchange, Swapped, exchange, is_hooked, replaced_method

States = tuple[Any, ...]
"""Inputs, outputs or memories of SpikingJelly's functional protocol; a node has one of each."""


class MemoryNode(SpikingNode[Any], their_base.MemoryModule):  # type: ignore[misc]
    """What a node needs to be a `MemoryModule`: its membrane is the registered memory `v`."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        del self.v
        self.register_memory("v", self.neuron.rest)

    @property
    def backend(self) -> Backend:
        """See `SpikingNode`; in place of a property of earlier versions of SpikingJelly, which knows its own alone."""
        return self._backend

    @backend.setter
    def backend(self, value: Backend) -> None:
        """Takes a word that `SpikingNode` has checked."""
        self._backend = value

    def _carried_state(self, x_seq: Tensor) -> Tensor | None:
        # SpikingJelly starts from rest where the shape of the input changed, and follows its dtype and device; so does
        # this, but for half precision, where states are float32.
        if isinstance(self.v, Tensor):
            if self.v.shape != x_seq.shape[1:]:
                self.reset()
            else:
                self.v = self.v.to(x_seq.device, state_dtype(x_seq.dtype))
        return super()._carried_state(x_seq)

    def materialize_states(self, inputs: States, states: States, step_mode: str) -> States:
        """The membrane of explicit states as a tensor that fits an input: rest where it has another shape."""
        x = inputs[0][0] if step_mode == "m" else inputs[0]
        v, *others = states
        fits = isinstance(v, Tensor) and v.shape == x.shape
        start, dtype = self.neuron.rest if isinstance(v, Tensor) else v, state_dtype(x.dtype)
        return v.to(x.device, dtype) if fits else torch.full_like(x, start, dtype=dtype, requires_grad=False), *others

    def single_step_functional_forward(self, inputs: States, states: States) -> tuple[States, States]:
        """Output of one step `[N, *]` and membrane after it, from an explicit membrane; its own stays as it is."""
        return self._from(states, self.single_step_forward, inputs)

    def multi_step_functional_forward(self, inputs: States, states: States) -> tuple[States, States]:
        """The same for T steps, `[T, N, *]`."""
        return self._from(states, self.multi_step_forward, inputs)

    def single_step_forward(self, x: Tensor, *others: Tensor | None) -> Tensor:
        """See `SpikingNode.single_step_forward`, and one neuron without dimensions; counted, theirs is run."""
        if self._is_counted():
            return self._counted("s", x)
        if x.dim():
            return super().single_step_forward(x, *others)
        if isinstance(self.v, Tensor):
            self.v = self.v.reshape(1)
        y = super().single_step_forward(x.reshape(1), *others).reshape(())
        assert isinstance(self.v, Tensor)
        self.v = self.v.reshape(())
        return y

    def multi_step_forward(self, x_seq: Tensor, *others: Tensor | None) -> Tensor:
        """See `SpikingNode.multi_step_forward`; counted, theirs is run."""
        return self._counted("m", x_seq) if self._is_counted() else super().multi_step_forward(x_seq, *others)

    def _is_counted(self) -> bool:
        """Whether SpikingJelly counts operations, which knows its neurons' own and no fused kernel, which has one."""
        if torch.compiler.is_compiling() or self.store_v_seq or type(self) not in TWINS:
            return False
        return any(type(mode).__module__.startswith("spikingjelly.") for mode in _get_current_dispatch_mode_stack())

    def _counted(self, mode: StepMode, x: Tensor) -> Tensor:
        """Runs the code of the class that this one stands for, on this node's parameters and membrane."""
        kind, given = TWINS[type(self)], _WithTheirSurrogate(self)
        run = kind.single_step_functional_forward if mode == "s" else kind.multi_step_functional_forward
        outputs, (self.v,) = run(given, (x,), kind.materialize_states(given, (x,), (self.v,), mode))
        y: Tensor = outputs[0]
        return y

    def _from(self, states: States, run: Callable[..., Tensor], inputs: States) -> tuple[States, States]:
        own = self.v, self.v_seq
        self.v = states[0]
        try:
            return (run(*inputs),), (self.v, *states[1:])
        finally:
            self.v, self.v_seq = own

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # SpikingJelly's own takes no `recurse`; it moves all memories, `v` among them.
        before = self.v
        result = their_base.MemoryModule._apply(self, fn)
        if isinstance(before, Tensor):
            self.v = moved_state(fn, before)
        return result

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state["_memories"] = {
            name: value.detach().clone() if isinstance(value, Tensor) else value
            for name, value in self._memories.items()
        }
        return state


class _WithTheirSurrogate:
    """A node as SpikingJelly's code reads it: everything is the node's, but the surrogate that is theirs."""

    def __init__(self, node: MemoryNode) -> None:
        self._node, self.surrogate_function = node, their_function(node.surrogate_function)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._node, name)


class _Kind(their_base.MemoryModule):  # type: ignore[misc]
    """Stands before a class of SpikingJelly among a node's bases: of its type, and none of its own attributes.

    `_neuron_precision` is what SpikingJelly asks its neurons for; no node of this package has one.
    """

    _neuron_precision = None

    def __init__(self) -> None:
        their_base.MemoryModule.__init__(self)


class LIFNode(MemoryNode, StandardLIF, _Kind, their_neuron.LIFNode):  # type: ignore[misc]
    """`StandardLIF` as a `MemoryModule`: in place of SpikingJelly's `LIFNode`, same arguments, same values.

    Args: see `StandardLIF`.
    """


class IFNode(MemoryNode, StandardIF, _Kind, their_neuron.IFNode):  # type: ignore[misc]
    """`StandardIF` as a `MemoryModule`: in place of SpikingJelly's `IFNode`."""


class ParametricLIFNode(MemoryNode, StandardParametricLIF, _Kind, their_neuron.ParametricLIFNode):  # type: ignore[misc]
    """`StandardParametricLIF` as a `MemoryModule`: in place of SpikingJelly's `ParametricLIFNode`."""


class CheckpointedLIFNode(MemoryNode, CheckpointedLIF, _Kind, their_neuron.LIFNode):  # type: ignore[misc]
    """`CheckpointedLIF` as a `MemoryModule`."""


class CarrierLIFNode(MemoryNode, CarrierLIF, _Kind, their_neuron.BaseNode):  # type: ignore[misc]
    """`CarrierLIF` as a `MemoryModule`. Its training output is the spike plus epsilon times the input."""


class ReversibleLIFNode(MemoryNode, ReversibleLIF, _Kind, their_neuron.BaseNode):  # type: ignore[misc]
    """`ReversibleLIF` as a `MemoryModule`. It changes the dynamics: the output is not binary."""


class AnchoredReversibleLIFNode(MemoryNode, AnchoredReversibleLIF, _Kind, their_neuron.BaseNode):  # type: ignore[misc]
    """`AnchoredReversibleLIF` as a `MemoryModule`. It changes the dynamics: the output is not binary."""


KINDS: dict[str, type[MemoryNode]] = {
    "lif": LIFNode,
    "lif-checkpoint": CheckpointedLIFNode,
    "lif-carrier": CarrierLIFNode,
    "revlif": ReversibleLIFNode,
    "revlif-anchored": AnchoredReversibleLIFNode,
}
"""Classes that `swap_neurons` can put in, by registry name."""

TWINS: dict[type[MemoryNode], type[their_neuron.BaseNode]] = {
    LIFNode: their_neuron.LIFNode,
    IFNode: their_neuron.IFNode,
    ParametricLIFNode: their_neuron.ParametricLIFNode,
    CheckpointedLIFNode: their_neuron.LIFNode,
}
"""Classes that have the function of one of SpikingJelly's, and that one."""

SURROGATES: dict[type, type[nn.Module]] = {
    ours: getattr(their_surrogate, name)
    for name, ours in surrogate.TWINS.items()
    if isinstance(ours, type) and hasattr(their_surrogate, name)
}
"""SpikingJelly's surrogates that are this package's exactly, by those of this package."""


def swap_neurons(model: nn.Module, to: str = "lif", **options: Any) -> Swapped:
    """Exchanges SpikingJelly's neurons in a model, in place, for nodes of this package, or those back.

    Parameters, surrogate, step mode, training mode and membrane are kept; a learned `w` moves, so that optimizers have
    it still; a neuron used in several places stays one. A neuron with hooks is left, since what they expect is not
    known, and so is one that `torch.compile` wraps by itself: exchange neurons first. Those of snnTorch are for
    `revsnn_nodes.snntorch.swap_neurons`.

    Args:
        model: any module; its neurons are exchanged wherever they are: every `LIFNode`, and to "lif" every `IFNode` and
            `ParametricLIFNode` too.
        to: "lif" (the same function, fused), "lif-checkpoint", "lif-carrier", "revlif", "revlif-anchored", or
            "spikingjelly" to turn these and those of "lif-checkpoint" back into SpikingJelly's.
        options: further constructor arguments of the new node, such as `epsilon` or `groups`.
    Returns:
        What was exchanged and what was left, and why; `print` it.
    Raises:
        ValueError: an unknown `to`, or a model that is itself a neuron (nothing holds it), or no module.
    """
    require(
        to in KINDS or to == "spikingjelly", "to", f"be one of {', '.join([*KINDS, 'spikingjelly'])}", to,
        "It names the neuron that takes the place of SpikingJelly's.",
        'Pass "lif" for the same function on fused kernels.',
    )  # fmt: skip
    require(
        isinstance(model, nn.Module) and not isinstance(model, their_neuron.BaseNode | SpikingNode),
        "model", "be a module that holds neurons", type(model).__name__,
        "A neuron is exchanged where its parent holds it.",
        "Wrap it in nn.Sequential, or construct the new node.",
    )  # fmt: skip
    return exchange(model, lambda child: _chosen(child, to, options))


def twin_of(neuron: nn.Module, **options: Any) -> SpikingNode[Any] | None:
    """The node of this package with the function of one of SpikingJelly's neurons, on its parameters and membrane.

    Args:
        options: further constructor arguments of the node, such as `backend`.
    Returns:
        The node; None where `swap_neurons` would leave the neuron.
    """
    return None if _obstacle(neuron, "lif") else _node(neuron, "lif", options)


def _chosen(child: nn.Module, to: str, options: dict[str, Any]) -> Exchange | str | None:
    # Not all of theirs are a `BaseNode`: PSN, GatedLIFNode and others are not.
    if not any(kind.__module__.startswith(their_neuron.__name__) for kind in type(child).__mro__):
        theirs = any(kind.__module__.startswith("snntorch._neurons.") for kind in type(child).__mro__)
        return "it is snnTorch's: see revsnn_nodes.snntorch.swap_neurons" if theirs else None
    if why := _obstacle(child, to):
        return why
    node = _back(child) if to == "spikingjelly" else _node(child, to, options)
    return Exchange(node, f"{_shown(child)} -> {_shown(node)}")


def _shown(neuron: nn.Module) -> str:
    return f"{type(neuron).__module__.split('.')[0]} {type(neuron).__name__}"


def _obstacle(neuron: nn.Module, to: str) -> str:
    """Why a neuron is not exchanged; "" where it is."""
    if to == "spikingjelly":
        if not isinstance(neuron, MemoryNode):
            return "it is SpikingJelly's already"
        return "" if type(neuron) in TWINS else f"{type(neuron).__name__} has no counterpart in SpikingJelly"
    if type(neuron) is KINDS[to] or (to == "lif" and type(neuron) in (IFNode, ParametricLIFNode)):
        return "it is one already"
    if isinstance(neuron, MemoryNode):
        return f"it is a {type(neuron).__name__}; turn it back first"
    if _kind(neuron, to) is None:
        known = "LIFNode, IFNode and ParametricLIFNode" if to == "lif" else "LIFNode"
        return f"{type(neuron).__name__} is not among {known}, which {to!r} takes"
    if getattr(neuron, "_neuron_precision", None) is not None:
        return "it has a precision of its own"
    if name := replaced_method(neuron):
        return f"it has a {name} of its own"
    if not getattr(neuron.surrogate_function, "spiking", True):
        return "its surrogate does not spike"
    try:
        our_surrogate(neuron.surrogate_function)
    except ValueError as error:
        return f"its {str(error).partition(';')[0]}"
    rest = getattr(neuron, "v_reset", None) or 0.0
    if getattr(neuron, "_memories_rv", {}).get("v", rest) != rest:
        return "its membrane begins at another value than v_reset"
    return "it has hooks; remove them, swap, and register them again" if is_hooked(neuron) else ""


def _node(neuron: Any, to: str, options: dict[str, Any]) -> MemoryNode:
    names = ("tau", "decay_input", "v_threshold", "v_reset", "detach_reset", "step_mode", "store_v_seq")
    parameters = {name: getattr(neuron, name) for name in names if hasattr(neuron, name)}
    if hasattr(neuron, "w"):
        parameters["init_tau"] = 1.0 + math.exp(-neuron.w.item())
    kind = _kind(neuron, to)
    assert kind is not None, "`_obstacle` lets no other neuron through"
    node = kind(**parameters, surrogate_function=our_surrogate(neuron.surrogate_function), **options)
    _take_state(node, neuron)
    return node


def _kind(neuron: nn.Module, to: str) -> type[MemoryNode] | None:
    """The class that takes the place of one of SpikingJelly's neurons; None where there is none."""
    if to != "lif":
        return KINDS[to] if type(neuron) is their_neuron.LIFNode else None
    return next((kind for kind, theirs in TWINS.items() if type(neuron) is theirs), None)


def _back(node: Any) -> nn.Module:
    theirs: nn.Module = TWINS[type(node)](
        **vars(node.neuron), surrogate_function=their_function(node.surrogate_function), step_mode=node.step_mode,
        store_v_seq=node.store_v_seq,
    )  # fmt: skip
    _take_state(theirs, node)
    return theirs


def _take_state(new: Any, old: Any) -> None:
    new.v, new.v_seq = old.v, getattr(old, "v_seq", None)  # which earlier versions have where they store it alone
    if hasattr(old, "w"):
        new.w = old.w
    new.train(old.training)


def our_surrogate(function: Any) -> Callable[[Tensor], Tensor]:
    """This package's surrogate that equals one of SpikingJelly's; the given one where none does."""
    return surrogate.as_surrogate(function).known() if getattr(function, "spiking", True) else function


def their_function(function: Any) -> nn.Module:
    """SpikingJelly's surrogate that equals one of this package.

    Raises:
        ValueError: there is none.
    """
    if isinstance(function, surrogate.ForeignSurrogate) and isinstance(function.function, nn.Module):
        return function.function
    require(
        type(function) in SURROGATES, "surrogate_function", "have a twin in SpikingJelly", function,
        "The neuron that goes back fires by it.", f"Use one of {', '.join(kind.__name__ for kind in SURROGATES)}.",
    )  # fmt: skip
    return SURROGATES[type(function)](alpha=function.alpha)
