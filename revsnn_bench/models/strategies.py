"""What a network keeps for its backward pass, block by block or by a context around its forward.

A strategy is chosen by the name of the node, so that each is a row of a comparison:

    lif                           plain blocks: everything that autograd keeps
    lif+remat                     what the convolutions make; all that is cheap runs again (`revsnn_nodes.remat`)
    lif+checkpoint                each block's input; convolution, norm and node run again (torch.utils.checkpoint)
    lif+bitpack                   the same, a binary input at one bit per spike
    lif+save-on-cpu               everything, but in host memory (torch.autograd.graph.save_on_cpu)
    lif+offload                   the same in pinned memory, on a GPU alone
    lif-carrier+checkpoint-conv   each block's input and output; convolution and norm run again
    norm-carrier                  each block's output: `NormCarrierLIF`; pooling runs again, nothing is convolved again

    lif+chunks-4, lif+tbptt-4     and the other methods of `models/methods.py`, in networks with a loss at every step
    lif+rev-block                 a reversible chain's output: its blocks are inverted (`models/reversible.py`)

Any node or peer may stand before the `+`.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from difflib import get_close_matches
from functools import partial
from typing import Any, Self

from revsnn_nodes import CarrierLIF, NormCarrierLIF, make_node, node_factory, remat, surrogate
from revsnn_nodes.plan import Packed, pack_bits, run_again, unpack_bits
from revsnn_nodes.registry import usable_node_names
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.profiler import record_function
from torch.utils.checkpoint import checkpoint

from revsnn_bench.models.blocks import ConvBlock, NodeMaker, Strategy, over_time
from revsnn_bench.models.methods import METHODS, method_of
from revsnn_bench.models.peers import PEERS, accepts

NORM_CARRIER = "norm-carrier"
REV_BLOCK = "rev-block"


class CheckpointConvBlock(ConvBlock):
    """Runs pooling, convolution, norm and shortcut again in the backward pass; the node keeps what it keeps.

    Keeps for backward: its inputs, and what the node keeps. Running statistics are updated once.
    """

    def forward(self, x_seq: Tensor, skip: Tensor | None = None) -> Tensor:
        """See `ConvBlock`."""
        y: Tensor = self.node(self.checkpointed(self.current, x_seq, skip))
        return y

    def checkpointed(self, function: Any, *args: Any) -> Any:
        """Calls a function of this block whose intermediates are computed again in the backward pass."""
        return checkpoint(
            function, *args, use_reentrant=False, preserve_rng_state=False,
            context_fn=lambda: (nullcontext(), run_again([*self.modules()])),
        )  # fmt: skip


class CheckpointBlock(CheckpointConvBlock):
    """Runs the whole block again in the backward pass, its node from the membrane that it started from.

    Keeps for backward: its inputs, and a carried state (b N) where the node started from one.
    """

    def forward(self, x_seq: Tensor, skip: Tensor | None = None) -> Tensor:
        """See `ConvBlock`."""
        y: Tensor
        y, self.node.v = self.checkpointed(self._from_state, x_seq, skip, self.node.v)
        return y

    def _from_state(self, x_seq: Tensor, skip: Tensor | None, v: Any) -> tuple[Tensor, Any]:
        self.node.v = v
        return ConvBlock.forward(self, x_seq, skip), self.node.v


class BitPackBlock(CheckpointBlock):
    """A checkpointed block whose inputs are kept at one bit per spike where they are binary.

    Whether they are is looked at in every forward pass; inputs that are not, such as images, are kept as they are.

    Keeps for backward: N T / 8 bytes per binary input.
    """

    def forward(self, x_seq: Tensor, skip: Tensor | None = None) -> Tensor:
        """See `ConvBlock`."""
        # The checkpoint saves its inputs under these hooks, and everything inside of it under its own.
        with saved_tensors_hooks(_bits_if_binary, _from_bits):
            return super().forward(x_seq, skip)


def _bits_if_binary(x: Tensor) -> Tensor | Packed:
    packed = pack_bits(x) if x.numel() else None
    return x if packed is None else packed


def _from_bits(kept: Tensor | Packed) -> Tensor:
    if isinstance(kept, Tensor):
        return kept
    with record_function("recompute"):
        return unpack_bits(kept)


class NormCarrierBlock(ConvBlock):
    """Convolution, then norm and node in one layer that keeps its output alone.

    Keeps for backward: its inputs, before pooling, and its output, which is the next block's input; behind a shortcut
    with a norm, that norm's input. Pooling, and a shortcut's norm, run again in the backward pass; no convolution does.
    """

    @classmethod
    def assemble(
        cls, conv: nn.Conv2d, make_node: NodeMaker, pool: nn.Module | None, shortcut: nn.Module | None
    ) -> Self:
        """A block around a convolution, with the parameters of the `CarrierLIF` that `make_node` makes."""
        node = make_node()
        assert isinstance(node, CarrierLIF)
        norm = NormCarrierLIF(
            conv.out_channels,
            **asdict(node.neuron),
            surrogate_function=node.surrogate_function,
            step_mode=node.step_mode,
            backend=node.backend,
        )
        return cls(conv, norm, None, pool, shortcut)

    def plain(self) -> ConvBlock:
        """The block itself: its layer has a reference of its own."""
        return self

    def forward(self, x_seq: Tensor, skip: Tensor | None = None) -> Tensor:
        """See `ConvBlock`."""
        with remat():
            z_seq = over_time(x_seq, self.pool, self.conv)
            residual = None if skip is None else over_time(skip, self.shortcut)
            y: Tensor = self.norm(z_seq, residual)
        return y


BLOCKS: dict[str, type[ConvBlock]] = {
    "checkpoint": CheckpointBlock,
    "bitpack": BitPackBlock,
    "checkpoint-conv": CheckpointConvBlock,
}

CONTEXTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "remat": remat,
    "save-on-cpu": save_on_cpu,
    "offload": partial(save_on_cpu, pin_memory=True),
}
"""Strategies that leave blocks as they are: the forward of the whole network runs inside."""

REFERENCE = {"backend": "torch", "step_mode": "m"}


def strategy(name: str, **options: Any) -> Strategy:
    """The strategy of a name: `node`, `node+strategy` or `norm-carrier`.

    Args:
        options: keywords of the node. It takes sequences, `step_mode="m"`, and its backend is the reference unless they
            name another: a case must not depend on which compilers happen to be installed. `surrogate` and `slope`,
            its sharpness alpha, stand for its `surrogate_function`.
    Raises:
        ValueError: no such strategy or surrogate; an unknown node is refused by its registry.
    """
    options = _with_surrogate(options)
    if name == NORM_CARRIER:
        return Strategy(partial(CarrierLIF, **(REFERENCE | options)), NormCarrierBlock)
    node, plus, kind = name.partition("+")
    kinds = [*BLOCKS, *CONTEXTS, REV_BLOCK]
    method = method_of(kind)
    if plus and kind not in kinds and method is None:
        kinds += METHODS
        near = [f"{node}+{each}" for each in get_close_matches(kind, kinds, 3)]
        fix = (
            f"Did you mean {' or '.join(near)}?" if near else f"Pass one of {', '.join(f'+{kind}' for kind in kinds)}."
        )
        raise ValueError(
            f"`node` must name a strategy after its +; got {name!r}. It says what each block keeps, or how the "
            f"gradient is got; K stands for a number. {fix}"
        )
    if node in PEERS:
        make = partial(PEERS[node], **options)
    else:
        factory = node_factory(node)
        options = {name: value for name, value in REFERENCE.items() if accepts(factory, name)} | options
        make = partial(make_node, node, **options)
    return Strategy(make, BLOCKS.get(kind, ConvBlock), CONTEXTS.get(kind, nullcontext), method, kind == REV_BLOCK)


def _with_surrogate(options: dict[str, Any]) -> dict[str, Any]:
    """The options with a function in place of its name and slope, which a case can hold."""
    kept = {name: value for name, value in options.items() if name not in ("surrogate", "slope")}
    if len(kept) == len(options):
        return options
    name, slope = str(options.get("surrogate", "Sigmoid")), options.get("slope")
    if name not in surrogate.TWINS or name == "QPseudoSpike":
        raise ValueError(
            f"`surrogate` must name a class of revsnn_nodes.surrogate; got {name!r}. It is what neurons are "
            "differentiated by. Pass for example Sigmoid or ATan."
        )
    return kept | {"surrogate_function": surrogate.TWINS[name](slope)}  # type: ignore[arg-type]


def strategy_names() -> list[str]:
    """The strategies that are rows of a comparison: every plain node, and those worth their name beside them."""
    beside = ("lif+remat", "lif+checkpoint", "lif+bitpack", "lif+save-on-cpu", "lif-carrier+checkpoint-conv")
    return [*usable_node_names(), *beside, NORM_CARRIER]
