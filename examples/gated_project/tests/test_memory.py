"""What the node may cost: a budget, a law, and a sweep beside the standard LIF for the gate."""

import pytest

from revsnn_bench import Case

CASE = Case(node="soft-if", timesteps=8, batch=4, shape=(256,))
STEP_BYTES = 4 * 4 * 256


@pytest.mark.memory_budget(retained="32 KiB", peak="160 KiB")
def test_fits_its_budget(measure_case):
    """The limits are exact: one byte more fails, and the message says which tensors they are."""
    measure_case(CASE)


def test_keeps_one_tensor_per_step(measure_case):
    """The law that the docstring states, to the byte."""
    assert measure_case(CASE).memory.retained_bytes == CASE.timesteps * STEP_BYTES


@pytest.mark.sweep(quick={"timesteps": (4, 8)}, nodes=("lif", "soft-if"), batch=4, shape=(256,))
def test_beside_the_standard_lif(case, measure_case):
    """What the gate compares with the baseline, case by case."""
    measure_case(case)
