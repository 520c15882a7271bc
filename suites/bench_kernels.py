"""How near are the fused kernels to the memory bandwidth, and to whom does that compare?

Times are in units of copying the input: a fused node that keeps nothing can do with 1 copy forward and 1.5 backward.
"""

import pytest

OURS = ("lif", "lif-carrier", "revlif", "revlif-anchored")


@pytest.mark.sweep(
    quick={"shape": ((1024,), (65536,)), "backend": ("torch", "fused")},
    full={"shape": ((1024,), (65536,), (1 << 20,)), "backend": ("torch", "fused"), "timesteps": (4, 32)},
    nodes=OURS,
    timesteps=4,
    batch=1,
)
def test_kernels(case, measure_case):
    measure_case(case)


@pytest.mark.sweep(
    quick={"shape": ((65536,),)},
    full={"shape": ((1024,), (65536,), (1 << 20,)), "timesteps": (4, 32)},
    nodes=("revlif-revnet",),
    timesteps=4,
    batch=1,
)
def test_classic(case, measure_case):
    """Classic reversible backprop is autograd on every recomputed step: there is nothing to fuse."""
    measure_case(case)


@pytest.mark.sweep(
    quick={"shape": ((1024,), (65536,))},
    full={"shape": ((1024,), (65536,), (1 << 20,)), "timesteps": (4, 32)},
    nodes=("spikingjelly", "spikingjelly-compiled"),
    timesteps=4,
    batch=1,
)
def test_peers(case, measure_case):
    """Their operators have no FLOPs formula here, and their own copy in float64 would be their only reference."""
    measure_case(case, passes=("memory", "time"))
