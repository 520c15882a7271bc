"""What do SpikingJelly's own networks keep and cost, with its neurons, its `memopt`, and what this package offers?

    revsnn-bench run --suite field               # T = 4, B = 4, or 8 for Spikformer
    revsnn-bench run --suite field --full        # T = 4 and 8, B = 32, where activations dominate

`spikingjelly+bitpack` is `memopt` at level 1; every other node is put in by `swap_neurons`, on fused kernels.
Skipped where SpikingJelly is not installed: pip install 'revsnn-bench[peers]'.
"""

import pytest

METHODS = (
    "lif",
    "lif+remat",
    "lif+checkpoint",
    "lif+bitpack",
    "lif+save-on-cpu",
    "lif-carrier",
    "spikingjelly",
    "spikingjelly+bitpack",
)
FULL = {"timesteps": (4, 8), "batch": (32,)}


@pytest.mark.sweep(
    quick={"timesteps": (4,), "batch": (4,)}, full=FULL, workload="sj-vgg11", nodes=METHODS, shape=(3, 64, 64)
)
def test_vgg11(case, measure_case):
    measure_case(case)


@pytest.mark.sweep(
    quick={"timesteps": (4,), "batch": (4,)}, full=FULL, workload="sj-sew-resnet18", nodes=METHODS, shape=(3, 64, 64)
)
def test_sew_resnet18(case, measure_case):
    measure_case(case)


@pytest.mark.sweep(
    quick={"timesteps": (4,), "batch": (4,)}, full=FULL, workload="sj-resnet18", nodes=METHODS, shape=(3, 64, 64)
)
def test_resnet18(case, measure_case):
    measure_case(case)


@pytest.mark.sweep(
    quick={"timesteps": (4,), "batch": (8,)}, full=FULL, workload="sj-spikformer", nodes=METHODS, shape=(3, 32, 32)
)
def test_spikformer(case, measure_case):
    measure_case(case)
