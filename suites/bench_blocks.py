"""What may a block of convolution, norm and node keep, and what does keeping less cost?"""

import pytest


@pytest.mark.sweep(
    quick={"depth": (4,)},
    full={"depth": (1, 2, 4, 8, 16)},
    workload="conv-blocks",
    nodes=(
        "lif",
        "lif+remat",
        "lif+checkpoint",
        "lif+bitpack",
        "lif-carrier",
        "lif-carrier+checkpoint-conv",
        "norm-carrier",
    ),
    timesteps=8,
    batch=4,
    shape=(16, 16, 16),
)
def test_blocks(case, measure_case):
    measure_case(case)
