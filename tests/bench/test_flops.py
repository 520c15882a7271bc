"""The FLOPs meter against counts worked out by hand."""

import warnings

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from revsnn_bench.meters.flops import UnknownOperation, fvcore_forward_flops, measure_flops, register_flop_formula
from revsnn_bench.meters.step import own_bytes, unique_bytes
from revsnn_bench.records import FlopsRecord, PhaseFlops


class Step:
    """The smallest training step: a module on fixed random data, gradient of ones."""

    def __init__(self, model: nn.Module, *shape: int) -> None:
        self.model = model
        self.source = torch.randn(*shape, generator=torch.Generator().manual_seed(0), requires_grad=True)

    def prepare(self) -> None:
        self.source.grad = None
        self.model.zero_grad(set_to_none=True)

    def make_input(self) -> Tensor:
        return self.source.clone()

    def forward(self) -> Tensor:
        output: Tensor = self.model(self.make_input())
        return output

    def backward(self, output: Tensor) -> None:
        output.backward(torch.ones_like(output))

    def reset_state(self) -> None: ...

    def state_tensors(self) -> list[Tensor]:
        return []


ROWS = torch.arange(6)
SQUARE = torch.ones(6, 6)
GRID = torch.zeros(2, 5, 5, 2)


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function, *modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.modules_used = nn.ModuleList(modules)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def measured(model: nn.Module, *shape: int) -> FlopsRecord:
    return measure_flops(Step(model, *shape))


def flops(pointwise: int, multiply_accumulate: int = 0) -> PhaseFlops:
    return PhaseFlops(pointwise=pointwise, multiply_accumulate=multiply_accumulate)


def test_linear_is_two_per_multiply_accumulate_and_its_bias_gradient_a_reduction():
    record = measured(nn.Linear(7, 5), 3, 7)
    macs = 3 * 7 * 5
    assert record.forward == flops(0, 2 * macs)
    assert record.backward == flops(3 * 5, 4 * macs)
    assert record.recompute == flops(0)


def test_a_sparse_matrix_is_as_many_multiply_accumulates_as_it_has_values():
    sparse = torch.eye(6).to_sparse()
    for product in (torch.sparse.mm, torch.mm):
        record = measured(Apply(lambda x, product=product: product(sparse, x)), 6, 5)
        assert record.forward == record.backward == flops(0, 2 * 6 * 5)
    record = measured(Apply(lambda x: sparse @ x), 6)  # by a vector: all 36 places were counted
    assert record.forward == record.backward == flops(0, 2 * 6)
    record = measured(Apply(lambda x: torch.sparse.addmm(x, sparse, x)), 6, 5)
    assert record.forward == flops(0, 2 * 6 * 5)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("transposed", [False, True])
def test_convolution_counts_every_weight_at_every_position(groups, transposed):
    """Torch's own counter takes the gradient of a weight in groups for that of one without: it counts it G times."""
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    step = Step(kind(4, 6, 3, padding=1, groups=groups), 2, 4, 8, 8)
    record = measure_flops(step)
    macs = 2 * 8 * 8 * 4 * 6 * 9 // groups
    assert record.forward == flops(0, 2 * macs)
    assert record.backward == flops(2 * 6 * 64, 4 * macs)
    with FlopCounterMode(display=False) as theirs:
        step.backward(step.forward())
    assert theirs.get_total_flops() == 2 * macs * (2 + groups)


def test_a_convolution_whose_input_needs_no_gradient_does_half_of_the_backward():
    step = Step(nn.Conv2d(4, 6, 3, bias=False), 2, 4, 8, 8)
    step.source.requires_grad_(False)
    record = measure_flops(step)
    assert record.backward == record.forward == flops(0, 2 * 2 * 6 * 6 * 4 * 6 * 9)


def test_pointwise_is_one_per_output_element_and_data_movement_is_free():
    def function(x: Tensor) -> Tensor:
        y = torch.cat([x, x]).flip(0).view(-1).clone()  # movement
        y = torch.where(y > 0.5, y, torch.zeros_like(y))  # compare, select: 2 each
        return y.mul(2).add_(1).sigmoid()  # 3

    record = measured(Apply(function), 3, 4)
    assert record.forward == flops(2 * 12 * 5)
    # s (1 - s) g, mul, select; the gradients of x's two uses in `cat` are added: half as many elements
    assert record.backward == flops(2 * 12 * (3 + 2) + 12)


def test_an_operator_that_sums_products_counts_them_written_out():
    """`add(alpha=)`, `addcmul`, `addcdiv`, `lerp` and two derivatives: as many operations as without them."""

    def counts(function) -> int:
        return measured(Apply(lambda x: x + 0 * function(x.detach())), 10).forward.pointwise - 20

    assert counts(lambda x: torch.add(x, x, alpha=2)) == counts(lambda x: x + 2 * x) == 20
    assert counts(lambda x: x.clone().sub_(x, alpha=2)) == counts(lambda x: torch.rsub(x, x, alpha=2)) == 20
    assert counts(lambda x: torch._foreach_add([x, x], [x, x], alpha=2)[0]) == 2 * counts(lambda x: x + 2 * x)
    assert counts(lambda x: torch.addcmul(x, x, x)) == counts(lambda x: x + x * x)
    assert counts(lambda x: torch.addcdiv(x, x, x, value=2)) == counts(lambda x: x + 2 * (x / x)) == 30
    assert counts(lambda x: torch.lerp(x, x, 0.5)) == counts(lambda x: x + 0.5 * (x - x))
    assert counts(lambda x: torch.ops.aten.sigmoid_backward(x, x)) == counts(lambda x: (1 - x) * x * x)
    assert counts(lambda x: torch.ops.aten.tanh_backward(x, x)) == counts(lambda x: (1 - x * x) * x)


def test_products_of_three_and_distances_count_what_they_count_written_out():
    """`Bilinear`, `cross`, `cdist` and `EmbeddingBag`, in forward and backward."""
    weight, other = torch.randn(5, 3, 4), torch.randn(6, 3)
    record = measured(Apply(lambda x: F.bilinear(x[:, :3], x[:, 3:], weight)), 2, 7)
    products = 2 * 5 * 3 * 4
    assert record.forward == flops(products, 2 * products)
    assert record.backward == flops(2 * products + 2 * 7, 4 * products)  # for both sides, whose gradients are added
    record = measured(Apply(lambda x: torch.linalg.cross(x, x.detach())), 4, 3)
    assert record.forward == record.backward == flops(3 * 12)
    record = measured(Apply(lambda x: torch.cdist(x, other, p=1.0)), 5, 3)
    assert record.forward == record.backward == flops(5 * 6 * 3 * 3)
    record = measured(Apply(lambda x: torch.cdist(x, other, compute_mode="use_mm_for_euclid_dist")), 5, 3)
    assert record.forward == flops(3 * 15 + 2 * 18 + 2 * 30, 2 * 30 * 5)
    bag = nn.EmbeddingBag(7, 5, mode="sum")
    places = torch.tensor([[0, 1, 1], [2, 3, 4]])
    record = measured(Apply(lambda x: x + bag(places), bag), 2, 5)
    assert record.forward == flops(6 * 5 + 10)
    assert record.backward == flops(6 * 5)


def test_gradient_accumulation_is_an_addition_per_element_and_use():
    record = measured(Apply(lambda x: x + x * 2 + x * 3), 10)
    assert record.forward == flops(40)
    assert record.backward == flops(10 * 2 + 10 * 2)


def test_a_parameter_used_twice_accumulates_once():
    linear = nn.Linear(4, 4, bias=False)
    record = measured(nn.Sequential(linear, linear), 2, 4)
    assert record.backward == flops(16, 2 * 4 * 32)


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_costs_what_it_costs_written_out(affine):
    """Forward: mean, variance, centre, scale, weight, bias."""

    def written_out(x: Tensor) -> Tensor:
        mean = x.mean(0)
        y = (x - mean) * (x.var(0, correction=0) + 1e-5).rsqrt()
        return y * norm.weight + norm.bias if affine else y

    norm = nn.BatchNorm1d(6, affine=affine, track_running_stats=False)
    record = measured(norm, 8, 6)
    per_channel = 2 * 6  # the addition of eps and the root
    assert record.forward.total == measured(Apply(written_out, norm), 8, 6).forward.total - per_channel
    assert record.forward == flops((6 if affine else 4) * 48)
    assert record.backward == flops(9 * 48)


def test_tracking_statistics_adds_the_count_of_batches():
    assert measured(nn.BatchNorm2d(3), 2, 3, 4, 4).forward == flops(6 * 96 + 1)


def test_layer_and_group_norm():
    for norm in (nn.LayerNorm(6), nn.GroupNorm(2, 6)):
        record = measured(norm, 8, 6)
        assert record.forward == flops(6 * 48)
        assert record.backward == flops(13 * 48)


@pytest.mark.parametrize(
    ("pool", "forward", "backward"),
    [
        (nn.AvgPool2d(2), 4 * 48, 4 * 48),
        (nn.MaxPool2d(2), 4 * 48, 48),
        (nn.AdaptiveAvgPool2d(1), 192, 192),
        (nn.AdaptiveAvgPool2d(2), 192, 192),
    ],
)
def test_pooling_counts_the_elements_of_its_windows(pool, forward, backward):
    record = measured(pool, 2, 6, 4, 4)
    assert record.forward == flops(forward)
    assert record.backward == flops(backward)


@pytest.mark.parametrize(
    ("module", "forward", "backward"),
    [
        (nn.AdaptiveMaxPool2d(2), flops(512), flops(32)),
        (nn.FractionalMaxPool2d(2, output_size=4), flops(128 * 4), flops(128)),
        (nn.ReflectionPad2d(1), flops(0), flops(800)),
        (nn.ReplicationPad2d(1), flops(0), flops(800)),
        (nn.Upsample(scale_factor=2, mode="bilinear"), flops(0, 2 * 4 * 2048), flops(0, 2 * 4 * 2048)),
        (nn.Upsample(scale_factor=2, mode="bicubic"), flops(0, 2 * 16 * 2048), flops(0, 2 * 16 * 2048)),
        (Apply(lambda x: F.grid_sample(x, GRID, align_corners=False)), flops(0, 2 * 4 * 200), flops(0, 2 * 4 * 200)),
        (Apply(lambda x: F.grid_sample(x, GRID, "nearest", align_corners=False)), flops(0), flops(200)),
        (
            Apply(lambda x: F.affine_grid(x[:, :2, :3, 0], [2, 1, 5, 5], align_corners=False)),
            flops(0, 2 * 3 * 100),
            flops(2 * 2 * 5, 2 * 3 * 100),  # torch writes it out: it makes the points of either side again
        ),
        (nn.ChannelShuffle(2), flops(0), flops(0)),
        (nn.Unfold(2, stride=2), flops(0), flops(512)),
        (nn.LogSigmoid(), flops(512), flops(512)),
        # Of the weights [6, 8]: 2 and 5 per element, and the sum of the bias's gradient
        (weight_norm(nn.Linear(8, 6)), flops(2 * 48, 2 * 8 * 384), flops(5 * 48 + 384, 4 * 8 * 384)),
        (nn.RReLU(), flops(512), flops(512)),
        # Three bits of index, 8 values: 2.5 x 3 for each real number, 5 x 3 where both sides are complex
        (Apply(lambda x: torch.fft.irfft(torch.fft.rfft(x))), flops(2 * 3840), flops(3840 + 3 * 64 + 7680)),
        (Apply(lambda x: torch.fft.fft2(x).real), flops(5 * 6 * 512), flops(5 * 6 * 512)),
        (Apply(lambda x: x.sort(dim=-1).values), flops(512), flops(0)),
        (Apply(lambda x: x + x.detach() // 0.5), flops(2 * 512), flops(0)),
        (Apply(lambda x: x + torch.bucketize(x.detach(), torch.arange(3.0))), flops(2 * 512), flops(0)),
        (Apply(lambda x: torch.complex(x, x).real), flops(0), flops(512)),
        (nn.Upsample(scale_factor=2, mode="nearest-exact"), flops(0), flops(2048)),
        (Apply(lambda x: x.topk(2, dim=-1).values), flops(512), flops(0)),
        (Apply(lambda x: x.median(dim=-1).values), flops(512), flops(0)),
        (Apply(lambda x: x + torch.poisson(x.detach().abs())), flops(3 * 512), flops(0)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_layers_that_users_have_are_counted(module, forward, backward):
    """Pooling, padding, resizing and sorting beside the neurons: by the rule, on [2, 4, 8, 8]."""
    record = measured(module, 2, 4, 8, 8)
    assert (record.forward, record.backward) == (forward, backward)


def test_cross_entropy_in_backward_is_part_of_backward():
    class Loss(Step):
        def backward(self, output: Tensor) -> None:
            F.cross_entropy(output, torch.tensor([0, 1, 2])).backward()

    record = measure_flops(Loss(nn.Linear(4, 5, bias=False), 3, 4))
    log_softmax, nll = 5 * 15 + 4 * 15, 3 + 3
    assert record.forward == flops(0, 2 * 60)
    assert record.backward == flops(log_softmax + nll, 4 * 60)


def test_dropout_embedding_and_attention_have_counts():
    assert measured(nn.Dropout(0.5), 10).forward == flops(30)
    embedding = nn.Embedding(9, 4)
    record = measured(Apply(lambda x: embedding(torch.arange(3)) + x.sum(), embedding), 2)
    assert record.backward.pointwise >= 12


@pytest.mark.parametrize(
    ("options", "more"), [({}, 0), ({"is_causal": True}, 0), ({"attn_mask": torch.zeros(5, 5)}, 1)]
)
def test_fused_attention_counts_its_softmax(options, more):
    """It was left out of the fused operator alone: two products, and for each score its scale, softmax and mask."""
    record = measured(Apply(lambda q: F.scaled_dot_product_attention(q, q, q, **options)), 1, 2, 5, 8)
    scores = 2 * 5 * 5
    assert record.forward == flops((1 + 5 + more) * scores, 2 * 2 * 8 * scores)
    # The scores again; what autograd adds up are the gradients of query, key and value.
    assert record.backward == flops((6 + more) * scores + 2 * 80 + 2 * 80, 2 * 5 * 8 * scores)


def test_a_multiply_accumulate_of_complex_numbers_is_four_of_real_ones():
    """It counted as one, as if a network of complex weights were no dearer than one of real ones."""
    record = measured(Apply(lambda x: torch.view_as_real(torch.view_as_complex(x) @ torch.view_as_complex(x))), 4, 4, 2)
    assert record.forward == flops(0, 8 * 4 * 4 * 4)
    assert record.backward == flops(2 * 16, 2 * 8 * 4 * 4 * 4)  # the sum of two gradients, of real numbers by then


def test_products_in_place_count_as_others():
    """They had no formula."""
    for name, one, other in (("addmm", SQUARE, SQUARE), ("addmv", SQUARE, SQUARE[0])):
        start = other.clone()
        plain = measured(Apply(lambda x, name=name, o=other, s=start, m=one: getattr(s + x, name)(m, o)), *other.shape)
        here = measured(
            Apply(lambda x, name=name, o=other, s=start, m=one: getattr(s + x, f"{name}_")(m, o)), *other.shape
        )
        assert here.forward == plain.forward
        assert here.forward.multiply_accumulate == 2 * one.numel() * other.numel() // 6


class LowRank(torch.Tensor):
    """A matrix of low rank that wraps its two factors."""

    @staticmethod
    def __new__(cls, left: Tensor, right: Tensor) -> "LowRank":
        shape = (len(left), right.shape[1])
        return torch.Tensor._make_wrapper_subclass(cls, shape, dtype=left.dtype)

    def __init__(self, left: Tensor, right: Tensor) -> None:
        self.left, self.right = left, right

    def __tensor_flatten__(self):
        return ["left", "right"], None

    @staticmethod
    def __tensor_unflatten__(inside, meta, size, stride):
        return LowRank(inside["left"], inside["right"])

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.mm.default and isinstance(args[1], cls):
            return args[0] @ args[1].left @ args[1].right
        return NotImplemented


def test_a_tensor_that_wraps_others_counts_what_is_computed_with_those():
    """A product with a matrix of rank 1 counted as one with all of its numbers; its bytes are those of the factors."""
    matrix = LowRank(torch.ones(6, 1), torch.ones(1, 6))
    with torch.no_grad():
        step = Step(Apply(lambda x: torch.mm(x, matrix)), 5, 6)
        step.backward = lambda output: None
        assert measure_flops(step, cross_check=False).forward == flops(0, 2 * 5 * (6 + 6))
    assert unique_bytes([matrix]) == own_bytes(matrix) == 4 * (6 + 6)


def test_nested_tensors_are_counted_where_their_operators_have_formulas():
    """The process ended: some operators of theirs are not of torch's dispatcher."""

    def function(x: Tensor) -> Tensor:
        nested = torch.nested.as_nested_tensor([x[:2], x], layout=torch.jagged)
        return torch.nested.nested_tensor_from_jagged(nested.values() * 2, nested.offsets()).values().sin()

    record = measured(Apply(function), 4, 3)
    assert record.forward.pointwise >= 2 * 6 * 3


def test_foreach_and_in_place_count_like_their_plain_forms():
    def function(x: Tensor) -> Tensor:
        parts = torch._foreach_mul([x, x], 2.0)
        torch._foreach_add_(parts, 1.0)
        return parts[0].lt_(0.5) + parts[1]

    with torch.no_grad():
        step = Step(Apply(function), 10)
        step.backward = lambda output: None
        assert measure_flops(step).forward == flops(20 + 20 + 10 + 10)


def test_composites_are_counted_once_even_under_inference_mode():
    with torch.inference_mode():
        step = Step(nn.Linear(7, 5), 3, 7)
        step.backward = lambda output: None
        assert measure_flops(step).forward == flops(0, 2 * 105)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_segment_is_recomputed_in_full(reentrant):
    """Recomputation equals the segment's forward; a sigmoid at its end makes autograd run all of it."""
    segment = nn.Sequential(nn.Linear(6, 6), nn.Sigmoid(), nn.Linear(6, 6), nn.Sigmoid())
    plain = measured(segment, 4, 6)
    record = measured(
        Apply(lambda x: checkpoint(segment, x, use_reentrant=reentrant, preserve_rng_state=False), segment),
        4,
        6,
    )
    assert record.forward == plain.forward == flops(2 * 24, 4 * 144)
    assert record.recompute == record.forward
    assert record.backward == plain.backward


class Marked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sigmoid()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        with torch.profiler.record_function("node: recompute"):
            with torch.profiler.record_function("inner"):
                y = x.sigmoid()
            y = y * 1
        return grad * y * (1 - y)


def test_work_in_a_range_labelled_recompute_is_recomputation():
    """Nested ranges keep the outer label; what follows the range is backward again."""
    record = measured(Apply(Marked.apply), 10)
    assert record.forward == flops(10)
    assert record.recompute == flops(20)
    assert record.backward == flops(30)


def test_an_unknown_operation_is_refused_by_name():
    with pytest.raises(UnknownOperation, match=r"`aten::renorm.*must have a FLOPs formula.*register_flop_formula"):
        measured(Apply(lambda x: x.renorm(2, 0, 1.0)), 10, 2)


def test_an_unknown_operation_in_backward_is_refused_too():
    class Renorm(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:
            return x * 1

        @staticmethod
        def backward(ctx, grad: Tensor) -> Tensor:
            return grad.renorm(2, 0, 1.0)

    with pytest.raises(UnknownOperation, match="aten::renorm"):
        measured(Apply(Renorm.apply), 10, 2)


@pytest.mark.parametrize("take", [lambda x: x.detach().numpy(), lambda x: numpy.asarray(x.detach())])
def test_tensors_handed_to_numpy_leave_operations_uncounted(take):
    """A matrix product there would count as nothing."""
    with pytest.raises(UnknownOperation, match="tensors were handed to numpy 2 times, where no operation is seen"):
        measured(Apply(lambda x: x * float(numpy.outer(take(x), take(x)[:0]).sum() + 1)), 10)


@torch.library.custom_op("revsnn_test::twice", mutates_args=())
def twice(x: Tensor, times: int = 2) -> Tensor:
    """A fused kernel: what it runs inside is its own business, numpy too."""
    return torch.from_numpy((x * times).sort().values.numpy().copy())


twice.register_autograd(lambda ctx, grad: (grad, None))


def test_a_fused_kernel_counts_by_its_registered_formula():
    module = Apply(lambda x: twice(x, times=3))
    with pytest.raises(UnknownOperation, match="revsnn_test::twice"):
        measured(module, 10)
    register_flop_formula(twice, lambda x, times=2, *, out: times * out.numel())
    assert measured(module, 10).forward == flops(30)
    register_flop_formula("revsnn_test::twice", lambda x, times=2, *, out: flops(1, 2 * x.numel()))
    assert measured(module, 10).forward == flops(1, 20)
    register_flop_formula(torch.ops.revsnn_test.twice, lambda *args, out, **kwargs: 5)
    assert measured(module, 10).forward == flops(5)
    register_flop_formula(torch.ops.revsnn_test.twice.default, lambda *args, out, **kwargs: 6)
    assert measured(module, 10).forward == flops(6)


def test_a_formula_needs_a_qualified_name():
    with pytest.raises(ValueError, match="`operator` must be a qualified name"):
        register_flop_formula("add", lambda *args, out: 1)


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.Sigmoid(),
        nn.AvgPool2d(2),
        nn.Conv2d(8, 8, 3, groups=2),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def test_repeated_measurements_agree_exactly():
    step = Step(network(), 2, 3, 8, 8)
    assert measure_flops(step) == measure_flops(step)


def test_fvcore_agrees_on_convolutions_and_linear_layers():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        record = measured(network(), 2, 3, 8, 8)
    assert record.fvcore_forward_flops == record.forward.multiply_accumulate > 0


def test_fvcore_answers_none_where_it_cannot_trace():
    class NotTraceable(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if torch.jit.is_tracing():
                raise RuntimeError("works eagerly only")
            return x

    assert fvcore_forward_flops(NotTraceable(), torch.ones(2)) is None


@pytest.mark.parametrize(
    ("fused", "written_out", "sums"),
    [
        (lambda b, x, y: torch.addmm(b, x, y, beta=2, alpha=3), lambda b, x, y: 2 * b + 3 * (x @ y), 36),
        (lambda b, x, y: torch.baddbmm(b[None], x[None], y[None], beta=2), lambda b, x, y: 2 * b + x @ y, 36),
        (lambda b, x, y: torch.addmv(b[0], x, y[0], beta=2, alpha=3), lambda b, x, y: 2 * b[0] + 3 * (x @ y[0]), 6),
        (lambda b, x, y: b.index_add(0, ROWS, x, alpha=3), lambda b, x, y: b.index_add(0, ROWS, 3 * x), 0),
    ],
)  # fmt: skip
def test_a_factor_in_a_sum_of_products_counts_as_written_out(fused, written_out, sums):
    """But for the sum itself, where the accumulation starts; the factors were left out, in forward alone."""
    one, other = (measured(Apply(lambda x, f=f: f(x, x, x)), 6, 6).forward for f in (fused, written_out))
    assert one.multiply_accumulate == other.multiply_accumulate
    assert one.pointwise == other.pointwise - sums
