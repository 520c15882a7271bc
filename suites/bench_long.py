"""What do many time steps cost a single layer, up to 4,096 of them? Trained networks are in the suite `pixels`."""

import pytest


@pytest.mark.sweep(
    quick={"timesteps": (64, 256)},
    full={"timesteps": (64, 256, 1024, 4096)},
    nodes=("lif", "lif-checkpoint", "revlif", "revlif-anchored", "lif-carrier"),
    batch=4,
    shape=(1024,),
)
def test_layer(case, measure_case):
    """One layer on noise: T alone."""
    measure_case(case)
