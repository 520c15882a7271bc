"""The exchange of a model's neurons, in place: the walk, and the table of what was done.

`revsnn_nodes.spikingjelly` and `revsnn_nodes.snntorch` say what takes the place of what.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

COMPILED = "_orig_mod"
"""The attribute under which `torch.compile(module)` holds the module; what it calls was bound when it was made."""


class Exchange(NamedTuple):
    """What takes the place of a neuron, and how the table shows both."""

    node: nn.Module
    shown: str


@dataclass(frozen=True)
class Swapped:
    """What `swap_neurons` did: printed, one line per neuron.

    Attributes:
        swapped: names of the modules that were exchanged, with the class before and after.
        left: names of the neurons that stayed as they are, with the reason.
    """

    swapped: dict[str, str]
    left: dict[str, str]

    def __str__(self) -> str:
        lines = [f"swapped {len(self.swapped)} neurons, left {len(self.left)}"]
        lines += [f"  {name}: {what}" for name, what in self.swapped.items()]
        lines += [f"  {name}: left, {why}" for name, why in self.left.items()]
        return "\n".join(lines)


def exchange(model: nn.Module, choose: Callable[[nn.Module], Exchange | str | None]) -> Swapped:
    """Exchanges neurons wherever a model holds them; one that it holds twice stays one.

    Args:
        choose: what takes the place of a module; a reason where it stays; None where it is no neuron.
    """
    swapped: dict[str, str] = {}
    left: dict[str, str] = {}
    places = [
        (f"{parent_name}.{name}".removeprefix("."), parent, name, child)
        for parent_name, parent in model.named_modules()
        for name, child in parent._modules.items()  # `named_children` leaves out a second place of one child
        if child is not None
    ]
    # All are chosen before the first is put in: a choice that raises leaves the model as it was.
    chosen = {child: choose(child) for child in dict.fromkeys(child for *_, child in places)}
    for full, parent, name, child in places:
        found = chosen[child]
        if name == COMPILED and isinstance(found, Exchange):
            found = "compiled by itself, which would go on running: swap neurons before `torch.compile`"
        if isinstance(found, str):
            left[full] = found
        elif found is not None:
            setattr(parent, name, found.node)
            swapped[full] = found.shown
    return Swapped(swapped, left)


def is_hooked(neuron: nn.Module) -> bool:
    """Whether a neuron has hooks: what they expect of it is not known, so it is left."""
    backward = neuron._backward_hooks or neuron._backward_pre_hooks
    return bool(neuron._forward_hooks or neuron._forward_pre_hooks or backward)


def replaced_method(neuron: nn.Module) -> str:
    """The name of a method that a neuron has in place of its class's, such as `forward`; "" without one."""
    own = [name for name, value in vars(neuron).items() if callable(value)]
    return next((name for name in own if callable(getattr(type(neuron), name, None))), "")
