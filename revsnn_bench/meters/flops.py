"""Floating-point operations of one training step, counted at the dispatcher, phases apart.

A dispatch mode sees every operator below autograd, so composites are counted once, in the pieces that really
run, and the code inside an autograd Function is counted like any other. An operator without a formula raises:
a count that silently misses work would flatter whoever fuses most.

The phases are those that the timing meter times, with recomputation taken out of backward:

* forward: what `step.forward()` runs;
* backward: what `step.backward()` runs, the output's gradient (a loss, if any) included;
* recompute: forward work inside a backward pass. That is anything with grad mode on inside a graph task
  (checkpointing, classic reversible backpropagation), and anything inside a
  `torch.profiler.record_function` range whose label contains "recompute".

This project's nodes are counted on their reference backend, whichever they run on: one count per equation, as
nodes/README.md lists them. Other work that is launched past the dispatcher (a bare numba or triton kernel) cannot be
seen: wrap it as a `torch.library` operator and register its formula.

Gradient accumulation is an addition per element, first gradients excepted, which autograd only moves. Under
`create_graph=True` all of backward has grad mode on, and reads as recomputation. fvcore's count of the convolutions
and matrix products in forward is taken beside all this, as a cross-check.

The rule: 1 per output element of a pointwise operator, whatever function it computes of an element (comparison and
select included); 2 per multiply-accumulate, 8 per one of complex numbers; a reduction or a scan counts its input
elements; moving, making or indexing data is 0. Where one kernel fuses several of these, it counts what the same work
written out would count over the N elements of its input: so `add(alpha=a)` is 2, as a product and a sum are. Work per
channel or per row beside that (the square root of a variance, the last division of a mean) is left out, and so is a
bias inside a matrix product or a convolution, where the accumulation starts. A Fourier transform over n values counts
5 log2 n per complex element and half of that per real one. N is input elements, R reduction.
"""

import logging
import threading
import warnings
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from math import log2, prod
from typing import Any, Literal
from unittest.mock import patch

import torch
from revsnn_nodes.kernels.support import equations_written_out
from torch import Tensor, nn
from torch._library.custom_ops import CustomOpDef
from torch._ops import OpOverload, OpOverloadPacket
from torch.utils.flop_counter import flop_registry

from revsnn_bench.meters.step import EagerMode, TrainingStep, parts_of, tensors_in
from revsnn_bench.records import FlopsRecord, PhaseFlops, UnknownOperation

with warnings.catch_warnings():
    # Its imports warn of deprecations that neither a user nor we can change.
    warnings.simplefilter("ignore")
    from fvcore.nn import FlopCountAnalysis

_PRODUCTS = ("conv", "linear", "addmm", "mm", "matmul", "bmm", "baddbmm", "einsum")


def fvcore_forward_flops(model: nn.Module, input: Tensor) -> int | None:
    """Operations that fvcore finds in the convolutions and matrix products of one forward pass, 2 per MAC.

    It traces the model once under `torch.no_grad`, and neurons keep the state of that run; None where it cannot. A
    product inside an autograd Function is missing here, since it sees nothing in there.
    """
    with warnings.catch_warnings():
        # So does torch's tracer.
        warnings.simplefilter("ignore")
        analysis = FlopCountAnalysis(model, (input,)).unsupported_ops_warnings(False)
        analysis = analysis.uncalled_modules_warnings(False).tracer_warnings("none")
        logger = logging.getLogger("fvcore")
        level = logger.level
        logger.setLevel(logging.CRITICAL)
        try:
            with torch.no_grad():
                counts = analysis.by_operator()
        except Exception:  # The tracer raises whatever the traced model raises.
            return None
        finally:
            logger.setLevel(level)
    return 2 * int(sum(counts[name] for name in _PRODUCTS))


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


def elements(value: Any) -> int:
    """Elements of all tensors in `value`."""
    return sum(tensor.numel() for tensor in tensors_in(value))


def _macs(count: int, pointwise: int = 0) -> PhaseFlops:
    return PhaseFlops(pointwise=pointwise, multiply_accumulate=2 * count)


def _nothing(call: Call) -> int:
    return 0


def _first(per_element: int) -> Formula:
    return lambda call: per_element * elements(call.first)


def _per_element_of(argument: str) -> Formula:
    return lambda call: elements(call[argument])


def _convolution_macs(call: Call, output: Tensor) -> int:
    """Every weight meets every position once: output positions, or the input's when transposed."""
    positions = call["input"] if call["transposed"] else output
    return int(positions.shape[0] * prod(positions.shape[2:]) * call["weight"].numel())


def _convolution_backward(call: Call) -> PhaseFlops:
    """As many multiply-accumulates as the forward for input and for weight; the bias gradient is R."""
    grad = call["grad_output"]
    for_input, for_weight, for_bias = call["output_mask"]
    return _macs(_convolution_macs(call, grad) * (for_input + for_weight), grad.numel() if for_bias else 0)


def _norm(call: Call) -> int:
    """Mean R and variance R where they are taken, centre N, scale N; weight N and bias N where present."""
    statistics = 2 if call.arguments.get("training", True) else 0
    return (statistics + 2 + call.has("weight", "bias")) * elements(call["input"])


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
        outputs: Tensor = call.arguments.get("grad_output", tensors_in(call.out)[0])
        return outputs.numel() * prod(sizes * dimensions if len(sizes) == 1 else sizes)

    return formula


def _interpolation(inputs: int) -> Formula:
    """Every output is the sum of so many weighted inputs, and its gradient is added to as many."""
    return lambda call: _macs(inputs * elements(call.arguments.get("grad_output", call.out)))


def _grid_sampling(dimensions: int) -> Formula:
    """As an interpolation of 2, 1 or 4 values in each dimension; backward once for the input, once for the grid."""

    def formula(call: Call) -> PhaseFlops | int:
        inputs = (2, 1, 4)[call["interpolation_mode"]] ** dimensions
        outputs = elements(call.arguments.get("grad_output", call.out))
        wanted = call.arguments.get("output_mask", ())
        if inputs > 1:
            return _macs(inputs * outputs * (sum(wanted) if wanted else 1))
        return outputs * any(wanted[:1])  # moved; backward, added up

    return formula


def _product(call: Call) -> PhaseFlops:
    """Rows by columns; of a sparse matrix, as many as it has values."""
    left, right = (call["mat1"] if "mat1" in call.arguments else call["self"]), call["mat2"]
    if left.layout is not torch.strided:
        return _macs(elements(parts_of(left)[-1:]) * right.shape[1])
    return _macs(left.shape[0] * elements(parts_of(right)[-1:]))


def _scaled(formula: Formula) -> Formula:
    """Of a product that something is added to: factors of both that are neither 0 nor 1 count as written out."""

    def count(call: Call) -> PhaseFlops:
        product = _as_flops(formula(call))
        factors = ((call["alpha"], written(call)), (call["beta"], elements(call["self"])))
        scaled = sum(number for factor, number in factors if factor not in (0, 1))
        return PhaseFlops(pointwise=product.pointwise + scaled, multiply_accumulate=product.multiply_accumulate)

    return count


def _trilinear(call: Call) -> PhaseFlops | int:
    """A product of three tensors, each with sides of 1 where it is expanded, summed over some sides."""
    shapes = []
    for i in "123":
        shapes.append(list(call[f"i{i}"].shape))
        for place in sorted(call[f"expand{i}"]):
            shapes[-1].insert(place, 1)
    products = prod(map(max, zip(*shapes, strict=True)))
    return _macs(products, products) if call["sumdim"] else 2 * products


def _euclidean_distances(call: Call) -> PhaseFlops:
    """Products of all rows, each with its square, of R, and a 1 behind it; then the root, of what is not below 0."""
    x, y = call["x1"], call["x2"]
    return _macs(elements(call.out) * (x.shape[-1] + 2), 3 * elements(x) + 2 * elements(y) + 2 * elements(call.out))


def _bag(call: Call) -> int:
    """Every row that is looked up is added or compared; backward its gradient."""
    rows = call["weight"] if "weight" in call.arguments else call["grad"]
    return elements(call["indices"]) * int(rows.shape[-1])


def _scores(call: Call) -> tuple[int, int]:
    """How many pairs of a query and a key there are, and operations of each: scaled, masked, some dropped."""
    scores: int = prod(call["query"].shape[:-1]) * call["key"].shape[-2]
    return scores, 1 + call.has("attn_mask", "attn_bias") + 3 * bool(call["dropout_p"])


def _attention(call: Call) -> PhaseFlops:
    """A product of each query and each key, their softmax of 5, and as many products with values."""
    scores, operations = _scores(call)
    width: int = call["query"].shape[-1] + call["value"].shape[-1]
    return _macs(scores * width, scores * (operations + 5))


def _attention_backward(call: Call) -> PhaseFlops:
    """Scores again, from the logarithm of their sum 2, and four products; the softmax's 3, and 2 for each output."""
    scores, operations = _scores(call)
    width: int = 3 * call["query"].shape[-1] + 2 * call["value"].shape[-1]
    return _macs(scores * width, scores * (operations + 5) + 2 * elements(call["out"]))


def _fourier(per_element: float) -> Formula:
    """Of a transform over n values each, log2 n times a number for each of its elements: the convention of FFTW."""

    def formula(call: Call) -> int:
        """Of the real side, where there is one."""
        reals = max(call["self"], call.out, key=elements)  # the real side, where there is one
        return round(per_element * elements(reals) * log2(max(1, prod(reals.shape[each] for each in call["dim"]))))

    return formula


def _with_forms(names: str) -> str:
    """Names, and those of the in-place and the foreach form of each."""
    return " ".join(f"{name} {name}_ _foreach_{name} _foreach_{name}_" for name in names.split())


_BY_NAMES: dict[str, Formula] = {
    # Moving, making or indexing data. Random data is data.
    """
    alias arange as_strided_ as_strided_scatter cat cauchy_ channel_shuffle clone complex constant_pad_nd copy copy_
    detach detach_ diag_embed diagonal_backward diagonal_scatter embedding empty empty_like empty_permuted
    empty_strided exponential exponential_ eye fill fill_ flip full full_like gather geometric_ im2col index
    index_copy index_copy_ index_fill index_fill_ index_select lift lift_fresh lift_fresh_copy linspace
    log_normal_ hann_window hamming_window max_unpool2d max_unpool3d
    masked_scatter masked_scatter_ masked_scatter_backward masked_select narrow_copy new_empty
    new_empty_strided new_full new_ones new_zeros normal normal_ ones ones_like pixel_shuffle
    pixel_unshuffle rand rand_like randint randint_like randn randn_like random_ randperm record_stream
    reflection_pad1d reflection_pad2d reflection_pad3d repeat repeat_interleave replication_pad1d
    replication_pad2d replication_pad3d resize_ resize_as_ roll rot90 scalar_tensor scatter scatter_
    select_backward select_scatter set_ slice_backward slice_scatter split_copy split_with_sizes_copy
    squeeze_ stack t_ take transpose_ tril tril_ triu triu_ unbind_copy uniform_ unsafe_split
    unsafe_split_with_sizes unsqueeze_ upsample_nearest1d upsample_nearest2d upsample_nearest3d zero zero_
    zeros zeros_like _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d
    _assert_async _assert_scalar _assert_tensor_metadata _copy_from _efficientzerotensor
    _foreach_copy_ _foreach_zero_ _has_same_storage_numel _lazy_clone _local_scalar_dense
    _new_zeros_with_same_feature_meta _pin_memory _reshape_alias _reshape_copy _to_copy _unsafe_index
    _to_dense _to_sparse _to_sparse_csr _to_sparse_csc _to_sparse_bsr _to_sparse_bsc block_diag is_coalesced
    _sparse_coo_tensor_with_dims_and_tensors _sparse_coo_tensor_with_dims _coalesced_ select_copy slice_copy view_copy
    squeeze_copy unsqueeze_copy permute_copy transpose_copy t_copy expand_copy alias_copy detach_copy
    _unsafe_view sym_size sym_stride sym_numel sym_storage_offset is_same_size is_pinned
    """: _nothing,
    # Elementwise, but without torch's tag; `bernoulli` and `poisson` compare each draw
    """
    bernoulli bernoulli_ poisson rrelu_with_noise rrelu_with_noise_ rrelu_with_noise_backward elu_backward
    glu hardshrink_backward hardsigmoid_backward hardswish hardswish_backward hardtanh_backward
    huber_loss_backward leaky_relu_backward log_sigmoid_backward mish_backward mse_loss_backward
    smooth_l1_loss_backward soft_margin_loss_backward softplus_backward softshrink_backward
    binary_cross_entropy_backward floor_divide glu_backward _prelu_kernel_backward _prelu_kernel dequantize
    quantize_per_tensor quantize_per_channel
    """: written,
    # Reductions, scans and selections, whatever is computed of each element
    """
    multinomial all amax amin aminmax any argmax argmin bucketize count_nonzero cummax cummin cumprod cumprod_ cumsum
    cumsum_ dist equal is_nonzero kthvalue linalg_vector_norm logcumsumexp logsumexp max mean median min mode nanmedian
    nansum nonzero norm prod sort std std_mean sum topk trace var var_mean adaptive_max_pool2d
    adaptive_max_pool3d _aminmax _adaptive_avg_pool2d _adaptive_avg_pool3d _foreach_norm _is_all_true
    _is_any_true fake_quantize_per_tensor_affine_cachemask fake_quantize_per_channel_affine_cachemask histc bincount
    """: _first(1),
    # Sums of products, and derivatives that come as one operator: s (1 - s) g and (1 - t^2) g
    _with_forms("add sub rsub"): _times(1, "alpha"),
    _with_forms("addcmul addcdiv"): _times(2, "value"),
    _with_forms("lerp"): _times(3),
    "sigmoid_backward tanh_backward": _times(3),
    "_fft_c2c": _fourier(5),
    "_fft_r2c _fft_c2r": _fourier(2.5),
    "convolution": lambda call: _macs(_convolution_macs(call, call.out)),
    "convolution_backward": _convolution_backward,
    "dot vdot mv": lambda call: _macs(elements(parts_of(call["self"])[-1:])),
    "addmv": _scaled(lambda call: _macs(elements(call["mat"]))),
    "addr": _scaled(lambda call: _macs(elements(call.out))),
    "addbmm baddbmm": _scaled(lambda call: _macs(elements(call["batch1"]) * call["batch2"].shape[-1])),
    "_scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_flash_attention_backward _scaled_dot_product_efficient_attention_backward "
    "_scaled_dot_product_cudnn_attention_backward "
    "_scaled_dot_product_flash_attention_for_cpu_backward": _attention_backward,
    "native_batch_norm cudnn_batch_norm miopen_batch_norm _native_batch_norm_legit _batch_norm_with_update "
    "native_layer_norm native_group_norm": _norm,
    "_native_batch_norm_legit_no_training _batch_norm_no_update": lambda call: (
        (2 + call.has("weight", "bias")) * elements(call["input"])
    ),
    "native_batch_norm_backward batch_norm_backward cudnn_batch_norm_backward "
    "miopen_batch_norm_backward": _batch_norm_backward,
    "native_layer_norm_backward native_group_norm_backward": _row_norm_backward,
    "avg_pool2d avg_pool2d_backward max_pool2d_with_indices fractional_max_pool2d": _pool(2),
    "avg_pool3d avg_pool3d_backward max_pool3d_with_indices fractional_max_pool3d": _pool(3),
    "upsample_linear1d upsample_linear1d_backward": _interpolation(2),
    "upsample_bilinear2d upsample_bilinear2d_backward": _interpolation(4),
    "upsample_trilinear3d upsample_trilinear3d_backward": _interpolation(8),
    "upsample_bicubic2d upsample_bicubic2d_backward": _interpolation(16),
    "grid_sampler_2d grid_sampler_2d_backward": _grid_sampling(2),
    "grid_sampler_3d grid_sampler_3d_backward": _grid_sampling(3),
    # Each coordinate is a product of a point, with a 1 behind it, and a row of the matrix
    "affine_grid_generator": lambda call: _macs(elements(call.out) * (call.out.shape[-1] + 1)),
    "mm": _product,
    "addmm _sparse_addmm": _scaled(_product),
    "_trilinear": _trilinear,
    # Difference, its power or sign, and sum for each feature of each pair; backward for one of the two sides
    "_cdist_forward _cdist_backward": lambda call: (
        3 * elements(call.arguments.get("cdist", call.out)) * int(call["x1"].shape[-1])
    ),
    "_euclidean_dist": _euclidean_distances,
    "_embedding_bag _embedding_bag_forward_only _embedding_bag_backward _embedding_bag_dense_backward": _bag,
    "linalg_cross": _times(3),
    "log_sigmoid_forward": _first(1),
    # One addition per gradient that is scattered to the input
    "max_pool2d_with_indices_backward max_pool3d_with_indices_backward _upsample_nearest_exact1d_backward "
    "_upsample_nearest_exact2d_backward _upsample_nearest_exact3d_backward upsample_nearest1d_backward "
    "upsample_nearest2d_backward upsample_nearest3d_backward unfold_backward embedding_dense_backward col2im "
    "fractional_max_pool2d_backward fractional_max_pool3d_backward adaptive_max_pool2d_backward "
    "adaptive_max_pool3d_backward reflection_pad1d_backward reflection_pad2d_backward reflection_pad3d_backward "
    "replication_pad1d_backward replication_pad2d_backward replication_pad3d_backward": _first(1),
    "_adaptive_avg_pool2d_backward _adaptive_avg_pool3d_backward searchsorted": _per_element_of("self"),
    "_coalesce": lambda call: elements(parts_of(call["self"])[-1:]),
    # Maximum R, difference N, exponential N, sum R, and a difference or quotient N
    "_softmax _safe_softmax _log_softmax": _first(5),
    # Product or exponential N, sum R, product N, difference N
    "_softmax_backward_data _log_softmax_backward_data": _first(4),
    "nll_loss_forward nll_loss_backward nll_loss2d_forward nll_loss2d_backward": _per_element_of("target"),
    # The loss of each element N, and R where it is reduced (reduction is 0 for none)
    "mse_loss smooth_l1_loss huber_loss soft_margin_loss binary_cross_entropy binary_cross_entropy_with_logits": (
        lambda call: elements(call["self"]) * (2 if call["reduction"] else 1)
    ),
    # Norm R and product N; backward: product N, sum R, the share of v N, difference N, scaled N
    "_weight_norm_interface": _first(2),
    "_weight_norm_interface_backward": _first(5),
    # Draw and compare N, scale the mask N, multiply N: what dropout written out counts
    "native_dropout": _first(3),
    # Writing is movement; accumulating adds every value
    "index_put index_put_ _index_put_impl_ _unsafe_index_put": lambda call: (
        elements(call["values"]) * call["accumulate"]
    ),
    "index_add index_add_": lambda call: elements(call["source"]) * (1 + (call["alpha"] != 1)),
    "scatter_add scatter_add_ scatter_reduce scatter_reduce_": _per_element_of("src"),
}

FORMULAS: dict[str, Formula] = {name: formula for names, formula in _BY_NAMES.items() for name in names.split()}
"""aten operators by name without overload; others that carry torch's tag as pointwise count what they write."""


Phase = Literal["forward", "backward", "recompute"]

Count = Callable[..., PhaseFlops | int]
_registered: dict[str, Count] = {}


def register_flop_formula(operator: str | OpOverload | OpOverloadPacket | CustomOpDef, formula: Count) -> None:
    """Gives an operator its count; needed once for every fused kernel, and overrides a formula of ours.

    Args:
        operator: `torch.ops.ns.name`, one overload of it, what `torch.library.custom_op` returned, or its
            name "ns::name". The formula holds for all overloads.
        formula: called as `formula(*args, out=result, **kwargs)` with what the operator was called with;
            returns PhaseFlops, or an int, which counts as pointwise work.
    Raises:
        ValueError: a name without a namespace.
    """
    if isinstance(operator, OpOverload):
        name = operator._schema.name
    elif isinstance(operator, OpOverloadPacket):
        name = str(operator).replace(".", "::", 1)
    else:
        name = operator if isinstance(operator, str) else operator._qualname
    if "::" not in name:
        raise ValueError(
            f"`operator` must be a qualified name such as 'aten::add'; got {name!r}. Operators of different "
            f"libraries share names. Pass 'namespace::{name}' or the operator itself."
        )
    _registered[name] = formula


def measure_flops(step: TrainingStep, cross_check: bool = True) -> FlopsRecord:
    """Runs one forward and backward of `step` under the counter, then fvcore's cross-check of its products.

    Args:
        cross_check: whether to ask fvcore, which cannot trace fake tensors.
    Raises:
        UnknownOperation: an operator ran that has no formula, and the message says how to register one; or tensors were
            handed to numpy.
    """
    counter = _Counter()
    step.prepare()
    # An LSTM on the CPU is then products and gates, and no single operator of oneDNN.
    is_recurrent = any(isinstance(module, nn.RNNBase) for module in step.model.modules())
    written_out = torch.backends.mkldnn.flags(enabled=False) if is_recurrent else nullcontext()
    with equations_written_out(), written_out, counter, patch.object(Tensor, "numpy", counter.numpy, create=True):
        output = step.forward()
        counter.stage = "backward"
        step.backward(output)
    del output
    step.prepare()
    if counter.handed_over:
        raise UnknownOperation(
            f"tensors were handed to numpy {counter.handed_over:,} times, where no operation is seen. Compute with "
            "torch, or make an operator of it, by `torch.library.custom_op`, and register its formula."
        )
    phases = {
        phase: PhaseFlops(pointwise=pointwise, multiply_accumulate=multiply_accumulate)
        for phase, (pointwise, multiply_accumulate) in counter.counts.items()
    }
    check = None
    if cross_check and phases["forward"].multiply_accumulate:  # fvcore counts nothing else, and its tracing is slow
        check = fvcore_forward_flops(step.model, step.make_input())
        step.prepare()
    return FlopsRecord(**phases, fvcore_forward_flops=check)


class _Counter(EagerMode):
    """Adds up operations by phase; on devices, autograd's own threads call it too."""

    def __init__(self) -> None:
        super().__init__()
        self.stage: Phase = "forward"
        self.counts: dict[Phase, list[int]] = {"forward": [0, 0], "backward": [0, 0], "recompute": [0, 0]}
        # Open ranges of each thread, innermost last: is it a recomputation?
        self._ranges: dict[int, list[bool]] = defaultdict(list)
        self._lock = threading.Lock()
        self.handed_over = self._depth = 0

    @property
    def numpy(self) -> Callable[..., Any]:
        """What `Tensor.numpy` is meanwhile: tensors of no operator are counted, whatever becomes of their numbers."""
        original = Tensor.numpy

        def numpy(tensor: Tensor, **options: Any) -> Any:
            self.handed_over += not self._depth
            return original(tensor, **options)

        return numpy

    def operator(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name: str = func._schema.name
        if name.startswith("prim::"):  # a fake tensor is asked for its device
            return func(*args, **kwargs)
        if name.startswith("profiler::"):
            ranges = self._ranges[threading.get_ident()]
            if "_record_function_enter" in name:
                ranges.append("recompute" in args[0])
            elif ranges:
                ranges.pop()
            return func(*args, **kwargs)
        composite = torch._C.DispatchKey.CompositeImplicitAutograd
        known = name not in _registered and torch._C._dispatch_has_kernel(func.name())  # not all of nested tensors are
        if known and torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), composite):
            # Composites reach the counter only where autograd is bypassed (inference mode).
            with self:
                pieces = func.decompose(*args, **kwargs)
            if pieces is not NotImplemented:
                return pieces
        in_graph_task = torch._C._current_graph_task_id() != -1
        phase: Phase = "backward" if in_graph_task else self.stage
        if any(self._ranges[threading.get_ident()]) or (in_graph_task and torch.is_grad_enabled()):
            phase = "recompute"
        self._depth += 1
        try:
            out = func(*args, **kwargs)
        finally:
            self._depth -= 1
        flops = count(func, args, kwargs, out)
        with self._lock:
            self.counts[phase][0] += flops.pointwise
            self.counts[phase][1] += flops.multiply_accumulate
        return out


def count(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> PhaseFlops:
    """Operations of one call of `func`, which returned `out`; raises `UnknownOperation` without a formula."""
    if (registered := _registered.get(func._schema.name)) is not None:
        return _as_flops(registered(*args, out=out, **kwargs))
    if (formula := _formula(func)) is not None:
        values = {argument.name: argument.default_value for argument in func._schema.arguments}
        values.update(zip(values, args, strict=False))
        flops = _as_flops(formula(Call(values | kwargs, out)))
    elif func.overloadpacket in flop_registry:
        flops = _macs(flop_registry[func.overloadpacket](*args, **kwargs, out_val=out) // 2)
    else:
        raise UnknownOperation(
            f"`{func.name()}` must have a FLOPs formula; got none. Without it work would go uncounted. "
            f"Register one: revsnn_bench.meters.flops.register_flop_formula({func._schema.name!r}, "
            "lambda *args, out, **kwargs: out.numel())."
        )
    real = 4 if any(map(torch.is_complex, tensors_in(args))) else 1
    return PhaseFlops(pointwise=flops.pointwise, multiply_accumulate=real * flops.multiply_accumulate)


def _formula(func: OpOverload) -> Formula | None:
    namespace, name = func._schema.name.split("::")
    if func.is_view:
        return _nothing
    if namespace != "aten":
        return None
    # `max` and `equal` carry the pointwise tag on some overloads only, so reductions are known by name.
    if name in FORMULAS and not (name in ("max", "min") and torch.Tag.pointwise in func.tags):
        return FORMULAS[name]
    return written if _is_pointwise(name) else FORMULAS.get(name.removesuffix("_"))


def _is_pointwise(name: str) -> bool:
    """Whether any overload carries torch's tag; in-place and foreach variants often lack it themselves."""
    plain = name.removeprefix("_foreach_")
    plain = plain[:-1] if plain.endswith("_") and not plain.endswith("__") else plain
    packet = getattr(torch.ops.aten, plain, None)
    return FORMULAS.get(plain) is written or (
        packet is not None
        and any(torch.Tag.pointwise in getattr(packet, overload).tags for overload in packet.overloads())
    )


def _as_flops(flops: PhaseFlops | int) -> PhaseFlops:
    if isinstance(flops, PhaseFlops):
        return flops
    return PhaseFlops(pointwise=int(flops), multiply_accumulate=0)
