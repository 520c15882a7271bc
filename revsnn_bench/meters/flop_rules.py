"""What one operator costs: the counting rule, written down operator by operator.

The rule: 1 per output element of a pointwise operator, whatever function it computes of an element (comparison and
select included); 2 per multiply-accumulate; a reduction or a scan counts its input elements; moving, making or
indexing data is 0. Where one kernel fuses several of these, it counts what the same work written out would count over
the N elements of its input: so `add(alpha=a)` is 2, as a product and a sum are. Work per channel or per
row beside that (the square root of a variance, the last division of a mean) is left out, and so is a bias
inside a matrix product or a convolution, where the accumulation starts. N is input elements, R reduction.

Operators go by their name without overload. `MOVEMENT`, `POINTWISE` and `REDUCTIONS` name those that need no formula.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from revsnn_bench.records import PhaseFlops


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


MOVEMENT = _names(
    """
    alias arange as_strided_ as_strided_scatter cat cauchy_ channel_shuffle clone constant_pad_nd copy copy_ detach
    detach_ diag_embed diagonal_backward diagonal_scatter embedding empty empty_like empty_permuted
    empty_strided exponential exponential_ eye fill fill_ flip full full_like gather geometric_ im2col index
    index_copy index_copy_ index_fill index_fill_ index_select lift lift_fresh lift_fresh_copy linspace
    log_normal_ masked_scatter masked_scatter_ masked_scatter_backward masked_select narrow_copy new_empty
    new_empty_strided new_full new_ones new_zeros normal normal_ ones ones_like pixel_shuffle
    pixel_unshuffle rand rand_like randint randint_like randn randn_like random_ randperm record_stream
    reflection_pad1d reflection_pad2d reflection_pad3d repeat repeat_interleave replication_pad1d
    replication_pad2d replication_pad3d resize_ resize_as_ roll rot90 scalar_tensor scatter scatter_
    select_backward select_scatter set_ slice_backward slice_scatter split_copy split_with_sizes_copy
    squeeze_ stack t_ take transpose_ tril tril_ triu triu_ unbind_copy uniform_ unsafe_split
    unsafe_split_with_sizes unsqueeze_ upsample_nearest1d upsample_nearest2d upsample_nearest3d zero zero_
    zeros zeros_like _assert_async _assert_scalar _assert_tensor_metadata _copy_from _efficientzerotensor
    _foreach_copy_ _foreach_zero_ _has_same_storage_numel _lazy_clone _local_scalar_dense
    _new_zeros_with_same_feature_meta _pin_memory _reshape_alias _reshape_copy _to_copy _unsafe_index
    _unsafe_view sym_size sym_stride sym_numel sym_storage_offset is_same_size is_pinned
    """
)
"""aten operators that move, make or index data: 0. Random data is data; `bernoulli` is in `POINTWISE`."""

POINTWISE = _names(
    """
    bernoulli bernoulli_ poisson rrelu_with_noise rrelu_with_noise_ rrelu_with_noise_backward elu_backward
    glu hardshrink_backward hardsigmoid_backward hardswish hardswish_backward hardtanh_backward
    huber_loss_backward leaky_relu_backward log_sigmoid_backward mish_backward mse_loss_backward
    smooth_l1_loss_backward soft_margin_loss_backward softplus_backward softshrink_backward
    binary_cross_entropy_backward glu_backward _prelu_kernel_backward _prelu_kernel
    """
)
"""aten operators that compute elementwise without carrying torch's tag; `bernoulli` and `poisson` compare each draw."""

REDUCTIONS = _names(
    """
    all amax amin aminmax any argmax argmin count_nonzero cummax cummin cumprod cumprod_ cumsum cumsum_ dist
    equal is_nonzero kthvalue linalg_vector_norm logcumsumexp logsumexp max mean median min mode nanmedian
    nansum nonzero norm prod std std_mean sum topk trace var var_mean adaptive_max_pool2d
    adaptive_max_pool3d _aminmax _adaptive_avg_pool2d _adaptive_avg_pool3d _foreach_norm _is_all_true
    _is_any_true
    """
)
"""aten reductions, scans and selections: as many operations as input elements, whatever is computed of each."""


@dataclass(frozen=True)
class Call:
    """One call of an operator: arguments by their names in the schema, defaults filled in, and its result."""

    arguments: dict[str, Any]
    out: Any

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def has(self, *names: str) -> int:
        """How many of these optional arguments the operator has and was given."""
        return sum(self.arguments.get(name) is not None for name in names)

    @property
    def first(self) -> Any:
        """The first argument: the input, or the gradient of the output."""
        return next(iter(self.arguments.values()))


Formula = Callable[[Call], PhaseFlops | int]
"""Operations of one call; a plain int is pointwise work."""


def written(call: Call) -> int:
    """Elements of the result; an operator that returns nothing writes its first argument."""
    return elements(call.first if call.out is None else call.out)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Tensors in a result or an argument: a tensor, or any nesting of lists and tuples of them."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)


def elements(value: Any) -> int:
    """Elements of all tensors in `value`."""
    return sum(tensor.numel() for tensor in tensors_in(value))


def _macs(count: int, pointwise: int = 0) -> PhaseFlops:
    return PhaseFlops(pointwise=pointwise, multiply_accumulate=2 * count)


def _first(per_element: int) -> Formula:
    return lambda call: per_element * elements(call.first)


def _per_element_of(argument: str) -> Formula:
    return lambda call: elements(call[argument])


def _convolution_macs(call: Call, output: Tensor) -> int:
    """Every weight meets every position once: output positions, or the input's when transposed."""
    positions = call["input"] if call["transposed"] else output
    macs: int = positions.shape[0] * prod(positions.shape[2:]) * call["weight"].numel()
    return macs


def _convolution_backward(call: Call) -> PhaseFlops:
    """As many multiply-accumulates as the forward for input and for weight; the bias gradient is R."""
    grad = call["grad_output"]
    for_input, for_weight, for_bias = call["output_mask"]
    return _macs(_convolution_macs(call, grad) * (for_input + for_weight), grad.numel() if for_bias else 0)


def _norm(call: Call) -> int:
    """Mean R and variance R where they are taken, centre N, scale N; weight N and bias N where present."""
    statistics = 2 if call.arguments.get("training", True) else 0
    return (statistics + 2 + call.has("weight", "bias")) * elements(call["input"])


def _norm_with_constants(call: Call) -> int:
    return (2 + call.has("weight", "bias")) * elements(call["input"])


def _batch_norm_backward(call: Call) -> int:
    """Normalised input 2 N, its product with the gradient N + R, sum of the gradient R; then the input's
    gradient: 4 N (two corrections, their difference, scale), or N where the statistics are constants."""
    train = call.arguments.get("train", call.arguments.get("update", True))
    for_input, for_weight, for_bias = call.arguments.get("output_mask", (True, True, True))
    corrected = for_input and train
    per_element: int = 4 * (corrected or for_weight) + (corrected or for_bias)
    per_element += (4 if train else 1) * for_input
    return per_element * elements(call["input"])


def _row_norm_backward(call: Call) -> int:
    """Normalised input 2 N; weight N + R, bias R; the input's gradient: weight N where present, product
    N + R, sum R, then 4 N as in batch norm. For norms whose statistics mix elements of several weights."""
    for_input, for_weight, for_bias = call["output_mask"]
    per_element: int = 2 * (for_input or for_weight) + 2 * for_weight + for_bias
    per_element += (7 + call.has("weight")) * for_input
    return per_element * elements(call["input"])


def _times(per_result: int, factor: str = "") -> Formula:
    """So many operations per result, and one more where its factor, a number, is not 1."""
    return lambda call: written(call) * (per_result + (call.arguments.get(factor, 1) != 1))


def _pool(dimensions: int) -> Formula:
    """One addition or comparison per element of each window, over the border too; backward, of an average, as many."""

    def formula(call: Call) -> int:
        sizes = [int(size) for size in call["kernel_size"]]
        outputs: Tensor = call.arguments.get("grad_output", next(tensors_in(call.out)))
        return outputs.numel() * prod(sizes * dimensions if len(sizes) == 1 else sizes)

    return formula


def _interpolation(inputs: int) -> Formula:
    """Every output is the sum of so many weighted inputs, and its gradient is added to as many."""
    return lambda call: _macs(inputs * elements(call.arguments.get("grad_output", call.out)))


def _loss(call: Call) -> int:
    """The loss of each element N, and R where it is reduced (reduction is 0 for none)."""
    return elements(call["self"]) * (2 if call["reduction"] else 1)


def _index_put(call: Call) -> int:
    """Writing is movement; accumulating adds every value."""
    return elements(call["values"]) if call["accumulate"] else 0


def _as_torch(name: str) -> Formula:
    """torch's formula for a kernel that takes the same tensors in the same order."""
    formula = flop_registry[getattr(torch.ops.aten, name)]
    return lambda call: _macs(formula(*call.arguments.values(), out_val=call.out) // 2)


def _with_forms(names: str) -> str:
    """Names, and those of the in-place and the foreach form of each."""
    return " ".join(f"{name} {name}_ _foreach_{name} _foreach_{name}_" for name in names.split())


_BY_NAMES: dict[str, Formula] = {
    # Sums of products, and derivatives that come as one operator: s (1 - s) g and (1 - t^2) g
    _with_forms("add sub rsub"): _times(1, "alpha"),
    _with_forms("addcmul addcdiv"): _times(2, "value"),
    _with_forms("lerp"): _times(3),
    "sigmoid_backward tanh_backward": _times(3),
    "convolution": lambda call: _macs(_convolution_macs(call, call.out)),
    "convolution_backward": _convolution_backward,
    "dot vdot mv": lambda call: _macs(elements(call["self"])),
    "addmv": lambda call: _macs(elements(call["mat"])),
    "addr": lambda call: _macs(elements(call.out)),
    "addbmm": lambda call: _macs(elements(call["batch1"]) * call["batch2"].shape[-1]),
    "_scaled_dot_product_flash_attention_for_cpu": _as_torch("_scaled_dot_product_flash_attention"),
    "_scaled_dot_product_flash_attention_for_cpu_backward": _as_torch("_scaled_dot_product_flash_attention_backward"),
    "native_batch_norm cudnn_batch_norm miopen_batch_norm _native_batch_norm_legit _batch_norm_with_update "
    "native_layer_norm native_group_norm": _norm,
    "_native_batch_norm_legit_no_training _batch_norm_no_update": _norm_with_constants,
    "native_batch_norm_backward batch_norm_backward cudnn_batch_norm_backward "
    "miopen_batch_norm_backward": _batch_norm_backward,
    "native_layer_norm_backward native_group_norm_backward": _row_norm_backward,
    "avg_pool2d avg_pool2d_backward max_pool2d_with_indices fractional_max_pool2d": _pool(2),
    "avg_pool3d avg_pool3d_backward max_pool3d_with_indices fractional_max_pool3d": _pool(3),
    "upsample_linear1d upsample_linear1d_backward": _interpolation(2),
    "upsample_bilinear2d upsample_bilinear2d_backward": _interpolation(4),
    "upsample_trilinear3d upsample_trilinear3d_backward": _interpolation(8),
    "upsample_bicubic2d upsample_bicubic2d_backward": _interpolation(16),
    "log_sigmoid_forward": _first(1),
    # One addition per gradient that is scattered to the input
    "max_pool2d_with_indices_backward max_pool3d_with_indices_backward upsample_nearest1d_backward "
    "upsample_nearest2d_backward upsample_nearest3d_backward unfold_backward embedding_dense_backward col2im "
    "fractional_max_pool2d_backward fractional_max_pool3d_backward adaptive_max_pool2d_backward "
    "adaptive_max_pool3d_backward reflection_pad1d_backward reflection_pad2d_backward reflection_pad3d_backward "
    "replication_pad1d_backward replication_pad2d_backward replication_pad3d_backward": _first(1),
    "_adaptive_avg_pool2d_backward _adaptive_avg_pool3d_backward": _per_element_of("self"),
    # Maximum R, difference N, exponential N, sum R, and a difference or quotient N
    "_softmax _safe_softmax _log_softmax": _first(5),
    # Product or exponential N, sum R, product N, difference N
    "_softmax_backward_data _log_softmax_backward_data": _first(4),
    "nll_loss_forward nll_loss_backward nll_loss2d_forward nll_loss2d_backward": _per_element_of("target"),
    "mse_loss smooth_l1_loss huber_loss soft_margin_loss binary_cross_entropy binary_cross_entropy_with_logits": _loss,
    # Norm R and product N; backward: product N, sum R, the share of v N, difference N, scaled N
    "_weight_norm_interface": _first(2),
    "_weight_norm_interface_backward": _first(5),
    # Draw and compare N, scale the mask N, multiply N: what dropout written out counts
    "native_dropout": _first(3),
    "index_put index_put_ _index_put_impl_ _unsafe_index_put": _index_put,
    "index_add index_add_": _per_element_of("source"),
    "scatter_add scatter_add_ scatter_reduce scatter_reduce_": _per_element_of("src"),
}

FORMULAS: dict[str, Formula] = {name: formula for names, formula in _BY_NAMES.items() for name in names.split()}
"""aten operators, by name without overload, whose count is neither their output nor their input elements."""
