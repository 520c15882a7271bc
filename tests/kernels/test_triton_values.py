"""Triton kernels: forwards against the torch reference to the bit, gradients against float64.

They run on the GPU where there is one; else in Triton's interpreter, which proves the arithmetic alone. The oracle
differentiates the very spikes that the kernel fired.
"""

import kernels_triton
import nodes_oracle as oracle
import pytest
import torch
from kernels_triton import differentiate
from nodes_cases import COUPLED, Problem, assert_ends_close, make, relative_error, run_node, run_oracle
from nodes_cases import differentiate as differentiate_node
from nodes_tolerances import RTOL
from revsnn_nodes import surrogate
from revsnn_nodes.kernels import ops as _  # noqa: F401  (defines torch.ops.revsnn)
from revsnn_nodes.kernels.layout import numbers
from revsnn_nodes.parameters import IFParameters, LIFParameters, ParametricLIFParameters

pytest.importorskip("triton", reason="the Triton kernels need triton")

ops = torch.ops.revsnn
NAMES = ("lif", "lif-carrier", "revlif", "revlif-anchored")
INVERSE_RTOL = {torch.float64: 1e-9, torch.float32: 5e-4}
"""The inverse expands roundings, at most by 4^5 in the five steps it is tested on in float32."""


@pytest.fixture(scope="module")
def launch():
    if torch.cuda.is_available():
        yield kernels_triton.on_gpu
        return
    with kernels_triton.child(TRITON_INTERPRET="1") as pool:
        yield kernels_triton.interpreted(pool)


def assert_right(launch, name, problem, rtol=None, through="yv", **options):
    """Output and membrane are the reference's bits (in full precisions); gradients are the float64 oracle's."""
    node, dtype = make(name, **options), problem.x.dtype
    got = differentiate(launch, name, node, problem, through)
    assert 0.02 < (got.y > 0.5).double().mean() < 0.98
    if dtype in (torch.float64, torch.float32):
        expected = differentiate_node(run_node(node), problem, through)
        assert torch.equal(got.y, expected.y)
        assert torch.equal(got.v, expected.v)
    exact = dict(options)
    exact.pop("anchor_every", None)
    if spike := exact.pop("surrogate_function", None):
        exact["phi"] = type(spike).__name__
    fired = (got.y > 0.5).double()
    if name in COUPLED:
        split = (node.neuron.groups, node.neuron.group_dim)
        fired = oracle.spikes_in_coupled_output(got.y, problem.x, *split, node.neuron.beta)
    truth = differentiate_node(run_oracle(name, spike_seq=fired, **exact), problem.to(torch.float64), through)
    assert_ends_close(got, truth, rtol or (INVERSE_RTOL if name == "revlif" else RTOL)[dtype])


@pytest.mark.parametrize(("decay_input", "detach_reset"), [(True, False), (False, True)])
@pytest.mark.parametrize("v_reset", [0.0, -0.3, None])
@pytest.mark.parametrize("name", NAMES)
def test_every_mode_of_the_neuron_in_triton(launch, name, v_reset, decay_input, detach_reset):
    """Hard reset to zero and elsewhere, soft reset, detached or not, input decayed or not; two blocks, one not full."""
    problem = Problem(shape=(3, 24), seed=1).to(torch.float32)
    assert_right(launch, name, problem, v_reset=v_reset, decay_input=decay_input, detach_reset=detach_reset)


@pytest.mark.parametrize(("name", "steps"), [
    ("lif", 1), ("lif", 17), ("lif-carrier", 1), ("lif-carrier", 17), ("lif-carrier", 35),
    ("revlif-anchored", 1), ("revlif-anchored", 35),
])  # fmt: skip
def test_any_length_in_pieces(launch, name, steps):
    """One step; and lengths cut into 2 to 5 pieces, the last of them shorter; tau no power of two."""
    assert_right(launch, name, Problem(steps=steps, shape=(1, 10), seed=2, mean=1.6), tau=2.7)


@pytest.mark.parametrize(("steps", "rtol"), [(1, 1e-12), (17, 1e-4)], ids=["1", "17"])
def test_inverse_of_any_length(launch, steps, rtol):
    """One step to rounding; seventeen to roundings of 1e-16 that grew by up to 4^17."""
    assert_right(launch, "revlif", Problem(steps=steps, shape=(1, 10), seed=3, mean=1.6), rtol)


@pytest.mark.parametrize(
    "kind", ["Sigmoid", "ATan", "PiecewiseQuadratic", "PiecewiseExp", "SoftSign", "SuperSpike", "Erf", "Rect"]
)
def test_every_surrogate_in_triton(launch, kind):
    """Each surrogate's derivative, in float32 and float64."""
    for dtype in (torch.float32, torch.float64):
        problem = Problem(steps=3, shape=(1, 31), seed=4).to(dtype)
        assert_right(launch, "lif", problem, surrogate_function=getattr(surrogate, kind)())


@pytest.mark.parametrize("name", ["lif", "lif-carrier"])
def test_gradient_at_an_input_that_is_nan_is_nan_in_triton(launch, name):
    """It is no small slope, and not cut by the clamp."""
    problem = Problem(steps=3, shape=(1, 5), seed=4)
    problem.x[1, 0, 0] = float("nan")
    node = make(name, surrogate_function=surrogate.PiecewiseQuadratic(), detach_reset=True)
    x_grad = differentiate(launch, name, node, problem, "yv").x_grad
    assert x_grad[1, 0, 0].isnan()
    assert not x_grad[..., 1:].isnan().any()


@pytest.mark.parametrize(("shape", "groups", "group_dim"), [
    ((5, 14), 2, 1), ((3, 21), 3, -1), ((2, 6, 5), 3, 1), ((3, 4, 8), 4, -1),
], ids=["2-first-feature", "3-last", "3-channels", "4-last"])  # fmt: skip
@pytest.mark.parametrize("name", ["revlif", "revlif-anchored"])
def test_any_number_of_groups_in_triton(launch, name, shape, groups, group_dim):
    """Two to four groups, along the last dimension and before others, in columns that no block divides."""
    problem = Problem(steps=4, shape=shape, seed=5)
    assert_right(launch, name, problem, groups=groups, group_dim=group_dim, alpha=0.4, beta=-0.7)


@pytest.mark.parametrize(("every", "gate"), [
    (1, "output"), (4, "output"), (10, "output"), (100, "output"), (10, "spike"),
])  # fmt: skip
def test_segments_of_any_length_in_triton(launch, every, gate):
    """Segments of one step, of one piece, of two pieces, and longer than T; the last one short; both gates."""
    problem = Problem(steps=13, shape=(1, 6), seed=6)
    assert_right(launch, "revlif-anchored", problem, anchor_every=every, reset_gate=gate)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["lif", "lif-carrier", "revlif-anchored"])
def test_half_precisions_keep_their_tolerance(launch, name, dtype):
    """Float16 and bfloat16 tensors, computed in float32: the gradient of the spikes that were fired, flat in T."""
    # The interpreter cuts bfloat16 off where a GPU rounds to nearest: twice the error.
    rtol = RTOL[dtype] * (2 if dtype is torch.bfloat16 else 1)
    for steps in (1, 17):
        assert_right(launch, name, Problem(steps=steps, shape=(1, 20), seed=7, mean=1.6).to(dtype), rtol)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_may_be_missing_at_either_end(launch, name):
    """Output alone, membrane alone; from rest, and from a carried state."""
    for through, carried in (("y", True), ("v", False), ("y", False)):
        assert_right(launch, name, Problem(steps=4, seed=8, carried=carried), through=through)


def test_strides_and_nothing_at_all(launch):
    """Transposed input gives what its copy gives; a batch of no samples gives results of no elements."""
    problem = Problem(steps=3, shape=(4, 6), seed=9)
    straight = differentiate(launch, "lif-carrier", make("lif-carrier"), problem)
    problem.x, problem.y_bar = (
        each.transpose(0, 2).contiguous().transpose(0, 2) for each in (problem.x, problem.y_bar)
    )
    assert not problem.x.is_contiguous()
    assert (
        relative_error(differentiate(launch, "lif-carrier", make("lif-carrier"), problem).x_grad, straight.x_grad) == 0
    )
    for name in NAMES:
        assert differentiate(launch, name, make(name), Problem(shape=(0, 4))).x_grad.shape == (5, 0, 4)


@pytest.mark.parametrize("kind", [LIFParameters, IFParameters, ParametricLIFParameters])
def test_numbers_equal_themselves(kind):
    """By them a launch is found again: an operator hands on copies, and a copy of NaN equals nothing."""
    assert torch.tensor(numbers(kind()), dtype=torch.float64).tolist() == [*numbers(kind())]


@pytest.mark.parametrize(("dtype", "v_reset", "decay_input"), [
    (torch.float64, -0.3, True), (torch.float64, None, False), (torch.float32, -0.3, False),
    (torch.float32, None, True), (torch.bfloat16, -0.3, True), (torch.bfloat16, None, False),
])  # fmt: skip
def test_learned_and_missing_leak_in_triton(launch, dtype, v_reset, decay_input):
    """IF and parametric LIF against the CPU's kernels: forward to the bit in full precisions, gradients to rounding.

    What each neuron adds to the gradient of 1/tau is among them. The reference holds the CPU's in tests/nodes.
    """
    problem = Problem(steps=5, shape=(3, 24), seed=10, mean=0.5).to(dtype)
    learned, none = LIFParameters(v_reset=v_reset), IFParameters(v_reset=v_reset)
    for neuron, rate, decays in ((learned, torch.tensor(0.37), decay_input), (none, None, False)):
        p, soft = list(numbers(neuron, 4.0, 4.0)), v_reset is None
        forward = (problem.x, problem.v, rate, p, decays, soft, True)
        expected = ops.lif_forward(*forward)
        if dtype is not torch.bfloat16:  # which the interpreter cuts off where a CPU rounds
            for got, want in zip(launch("lif_forward", *forward), expected, strict=True):
                assert torch.equal(got, want)
        ends = (expected[2], problem.y_bar, problem.v_bar, problem.v, rate)
        backward = (*ends, p, 0, decays, soft, False, True, rate is not None)
        for got, want in zip(launch("lif_backward", *backward), ops.lif_backward(*backward), strict=True):
            assert got.dtype == want.dtype
            assert relative_error(got, want) <= RTOL[dtype]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("steps", "v_reset", "given", "detach"), [
    (1, 0.0, True, False), (5, None, False, True), (35, -0.25, True, False),
])  # fmt: skip
def test_neuron_behind_a_batch_norm_in_triton(launch, steps, v_reset, given, detach, dtype):
    """Against the CPU's kernels: forward to the bit in full precisions, gradients to rounding; one to three pieces.

    Channels between others and innermost. The interpreter rounds a multiply-add twice, so its products are exact here.
    """
    generator = torch.Generator().manual_seed(11)

    def some(*shape, of=16):
        return (torch.randint(-2 * of, 2 * of, shape, generator=generator) / of).to(dtype)

    shape, soft = (2, 3, 7), v_reset is None
    z, sbar, residual = some(steps, *shape) + 0.5, some(steps, *shape), some(steps, *shape) if given else None
    v, vbar = some(2, *shape) if given else (None, None)
    p = list(numbers(LIFParameters(v_reset=v_reset, detach_reset=detach), 4.0, 4.0))
    for inner, channels in ((7, 3), (1, 7)):
        affine = (some(channels, of=2), some(channels)) if given else (None, None)
        norm = (some(channels), some(channels, of=2).abs() + 1, *affine, residual)
        forward = (z, v, *norm, p, inner, 0, True, soft)
        backward = (z, v, *norm, sbar, vbar, p, 0, inner, 0, True, soft, detach, True)
        expected = ops.norm_lif_forward(*forward)
        assert 0.02 < expected[0].double().mean() < 0.98
        if dtype is not torch.bfloat16:  # which the interpreter cuts off where a CPU rounds
            for got, want in zip(launch("norm_lif_forward", *forward), expected, strict=True):
                assert torch.equal(got, want)
        for got, want in zip(launch("norm_lif_backward", *backward), ops.norm_lif_backward(*backward), strict=True):
            assert relative_error(got, want) <= 2 * RTOL[dtype]
