"""Who learns from a long sequence in little memory? Digits pixel by pixel: 64 steps; 1,024 when enlarged to 32x32.

The class is read from the last step alone, so that the network must carry what it saw. In a memory limit `lif`, which
keeps every step, ends as `oom`; the carrier and the anchored node learn:

    revsnn-bench run --suite pixels --full --threads 1 --timeout 1800 --memory-limit "256 MiB"

The full preset trains for two epochs and measures nothing else: a meter would need memory of its own.
"""

import pytest


@pytest.mark.sweep(
    quick={"timesteps": (64,)},
    full={"timesteps": (1024,), "epochs": (2,)},
    workload="pixels",
    nodes=("lif", "lif-checkpoint", "revlif-anchored", "lif-carrier"),
    batch=64,
    shape=(64,),
)
def test_pixels(case, measure_case):
    """The shape is the number of neurons per layer."""
    measure_case(case, passes=() if case.epochs else None)
