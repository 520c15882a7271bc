"""How do memory, operations, time and gradient error grow with the number of time steps?"""

import pytest


@pytest.mark.sweep(
    quick={"timesteps": (2, 4, 16, 32)},
    full={"timesteps": (2, 4, 8, 16, 32, 64, 128, 256, 1024)},
    batch=8,
    shape=(4096,),
)
def test_timesteps(case, measure_case):
    measure_case(case)
