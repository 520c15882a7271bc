"""The first hour on a GPU: correctness and cost of every fused node, and SpikingJelly's networks by every method.

revsnn-bench doctor --gpu                # this suite, after the meters' self-test and the kernels' bandwidth
revsnn-bench run --suite gpu             # this suite alone: about 44 cases
"""

import pytest

from revsnn_bench.measuring import USUAL

NETWORKS = ("lif", "lif+remat", "lif+checkpoint", "lif-carrier", "spikingjelly", "spikingjelly+bitpack")


def passes(case):
    """SpikingJelly's operators for CUDA are counted by nobody."""
    return ("memory", "fidelity", "time") if case.node.startswith("spikingjelly") else USUAL


@pytest.mark.sweep(
    quick={"batch": (32,)}, workload="sj-vgg11", nodes=NETWORKS, timesteps=4, shape=(3, 64, 64), device="cuda"
)
def test_vgg11(case, measure_case):
    measure_case(case, passes=passes(case))


@pytest.mark.sweep(
    quick={"batch": (32,)}, workload="sj-sew-resnet18", nodes=NETWORKS, timesteps=4, shape=(3, 224, 224), device="cuda"
)
def test_sew_resnet18(case, measure_case):
    measure_case(case, passes=passes(case))


@pytest.mark.sweep(
    quick={"shape": ((4096,), (65536,), (1 << 20,), (1 << 22,)), "backend": ("fused",)},
    nodes=("lif", "lif-carrier", "revlif-anchored"),
    timesteps=16,
    batch=1,
    device="cuda",
)
def test_layers(case, measure_case):
    measure_case(case)


@pytest.mark.sweep(
    quick={"shape": ((4096,), (65536,), (1 << 20,), (1 << 22,))},
    nodes=("spikingjelly",),
    timesteps=16,
    batch=1,
    device="cuda",
)
def test_peers(case, measure_case):
    measure_case(case, passes=passes(case))


@pytest.mark.sweep(
    quick={"dtype": ("float64", "float16", "bfloat16"), "backend": ("fused",)},
    nodes=("lif", "lif-carrier"),
    timesteps=16,
    batch=8,
    shape=(65536,),
    device="cuda",
)
def test_precisions(case, measure_case):
    measure_case(case)


@pytest.mark.sweep(
    quick={"timesteps": (16, 64), "backend": ("fused",)},
    nodes=("lif", "lif+remat", "lif+offload", "lif+chunks-4", "lif+tbptt-4"),
    workload="mlp",
    batch=256,
    shape=(1, 16, 16),
    depth=4,
    encoding="poisson",
    device="cuda",
)
def test_methods(case, measure_case):
    measure_case(case)
