"""What does splitting the features into more groups change, from two up to one neuron per group?"""

import pytest


@pytest.mark.sweep(
    quick={"groups": (2, 8, 64)},
    full={"groups": (2, 4, 8, 16, 32, 64)},
    nodes=("revlif-stored", "revlif-revnet", "revlif", "revlif-anchored"),
    timesteps=4,
    batch=16,
    shape=(64,),
)
def test_groups(case, measure_case):
    """The last value is the size of the dimension: one neuron per group."""
    measure_case(case)
