"""What a block keeps for its backward pass: everything, its input, its input in bits, or its output alone.

A strategy is chosen by the name of the node, so that each is a row of a comparison:

    lif                           a plain block: everything that autograd keeps
    lif+checkpoint                its input; convolution, norm and node run again (torch.utils.checkpoint)
    lif+bitpack                   the same, a binary input at one bit per spike
    lif-carrier+checkpoint-conv   its input and output; convolution and norm run again
    norm-carrier                  its output: `NormCarrierLIF`; pooling runs again, nothing is convolved again

Any node may stand before the `+`. `made_again` replaces a saved tensor by the tensor and the function that it was
computed from.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from difflib import get_close_matches
from functools import partial
from typing import Any, Self

import torch
from revsnn_nodes import CarrierLIF, NormCarrierLIF, make_node, node_factory, node_names
from revsnn_nodes.plan import Packed, pack_bits, unpack_bits
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import batch_norm
from torch.nn.modules.batchnorm import _BatchNorm
from torch.profiler import record_function
from torch.utils.checkpoint import checkpoint

from revsnn_bench.models.blocks import ConvBlock, NodeMaker, Strategy, over_time
from revsnn_bench.models.peers import PEERS, has_backends


class _Kept:
    """A tensor as it was saved: hooks bypass autograd's check for changes in place, so that it is made here."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.version = tensor, tensor._version

    def unpack(self) -> Tensor:
        if self.tensor._version != self.version:
            raise RuntimeError(
                "A tensor needed for gradient computation has been modified inplace: "
                f"{self.tensor.dtype} {tuple(self.tensor.shape)} is at version {self.tensor._version}; expected "
                f"version {self.version}. The backward pass reads it. Change a copy."
            )
        return self.tensor


class _Remade:
    """In place of a tensor: what it was made of, and how."""

    def __init__(self, source: Tensor, make: Callable[[Tensor], Tensor], shape: torch.Size) -> None:
        self.source, self.make, self.shape = _Kept(source), make, shape

    def unpack(self) -> Tensor:
        with record_function("recompute"), torch.no_grad():
            return self.make(self.source.unpack()).view(self.shape)


def made_again(made: Tensor, source: Tensor, make: Callable[[Tensor], Tensor]) -> saved_tensors_hooks:
    """Operations under this context do not keep `made`: their backward passes call `make(source)` again.

    Args:
        made: what those operations read, contiguous.
        source: what it was made of; the operation that made it keeps this for its own backward pass, so that it costs
            nothing here.
        make: gives the bits of `made`, and has no other effect.
    """
    source = source.detach()
    # Autograd keeps this function, too, and with it whatever it refers to: not the tensor itself.
    address, numel = made.data_ptr(), made.numel()

    def pack(tensor: Tensor) -> Any:
        same = tensor.data_ptr() == address and tensor.numel() == numel
        return _Remade(source, make, tensor.shape) if same else _Kept(tensor)

    return saved_tensors_hooks(pack, lambda packed: packed.unpack())


NORM_CARRIER = "norm-carrier"


class CheckpointConvBlock(ConvBlock):
    """Runs pooling, convolution, norm and shortcut again in the backward pass; the node keeps what it keeps.

    Keeps for backward: its inputs, and what the node keeps. Running statistics are updated once.
    """

    def forward(self, x_seq: Tensor, skip: Tensor | None = None) -> Tensor:
        """See `ConvBlock`."""
        assert self.node is not None
        y: Tensor = self.node(self.checkpointed(self.current, x_seq, skip))
        return y

    def checkpointed(self, function: Any, *args: Any) -> Any:
        """Calls a function of this block whose intermediates are computed again in the backward pass."""
        return checkpoint(
            function,
            *args,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=lambda: (nullcontext(), self._again()),
        )

    @contextmanager
    def _again(self) -> Iterator[None]:
        """A second run of a forward that already happened: its batch statistics go to copies, its state nowhere."""
        norms = [module for module in self.modules() if isinstance(module, _BatchNorm)]
        statistics = [(norm, name, buffer) for norm in norms for name, buffer in norm.named_buffers()]
        state: Any = getattr(self.node, "v", None)
        for norm, name, buffer in statistics:
            setattr(norm, name, buffer.clone())
        try:
            with record_function("recompute"):
                yield
        finally:
            for norm, name, buffer in statistics:
                setattr(norm, name, buffer)
            if self.node is not None:
                self.node.v = state


class CheckpointBlock(CheckpointConvBlock):
    """Runs the whole block again in the backward pass, its node from the membrane that it started from.

    Keeps for backward: its inputs, and a carried state (b N) where the node started from one.
    """

    def forward(self, x_seq: Tensor, skip: Tensor | None = None) -> Tensor:
        """See `ConvBlock`."""
        assert self.node is not None
        y: Tensor
        y, self.node.v = self.checkpointed(self._from_state, x_seq, skip, self.node.v)
        return y

    def _from_state(self, x_seq: Tensor, skip: Tensor | None, v: Any) -> tuple[Tensor, Any]:
        assert self.node is not None
        self.node.v = v
        return ConvBlock.forward(self, x_seq, skip), self.node.v


class BitPackBlock(CheckpointBlock):
    """A checkpointed block whose inputs are kept at one bit per spike where they are binary.

    Whether they are is looked at in every forward pass; inputs that are not, such as images, are kept as they are.

    Keeps for backward: N T / 8 bytes per binary input.
    Attributes:
        packed_inputs: how many tensors the last forward packed.
    """

    packed_inputs = 0

    def forward(self, x_seq: Tensor, skip: Tensor | None = None) -> Tensor:
        """See `ConvBlock`."""
        self.packed_inputs = 0
        # The checkpoint saves its inputs under these hooks, and everything inside of it under its own.
        with saved_tensors_hooks(self._pack, self._unpack):
            return super().forward(x_seq, skip)

    def _pack(self, x: Tensor) -> Tensor | Packed:
        packed = pack_bits(x) if x.numel() else None
        self.packed_inputs += packed is not None
        return x if packed is None else packed

    def _unpack(self, kept: Tensor | Packed) -> Tensor:
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
        z_seq = over_time(x_seq, self._convolved)
        residual, kept = (None, nullcontext()) if skip is None else self._residual(skip)
        with kept:
            y: Tensor = self.norm(z_seq, residual)
        return y

    def _convolved(self, x: Tensor) -> Tensor:
        """Pools and convolves: pooling keeps its input, so that the convolution need not keep what is pooled."""
        z: Tensor
        if isinstance(self.pool, nn.Identity) or not x.requires_grad:
            z = self.conv(self.pool(x))
            return z
        pooled = self.pool(x)
        with made_again(pooled, x, self.pool):
            z = self.conv(pooled)
        return z

    def _residual(self, skip: Tensor) -> tuple[Tensor, AbstractContextManager[Any]]:
        """The shortcut of a tensor; a norm at its end keeps its input, so that the neuron need not keep its output."""
        shortcut = self.shortcut
        norm = shortcut[-1] if isinstance(shortcut, nn.Sequential) else None
        if not isinstance(shortcut, nn.Sequential) or not isinstance(norm, nn.BatchNorm2d) or not norm.training:
            return over_time(skip, shortcut), nullcontext()
        z = shortcut[:-1](skip.flatten(0, 1))
        residual = norm(z)
        again = partial(batch_norm, running_mean=None, running_var=None, training=True)
        again = partial(again, weight=norm.weight, bias=norm.bias, eps=norm.eps)
        kept = made_again(residual, z, again) if z.requires_grad else nullcontext()
        return residual.view(*skip.shape[:2], *residual.shape[1:]), kept


BLOCKS: dict[str, type[ConvBlock]] = {
    "checkpoint": CheckpointBlock,
    "bitpack": BitPackBlock,
    "checkpoint-conv": CheckpointConvBlock,
}


REFERENCE = {"backend": "torch"}


def strategy(name: str, **options: Any) -> Strategy:
    """The strategy of a name: `node`, `node+strategy` or `norm-carrier`.

    Args:
        name: as in the table of this module.
        options: keywords of the node. Its backend is the reference unless they name another: what a case measures must
            not depend on which compilers happen to be installed.
    Raises:
        ValueError: no such strategy; an unknown node is refused by its registry.
    """
    if name == NORM_CARRIER:
        return Strategy(partial(CarrierLIF, **(REFERENCE | options)), NormCarrierBlock)
    if name in PEERS:
        return Strategy(partial(PEERS[name], **options), ConvBlock)
    node, plus, kind = name.partition("+")
    if plus and kind not in BLOCKS:
        near = get_close_matches(kind, BLOCKS, 3) or list(BLOCKS)
        raise ValueError(
            f"`node` must name a strategy after its +; got {name!r}. It says what each block keeps. Did you mean "
            f"{' or '.join(f'{node}+{each}' for each in near)}?"
        )
    if has_backends(node_factory(node)):
        options = REFERENCE | options
    return Strategy(partial(make_node, node, **options), BLOCKS.get(kind, ConvBlock))


def strategy_names() -> list[str]:
    """The strategies that are rows of a comparison: every plain node, and those worth their name beside them."""
    return [*node_names(), "lif+checkpoint", "lif+bitpack", "lif-carrier+checkpoint-conv", NORM_CARRIER]
