"""aten operators whose count needs no formula, by name without overload: what moves data, what is pointwise
without torch's tag saying so, what reduces. `flop_formulas` holds the rule and the operators beside it."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


MOVEMENT = _names(
    """
    alias arange as_strided_scatter cat clone constant_pad_nd copy copy_ detach detach_ diag_embed
    diagonal_backward diagonal_scatter embedding empty empty_like empty_permuted empty_strided eye fill fill_
    flip full full_like gather index index_copy index_copy_ index_fill index_fill_ index_select lift
    lift_fresh
    lift_fresh_copy linspace masked_scatter masked_scatter_ masked_select narrow_copy new_empty
    new_empty_strided new_full new_ones new_zeros normal normal_ ones ones_like pixel_shuffle pixel_unshuffle
    rand rand_like randint randint_like randn randn_like random_ randperm record_stream reflection_pad1d
    reflection_pad2d reflection_pad3d repeat repeat_interleave replication_pad1d replication_pad2d
    replication_pad3d resize_ resize_as_ roll rot90 scalar_tensor scatter scatter_ select_backward
    select_scatter set_ slice_backward slice_scatter split_copy split_with_sizes_copy squeeze_ stack t_ take
    transpose_ tril tril_ triu triu_ unbind_copy uniform_ unsafe_split unsafe_split_with_sizes unsqueeze_
    upsample_nearest1d upsample_nearest2d upsample_nearest3d zero zero_ zeros zeros_like
    _assert_async _assert_scalar _assert_tensor_metadata _copy_from _efficientzerotensor _foreach_copy_
    _foreach_zero_ _has_same_storage_numel _lazy_clone _local_scalar_dense _new_zeros_with_same_feature_meta
    _pin_memory _reshape_alias _reshape_copy _to_copy _unsafe_index _unsafe_view sym_size sym_stride sym_numel
    sym_storage_offset is_same_size is_pinned
    """
)
"""aten operators that move, make or index data: 0. Random data is data; `bernoulli` is not (see below)."""

POINTWISE = _names(
    """
    bernoulli bernoulli_ elu_backward glu hardshrink_backward hardsigmoid_backward hardswish
    hardswish_backward hardtanh_backward huber_loss_backward leaky_relu_backward log_sigmoid_backward
    mish_backward mse_loss_backward smooth_l1_loss_backward soft_margin_loss_backward softplus_backward
    softshrink_backward binary_cross_entropy_backward glu_backward _prelu_kernel_backward _prelu_kernel
    """
)
"""aten operators that compute elementwise without carrying torch's tag; `bernoulli` compares each number."""

REDUCTIONS = _names(
    """
    all amax amin aminmax any argmax argmin count_nonzero cummax cummin cumprod cumprod_ cumsum cumsum_ dist
    equal is_nonzero linalg_vector_norm logcumsumexp logsumexp max mean min nansum nonzero norm prod std
    std_mean sum trace var var_mean _aminmax _adaptive_avg_pool2d _adaptive_avg_pool3d _foreach_norm
    _is_all_true _is_any_true
    """
)
"""aten reductions and scans: as many operations as input elements, whatever is computed of each."""
