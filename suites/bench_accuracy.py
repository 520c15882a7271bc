"""Does a network learn as well with another node? The same budget, schedule and seeds for all, on real digits.

An input that is divided by tau leaves most neurons of a deep network silent within 4 steps, and plain LIF does not
train at all: so `decay_input=False` for every node. Coupled nodes split their channels.
"""

import pytest

SEEDS = (0, 1, 2)
COUPLED = ("revlif-anchored",)
"""One node stands for the four that compute the same function."""


@pytest.mark.sweep(
    quick={"seed": SEEDS[:1], "epochs": (1,)},
    full={"seed": SEEDS, "epochs": (12,)},
    workload="vgg11@0.25",
    nodes=("lif", "lif-checkpoint"),
    timesteps=4,
    batch=8,
    shape=(1, 8, 8),
    decay_input=False,
)
def test_lif(case, measure_case):
    measure_case(case)


@pytest.mark.sweep(
    quick={"seed": SEEDS[:1], "epsilon": (1 / 256,), "epochs": (1,)},
    full={"seed": SEEDS, "epsilon": (1 / 16, 1 / 256), "epochs": (12,)},
    workload="vgg11@0.25",
    nodes=("lif-carrier", "norm-carrier"),
    timesteps=4,
    batch=8,
    shape=(1, 8, 8),
    decay_input=False,
)
def test_carriers(case, measure_case):
    """The less of its input an output carries, the less the network leans on it, and the less stripping it costs."""
    measure_case(case)


@pytest.mark.sweep(
    quick={"seed": SEEDS[:1], "beta": (1.0,), "epochs": (1,)},
    full={"seed": SEEDS, "beta": (0.05, 0.1, 0.25, 1.0), "epochs": (12,)},
    workload="vgg11@0.25",
    nodes=("revlif-revnet", "revlif", *COUPLED),
    timesteps=4,
    batch=8,
    shape=(1, 8, 8),
    decay_input=False,
    group_dim=1,
)
def test_coupled(case, measure_case):
    measure_case(case)


@pytest.mark.sweep(
    quick={"groups": (2, 8), "seed": SEEDS[:1], "epochs": (3,)},
    full={"groups": (2, 4, 8, 16), "alpha": (0.25, 0.5, 0.75), "seed": SEEDS, "epochs": (12,)},
    workload="digits-net",
    nodes=COUPLED,
    timesteps=4,
    batch=8,
    shape=(1, 8, 8),
    group_dim=1,
)
def test_groups_of_channels(case, measure_case):
    measure_case(case)


@pytest.mark.sweep(
    quick={"beta": (0.1, 1.0), "seed": SEEDS[:1], "epochs": (3,)},
    full={"beta": (0.05, 0.1, 0.25, 0.5, 1.0), "seed": SEEDS, "epochs": (12,)},
    workload="digits-net",
    nodes=COUPLED,
    timesteps=4,
    batch=8,
    shape=(1, 8, 8),
    group_dim=-1,
)
def test_groups_of_columns(case, measure_case):
    measure_case(case)
