"""Which backends a node has, by its name: what a user's choice of backend reaches."""

from inspect import signature
from typing import Any

import torch
from revsnn_nodes import CarrierLIF, SpikingNode, StandardLIF, node_factory
from revsnn_nodes.kernels.selection import fused_obstacle

from revsnn_bench.peers import PEERS


def has_backends(factory: Any) -> bool:
    """Whether it takes `backend`: every node of this package does, by name or among its keywords."""
    ours = isinstance(factory, type) and issubclass(factory, SpikingNode)
    return ours or "backend" in signature(factory).parameters


def takes(node: str, option: str, value: Any) -> bool:
    """Whether a node, or strategy, by name, has the backend `value`; any other option it takes, or says why not.

    What no node can have here, such as "fused" without numba, counts as taken: the node's error says what to install.
    """
    if option != "backend":
        return True
    if node in PEERS:
        return False
    factory = CarrierLIF if node == "norm-carrier" else node_factory(node.partition("+")[0])
    if not has_backends(factory):
        return False
    made, x = factory(), torch.zeros(1, 1, 2)
    if value != "fused" or not isinstance(made, SpikingNode):
        return True
    return not fused_obstacle(made, x) or bool(fused_obstacle(StandardLIF(), x))
