"""Functions that a forward calls: which are cheap to run again, what they write to, and what they keep unseen."""

from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from inspect import signature
from numbers import Number
from types import EllipsisType, NoneType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket
from torch.nn import functional

Function = Callable[..., Any]

NORM_PASSES = 2
"""Statistics, then normalised values."""

_POINTWISE = """
    add sub subtract mul multiply div divide true_divide rsub neg abs square sqrt rsqrt exp log log1p expm1 reciprocal
    pow sign sin cos erf clamp clamp_min clamp_max clip minimum maximum where lerp addcmul addcdiv masked_fill
    relu relu6 leaky_relu elu celu selu gelu sigmoid logsigmoid hardsigmoid silu hardswish hardtanh mish softplus
    softsign softshrink hardshrink tanh tanhshrink threshold prelu glu softmax log_softmax heaviside
    tan asin acos atan atan2 sinh cosh asinh acosh atanh erfc exp2 log2 log10 hypot float_power sgn copysign
    round floor ceil trunc frac fmod remainder floor_divide nan_to_num fmax fmin
    eq ne lt le gt ge logical_and logical_or logical_not logical_xor bitwise_and bitwise_or bitwise_xor bitwise_not
    __and__ __or__ __xor__ __invert__ __mod__ __floordiv__ __add__ __radd__ __sub__ __rsub__ __mul__ __rmul__
    __truediv__ __rtruediv__ __rdiv__ __pow__ __rpow__ __neg__ __iadd__ __isub__ __imul__ __itruediv__
"""
_COPIES = """
    cat concat concatenate stack hstack vstack reshape flatten contiguous clone to type type_as float double half
    bfloat16 repeat repeat_interleave tile pad __getitem__ index_select roll flip pixel_shuffle pixel_unshuffle
    transpose permute movedim chunk split unbind narrow view unsqueeze squeeze expand
    bool gather take_along_dim tril triu unfold interpolate upsample
"""
_NUMBERS = "tensor as_tensor scalar_tensor full full_like new_tensor new_full"
_ZEROS, _ONES = "zeros zeros_like new_zeros", "ones ones_like new_ones"
_POOLS = "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d"
_NORMS = "layer_norm group_norm rms_norm normalize"


def _named(names: str) -> Iterator[Function]:
    """The functions of these names, in place ("_") too, as `torch`, as methods and in `torch.nn.functional`."""
    for name in names.split():
        for where in (torch, torch.Tensor, functional):
            for form in (name, f"{name}_"):
                function = getattr(where, form, None)
                if callable(function):
                    yield function


def set_item(tensor: Tensor, index: Any, value: Any) -> Tensor:
    """`tensor[index] = value` as a function that returns the tensor."""
    tensor[index] = value
    return tensor


def writes_once(index: Any) -> bool:
    """Whether `tensor[index] = value` writes each element at most once: else a GPU leaves the last one to chance."""
    parts = index if type(index) is tuple else (index,)
    return all(
        each is None or isinstance(each, int | slice | EllipsisType)
        or (isinstance(each, Tensor) and each.dtype == torch.bool)
        for each in parts
    )  # fmt: skip


CHEAP: dict[Function, int] = {
    torch.Tensor.__setitem__: 1,
    **dict.fromkeys(_named(f"{_POINTWISE} {_COPIES} {_NUMBERS} {_ZEROS} {_ONES} {_POOLS}"), 1),
    **dict.fromkeys(_named(f"{_NORMS} batch_norm instance_norm"), NORM_PASSES),
}
"""Functions that may be run again, and their cost in passes over the tensor. Nothing random, nothing collective."""

del CHEAP[torch.batch_norm], CHEAP[torch.instance_norm]  # what `torch.nn.functional` calls, with other arguments

FILLS: dict[Function, Function] = {
    **dict.fromkeys(_named(_ZEROS), torch.zeros),
    **dict.fromkeys(_named(_ONES), torch.ones),
}
"""Functions that make a tensor for somebody to write to, and what makes the same from its size, type and device."""

CONSTANTS: frozenset[Function] = frozenset(_named(_NUMBERS))
"""Functions whose result's type and device may be those that torch is set to."""

MAX_POOLS: dict[Function, Function] = {
    getattr(module, f"{kind}max_pool{dims}d{places}"): getattr(functional, f"{kind}max_pool{dims}d_with_indices")
    for dims in (1, 2, 3)
    for kind, module, places in (
        *(("", torch, ""), ("", functional, ""), ("adaptive_", functional, "")),
        *(("", functional, "_with_indices"), ("adaptive_", functional, "_with_indices")),
    )
}
"""Functions that keep the place of each maximum in int64, and what returns it too: `PoolWindows` needs fewer bytes."""

PRODUCTS: frozenset[Function] = frozenset(
    {torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, functional.linear}
)
"""Matrix products that may copy an operand before they keep it: see `copied_operands`."""

OPENS_MEMORY: frozenset[Any] = frozenset(
    {torch.Tensor.data.__get__, torch.Tensor.data.__set__}  # type: ignore[attr-defined]
    | {torch.Tensor.numpy, torch.Tensor.__array__, torch.Tensor.__dlpack__}
    | {torch.Tensor.untyped_storage, torch.Tensor.storage, torch.Tensor.data_ptr}
    | {torch.Tensor.__cuda_array_interface__.__get__}
    | {getattr(torch, f"sparse_{kind}_tensor") for kind in ("coo", "csr", "csc", "bsr", "bsc", "compressed")}
)
"""After these what they are given can change without its version counter: it is kept from there on."""

WITH_STATISTICS: dict[Function, dict[str, Any]] = {
    norm: {name: each.default for name, each in signature(norm).parameters.items()}
    for norm in (functional.batch_norm, functional.instance_norm)
}
"""Norms that change running statistics besides their result: their arguments in order, with defaults."""

_WRITE_UNTOLD = frozenset(
    {torch.batch_norm, torch.native_batch_norm, torch.instance_norm, torch.fused_moving_avg_obs_fake_quant}
)
"""Functions that write to statistics among their arguments, and count no version of them."""

_FIXED = (Number, str, bytes, NoneType, EllipsisType, type, torch.Size, torch.dtype, torch.device, torch.layout)
"""Types of arguments that nobody can change after the call."""


@cache
def is_fixed_type(kind: type) -> bool:
    """Whether an argument of this type still is what it was when the function is run again."""
    return issubclass(kind, (*_FIXED, torch.memory_format))


class Treatment(NamedTuple):
    """What a recorder does about the calls of one function."""

    passes: int | None  # cost of running it again; None where it is not cheap
    # Whether it may write to its "first" argument, to "any", to running "statistics", or by the argument `inplace` at a
    # place; None for none of these. Any function may write to `out`.
    writes: str | int | None
    is_pool: bool  # whether it keeps the places of maxima: see `MAX_POOLS`
    opens: bool  # whether it hands out the memory of its arguments
    is_product: bool  # whether it may keep a copy of an operand: see `PRODUCTS`

    def written(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Those of a call's arguments, nested as they are given, that it may write to."""
        at = self.writes
        if at == "any":
            return args, kwargs
        if at == "first":
            return args[:1], kwargs.get("input")
        if at == "statistics":
            return args[1:3], kwargs.get("running_mean"), kwargs.get("running_var")
        if isinstance(at, int) and (kwargs.get("inplace") or (len(args) > at and args[at])):
            return args[:1], kwargs.get("input")
        return kwargs.get("out")


NOTHING = Treatment(None, None, False, False, False)
"""Of a function that is called as it is."""


@lru_cache(4096)
def treatment(function: Function) -> Treatment:
    """What is done about a function: `NOTHING` itself where that is so, as long as it is not given an `out`."""
    is_pool, opens, is_product = (function in each for each in (MAX_POOLS, OPENS_MEMORY, PRODUCTS))
    found = Treatment(CHEAP.get(function), _how_it_writes(function), is_pool, opens, is_product)
    return NOTHING if found == NOTHING else found


def _how_it_writes(function: Function) -> str | int | None:
    if function in WITH_STATISTICS:
        return "statistics"
    if function in _WRITE_UNTOLD:
        return "any"
    name = str(getattr(function, "__name__", ""))
    augmented = name.startswith("__i") and hasattr(torch.Tensor, name.replace("__i", "__", 1))
    if augmented or name == "__setitem__" or (name.endswith("_") and not name.endswith("__")):
        return "first"
    if isinstance(function, OpOverload | OpOverloadPacket):
        packet = function.overloadpacket if isinstance(function, OpOverload) else function
        arguments = [each for name in packet.overloads() for each in getattr(packet, name)._schema.arguments]
        aliases = [each.alias_info for each in arguments if not each.is_out]
        return "any" if any(each is not None and each.is_write for each in aliases) else None
    try:
        return list(signature(function).parameters).index("inplace")
    except (TypeError, ValueError):
        return None


def copied_operands(left: Tensor, right: Tensor) -> tuple[bool, bool]:
    """Which operands of a matrix product it copies and keeps: those in whose place it takes fewer dimensions.

    Batches of matrices become one of `[batch, n, m]`, and what meets a matrix that learns becomes `[batch, m]`: a view
    where the strides allow it, else a contiguous copy.
    """
    if left.ndim > 2 and right.ndim > 2 and left.shape[:-2] == right.shape[:-2]:
        return right.requires_grad and not _merges(left, 2), left.requires_grad and not _merges(right, 2)
    return left.ndim > 2 and right.ndim == 2 and right.requires_grad and not _merges(left, 1), False


def _merges(tensor: Tensor, but: int) -> bool:
    """Whether all dimensions but the last ones can be viewed as one."""
    expected = None
    for size, stride in zip(tensor.shape[-but - 1 :: -1], tensor.stride()[-but - 1 :: -1], strict=True):
        if size != 1:
            if expected is not None and stride != expected:
                return False
            expected = size * stride
    return True
