"""Nodes by their short names, open to other packages through the entry-point group `revsnn_bench.nodes`."""

from collections.abc import Callable
from difflib import get_close_matches
from importlib.metadata import entry_points
from typing import Any

from torch import nn

from revsnn_nodes.carrier import CarrierLIF
from revsnn_nodes.coupled import AnchoredReversibleLIF, ReversibleLIF, RevNetLIF, StoredCoupledLIF
from revsnn_nodes.lif import CheckpointedLIF, StandardIF, StandardLIF, StandardParametricLIF

ENTRY_POINT_GROUP = "revsnn_bench.nodes"

NodeFactory = Callable[..., nn.Module]


class _Nodes(dict[str, NodeFactory]):
    """Factories by short name; those of installed packages are found by entry point and loaded when asked for."""

    def __missing__(self, name: str) -> NodeFactory:
        for point in entry_points(group=ENTRY_POINT_GROUP, name=name):
            return self.setdefault(name, point.load())
        near = get_close_matches(name, self.names(), 3) or self.names()
        raise ValueError(
            f"`node` must be a registered name; got {name!r}. Nodes are found by their short names. "
            f"Did you mean {' or '.join(near)}?"
        )

    def names(self) -> list[str]:
        """Every name that has a factory, loaded or not."""
        return [*self, *sorted({point.name for point in entry_points(group=ENTRY_POINT_GROUP)} - set(self))]


_NODES = _Nodes(
    {
        "lif": StandardLIF,
        "lif-checkpoint": CheckpointedLIF,
        "if": StandardIF,
        "plif": StandardParametricLIF,
        "revlif-stored": StoredCoupledLIF,
        "revlif-revnet": RevNetLIF,
        "revlif": ReversibleLIF,
        "revlif-anchored": AnchoredReversibleLIF,
        "lif-carrier": CarrierLIF,
    }
)


OTHER_NEURONS = ("if", "plif")
"""Neurons of other equations than the LIF: a comparison of what a LIF may keep has them where they are named."""


def register_node(name: str, factory: NodeFactory) -> None:
    """Adds a node for this process; packages add theirs for every process with an entry point.

    Args:
        name: short name, unused so far.
        factory: class or function that takes the node's keywords and returns a module on `[T, N, *]`; where it has
            a keyword `step_mode`, it gets "m" for that.
    Raises:
        ValueError: the name is taken.
    """
    if _NODES.setdefault(name, factory) is not factory:
        raise ValueError(
            f"`name` must be unused; got {name!r}, which is {_NODES[name]!r}. Records refer to nodes by name. "
            "Choose another name."
        )


def node_names() -> list[str]:
    """Short names of every node, those of this package first, in the order of the table in nodes/README.md."""
    return _NODES.names()


def node_factory(name: str) -> NodeFactory:
    """The class, or other factory, registered under a short name.

    Raises:
        ValueError: no such node; says which names are near.
    """
    return _NODES[name]


def make_node(name: str, **options: Any) -> nn.Module:
    """A new node by short name, with keywords of its constructor.

    Raises:
        ValueError: no such node, or an option that it refuses.
    """
    return node_factory(name)(**options)
