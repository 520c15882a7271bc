"""What do half the bytes per number save, and what do they cost in gradient error?"""

import pytest


@pytest.mark.sweep(
    quick={"dtype": ("float64", "float32", "float16", "bfloat16")},
    full={"dtype": ("float64", "float32", "float16", "bfloat16"), "timesteps": (8, 32)},
    timesteps=8,
    batch=8,
    shape=(4096,),
)
def test_dtype(case, measure_case):
    measure_case(case)
