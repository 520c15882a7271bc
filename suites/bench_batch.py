"""How do memory, operations and time grow with the batch?"""

import pytest


@pytest.mark.sweep(quick={"batch": (2, 4, 16)}, full={"batch": (1, 4, 16, 64, 256)}, timesteps=4, shape=(4096,))
def test_batch(case, measure_case):
    measure_case(case)
