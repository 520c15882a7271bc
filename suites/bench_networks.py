"""What do the networks of the literature keep and cost, block by block strategy, at a quarter of their width?"""

import pytest

STRATEGIES = (
    "lif",
    "lif+remat",
    "lif+checkpoint",
    "lif+bitpack",
    "lif-carrier",
    "lif-carrier+checkpoint-conv",
    "norm-carrier",
)
SHARED = {
    "quick": {"timesteps": (4,), "encoding": ("direct",)},
    "full": {"timesteps": (4, 8, 16)},
    "nodes": STRATEGIES,
    "batch": 8,
    "shape": (3, 32, 32),
}


@pytest.mark.sweep(workload="vgg11@0.25", **SHARED)
def test_vgg11(case, measure_case):
    measure_case(case)


@pytest.mark.sweep(workload="resnet19@0.125", **SHARED)
def test_resnet19(case, measure_case):
    measure_case(case)
