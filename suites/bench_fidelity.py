"""Where does the inverse break? Gradient error over time steps, membrane constant, reset strength and dtype."""

import pytest


@pytest.mark.sweep(
    quick={"timesteps": (4, 8, 16), "tau": (2.0, 8.0), "alpha": (0.25, 0.75), "dtype": ("float32",)},
    full={
        "timesteps": (2, 4, 8, 12, 16, 32, 64),
        "tau": (1.5, 2.0, 4.0, 8.0),
        "alpha": (0.1, 0.25, 0.5, 0.75, 0.9),
        "dtype": ("float64", "float32", "bfloat16"),
    },
    nodes=("revlif", "revlif-anchored"),
    batch=4,
    shape=(512,),
)
def test_fidelity(case, measure_case):
    measure_case(case)
