"""What all nodes share: [T, N, *] input, step modes, and state that carries over between calls until reset."""

import copy
from collections.abc import Callable
from dataclasses import fields, replace
from inspect import Parameter, Signature, signature
from typing import Any, ClassVar, Generic, Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from revsnn_nodes.kernels.support import DEFAULT_BACKEND, Backend, BackendInUse, choose_backend
from revsnn_nodes.parameters import LIFParameters, require, require_word
from revsnn_nodes.remat.record import run_node
from revsnn_nodes.surrogate import as_surrogate

StepMode = Literal["s", "m"]
P = TypeVar("P", bound=LIFParameters)
Node = TypeVar("Node", bound="SpikingNode[Any]")


def with_arguments_of(base: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorates a constructor that passes `*args, **kwargs` on to that of `base`.

    Its signature then shows their names and defaults, after its own positional arguments and before its own keywords.
    """

    def decorate(init: Callable[..., None]) -> Callable[..., None]:
        _, *inherited = signature(base.__init__).parameters.values()  # type: ignore[misc]
        own = signature(init).parameters.values()
        first = [each for each in own if each.kind is Parameter.POSITIONAL_OR_KEYWORD]
        last = [each for each in own if each.kind is Parameter.KEYWORD_ONLY]
        init.__signature__ = Signature([*first, *inherited, *last], return_annotation=None)  # type: ignore[attr-defined]
        return init

    return decorate


class SpikingNode(nn.Module, Generic[P]):
    """A neuron layer: takes input current, keeps a membrane, gives spikes.

    Subclasses implement `multi_step_forward`; everything here is common to them.

    `torch.func.grad` and `vmap` work, save on `RevNetLIF`, and `grad` on `CheckpointedLIF`; forward mode does not.

    Args:
        neuron: the validated parameters of its equations; also read and set one by one, as `node.tau`.
        surrogate_function: a surrogate of this package, of SpikingJelly, or any spike function with autograd.
        step_mode: "m" takes `[T, N, *]`, "s" takes `[N, *]` once per call.
        backend: "auto", the default, for the fused kernels where they are installed and support the case, and the
            reference elsewhere; "torch" for the reference, "fused" for the kernels or an error.
    Attributes:
        backend_in_use: "torch" or "fused", what the last call ran on; None before the first.
        backend_reason: why the last call did not run on the fused kernels; empty where it did.
        fused_cpu_dtypes: what the fused kernels of this kind of node take on the CPU.
        keeps_input_in_remat: whether, inside `remat`, this kind of node keeps its input in place of its charges.
        v: the membrane that the next call starts from: a float before the first call and after `reset()`,
            then a tensor `[N, *]`. It stays in the autograd graph; `detach()` cuts it (truncated BPTT).
    """

    fused_cpu_dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float32, torch.float64)
    keeps_input_in_remat: ClassVar[bool] = False
    neuron: P
    v: Tensor | float

    def __init__(
        self, neuron: P, surrogate_function: Callable[[Tensor], Tensor] | None, step_mode: StepMode,
        backend: Backend = DEFAULT_BACKEND,
    ) -> None:  # fmt: skip
        super().__init__()
        self.neuron = neuron
        self.surrogate_function = as_surrogate(surrogate_function)
        self.step_mode = step_mode
        self.backend = backend
        self.backend_in_use: BackendInUse | None = None
        self.backend_reason = ""
        self.v = neuron.rest

    def multi_step_forward(self, x_seq: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """Runs T steps.

        Args:
            x_seq: input current, `[T, N, *]`.
            v: the membrane to start from, `[N, *]`; None for rest.
        Returns:
            The output `[T, N, *]` and the last membrane `[N, *]`.
        """
        raise NotImplementedError

    def fused_sequence(self, x_seq: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """What `multi_step_forward` does, by the fused kernels; for nodes that have some."""
        raise NotImplementedError

    def fused_obstacle(self, x_seq: Tensor) -> str:
        """Why the fused kernels of this kind of node cannot take this input `[T, N, *]`; "" where they can."""
        return ""

    def reference(self) -> "SpikingNode[Any]":
        """A fresh node of the same dynamics and parameters, by plain autograd: what its gradient is held against."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Runs one step `[N, *]` or T steps `[T, N, *]`, by `step_mode`, from the carried state.

        Raises:
            ValueError: input that is not floating or too small, a carried state that does not fit it, or
                `backend="fused"` where there are no fused kernels for the case.
        """
        return self._run(x)

    def _run(self, x: Tensor, *others: Tensor | None) -> Tensor:
        """Runs `forward`; others are further inputs of the shape of x, which `multi_step_forward` takes after v."""
        single = self.step_mode == "s"
        x_seq = x.unsqueeze(0) if single else x
        other_seqs = [each.unsqueeze(0) if single and each is not None else each for each in others]
        self._check_input(x_seq, x)
        v = self._carried_state(x_seq)
        self.backend_in_use, self.backend_reason = choose_backend(self, x_seq)
        run: Callable[..., tuple[Tensor, Tensor]] = (
            self.fused_sequence if self.backend_in_use == "fused" else self.multi_step_forward
        )
        y_seq, self.v = run(x_seq, v, *other_seqs) if others else run_node(self, run, x_seq, v)
        return y_seq.squeeze(0) if single else y_seq

    def check_neuron(self, neuron: P) -> None:
        """Refuses parameters that are valid but not for this kind of node.

        Raises:
            ValueError: such a parameter, in the constructor or assigned later.
        """

    def reset(self) -> None:
        """Forgets the carried state: the next call starts from rest."""
        self.v = self.neuron.rest

    def detach(self) -> None:
        """Cuts the carried state from the graph: the next call's gradient stops here (truncated BPTT)."""
        if isinstance(self.v, Tensor):
            self.v = self.v.detach()

    def _check_input(self, x_seq: Tensor, given: Tensor) -> None:
        shape = tuple(given.shape)
        expected = "[N, *]" if self.step_mode == "s" else "[T, N, *]"
        require(
            x_seq.dim() >= 2 and x_seq.shape[0] > 0, "x", f"be {expected} with at least one step", shape,
            f'Step mode "{self.step_mode}" reads it so.',
            'Add the missing dimension, or set step_mode="m" for sequences and "s" for single steps.',
        )  # fmt: skip
        require(
            x_seq.is_floating_point(), "x", "be floating", x_seq.dtype, "The membrane integrates it.",
            "Convert it with .float().",
        )  # fmt: skip

    def _carried_state(self, x_seq: Tensor) -> Tensor | None:
        v = self.v
        if not isinstance(v, Tensor):
            return None if v == self.neuron.rest else torch.full_like(x_seq[0], v, requires_grad=False)
        have, need = (tuple(v.shape), v.dtype, v.device), (tuple(x_seq.shape[1:]), x_seq.dtype, x_seq.device)
        require(
            have == need, "x", f"match the carried state's shape, dtype and device {have}", need,
            "The membrane of the last call is where this one starts.", "Call reset() between independent batches.",
        )  # fmt: skip
        return v

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "step_mode":
            why = "It says what the input's first dimension is."
            require_word(name, ("s", "m"), value, why, 'Pass "m" for [T, N, *].')
        if name == "backend":
            fix = 'Pass "auto" for the fused kernels where they support the case.'
            require_word(name, ("auto", "torch", "fused"), value, "It says what the node runs on.", fix)
        if name == "surrogate_function":
            value = as_surrogate(value)
        neuron = self.__dict__.get("neuron")
        if neuron is not None and name in {field.name for field in fields(neuron)}:
            name, value = "neuron", replace(neuron, **{name: value})
        if name == "neuron":
            self.check_neuron(value)
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        neuron = self.__dict__.get("neuron")
        if neuron is not None and name in {field.name for field in fields(neuron)}:
            return getattr(neuron, name)
        return super().__getattr__(name)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SpikingNode[P]":
        if isinstance(self.v, Tensor):
            self.v = fn(self.v)
        # SpikingJelly's base class, next for its drop-in nodes, takes no `recurse`.
        return cast("SpikingNode[P]", super()._apply(fn) if recurse else super()._apply(fn, recurse))

    def __getstate__(self) -> dict[str, Any]:
        # A copy has the values of the state, not the graph that made them.
        state = self.__dict__.copy()
        if isinstance(self.v, Tensor):
            state["v"] = self.v.detach().clone()
        return state

    def fresh(self, kind: type[Node], **changes: Any) -> Node:
        """A node of another kind, at rest and on the reference backend, with this one's parameters and modes.

        `changes` are further arguments of its constructor, or parameters that differ.
        """
        parameters = {field.name: getattr(self.neuron, field.name) for field in fields(self.neuron)}
        node = kind(
            **(parameters | changes),
            surrogate_function=copy.deepcopy(self.surrogate_function),
            step_mode=self.step_mode,
        )
        node.backend = "torch"
        return node.train(self.training)

    def extra_repr(self) -> str:
        """Parameters, step mode and backend, as they are passed to the constructor."""
        parameters = ", ".join(f"{field.name}={getattr(self.neuron, field.name)!r}" for field in fields(self.neuron))
        return f"{parameters}, step_mode={self.step_mode!r}, backend={self.backend!r}"
