"""What do the coupled nodes' own parameters do to accuracy: beta, alpha, groups, and the dimension that is split?

Parity of all nodes in a deep network is in the suite `parity`.
"""

import pytest

SEEDS = (0, 1, 2)
SIZES = {"timesteps": 4, "batch": 8, "shape": (1, 8, 8)}
COUPLED = ("revlif-anchored",)
"""One node stands for the four that compute the same function."""


@pytest.mark.sweep(
    quick={"beta": (0.1,), "seed": SEEDS[:1], "epochs": (2,)},
    full={"beta": (0.05, 0.1, 0.25, 0.5, 1.0), "seed": SEEDS, "epochs": (12,)},
    workload="vgg11@0.25",
    nodes=COUPLED,
    **SIZES,
    decay_input=False,
    group_dim=1,
)
def test_beta_in_a_deep_network(case, measure_case):
    """How strongly an output carries its partner's input: the part of the signal that is no spike."""
    measure_case(case)


@pytest.mark.sweep(
    quick={"groups": (2, 8), "seed": SEEDS[:1], "epochs": (2,)},
    full={"groups": (2, 4, 8, 16), "alpha": (0.25, 0.5, 0.75), "seed": SEEDS, "epochs": (12,)},
    workload="digits-net",
    nodes=COUPLED,
    **SIZES,
    group_dim=1,
)
def test_groups_of_channels(case, measure_case):
    measure_case(case)


@pytest.mark.sweep(
    quick={"beta": (1.0,), "seed": SEEDS[:1], "epochs": (2,)},
    full={"beta": (0.05, 0.1, 0.25, 0.5, 1.0), "seed": SEEDS, "epochs": (12,)},
    workload="digits-net",
    nodes=COUPLED,
    **SIZES,
    group_dim=-1,
)
def test_groups_of_columns(case, measure_case):
    measure_case(case)
