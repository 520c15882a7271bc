"""Operations of the carriers' reference backends against closed forms, derived step by step."""

import pytest
import torch
from revsnn_nodes import CarrierLIF, NormCarrierLIF

from revsnn_bench.meters.flops import measure_flops
from revsnn_bench.models.workloads import WorkloadStep


def per_element(node, *shape):
    step = WorkloadStep(node, torch.randn(*shape, requires_grad=True))
    flops = measure_flops(step)
    return [getattr(flops, phase).total / step.source.numel() for phase in ("forward", "recompute", "backward")]


@pytest.mark.parametrize("steps", [1, 4, 16])
def test_carrier(steps):
    """Per element; a term in 1/T is missing where a sequence starts or ends at rest."""
    got = per_element(CarrierLIF(backend="torch", step_mode="m"), steps, 2, 64)
    clamp, charge, fire, reset, output = 1, 3, 2, 2, 2
    decode, to_gain, leak = 2, 1, 2 * (1 - 1 / steps)
    sigmoid, from_the_membrane, to_input, mask, keep = 1 + 5 + 1, 5 * (1 - 1 / steps), 3, 1, 1
    assert got == [
        clamp + charge + fire + reset + output,
        pytest.approx(2 * decode + to_gain + leak + reset),
        pytest.approx(sigmoid + from_the_membrane + to_input + mask + keep),
    ]


@pytest.mark.parametrize("steps", [1, 4, 16])
def test_norm_carrier(steps):
    """The same with statistics, gamma and bias, and four sums; work per channel is below a thousandth."""
    got = per_element(NormCarrierLIF(2, backend="torch", step_mode="m"), steps, 4, 2, 64, 64)
    norm, clamp, affine, charge, fire, reset, output = 4, 1, 2, 3, 2, 2, 2
    decode, leak = 2, 2 * (1 - 1 / steps)
    sigmoid, from_the_membrane, keep = 1 + 5 + 1, 5 * (1 - 1 / steps), 1
    to_weight_and_bias, to_norm, sums_of_norm, through_norm = 3, 3, 3, 4
    assert got == [
        pytest.approx(norm + clamp + affine + charge + fire + reset + output, rel=1e-3),
        pytest.approx(3 * decode + affine + leak + reset, rel=1e-3),
        pytest.approx(
            sigmoid + from_the_membrane + keep + to_weight_and_bias + to_norm + sums_of_norm + through_norm, rel=1e-3
        ),
    ]
