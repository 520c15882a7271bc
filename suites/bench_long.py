"""How long a sequence can each node be trained on? Digits pixel by pixel: 64 steps, and enlarged to 256 and 1,024.

The class is read from the last step alone, so that the network must carry what it saw. With a memory limit the nodes
that keep every step run out of it:

    revsnn-bench run --suite long --full --passes memory --memory-limit "512 MiB"
"""

import pytest


@pytest.mark.sweep(
    quick={"timesteps": (64,)},
    full={"timesteps": (64, 256, 1024)},
    workload="pixels",
    nodes=("lif", "lif-checkpoint", "revlif-anchored", "lif-carrier"),
    batch=64,
    shape=(64,),
)
def test_pixels(case, measure_case):
    """The shape is the number of neurons per layer."""
    measure_case(case)


@pytest.mark.sweep(
    quick={"timesteps": (64, 256)},
    full={"timesteps": (64, 256, 1024, 4096)},
    nodes=("lif", "lif-checkpoint", "revlif", "revlif-anchored", "lif-carrier"),
    batch=4,
    shape=(1024,),
)
def test_layer(case, measure_case):
    """One layer on noise: what T alone does to the bytes."""
    measure_case(case)
