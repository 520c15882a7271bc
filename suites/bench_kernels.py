"""How near are the fused kernels to the memory bandwidth, and to whom does that compare?

    revsnn-bench run --suite kernels                             # 16 KiB to 1 MiB of input: minutes
    revsnn-bench run --suite kernels --full --timeout 1800       # to 1 GiB: hours, and 16 GiB of memory
    revsnn-bench run --suite kernels --timesteps 32 --shape 1048576 --batch 8 --backend fused --timeout 1800    # 1 GiB

Times are in units of copying the input, in the same rounds: a fused node that keeps nothing can do with 1 copy forward
and 1.5 backward. Compilation is timed apart, at a node's first point, in a process that finds nothing compiled on disk.
"""

import pytest

from revsnn_bench.measuring import USUAL

FULL = {"timesteps": (4, 32), "batch": (1, 8), "shape": ((1024,), (65536,), (1 << 20,))}


@pytest.fixture(scope="module")
def first_point():
    """Whether a case is the first of its node and backend: compilation takes the same at every size."""
    seen = set()

    def first(case):
        key = case.node, str(case.options.get("backend"))
        return key not in seen and not seen.add(key)

    return first


@pytest.mark.sweep(
    quick={"shape": ((1024,), (65536,)), "backend": ("torch", "fused")},
    full=FULL,
    nodes=("lif", "lif-carrier", "revlif", "revlif-anchored"),
    timesteps=4,
    batch=1,
)
def test_kernels(case, measure_case, first_point):
    """Every node that has fused kernels, on each of its backends."""
    compiled = case.options.get("backend") != "torch" and first_point(case)
    measure_case(case, passes=("compile", *USUAL) if compiled else USUAL)


@pytest.mark.sweep(
    quick={"shape": ((1024,), (65536,))},
    full=FULL,
    nodes=("lif-checkpoint", "revlif-stored", "revlif-revnet"),
    timesteps=4,
    batch=1,
)
def test_unfused(case, measure_case):
    """Nodes that are autograd on every step, stored or computed again: there is nothing to fuse."""
    measure_case(case)


@pytest.mark.sweep(
    quick={"shape": ((1024,), (65536,))},
    full=FULL,
    nodes=("spikingjelly", "spikingjelly-compiled"),
    timesteps=4,
    batch=1,
)
def test_peers(case, measure_case, first_point):
    """Their operators have no FLOPs formula here, and their own copy in float64 would be their only reference."""
    passes = ("memory", "time")
    compiled = case.node == "spikingjelly-compiled" and first_point(case)
    measure_case(case, passes=("compile", *passes) if compiled else passes)
