"""StandardLIF, by plain autograd through time, and CheckpointedLIF, which runs segments of it a second time.

Equations: section "Standard LIF" of nodes/README.md. Forward values, argument names, defaults and gradients agree with
SpikingJelly's `LIFNode`. Contrast: `StandardLIF` keeps every step; `CheckpointedLIF` its input and one membrane per
segment (torch.utils.checkpoint; Chen et al. 2016, arXiv 1604.06174); `CarrierLIF` keeps nothing.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function
from torch.utils.checkpoint import checkpoint

from revsnn_nodes.base import SpikingNode, StepMode, with_arguments_of
from revsnn_nodes.equations import lif_sequence
from revsnn_nodes.kernels.support import DEFAULT_BACKEND, Backend
from revsnn_nodes.parameters import LIFParameters, require


class LIFNode(SpikingNode[LIFParameters]):
    """What the two nodes of the standard LIF share: constructor and reference."""

    def __init__(
        self, tau: float = 2.0, decay_input: bool = True, v_threshold: float = 1.0, v_reset: float | None = 0.0,
        surrogate_function: Callable[[Tensor], Tensor] | None = None, detach_reset: bool = False,
        step_mode: StepMode = "s", backend: Backend = DEFAULT_BACKEND, store_v_seq: bool = False,
    ) -> None:  # fmt: skip
        neuron = LIFParameters(tau, decay_input, v_threshold, v_reset, detach_reset)
        super().__init__(neuron, surrogate_function, step_mode, backend, store_v_seq)

    def reference(self) -> SpikingNode[LIFParameters]:
        """A `StandardLIF` with these parameters."""
        return self.fresh(StandardLIF)


class StandardLIF(LIFNode):
    """Leaky integrate-and-fire layer, by plain autograd through time: the standard that others are held against.

    Args: see `LIFParameters` and `SpikingNode`.
    Keeps for backward: three tensors per step (h, h - v_threshold, 1 - s), 3 b N T bytes with itemsize b and N
        elements per step; 2 b N T with `detach_reset`, and 1 b N T with soft reset. Fused: h alone, 1 b N T.
    Exactness: it defines the forward; its gradient is autograd's. Fused: the same forward bit for bit, the gradient to
        rounding; it cannot be differentiated twice.
    """

    fused_cpu_dtypes = (torch.float32, torch.float64, torch.bfloat16)
    keeps_input_in_remat = True

    def torch_sequence(self, x_seq: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `SpikingNode.torch_sequence`."""
        return lif_sequence(x_seq, v, self.neuron, self.surrogate_function)

    def fused_sequence(self, x_seq: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `SpikingNode.fused_sequence`."""
        from revsnn_nodes.kernels.autograd import fused_lif

        return fused_lif(x_seq, v, self.neuron, self.surrogate_function)


def _label_recomputation() -> tuple[nullcontext[None], record_function]:
    """Contexts of the first run of a segment and of the second."""
    return nullcontext(), record_function("recompute")


class CheckpointedLIF(LIFNode):
    """Leaky integrate-and-fire layer that recomputes segments of steps instead of keeping them.

    Args:
        checkpoint_every: steps per segment; ceil(sqrt(T)) where None.
        Others: see `LIFParameters` and `SpikingNode`.
    Keeps for backward: its input and the membrane at segment borders: b N T + b N (segments - 1) bytes.
        Transient in backward: 3 b N per step of one segment.
    Exactness: the gradient of `StandardLIF`, bit for bit on one device.
    """

    @with_arguments_of(LIFNode)
    def __init__(self, *args: Any, checkpoint_every: int | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        require(
            checkpoint_every is None or checkpoint_every >= 1, "checkpoint_every", "be at least 1 step",
            checkpoint_every, "It is the length of a segment.", "Leave it out for ceil(sqrt(T)).",
        )  # fmt: skip
        self.checkpoint_every = checkpoint_every

    def torch_sequence(self, x_seq: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `SpikingNode.torch_sequence`."""
        if not torch.is_grad_enabled():
            return lif_sequence(x_seq, v, self.neuron, self.surrogate_function)
        steps = self.checkpoint_every or math.ceil(math.sqrt(x_seq.shape[0]))
        # The label tells profilers and counters what runs a second time; torch.compile takes no such context.
        labelled: dict[str, Any] = {} if torch.compiler.is_compiling() else {"context_fn": _label_recomputation}
        outputs = []
        for segment in x_seq.split(steps):
            spikes, v = checkpoint(
                lif_sequence,
                segment,
                v,
                self.neuron,
                self.surrogate_function,
                use_reentrant=False,
                preserve_rng_state=False,
                **labelled,
            )
            outputs.append(spikes)
        assert v is not None
        return torch.cat(outputs), v

    def extra_repr(self) -> str:
        """Parameters and segment length."""
        return f"{super().extra_repr()}, checkpoint_every={self.checkpoint_every}"
