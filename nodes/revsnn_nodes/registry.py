"""Nodes by their short names, open to other packages through the entry-point group `revsnn_bench.nodes`."""

import re
import warnings
from collections.abc import Callable
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from torch import nn

from revsnn_nodes.carrier import CarrierLIF
from revsnn_nodes.coupled import AnchoredReversibleLIF, ReversibleLIF, RevNetLIF, StoredCoupledLIF
from revsnn_nodes.lif import CheckpointedLIF, StandardIF, StandardLIF, StandardParametricLIF
from revsnn_nodes.parameters import require

ENTRY_POINT_GROUP = "revsnn_bench.nodes"

NodeFactory = Callable[..., nn.Module]


class BrokenNode(ValueError):
    """The node of an installed package cannot be loaded; the message names the package and says why."""


def _load(point: EntryPoint) -> NodeFactory:
    try:
        factory: NodeFactory = point.load()
    except Exception as error:
        package = f" of the package {point.dist.name}" if point.dist else ""
        raise BrokenNode(
            f"the node {point.name!r} must be importable; its entry point {point.value!r}{package} is broken "
            f"({type(error).__name__}: {error}). Repair or remove the package."
        ) from None
    if not callable(factory):
        raise BrokenNode(f"the node {point.name!r} must be a class or a function; {point.value!r} is neither.")
    return factory


_NODES: dict[str, NodeFactory] = {
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
"""Factories by short name; those of installed packages are found by entry point, and enter it when asked for."""

OTHER_NEURONS = ("if", "plif")
"""Neurons of other equations than the LIF: a comparison of what a LIF may keep has them where they are named."""


def register_node(name: str, factory: NodeFactory) -> None:
    """Adds a node for this process; packages add theirs for every process with an entry point.

    Args:
        name: short name, unused so far, without space, comma and plus, which `--node` reads as more than a name.
        factory: class or function that takes the node's keywords and returns a module on `[T, N, *]`; where it has
            a keyword `step_mode`, it gets "m" for that.
    Raises:
        ValueError: the name is taken or cannot be asked for, or the factory cannot be called.
    """
    require(
        isinstance(name, str) and re.fullmatch(r"[^\s,+]+", name) is not None, "name",
        "be a word without comma and plus", name, "Cases ask for nodes by it, as in `--node lif,revlif+remat`.",
        "Choose another name.",
    )  # fmt: skip
    require(
        callable(factory), "factory", "be a class or a function", factory, "A node is made by calling it.",
        "Pass the class.",
    )  # fmt: skip
    if _NODES.setdefault(name, factory) is not factory:
        raise ValueError(
            f"`name` must be unused; got {name!r}, which is {_NODES[name]!r}. Records refer to nodes by name. "
            "Choose another name."
        )


def node_names() -> list[str]:
    """Short names of every node, those of this package first, in the order of the table in nodes/README.md."""
    return [*_NODES, *sorted({point.name for point in entry_points(group=ENTRY_POINT_GROUP)} - set(_NODES))]


def usable_node_names() -> list[str]:
    """As `node_names`, without those of installed packages that cannot be loaded; each of these is warned of."""
    usable = []
    for name in node_names():
        try:
            node_factory(name)
            usable.append(name)
        except BrokenNode as error:
            warnings.warn(f"{error} It is left out.", RuntimeWarning, stacklevel=2)
    return usable


def node_factory(name: str) -> NodeFactory:
    """The class, or other factory, registered under a short name.

    Raises:
        ValueError: no such node; says which names are near.
    """
    require(
        isinstance(name, str), "node", "be a registered name", name, "Nodes are found by their short names.",
        'Pass for example "lif".',
    )  # fmt: skip
    if name in _NODES:
        return _NODES[name]
    for point in entry_points(group=ENTRY_POINT_GROUP, name=name):
        return _NODES.setdefault(name, _load(point))
    near = get_close_matches(name, node_names(), 3)
    fix = f"Did you mean {' or '.join(near)}?" if near else f"Pass one of {', '.join(node_names())}."
    raise ValueError(f"`node` must be a registered name; got {name!r}. Nodes are found by their short names. {fix}")


def make_node(name: str, **options: Any) -> nn.Module:
    """A new node by short name, with keywords of its constructor.

    Raises:
        ValueError: no such node, or an option that it refuses.
        TypeError: an option that it does not have.
    """
    return node_factory(name)(**options)
