"""What does a small network on real handwritten digits keep, cost and learn with each node?"""

import pytest


@pytest.mark.sweep(
    quick={"timesteps": (2, 4), "encoding": ("direct",)},
    full={"timesteps": (2, 4, 8, 16)},
    workload="digits-net",
    batch=32,
    shape=(1, 8, 8),
)
def test_digits(case, measure_case):
    measure_case(case)
