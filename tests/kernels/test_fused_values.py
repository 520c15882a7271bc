"""Fused kernels against the torch reference: forward to the bit, gradients to rounding."""

import pytest
import torch
from nodes_cases import ROWS, ROWS_OF_EACH_VALUE, Problem, assert_ends_close, differentiate, make, row_for, run_node
from revsnn_nodes import surrogate
from revsnn_nodes.kernels.cpu import launch as cpu

FUSED = ("lif", "lif-carrier", "revlif", "revlif-anchored")
COUPLED = ("revlif", "revlif-anchored")

RTOL = {torch.float64: 1e-13, torch.float32: 2e-6}
"""Gradients of two implementations of one formula: a few roundings, with multiply-adds fused in one of them."""

INVERSE_RTOL = {torch.float64: 1e-11, torch.float32: 2e-4}
"""The same through five steps of an inverse, which expands roundings."""


def assert_agree(name, problem, **options):
    """Both backends from one problem: equal bits of output and membrane, gradients within rounding."""
    expected = differentiate(run_node(make(name, backend="torch", **options)), problem)
    got = differentiate(run_node(make(name, backend="fused", **options)), problem)
    assert 0.02 < (expected.y > 0.5).double().mean() < 0.98
    assert torch.equal(got.y, expected.y)
    assert torch.equal(got.v, expected.v)
    assert_ends_close(got, expected, (INVERSE_RTOL if name == "revlif" else RTOL)[problem.x.dtype])


@pytest.mark.parametrize(
    ("dtype", "row"),
    [*((torch.float64, row) for row in ROWS), *((torch.float32, row) for row in ROWS_OF_EACH_VALUE)],
    ids=str,
)
@pytest.mark.parametrize("name", FUSED)
def test_every_mode_of_the_neuron(name, dtype, row):
    """Hard reset to zero and elsewhere, soft reset, detached or not, input decayed or not; from a carried state."""
    assert_agree(name, Problem(seed=1).to(dtype), **row_for(name, row))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    "kind", ["Sigmoid", "ATan", "PiecewiseQuadratic", "PiecewiseExp", "SoftSign", "SuperSpike", "Erf", "Rect"]
)
def test_every_surrogate(kind, dtype):
    """Each surrogate's derivative, at its default and at another sharpness."""
    for alpha in (None, 1.7):
        assert_agree("lif", Problem(seed=3).to(dtype), surrogate_function=getattr(surrogate, kind)(alpha))


@pytest.mark.parametrize("name", FUSED)
def test_far_from_the_threshold_gradients_are_as_small_as_the_references(name):
    """Charges of +-100 thresholds: the surrogate's exp underflows to nothing, not to garbage."""
    problem = Problem(steps=3, seed=4)
    problem.x = 100 * problem.x if name != "lif-carrier" else 5 * problem.x
    for dtype in (torch.float64, torch.float32):
        assert_agree(name, problem.to(dtype))


@pytest.mark.parametrize("kind", ["Sigmoid", "PiecewiseQuadratic"])
@pytest.mark.parametrize("name", ["lif", "lif-carrier"])
def test_gradient_at_an_input_that_is_nan_is_nan(name, kind):
    """It is no small slope, and not cut by the clamp: who looks for NaN in gradients has to find it."""
    problem = Problem(seed=12)
    problem.x[1, 0, 0] = float("nan")
    options = {"surrogate_function": getattr(surrogate, kind)(), "detach_reset": True}
    x_grad = differentiate(run_node(make(name, backend="fused", **options)), problem).x_grad
    assert x_grad[1, 0, 0].isnan()
    assert not x_grad[:, 1].isnan().any()


@pytest.mark.parametrize(("shape", "groups", "group_dim"), [
    ((2, 12), 2, -1), ((2, 12), 3, 1), ((2, 12), 12, -1), ((3, 4, 5, 6), 2, 1), ((3, 4, 5, 6), 4, -3),
    ((3, 4, 5, 6), 5, 2), ((1, 8), 2, -1), ((7, 2, 3), 2, 1), ((2, 9000), 2, -1), ((2, 6, 3000), 3, 1),
])  # fmt: skip
@pytest.mark.parametrize("name", COUPLED)
def test_any_number_of_groups_along_any_dimension(name, shape, groups, group_dim):
    """Groups of one element and of thousands, along the last dimension and before others."""
    assert_agree(name, Problem(shape=shape, seed=6), groups=groups, group_dim=group_dim, alpha=0.4, beta=-0.7)


@pytest.mark.parametrize("gate", ["output", "spike"])
@pytest.mark.parametrize("every", [None, 1, 2, 3, 100])
def test_segments_of_any_length(every, gate):
    """Anchored: segments that divide T, that do not, of one step and longer than T; both gates."""
    assert_agree("revlif-anchored", Problem(steps=6, seed=7), anchor_every=every, reset_gate=gate)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("steps", [1, 5, 6, 9])
def test_long_sequences_of_a_carrier_are_regenerated_in_segments(steps, large, dtype, monkeypatch):
    """Segments of three steps, whole and broken: the gradients of one segment."""
    monkeypatch.setattr(cpu, "SEGMENT", 3)
    if large:
        monkeypatch.setattr(cpu, "LARGE_BYTES", 0)
    assert_agree("lif-carrier", Problem(steps=steps, shape=(2, 1300), seed=11).to(dtype))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("name", FUSED)
def test_pieces_of_threads_join(name, threads):
    """Sizes that no block and no thread divides, above the size from which threads work: the same bits."""
    torch.set_num_threads(threads)
    problem = Problem(steps=3, shape=(2, 36_002), seed=8)
    assert_agree(name, problem)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(2, 9008), (2, 9002), (2, 6, 50, 16), (500, 12), (1, 6, 3040)], ids=str)
@pytest.mark.parametrize("name", FUSED)
def test_large_sequences_take_another_way_through_memory(name, shape, dtype, monkeypatch):
    """Rows in pieces, streamed where they are whole lines: the same bits; rows long and short."""
    monkeypatch.setattr(cpu, "LARGE_BYTES", 0)
    monkeypatch.setattr(cpu, "STREAM_BYTES", 0)
    torch.set_num_threads(2)
    groups = {"groups": 3, "group_dim": 1} if name in COUPLED and len(shape) > 2 else {}
    anchors = {"anchor_every": 2} if name == "revlif-anchored" else {}
    assert_agree(name, Problem(shape=shape, seed=10).to(dtype), **groups, **anchors)


def test_stripped_carrier_gives_spikes_in_eval():
    """In eval() the fused carrier's output and gradient are the reference's: those of a clamped LIF."""
    problem = Problem(seed=9)
    problem.x[0, 0, 0] = 100.0
    ends = [
        differentiate(run_node(make("lif-carrier", backend=backend).eval()), problem) for backend in ("torch", "fused")
    ]
    assert set(ends[0].y.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(ends[1].y, ends[0].y)
    assert_ends_close(ends[1], ends[0], RTOL[torch.float64])
