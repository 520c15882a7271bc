"""SpikingJelly's LIF, eager and compiled, for comparison, and which nodes take a backend.

A peer is a function and a row of `PEERS`; it is skipped where its package is not installed (extra `peers`).
"""

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from revsnn_nodes import CarrierLIF, SpikingNode, StandardLIF, node_factory
from revsnn_nodes.kernels.support import fused_obstacle
from torch import nn

from revsnn_bench.models.own import METHODS
from revsnn_bench.records import SkipCase


def spikingjelly(**options: Any) -> nn.Module:
    """SpikingJelly's `LIFNode`, run as it comes, in step mode "m".

    Raises:
        SkipCase: the package is not installed.
    """
    try:
        from spikingjelly.activation_based.neuron import LIFNode
    except ImportError:
        raise SkipCase("spikingjelly is not installed: pip install 'revsnn-bench[peers]'") from None
    node: nn.Module = LIFNode(step_mode="m", **options)
    return node


def spikingjelly_compiled(**options: Any) -> nn.Module:
    """The loop over the steps of SpikingJelly's `LIFNode` under `torch.compile`: one graph, unrolled."""
    spikingjelly(**options)
    return _CompiledLIF(**options)


class _CompiledLIF(nn.Module):
    """SpikingJelly's LIF, step by step, compiled as a function of input and membrane, which is carried as theirs is.

    This form is the fastest that was found: its reference sequence, compiled, takes seven times longer backward.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        from spikingjelly.activation_based.neuron import LIFNode

        node = LIFNode(step_mode="s", **options)
        self.v: torch.Tensor | float = 0.0
        self._options = options

        def run(x_seq: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            node.v = v
            spikes = torch.stack([node.single_step_forward(x) for x in x_seq.unbind(0)])
            # What a call leaves behind is guarded by the next: a membrane would cost a second compilation.
            last, node.v = node.v, 0.0
            return spikes, last

        self._run = torch.compile(run, dynamic=False)

    def forward(self, x_seq: torch.Tensor) -> torch.Tensor:
        """`[T, N, *]` to spikes of the same shape."""
        v = self.v if isinstance(self.v, torch.Tensor) else torch.zeros_like(x_seq[0])
        spikes, self.v = self._run(x_seq, v)
        return spikes

    def reset(self) -> None:
        """Forgets the membrane."""
        self.v = 0.0

    def reference(self) -> nn.Module:
        """Our LIF by plain autograd: the same function of the same options."""
        return StandardLIF(**self._options, step_mode="m", backend="torch")


PEERS: dict[str, Callable[..., nn.Module]] = {
    "spikingjelly": spikingjelly,
    "spikingjelly-compiled": spikingjelly_compiled,
}
"""Makers by the name that a case gives them."""


def accepts(factory: Any, option: str) -> bool:
    """Whether it takes `backend`, or `step_mode`: every node of this package does, by name or among its keywords."""
    ours = isinstance(factory, type) and issubclass(factory, SpikingNode)
    return ours or option in signature(factory).parameters


def takes(node: str, option: str, value: Any) -> bool:
    """Whether a node, or strategy, by name, has the backend `value`; any other option it takes, or says why not.

    A method for a model of the user takes any, for the neurons that it puts in. What no node can have here, such as
    "fused" without numba, counts as taken: the node's error says what to install.
    """
    if option != "backend":
        return True
    name = node.partition("+")[0]
    if name in PEERS:
        return False
    if node in METHODS:
        return node != "as-is"
    factory = CarrierLIF if name == "norm-carrier" else node_factory(name)
    if not accepts(factory, "backend"):
        return False
    made, x = factory(), torch.zeros(1, 1, 2)
    if value != "fused" or not isinstance(made, SpikingNode):
        return True
    return not fused_obstacle(made, x) or bool(fused_obstacle(StandardLIF(), x))
