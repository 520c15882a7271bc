"""The LIF family by plain autograd through time, and CheckpointedLIF, which runs segments of it a second time.

Equations: section "Standard LIF" of nodes/README.md. Forward values, argument names, defaults and gradients agree with
SpikingJelly's `LIFNode`, `IFNode` (no leak) and `ParametricLIFNode` (tau is learned; Fang et al. 2021, arXiv
2007.05785). Contrast: `StandardLIF` keeps every step; `CheckpointedLIF` its input and one membrane per segment
(torch.utils.checkpoint; Chen et al. 2016, arXiv 1604.06174); `CarrierLIF` keeps nothing.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.profiler import record_function
from torch.utils.checkpoint import checkpoint

from revsnn_nodes import equations as eq
from revsnn_nodes.base import SpikingNode, StepMode, with_arguments_of
from revsnn_nodes.kernels.autograd import fused_lif
from revsnn_nodes.kernels.support import Backend
from revsnn_nodes.parameters import IFParameters, LIFParameters, ParametricLIFParameters, require

StateType = Literal["auto", "input"]


class LIFNode(SpikingNode[LIFParameters]):
    """What the nodes of the standard LIF share: constructor and reference.

    Args:
        state_dtype: "auto" for membranes in float32 where inputs are of half precision; "input" for the input's type
            there too, as in SpikingJelly: with its bits, on the reference alone, and wrong where tau or T is large.
        Others: see `LIFParameters` and `SpikingNode`.
    """

    pointwise = True

    def __init__(
        self, tau: float = 2.0, decay_input: bool = True, v_threshold: float = 1.0, v_reset: float | None = 0.0,
        surrogate_function: Callable[[Tensor], Tensor] | None = None, detach_reset: bool = False,
        step_mode: StepMode = "s", backend: Backend = "auto", store_v_seq: bool = False, *,
        state_dtype: StateType = "auto",
    ) -> None:  # fmt: skip
        neuron = LIFParameters(tau, decay_input, v_threshold, v_reset, detach_reset)
        super().__init__(neuron, surrogate_function, step_mode, backend, store_v_seq)
        self.state_dtype = state_dtype

    def fused_obstacle(self, x_seq: Tensor) -> str:
        """See `SpikingNode.fused_obstacle`."""
        narrow = self.state_dtype == "input" and eq.state_dtype(x_seq.dtype) != x_seq.dtype
        return 'state_dtype="input" asks for membranes in half precision' if narrow else ""

    def lif_start(self, x_seq: Tensor, v: Tensor | None) -> Tensor | None:
        """The membrane that a sequence of the reference starts from, in the type that the whole of it will have."""
        if self.state_dtype == "auto":
            return v
        return eq.initial_membrane(x_seq[0], v, self.neuron).to(x_seq.dtype)

    def reference(self) -> SpikingNode[LIFParameters]:
        """A `StandardLIF` with these parameters."""
        return self.fresh(StandardLIF)


class StandardLIF(LIFNode):
    """Leaky integrate-and-fire layer, by plain autograd through time: the standard that others are held against.

    Args: see `LIFParameters` and `SpikingNode`.
    Keeps for backward: three tensors per step (h, h - v_threshold, 1 - s), 3 m N T bytes with N elements per step and
        the itemsize m of a membrane, 4 for half precision; 2 m N T with `detach_reset`, and 1 m N T with soft reset.
        Fused: h alone, 1 b N T with the itemsize b of the input.
    Exactness: it defines the forward; its gradient is autograd's. Fused: the same forward bit for bit, the gradient to
        rounding; it cannot be differentiated twice. In half precision the membrane is float32 (SpikingJelly: of the
        input's type), and the charge that is kept is rounded to its side of the threshold. Relative gradient error,
        flat in T and tau: 2e-4 in float16 and 2e-3 in bfloat16, fused below 4e-3.
    """

    fused_cpu_dtypes = (torch.float32, torch.float64, torch.bfloat16)
    keeps_input_in_remat = True
    fuses_batch_norm = True

    def torch_sequence(self, x_seq: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `SpikingNode.torch_sequence`."""
        return eq.lif_sequence(x_seq, self.lif_start(x_seq, v), self.neuron, self.surrogate_function)

    def fused_sequence(self, x_seq: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `SpikingNode.fused_sequence`."""
        return fused_lif(x_seq, v, self.neuron, self.surrogate_function)


class StandardIF(StandardLIF):
    """Integrate-and-fire layer: `StandardLIF` without a leak, h = v + x.

    Args: see `IFParameters` and `SpikingNode`.
    Keeps for backward, and exactness: see `StandardLIF`.
    """

    def __init__(
        self, v_threshold: float = 1.0, v_reset: float | None = 0.0,
        surrogate_function: Callable[[Tensor], Tensor] | None = None, detach_reset: bool = False,
        step_mode: StepMode = "s", backend: Backend = "auto", store_v_seq: bool = False, *,
        state_dtype: StateType = "auto",
    ) -> None:  # fmt: skip
        neuron = IFParameters(v_threshold=v_threshold, v_reset=v_reset, detach_reset=detach_reset)
        SpikingNode.__init__(self, neuron, surrogate_function, step_mode, backend, store_v_seq)
        self.state_dtype = state_dtype

    def reference(self) -> SpikingNode[LIFParameters]:
        """Another `StandardIF` with these parameters."""
        return self.fresh(StandardIF)


class StandardParametricLIF(StandardLIF):
    """Leaky integrate-and-fire layer that learns its tau = 1 / sigmoid(w), one for all its neurons.

    Args: see `ParametricLIFParameters` and `SpikingNode`.
    Attributes:
        w: the parameter, of no dimension; tau > 1 whatever it is.
    Keeps for backward: with `detach_reset` and soft reset as `StandardLIF`, and one tensor per step more, which 1/tau
        multiplies. Fused: h alone, 1 b N T, and the state it started from where that was carried, m N.
    Exactness: see `StandardLIF`. Fused: the gradient of w is added over time in the precision of the arithmetic, then
        over neurons in float64, in the same order in every run. In bfloat16 the rounding of charges costs it
        digits where terms of either sign nearly cancel; on the reference it does not.
    """

    keeps_input_in_remat = True
    fuses_batch_norm = False  # the kernels know no learned tau

    def __init__(
        self, init_tau: float = 2.0, decay_input: bool = True, v_threshold: float = 1.0, v_reset: float | None = 0.0,
        surrogate_function: Callable[[Tensor], Tensor] | None = None, detach_reset: bool = False,
        step_mode: StepMode = "s", backend: Backend = "auto", store_v_seq: bool = False, *,
        state_dtype: StateType = "auto",
    ) -> None:  # fmt: skip
        neuron = ParametricLIFParameters(
            init_tau=init_tau, decay_input=decay_input, v_threshold=v_threshold, v_reset=v_reset,
            detach_reset=detach_reset,
        )  # fmt: skip
        SpikingNode.__init__(self, neuron, surrogate_function, step_mode, backend, store_v_seq)
        self.state_dtype = state_dtype
        self.w = nn.Parameter(torch.tensor(-math.log(init_tau - 1.0)))

    @property
    def tau(self) -> float:
        """The membrane time constant that has been learned, in steps."""
        return 1.0 / self._rate().item()

    def _rate(self) -> Tensor:
        """1 / tau, in the type of the state."""
        return self.w.sigmoid() if self.state_dtype == "input" else self.w.to(eq.state_dtype(self.w.dtype)).sigmoid()

    def torch_sequence(self, x_seq: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `SpikingNode.torch_sequence`."""
        start = self.lif_start(x_seq, v)
        return eq.lif_sequence(x_seq, start, self.neuron, self.surrogate_function, self._rate())

    def fused_sequence(self, x_seq: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `SpikingNode.fused_sequence`."""
        return fused_lif(x_seq, v, self.neuron, self.surrogate_function, self._rate())

    def reference(self) -> SpikingNode[LIFParameters]:
        """Another `StandardParametricLIF` with these parameters and a copy of w, which learns if w does."""
        node = self.fresh(StandardParametricLIF).to(self.w)
        with torch.no_grad():
            node.w.copy_(self.w)
        node.w.requires_grad_(self.w.requires_grad)
        return node


class CheckpointedLIF(LIFNode):
    """Leaky integrate-and-fire layer that recomputes segments of steps instead of keeping them.

    Args:
        checkpoint_every: steps per segment; ceil(sqrt(T)) where None.
        Others: see `LIFParameters` and `SpikingNode`.
    Keeps for backward: its input and the membrane at segment borders: b N T + m N (segments - 1) bytes.
        Transient in backward: 3 m N per step of one segment.
    Exactness: the gradient of `StandardLIF`, bit for bit on one device.
    """

    @with_arguments_of(LIFNode)
    def __init__(self, *args: Any, checkpoint_every: int | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        require(
            checkpoint_every is None or (isinstance(checkpoint_every, int) and checkpoint_every >= 1),
            "checkpoint_every", "be a whole number of steps, at least 1", checkpoint_every,
            "It is the length of a segment.", "Leave it out for ceil(sqrt(T)).",
        )  # fmt: skip
        self.checkpoint_every = checkpoint_every

    def torch_sequence(self, x_seq: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `SpikingNode.torch_sequence`."""
        v = self.lif_start(x_seq, v)
        if not torch.is_grad_enabled():
            return eq.lif_sequence(x_seq, v, self.neuron, self.surrogate_function)
        steps = self.checkpoint_every or math.ceil(math.sqrt(x_seq.shape[0]))
        # The label tells profilers and counters what runs a second time; torch.compile takes no such context.
        labelled: dict[str, Any] = {}
        if not torch.compiler.is_compiling():
            labelled["context_fn"] = lambda: (nullcontext(), record_function("recompute"))
        outputs = []
        for segment in x_seq.split(steps):
            spikes, v = checkpoint(
                eq.lif_sequence, segment, v, self.neuron, self.surrogate_function, use_reentrant=False,
                preserve_rng_state=False, **labelled,
            )  # fmt: skip
            outputs.append(spikes)
        assert v is not None
        return torch.cat(outputs), v

    def extra_repr(self) -> str:
        """Parameters and segment length."""
        return f"{super().extra_repr()}, checkpoint_every={self.checkpoint_every}"
