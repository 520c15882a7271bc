"""The kernels from a batch norm's input give the bits of torch's batch norm followed by the LIF's own kernels."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from revsnn_nodes.kernels.layout import numbers, surrogate_code
from revsnn_nodes.parameters import LIFParameters
from revsnn_nodes.remat.norm import NormKind, exact_form
from revsnn_nodes.surrogate import Sigmoid

pytest.importorskip("numba")

OPS = torch.ops.revsnn


MODES = [
    (torch.float32, 0.0, 2.0, False, False, True),
    (torch.float32, None, 2.0, False, True, False),
    (torch.float64, None, 3.0, True, False, True),
    (torch.float64, -0.3, 2.0, True, False, False),
    (torch.bfloat16, 0.0, 3.0, True, True, False),
    (torch.bfloat16, -0.3, 3.0, False, True, True),
]
"""Type, v_reset, tau, decay_input, detach_reset, and whether a first membrane, a residual and an affine norm are given;
in the types together, each pair of the others in each of its ways.
"""


@settings(max_examples=30, deadline=None)
@given(
    mode=st.sampled_from(MODES),
    size=st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 19), st.sampled_from([1, 3, 8, 63, 700])),
)
def test_bits_of_norm_then_neuron(mode, size):
    """Spikes, last membrane and both gradients."""
    dtype, v_reset, tau, decay_input, detach_reset, given_too = mode
    T, N, C, inner = size
    neuron, soft = LIFParameters(tau, decay_input, 0.5, v_reset, detach_reset), v_reset is None
    kind, height, scale = surrogate_code(Sigmoid())
    p = numbers(neuron, height, scale)
    z, sbar, residual = (torch.randn(T, N, C, inner).to(dtype) for _ in range(3))
    v, vbar = (torch.randn(N, C, inner).to(dtype) if given_too else None for _ in range(2))
    weight, bias = (torch.randn(C).to(dtype) if given_too else None for _ in range(2))
    residual = residual if given_too else None
    if T * N * inner == 1:
        z = z.expand(2, N, C, inner).contiguous()
        sbar = sbar.expand_as(z)
        residual = residual.expand_as(z) if given_too else None
    x, mean, inverse_std = torch.native_batch_norm(z.flatten(0, 1), weight, bias, None, None, True, 0.1, 1e-5)
    x = x.view_as(z) if residual is None else x.view_as(z) + residual
    spikes, v_last, charges = OPS.lif_forward(x, v, None, p, decay_input, soft, True)
    expected = OPS.lif_backward(charges, sbar, vbar, None, None, p, kind, decay_input, soft, detach_reset, True, False)[
        :2
    ]
    norm = (mean, inverse_std, weight, bias, residual)
    made = OPS.norm_lif_forward(z, v, *norm, p, inner, 0, decay_input, soft)
    got = OPS.norm_lif_backward(z, v, *norm, sbar, vbar, p, kind, inner, 0, decay_input, soft, detach_reset, True)
    assert all(map(torch.equal, (*made, *got), (spikes, v_last, *expected)))


def test_large_sequences_have_the_same_bits():
    """Where rows are done in pieces on several threads too; with another surrogate, ATan."""
    p = numbers(LIFParameters(), 1.0, 1.0)
    z, sbar = (torch.randn(4, 2, 6, 400 * 300) for _ in range(2))
    x, mean, inverse_std = torch.native_batch_norm(z.flatten(0, 1), None, None, None, None, True, 0.1, 1e-5)
    spikes, _, charges = OPS.lif_forward(x.view_as(z), None, None, p, True, False, True)
    norm = (mean, inverse_std, None, None, None)
    assert torch.equal(OPS.norm_lif_forward(z, None, *norm, p, z[0, 0, 0].numel(), 0, True, False)[0], spikes)
    got = OPS.norm_lif_backward(z, None, *norm, sbar, None, p, 1, z[0, 0, 0].numel(), 0, True, False, False, False)
    assert torch.equal(
        got[0], OPS.lif_backward(charges, sbar, None, None, None, p, 1, True, False, False, False, False)[0]
    )


def test_probe_finds_torchs_batch_norm_exact():
    """On the CPUs that this is tested on: plain and mixed types, both layouts, in training or not, affine or not."""
    contiguous, channels_last, cpu = (63, 9, 1), (1, 45, 5), torch.device("cpu")
    for dtype, other in ((torch.float32,) * 2, (torch.float64,) * 2, (torch.bfloat16, torch.float32)):
        for stride, training in product((contiguous, channels_last), (True, False)):
            assert exact_form(NormKind(dtype, (other,) * 3, (3, 5, 7, 9), stride, training, cpu)) == 0
    assert exact_form(NormKind(torch.float32, (None, None, torch.float32), (3, 5), (1,), True, cpu)) == 0


def test_another_rounding_is_refused_on_the_cpu():
    """Its kernels have one form of the norm, and do not run another as if it were that."""
    z, channel = torch.zeros(2, 1, 3), torch.ones(3)
    norm = (channel, channel, None, None, None)
    with pytest.raises(AssertionError, match="in this way alone"):
        OPS.norm_lif_forward(z, None, *norm, numbers(LIFParameters()), 1, 1, True, False)
