"""What operators decide in one precision, decided the same in another one.

A gradient is that of one choice: of the spikes that fired, of the place where a maximum was found, of the side of a
kink. float64 chooses otherwise wherever two values are closer than a rounding, and then has another gradient, at no
fault of the one that is judged: among the 131,072 maxima of a pooling there is one such pair, and it was worth 2 %.
Random numbers are decisions too: a dropout has one mask in both.

A model that names a type itself, as by `.float()` behind a comparison or by `torch.zeros(...)`, gets float64 instead;
what it holds beside its parameters and buffers, such as a constant, meets float64 as float64.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from revsnn_bench.meters.step import (
    REMAT,
    EagerMode,
    called_by_engine,
    called_by_user,
    calling_file,
    in_custom_function,
)

JUMPS = {
    *("ge", "gt", "le", "lt", "eq", "ne", "sign", "sgn", "heaviside"),
    *("round", "floor", "ceil", "trunc", "floor_divide"),
}
"""Operators whose results jump where they are floating-point numbers too, as in place."""

RANDOM = {
    *("bernoulli", "normal", "uniform", "exponential", "log_normal", "cauchy", "geometric", "poisson", "random"),
    *("rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "multinomial"),
}
"""Operators that draw."""

SIDE_BY_VALUE = {"threshold_backward", "hardtanh_backward", "leaky_relu_backward"}
"""Derivatives that read their second argument for its side of a kink alone."""

CUT_OFF = {"relu", "clamp", "clamp_min", "clamp_max"}
"""Operators that pass a value on or give a bound."""

_WIDE = dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), torch.float64) | {
    torch.complex64: torch.complex128
}
"""What a type that a model names becomes in float64."""

_OF_RESULTS = ("_saved_result", "_saved_output", "_saved_self_or_result")
"""How attributes of a node of the graph begin that hold what its operator returned."""


def _at_bound(bound: Any) -> float:
    """The derivative of a clamped value that is its bound: 1 in torch 2.13, 0 in 2.15, a half there for a tensor."""
    x = torch.zeros(1, requires_grad=True)
    return float(torch.autograd.grad(torch.clamp(x, min=bound), x)[0])


_AT_BOUND = {False: _at_bound(0), True: _at_bound(torch.zeros(1))}


def _passes(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Tells of an operator's input and output which values it passes on; None where it passes half of one."""
    bounds = (0,) if name == "relu" else (*args[1:], kwargs.get("min"), kwargs.get("max"))
    at_bound = 0.0 if name == "relu" else _AT_BOUND[any(isinstance(bound, Tensor) for bound in bounds)]
    if 0 < at_bound < 1:
        return None

    def passes(before: Tensor, out: Tensor) -> Tensor:
        passed = out == before
        for bound in bounds if at_bound == 0 else ():
            if bound is not None:
                passed &= before != bound
        return passed

    return passes


def _cuts(name: str, args: tuple[Any, ...]) -> bool:
    """Whether the user's code cuts a value from its graph, not by `detach()`, which see `_is_constant`.

    A custom function has a gradient of its own instead.
    """
    if torch.is_grad_enabled() and (name != "detach" or _through_autograd() or _saves(args[0])):
        return False
    learns = any(isinstance(x, Tensor) and x.requires_grad for x in args)
    return learns and called_by_user() and not in_custom_function()


def _saves(tensor: Tensor) -> bool:
    """Whether a `detach` is of an operator that keeps its own result for backward, as `tanh` does, not of the user's.

    `.data` comes after the operator has kept its result.
    """
    node = tensor.grad_fn
    if node is None:
        return False
    notes: Any = node.metadata  # a dictionary, which torch's stub takes for a method
    first = tensor.output_nr not in notes.setdefault("kept", set())
    notes["kept"].add(tensor.output_nr)
    return first and any(name.startswith(_OF_RESULTS) for name in dir(node))


def _through_autograd() -> bool:
    """Whether an operator is called by autograd, as for `detach()`; not for `.data`, nor for what an operator keeps."""
    return torch._C._dispatch_tls_is_dispatch_key_excluded(torch._C.DispatchKey.ADInplaceOrView)


def _is_constant(name: str) -> bool:
    """Whether a model takes a value to which no gradient comes: by `detach()`, or a number by `item()`."""
    taken = name == "_local_scalar_dense" or (name == "detach" and _through_autograd())
    return taken and not calling_file().startswith(REMAT) and not in_custom_function(of_torch=False)


class Detached(TorchFunctionMode):
    """A mode in which what takes a value where no operator is seen takes it by `detach()`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See `TorchFunctionMode`."""
        if func is Tensor.detach_:
            return args[0].copy_(args[0].detach())
        return func(args[0].detach()) if func is Tensor.tolist else func(*args, **(kwargs or {}))


@cache
def _name_of(operator: Any) -> str:
    """Without its namespace, and without the underscore of one in place."""
    return str(operator._schema.name).rpartition("::")[2].rstrip("_")


class Decisions(EagerMode):
    """Inside, what operators decide is recorded; inside `repeated()`, operators of the same name decide the same.

    A decision is a result that jumps where an input moves by a rounding: a comparison, the place of a maximum, a
    rounded value, the side of a kink that a derivative is taken on. Where a maximum is now in another place, the value
    at the recorded place is returned, so that the forward and its gradient belong to one choice. A decision belongs to
    its operator, its shape, and its number among those of the same.

    `dtypes` are the floating-point types that operators were given, those that `torch.autocast` casts to among them;
    `cuts` is whether a value was cut from its graph, by `no_grad` or `.data`; `jumps` whether a custom function of the
    user's decided something, whose derivative is then its own, as of a spike; not while `in_surrogate`, which is known.

    Args:
        constants: whether values that a model takes by `detach()` or `item()` are repeated, too.
        places: whether only draws are recorded, places of maxima and in sorted values, and the sides of what cuts off.
            These are the same where a model has other operators inside its neurons, and where its input moves a little.
    """

    def __init__(self, places: bool = False, constants: bool = False) -> None:
        super().__init__()
        self._places, self._constants = places, constants
        self._repeats = False
        self.dtypes: set[torch.dtype] = set()
        self.cuts = self.jumps = self.in_surrogate = False
        self._made: dict[tuple[Any, ...], list[list[Tensor]]] = defaultdict(list)
        self._read: dict[tuple[Any, ...], int] = defaultdict(int)

    @contextmanager
    def repeated(self) -> Iterator[None]:
        """Inside, all that was recorded is decided again, from the first on, and floats that are made are float64."""
        self._repeats = True
        self._read.clear()
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            with self:
                yield
        finally:
            torch.set_default_dtype(default)

    def operator(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs an operator, and records or repeats what it decides."""
        if self._repeats and (wide := _WIDE.get(kwargs.get("dtype", torch.float64))) and not called_by_engine():
            kwargs = kwargs | {"dtype": wide}  # but for what autograd casts to the type of a leaf
        name = _name_of(func)
        if name in RANDOM:
            drawn = func(*args, **kwargs)
            self._decide(func, [drawn])
            return drawn
        found = {x.dtype for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.is_floating_point()}
        if found and self._constants and _is_constant(name):
            held = args[0].clone()
            self._decide(func, [held])
            return held if name == "detach" else held.item()
        if not found:
            return func(*args, **kwargs)
        self.dtypes |= found
        self.cuts = self.cuts or _cuts(name, args)
        if self._places and name in JUMPS and not (self.jumps or self.in_surrogate):
            self.jumps = called_by_user() and in_custom_function()
        if self._repeats and torch.float64 in found and len(found) > 1:
            args, kwargs = _in_one_type(func, args, kwargs)
        if name in SIDE_BY_VALUE and not self._places:
            side = args[1].clone()
            self._decide(func, [side])
            return func(args[0], side, *args[2:], **kwargs)
        if self._places and name in CUT_OFF and (passes := _passes(name, args, kwargs)) is not None:
            before = args[0].clone()  # the operator may be one in place
            out = func(*args, **kwargs)
            held = out.clone()
            self._decide(func, [passed := passes(before, out), held])
            return out.copy_(torch.where(passed, before, held))
        out = func(*args, **kwargs)
        results = [x for x in (out if isinstance(out, tuple | list) else (out,)) if isinstance(x, Tensor)]
        whole = [x for x in results if not (x.is_floating_point() or x.is_complex())]
        has_places = len(results) == 2 and len(whole) == 1
        if has_places:
            if self._decide(func, whole):
                given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
                results[0].copy_(_values_at(name, given, whole[0]))
        elif not self._places and (decided := results if name in JUMPS else whole):
            self._decide(func, decided)
        return out

    def _decide(self, func: Any, values: list[Tensor]) -> bool:
        """Records values, or gives them what was recorded; whether that changed one."""
        key = (func, *(x.shape for x in values))
        if not self._repeats:
            self._made[key].append([x.clone() for x in values])
            return False
        number = self._read[key]
        if number == len(self._made[key]):
            return False
        self._read[key] += 1
        recorded = [x.to(y.dtype) for x, y in zip(self._made[key][number], values, strict=True)]
        changed = not all(map(torch.equal, recorded, values))
        for value, earlier in zip(values, recorded, strict=True):
            value.copy_(earlier)
        return changed


def _in_one_type(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of an operator that may refuse to mix types: all float64, or of the type of what it writes to."""
    given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
    writes = {each.name for each in func._schema.arguments if each.alias_info is not None and each.alias_info.is_write}
    written = [x for name, x in given.items() if name in writes and isinstance(x, Tensor)]
    dtype = written[0].dtype if written else torch.float64

    def cast(x: Any) -> Any:
        """Every argument of floating point in that type, and what is written to as it is."""
        is_other = isinstance(x, Tensor) and x.is_floating_point() and all(x is not each for each in written)
        return x.to(dtype) if is_other else x

    return tuple(map(cast, args)), {name: cast(x) for name, x in kwargs.items()}


def _values_at(name: str, given: Mapping[str, Any], places: Tensor) -> Tensor:
    """Values of the input of a pooling, a maximum or a sorting at given places; of a dropout, what its mask leaves."""
    if name == "native_dropout":
        kept: Tensor = given["input"] * places / (1 - given["p"])
        return kept
    x: Tensor = given["self"]
    if "pool" in name:
        spatial = -3 if "pool3d" in name else -2
        return x.flatten(spatial).gather(-1, places.flatten(spatial)).view_as(places)
    dim = given.get("dim", -1)
    return x.gather(dim, places) if places.dim() == x.dim() else x.gather(dim, places.unsqueeze(dim)).squeeze(dim)
