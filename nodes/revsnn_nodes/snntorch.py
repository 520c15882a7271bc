"""snnTorch's `Leaky` on the kernels of `StandardLIF`, and the exchange of a model's neurons for it.

    from revsnn_nodes.snntorch import swap_neurons
    print(swap_neurons(model))          # Leaky -> ours, where the dynamics are the same; says what it left and why

A neuron is called as before, step by step `[N, *]`, and keeps one tensor per step for backward, where snnTorch's keeps
two if it resets to zero, and four of that without `reset_delay`. `snntorch.utils.reset`, `reset_mem`, `detach_hidden`
and `mem` work as before.

Charges are equal to rounding; a spike differs where a charge lies that near to the threshold, or on it: snnTorch fires
above it, nodes of this package from it on. Import this module only where snnTorch is installed: version 1.0.
"""

from collections.abc import Callable
from typing import Any

import snntorch
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor

from revsnn_nodes import surrogate
from revsnn_nodes.lif import StandardIF, StandardLIF
from revsnn_nodes.parameters import require
from revsnn_nodes.swap import Exchange, Swapped, exchange, is_hooked

SURROGATES: dict[str, tuple[str, Callable[[float], surrogate.SurrogateFunction]]] = {
    "atan.<locals>.inner": ("alpha", surrogate.ATan),
    "sigmoid.<locals>.inner": ("slope", surrogate.Sigmoid),
}
"""snnTorch's surrogates that are this package's exactly, by the qualified name of the function that it makes."""


class LeakyNode(snntorch.Leaky):  # type: ignore[misc]
    """snnTorch's `Leaky` whose step is a node's: hidden states, buffers and calls are those of the neuron it replaces.

    Its buffers count, as those of `Leaky` do: a checkpoint that is loaded, and a `beta` or `threshold` that is changed
    in place, hold from the next step on.

    Args:
        leaky: the neuron, one that `obstacle` finds nothing against.
    Attributes:
        node: the node that takes a step; its parameters are those of the neuron at its last step.
    Keeps for backward: the charge of every step, N elements; see `StandardLIF`, fused.
    """

    def __init__(self, leaky: Any) -> None:
        super().__init__(
            beta=leaky.beta,
            threshold=leaky.threshold,
            spike_grad=leaky.spike_grad,
            init_hidden=leaky.init_hidden,
            reset_mechanism=leaky.reset_mechanism,
            output=leaky.output,
            graded_spikes_factor=leaky.graded_spikes_factor,
            reset_delay=leaky.reset_delay,
        )
        self.reset_mechanism_val = leaky.reset_mechanism_val
        self.node, self._read = _node(self), self._buffers_now()
        self.mem = _after_reset(leaky)
        self.train(leaky.training)

    def forward(self, input_: Tensor, mem: Tensor | None = None) -> Any:
        """One step `[N, *]` from the hidden membrane, or from one that is given; returns what `Leaky` returns.

        Raises:
            TypeError: a membrane beside a hidden one.
            ValueError: buffers were loaded or changed to those of a neuron that no node computes, such as `beta` = 0.
        """
        if mem is not None and self.init_hidden:
            raise TypeError("`mem` must be left out with `init_hidden=True`; got a tensor. The state is hidden.")
        self._follow_buffers()
        if mem is not None:
            self.mem = mem
        if self.mem.shape != input_.shape:
            self.mem = torch.zeros_like(input_)
        self.node.v = self.mem
        spikes = self.node.single_step_forward(input_)
        self.mem = self.node.v
        self.node.reset()
        return spikes if self.init_hidden and not self.output else (spikes, self.mem)

    def _buffers_now(self) -> list[tuple[Tensor, int | None]]:
        """What decides the dynamics, and torch's count of changes to it: neither makes a GPU wait."""
        buffers = (self.beta, self.threshold, self.graded_spikes_factor, self.reset_mechanism_val)
        return [(each, None if each.is_inference() else each._version) for each in buffers]

    def _follow_buffers(self) -> None:
        """Makes the node anew where a buffer was changed or exchanged since the last step."""
        now = self._buffers_now()
        same = (
            new is old and at is not None and at == before
            for (new, at), (old, before) in zip(now, self._read, strict=True)
        )
        if all(same) or any(isinstance(each, FakeTensor) or each.is_meta for each, _ in now):
            return
        why = _difference(self)
        require(
            not why, "neuron", "keep the dynamics of a node", why,
            "Its buffers were loaded or changed after the exchange.",
            "Do so before: swap_neurons then leaves it as it is.",
        )  # fmt: skip
        backend, self._read = self.node.backend, now
        self.node = _node(self)
        self.node.backend = backend


def swap_neurons(model: nn.Module) -> Swapped:
    """Exchanges snnTorch's `Leaky` in a model, in place, for `LeakyNode`, wherever it computes the same.

    A neuron used in several places stays one. Checkpoints may be loaded before or after: keys are the same.

    Returns:
        What was exchanged and what was left, and why; `print` it.
    Raises:
        ValueError: a model that is itself a neuron (nothing holds it), or no module.
    """
    require(
        isinstance(model, nn.Module) and not isinstance(model, snntorch.SpikingNeuron),
        "model", "be a module that holds neurons", type(model).__name__,
        "A neuron is exchanged where its parent holds it.", "Wrap it in nn.Sequential.",
    )  # fmt: skip
    return exchange(model, _chosen)


def _chosen(child: nn.Module) -> Exchange | str | None:
    # `LeakyParallel` is no `SpikingNeuron`.
    if not any(kind.__module__.startswith("snntorch._neurons.") for kind in type(child).__mro__):
        return None
    if why := obstacle(child):
        return why
    new = LeakyNode(child)
    return Exchange(new, f"snntorch Leaky -> {type(new.node).__name__}({new.node.extra_repr()})")


def obstacle(neuron: Any) -> str:
    """Why a neuron of snnTorch is not exchanged; "" where it is.

    With `reset_delay` a neuron resets at the start of the next step, without a gradient: that is `detach_reset`, but
    its membrane between the steps is the one before the reset, so it is exchanged only where none is returned.
    """
    if type(neuron) is LeakyNode:
        return "it is one already"
    if type(neuron) is not snntorch.Leaky:
        return f"{type(neuron).__name__} is not Leaky"
    if why := _difference(neuron):
        return why
    return "it has hooks" if is_hooked(neuron) else ""


def _difference(neuron: Any) -> str:
    """Why no node has the dynamics of a `Leaky`; "" where one has."""
    for name, plain in {
        "inhibition": False, "state_quant": False, "surrogate_disable": False, "graded_spikes_factor": 1.0,
    }.items():  # fmt: skip
        if getattr(neuron, name) != plain:
            return f"it has {name}"
    if not neuron.reset_delay and int(neuron.reset_mechanism_val) != neuron.reset_dict[neuron.reset_mechanism]:
        return "its reset_mechanism_val is that of another reset"
    if any(parameter.requires_grad for parameter in neuron.parameters()):
        return "it learns its beta, threshold or factor"
    if neuron.beta.numel() > 1 or neuron.threshold.numel() > 1:
        return "it has a beta or a threshold for each neuron"
    if _parameters(neuron) is None:
        leaks = "a reset by subtraction leaks with beta, and its own does not"
        subtracts = leaks if neuron.beta < 1 else "without reset_delay a high charge resets twice"
        why = {"none": "it never resets", "zero": "its beta is 0"}.get(neuron.reset_mechanism, subtracts)
        return f"its dynamics are those of no node: {why}"
    if neuron.reset_delay and (neuron.output or not neuron.init_hidden):
        return "it returns the membrane before its reset; pass reset_delay=False, or init_hidden=True without output"
    if _surrogate(neuron.spike_grad) is None:
        return "its spike_grad is neither atan nor sigmoid"
    return ""


def _node(neuron: Any) -> StandardLIF:
    """The node with the dynamics of a neuron that `_difference` finds nothing against."""
    parameters = _parameters(neuron)
    assert parameters is not None
    kind = StandardLIF if "tau" in parameters else StandardIF
    return kind(**parameters, surrogate_function=_surrogate(neuron.spike_grad))


def _parameters(neuron: Any) -> dict[str, Any] | None:
    """Arguments of the node with the dynamics of a neuron, without `tau` where it does not leak; None for no node."""
    beta = float(neuron.beta.clamp(0, 1))
    shared = {"v_threshold": float(neuron.threshold), "detach_reset": bool(neuron.reset_delay)}
    if neuron.reset_mechanism == "zero" and 0 < beta < 1:
        return {**shared, "tau": 1 / (1 - beta), "decay_input": False, "v_reset": 0.0}
    if beta == 1 and neuron.reset_mechanism == "zero":
        return {**shared, "v_reset": 0.0}
    if beta == 1 and neuron.reset_mechanism == "subtract" and neuron.reset_delay:  # else a high charge resets twice
        return {**shared, "v_reset": None}
    return None


def _after_reset(neuron: Any) -> Tensor:
    """The hidden membrane as a node carries it: with `reset_delay`, `Leaky` resets it at the start of its next step."""
    mem: Tensor = neuron.mem
    if neuron.reset_delay:
        reset: Tensor = neuron.mem_reset(mem)
        mem = mem * (1 - reset) if neuron.reset_mechanism == "zero" else mem - reset * neuron.threshold
    return mem


def _surrogate(function: Any) -> surrogate.SurrogateFunction | None:
    """The surrogate of this package with the derivative of one of snnTorch; None where none has it."""
    if getattr(function, "__module__", "") != "snntorch.surrogate":
        return None
    name, ours = SURROGATES.get(getattr(function, "__qualname__", ""), ("", None))
    if ours is None:
        return None
    closed = dict(zip(function.__code__.co_freevars, function.__closure__, strict=True))
    return ours(float(closed[name].cell_contents))
