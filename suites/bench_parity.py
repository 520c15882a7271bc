"""Does a deep network learn as well with each node? VGG-11 on real digits: one budget, one recipe, several seeds.

    revsnn-bench run --suite parity --full --passes memory --threads 1

An input that is divided by tau leaves most neurons of a deep network silent within 4 steps, and plain LIF does not
train at all: so `decay_input=False` for every node. Coupled nodes split their channels, since the last layers are one
pixel wide. The quick preset shows that every node learns; only the full one tells them apart.
"""

import pytest

SEEDS = (0, 1, 2)
NETWORK = {"workload": "vgg11@0.25", "timesteps": 4, "batch": 8, "shape": (1, 8, 8), "decay_input": False}
COUPLED = ("revlif-stored", "revlif-revnet", "revlif", "revlif-anchored")
"""The same function four times: their accuracies may differ by rounding, which training amplifies, and no more."""


@pytest.mark.sweep(
    quick={"seed": SEEDS[:1], "epochs": (2,)},
    full={"seed": SEEDS, "epochs": (12,)},
    nodes=("lif", "lif-checkpoint"),
    **NETWORK,
)
def test_lif(case, measure_case):
    measure_case(case)


@pytest.mark.sweep(
    quick={"seed": SEEDS[:1], "epsilon": (1 / 256,), "epochs": (2,)},
    full={"seed": SEEDS, "epsilon": (1 / 256, 1 / 16), "epochs": (12,)},
    nodes=("lif-carrier", "norm-carrier"),
    **NETWORK,
)
def test_carriers(case, measure_case):
    """The less of its input an output carries, the less the network leans on it, and the less stripping it costs."""
    measure_case(case)


@pytest.mark.sweep(
    quick={"seed": SEEDS[:1], "epochs": (2,)},
    full={"seed": SEEDS, "epochs": (12,)},
    nodes=COUPLED,
    **NETWORK,
    group_dim=1,
)
def test_coupled(case, measure_case):
    measure_case(case)
