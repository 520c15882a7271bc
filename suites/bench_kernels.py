"""How near are the fused kernels to the memory bandwidth, and to whom does that compare?

    revsnn-bench run --suite kernels                             # 16 KiB to 1 MiB of input: minutes
    revsnn-bench run --suite kernels --full --timeout 1800       # to 1 GiB: hours, and 16 GiB of memory
    revsnn-bench run --suite kernels --timesteps 32 --shape 1048576 --batch 8 --backend fused --timeout 1800    # 1 GiB

Times are in units of copying the input, in the same rounds: a fused node that keeps nothing can do with 1 copy forward
and 1.5 backward. Compilation is timed apart, in a process that finds nothing compiled on disk: once for the carrier and
for compiled SpikingJelly, and with --full for every fused node. With --keep-freed no time contains new pages.
"""

import pytest

from revsnn_bench.measuring import USUAL

FULL = {"timesteps": (4, 32), "batch": (1, 8), "shape": ((1024,), (65536,), (1 << 20,))}


@pytest.fixture(scope="module")
def passes_of(request):
    """Passes of a case whose node compiles something: that is timed once, as it takes the same at every size."""
    left = {"lif-carrier", "spikingjelly-compiled"}
    if request.config.getoption("sweep_preset") == "full":
        left |= {"lif", "revlif", "revlif-anchored"}

    def choose(case, usual):
        if case.node not in left:
            return usual
        left.remove(case.node)
        return ("compile", *usual)

    return choose


@pytest.mark.sweep(
    quick={"shape": ((1024,), (65536,)), "backend": ("torch", "fused")},
    full=FULL,
    nodes=("lif", "lif-carrier", "revlif", "revlif-anchored"),
    timesteps=4,
    batch=1,
)
def test_kernels(case, measure_case, passes_of):
    """Every node that has fused kernels, on each of its backends."""
    measure_case(case, passes=USUAL if case.options.get("backend") == "torch" else passes_of(case, USUAL))


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
def test_peers(case, measure_case, passes_of):
    """SpikingJelly's LIF, operator by operator and as compiled code."""
    measure_case(case, passes=passes_of(case, USUAL))
