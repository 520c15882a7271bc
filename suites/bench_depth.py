"""How do memory, operations and time grow with the number of convolution, norm, node blocks?"""

import pytest


@pytest.mark.sweep(
    quick={"depth": (1, 2, 4)},
    full={"depth": (1, 2, 4, 8, 16)},
    workload="conv-blocks",
    timesteps=4,
    batch=4,
    shape=(16, 8, 8),
)
def test_depth(case, measure_case):
    measure_case(case)
