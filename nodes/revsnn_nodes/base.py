"""What all nodes share: [T, N, *] input, step modes, and state that carries over between calls until reset."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial, wraps
from inspect import Parameter, Signature, signature
from typing import Any, ClassVar, Generic, Literal, TypeVar, cast, get_args

import torch
from torch import Tensor, nn

from revsnn_nodes.checkpoints import Turn, runs_again
from revsnn_nodes.equations import state_dtype
from revsnn_nodes.kernels.support import Backend, BackendInUse, choose_backend
from revsnn_nodes.parameters import LIFParameters, require, require_bool, require_word
from revsnn_nodes.remat.rerun import run_node
from revsnn_nodes.surrogate import as_surrogate, in_transform

StepMode = Literal["s", "m"]
P = TypeVar("P", bound=LIFParameters)
Node = TypeVar("Node", bound="SpikingNode[Any]")


def with_arguments_of(base: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorates a constructor that passes `*args, **kwargs` on to that of `base`.

    Its signature then shows their names and defaults, after its own positional arguments and before its own keywords.
    """

    def decorate(init: Callable[..., None]) -> Callable[..., None]:
        """The method with the joined signature."""
        _, *inherited = signature(base.__init__).parameters.values()  # type: ignore[misc]
        own = signature(init).parameters.values()
        first = [each for each in own if each.kind is Parameter.POSITIONAL_OR_KEYWORD]
        last = [each for each in own if each.kind is Parameter.KEYWORD_ONLY]
        init.__signature__ = Signature([*first, *inherited, *last], return_annotation=None)  # type: ignore[attr-defined]
        return init

    return decorate


def naming_what_was_called(init: Callable[..., None]) -> Callable[..., None]:
    """A constructor whose TypeErrors name the class that was called, which may inherit it, and list its arguments."""
    taken = signature(init)
    if all(each.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD) for each in [*taken.parameters.values()][1:]):
        return init  # it passes them on to one that names them

    @wraps(init)
    def named(self: Any, *args: Any, **kwargs: Any) -> None:
        """The constructor."""
        inits = (vars(kind).get("__init__") for kind in type(self).__mro__)
        if named is next(each for each in inits if hasattr(each, "__wrapped__")):
            try:
                taken.bind(self, *args, **kwargs)
            except TypeError as error:
                names = ", ".join(list(taken.parameters)[1:])
                raise TypeError(f"{type(self).__name__}: {error}. It takes {names}.") from None
        init(self, *args, **kwargs)

    return named


def require_tensor(argument: str, x: object) -> None:
    """Raises `ValueError` unless an input is a tensor that holds all of its numbers, in rows of one length."""
    require(
        isinstance(x, Tensor), argument, "be a tensor", type(x).__name__, "The neuron integrates it.",
        "Convert it with torch.as_tensor.",
    )  # fmt: skip
    assert isinstance(x, Tensor)
    require(
        x.layout is torch.strided and not x.is_nested, argument, "be dense",
        "a nested tensor" if x.is_nested else x.layout, "The membrane integrates every number of it.",
        "Convert it with .to_dense(), or pad it.",
    )  # fmt: skip


def in_memory_order(
    run: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]], x_seq: Tensor, v: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Runs a pointwise neuron on contiguous views, so that its results have the strides of its input, without copies.

    An input that fills no block of memory with time outermost is run as it is, and gives contiguous results.
    """
    if x_seq.is_contiguous() or in_transform():
        return run(x_seq, v)
    order = [0, *sorted(range(1, x_seq.dim()), key=x_seq.stride, reverse=True)]
    view = x_seq.permute(order)
    if not view.is_contiguous():
        return run(x_seq, v)
    back = sorted(range(len(order)), key=order.__getitem__)
    of_step, of_step_back = ([dim - 1 for dim in dims[1:]] for dims in (order, back))
    y_seq, v_last = run(view, None if v is None else v.permute(of_step))
    return y_seq.permute(back), v_last.permute(of_step_back)


def _parameters_of(node: "SpikingNode[Any]") -> dict[str, Any]:
    """The neuron's parameters by name; none before the constructor has set them."""
    neuron = node.__dict__.get("neuron")
    return {} if neuron is None else vars(neuron)


def moved_state(fn: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
    """A state after `module.to()`, `half()` and their like: moved as parameters are, but not below float32."""
    moved = fn(v)
    dtype = state_dtype(moved.dtype)
    return moved if moved.dtype == dtype else v.to(moved.device, dtype)


class SpikingNode(nn.Module, Generic[P]):
    """A neuron layer: takes input current, keeps a membrane, gives spikes.

    Subclasses implement `torch_sequence`; everything here is common to them. Every constructor takes its positional
    arguments in one order: the neuron's, as in SpikingJelly, then step_mode, backend and store_v_seq; what only some
    nodes have is passed by name.

    `torch.func.grad` and `vmap` work, save on `RevNetLIF`, and `grad` on `CheckpointedLIF`; forward mode does not.

    Args:
        neuron: the validated parameters of its equations; also read and set one by one, as `node.tau`.
        surrogate_function: a surrogate of this package, of SpikingJelly, or any spike function with autograd.
        step_mode: "s", the default as in SpikingJelly, takes `[N, *]` once per call; "m" takes `[T, N, *]`.
        backend: "auto", the default, for the fused kernels where they are installed and support the case, and the
            reference elsewhere; "torch" for the reference, "fused" for the kernels or an error.
        store_v_seq: whether to keep the membrane after every step in `v_seq`. The node then runs step by step, and
            keeps for each what it keeps for a sequence of one step: for monitoring.
    Attributes:
        backend_in_use: "torch" or "fused", what the last call ran on; None before the first.
        backend_reason: why the last call did not run on the fused kernels; empty where it did.
        fused_cpu_dtypes: what the fused kernels of this kind of node take on the CPU.
        pointwise: whether neurons do not depend on each other: outputs then have the strides of the input.
        keeps_input_in_remat: whether, inside `remat`, this kind of node keeps its input in place of its charges, and is
            run again: its methods below are functions of input, membrane and parameters, without chance. A subclass
            with others is not, unless it says so itself.
        fuses_batch_norm: whether, there and behind a batch norm, the kernels of `revsnn_nodes.remat.norm` are its own.
        v: the membrane that the next call starts from: a float before the first call and after `reset()`,
            then a tensor `[N, *]`, in float32 for half precision inputs too (SpikingJelly: of the input's type). It
            stays in the autograd graph; `detach()` cuts it (truncated BPTT).
        v_seq: with `store_v_seq` the membranes of the last call `[T, N, *]`, in step mode "s" those of all calls since
            `reset()`; else None.
        supported_backends: what `backend` takes.
    """

    fused_cpu_dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float32, torch.float64)
    pointwise: ClassVar[bool] = False
    keeps_input_in_remat: ClassVar[bool] = False
    fuses_batch_norm: ClassVar[bool] = False
    supported_backends: ClassVar[tuple[str, ...]] = get_args(Backend)
    neuron: P
    v: Tensor | float
    v_seq: Tensor | None

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "__init__" in vars(cls):
            cls.__init__ = naming_what_was_called(cls.__init__)  # type: ignore[method-assign]

    def __init__(
        self, neuron: P, surrogate_function: Callable[[Tensor], Tensor] | None, step_mode: StepMode = "s",
        backend: Backend = "auto", store_v_seq: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.neuron = neuron
        self.surrogate_function = as_surrogate(surrogate_function)
        self.step_mode = step_mode
        self.backend = backend
        self.backend_in_use: BackendInUse | None = None
        self.backend_reason = ""
        self.v = neuron.rest
        self.store_v_seq = store_v_seq

    def torch_sequence(self, x_seq: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """Runs T steps by torch's own operations: the reference backend.

        Args:
            x_seq: input current, `[T, N, *]`.
            v: the membrane to start from, `[N, *]`, in `state_dtype`; None for rest.
        Returns:
            The output `[T, N, *]` in the type of x_seq, and the last membrane `[N, *]` in its `state_dtype`.
        """
        raise NotImplementedError

    def fused_sequence(self, x_seq: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """What `torch_sequence` does, by the fused kernels; for nodes that have some."""
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
            ValueError: input that is no tensor, not floating or too small, a carried state that does not fit it, or
                `backend="fused"` where there are no fused kernels for the case.
        """
        require_tensor("x", x)
        return self.single_step_forward(x) if self.step_mode == "s" else self.multi_step_forward(x)

    def single_step_forward(self, x: Tensor, *others: Tensor | None) -> Tensor:
        """Runs one step from the carried state, whatever `step_mode` is.

        Args:
            x: input current, `[N, *]`.
            others: further inputs of the shape of x, which `torch_sequence` takes after v.
        Returns:
            The output `[N, *]`.
        """
        sequences = [None if each is None else each.unsqueeze(0) for each in others]
        before = self.v_seq
        y = self._run("s", x.unsqueeze(0), *sequences).squeeze(0)
        if before is not None and self.v_seq is not None and before.shape[1:] == self.v_seq.shape[1:]:
            self.v_seq = torch.cat([before.to(self.v_seq), self.v_seq])
        return y

    def multi_step_forward(self, x_seq: Tensor, *others: Tensor | None) -> Tensor:
        """Runs T steps `[T, N, *]` from the carried state, whatever `step_mode` is; see `single_step_forward`."""
        return self._run("m", x_seq, *others)

    def _run(self, mode: StepMode, x_seq: Tensor, *others: Tensor | None) -> Tensor:
        self._check_input(mode, x_seq)
        turn = Turn(self)
        v = self._carried_state(x_seq) if turn.again is None else turn.again.next_start()
        turn.begin(self.v, v)
        self.backend_in_use, self.backend_reason = choose_backend(self, x_seq)
        run: Callable[..., tuple[Tensor, Tensor]] = (
            self.fused_sequence if self.backend_in_use == "fused" else self.torch_sequence
        )
        if not others:
            run = partial(run_node, self, run)
        if self.store_v_seq:
            y_seq, v_last = self._run_step_by_step(run, x_seq, v, *others)
        elif others or not self.pointwise:
            y_seq, v_last = run(x_seq, v, *others)
        else:
            y_seq, v_last = in_memory_order(run, x_seq, v)
        turn.end(self, v_last)
        return y_seq

    def _run_step_by_step(
        self, run: Callable[..., tuple[Tensor, Tensor]], x_seq: Tensor, v: Tensor | None, *others: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The output `[T, N, *]` and the last membrane; that after every step, `[T, N, *]`, is in `v_seq`."""
        outputs, membranes = [], []
        for t, x in enumerate(x_seq.split(1)):
            y, v = run(x, v, *(None if each is None else each[t : t + 1] for each in others))
            outputs.append(y)
            membranes.append(v)
        self.v_seq = torch.stack(membranes)
        return torch.cat(outputs), membranes[-1]

    def check_neuron(self, neuron: P) -> None:
        """Raises ValueError for parameters that are valid but not for this kind of node, given or assigned later."""

    def reset(self) -> None:
        """Forgets the carried state: the next call starts from rest."""
        if not runs_again():
            self.v, self.v_seq = self.neuron.rest, None

    def detach(self) -> None:
        """Cuts the carried state from the graph: the next call's gradient stops here (truncated BPTT)."""
        if runs_again():
            return
        if isinstance(self.v, Tensor):
            self.v = self.v.detach()
        if self.v_seq is not None:
            self.v_seq = self.v_seq.detach()

    def _check_input(self, mode: StepMode, x_seq: Tensor) -> None:
        shape = tuple(x_seq.shape)
        given = shape[1:] if mode == "s" else shape
        expected = "[N, *]" if mode == "s" else "[T, N, *]"
        require(
            len(shape) >= 2 and shape[0] > 0, "x", f"be {expected} with at least one step", given,
            f'Step mode "{mode}" reads it so.',
            'Add the missing dimension, or set step_mode="m" for sequences and "s" for single steps.',
        )  # fmt: skip
        dtype = x_seq.dtype
        require(
            dtype.is_floating_point and dtype.itemsize > 1, "x", "be floating, of 2 bytes or more", dtype,
            "The membrane integrates it.", "Convert it with .float().",
        )  # fmt: skip

    def _carried_state(self, x_seq: Tensor) -> Tensor | None:
        v, dtype = self.v, state_dtype(x_seq.dtype)
        if not isinstance(v, Tensor):
            return None if v == self.neuron.rest else torch.full_like(x_seq[0], v, dtype=dtype, requires_grad=False)
        if v.dtype == x_seq.dtype:  # a state that was given in half precision
            v = v.to(dtype)
        have, need = (tuple(v.shape), v.dtype, v.device), (tuple(x_seq.shape[1:]), dtype, x_seq.device)
        require(
            have == need, "x", f"match the carried state's shape, dtype and device {have}", need,
            "The membrane of the last call is where this one starts.", "Call reset() between independent batches.",
        )  # fmt: skip
        if torch.compiler.is_compiling():  # which knows no `is_inference`
            return v
        return v.clone() if v.is_inference() and not torch.is_inference_mode_enabled() else v

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "step_mode":
            why = "It says what the input's first dimension is."
            require_word(name, ("s", "m"), value, why, 'Pass "m" for [T, N, *].')
        if name == "backend":
            fix = 'Pass "auto" for the fused kernels where they support the case.'
            require_word(name, self.supported_backends, value, "It says what the node runs on.", fix)
        if name == "state_dtype":
            why, fix = "It says what type membranes have in half precision.", 'Pass "auto" for float32.'
            require_word(name, ("auto", "input"), value, why, fix)
        if name == "store_v_seq":
            require_bool(name, value, "It says whether membranes are kept.")
            self.__dict__["v_seq"] = None
        if name == "surrogate_function":
            value = as_surrogate(value)
        if name in _parameters_of(self):
            name, value = "neuron", replace(self.neuron, **{name: value})
        if name == "neuron":
            self.check_neuron(value)
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        parameters = _parameters_of(self)
        return parameters[name] if name in parameters else super().__getattr__(name)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SpikingNode[P]":
        if isinstance(self.v, Tensor):
            self.v = moved_state(fn, self.v)
        if self.v_seq is not None:
            self.v_seq = moved_state(fn, self.v_seq)
        # SpikingJelly's base class, next for its drop-in nodes, takes no `recurse`.
        return cast("SpikingNode[P]", super()._apply(fn) if recurse else super()._apply(fn, recurse))

    def __getstate__(self) -> dict[str, Any]:
        # A copy has the values of the state, not the graph that made them.
        state = self.__dict__.copy()
        for name in ("v", "v_seq"):
            if isinstance(state.get(name), Tensor):
                state[name] = state[name].detach().clone()
        return state

    def fresh(self, kind: type[Node], **changes: Any) -> Node:
        """A node of another kind, at rest and on the reference backend, with this one's parameters and modes.

        `changes` are further arguments of its constructor, or parameters that differ.
        """
        node = kind(
            **(_parameters_of(self) | changes),
            surrogate_function=copy.deepcopy(self.surrogate_function),
            step_mode=self.step_mode,
            backend="torch",
            store_v_seq=self.store_v_seq,
        )
        if hasattr(self, "state_dtype") and hasattr(node, "state_dtype"):
            node.state_dtype = self.state_dtype
        return node.train(self.training)

    def extra_repr(self) -> str:
        """Parameters, step mode and backend, as they are passed to the constructor."""
        parameters = ", ".join(f"{name}={value!r}" for name, value in _parameters_of(self).items())
        return f"{parameters}, step_mode={self.step_mode!r}, backend={self.backend!r}"


def reset(model: nn.Module) -> None:
    """Puts every neuron inside a model to rest: call it between sequences, after each training step.

    That is `reset()` of each module that has one and a membrane `v` (nodes of this package, neurons of SpikingJelly,
    your own), which is no parameter, or memories of SpikingJelly; `reset_mem()` of snnTorch's, and `reset_states()` of
    sinabs'. Without it the next call starts from the membranes of the last, whose graph is gone once its backward ran.

    Raises:
        ValueError: no module.
    """
    require(
        isinstance(model, nn.Module), "model", "be a module", type(model).__name__, "Its neurons are put to rest.",
        "Pass the network, or a neuron by itself.",
    )  # fmt: skip
    for module in model.modules():
        has_membrane = hasattr(module, "v") and not isinstance(module.v, nn.Parameter)
        carries = has_membrane or isinstance(getattr(module, "_memories", None), dict)
        for name in ("reset",) if carries else ("reset_mem", "reset_states"):
            if callable(to_rest := getattr(module, name, None)):
                to_rest()
                break
