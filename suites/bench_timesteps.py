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


@pytest.mark.sweep(
    quick={"timesteps": (64, 1024)},
    nodes=("revlif", "revlif-anchored", "lif-carrier"),
    batch=1,
    shape=(64,),
)
def test_gradient_of_long_sequences(case, measure_case):
    """The inverse is lost there, and says so; what runs forward in time is right at every length."""
    measure_case(case, passes=("fidelity",))
