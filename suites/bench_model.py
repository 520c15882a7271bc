"""What does each method make of a model of your own? `revsnn-bench run --model my_net:make --input 4,8,3,32,32`"""

import pytest


@pytest.mark.sweep(
    quick={"batch": (8,), "dtype": ("float32",), "seed": (0,)},
    workload="revsnn_bench.models.networks:example",
    nodes=("as-is", "as-is+remat", "lif", "lif+remat", "lif+checkpoint", "lif+bitpack", "lif-carrier"),
    timesteps=4,
    shape=(3, 32, 32),
)
def test_model(case, measure_case):
    measure_case(case)
