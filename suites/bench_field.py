"""Methods over time, neurons of other libraries, and SpikingJelly's own networks, on one harness.

    revsnn-bench run --suite field                                     # T = 4 and 64; a small SEW-ResNet-18 at T = 4
    revsnn-bench run --suite field --full                              # T = 4 to 1,024; four at T = 4 and 8, B = 32
    pytest suites/bench_field.py --benchmark -k "methods or peers"     # without the networks

Methods: memory against time against the bias of the gradient, in a network without norms, trained on one loss per step.
Peers: a layer of neurons. Networks: SpikingJelly's, with its neurons, its `memopt`, and what this package offers.
`spikingjelly+bitpack` is `memopt` at level 1; every other node is put in by `swap_neurons`, on fused kernels.
What is not installed is skipped: pip install ".[peers]".
"""

import pytest

OVER_TIME = (
    "lif",
    "lif+remat",
    "lif+offload",
    "lif+chunks-4",
    "lif+revolve-3",
    "lif+tbptt-4",
    "lif+tbptt-16",
    "lif+sltt",
    "lif+sltt-2",
    "lif+ottt",
)
PEERS = ("lif", "spikingjelly", "snntorch", "snntorch-default", "norse", "sinabs")
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
    quick={"timesteps": (4, 64)},
    full={"timesteps": (4, 16, 64, 256, 1024)},
    workload="mlp",
    nodes=OVER_TIME,
    batch=64,
    shape=(1, 8, 8),
    depth=4,
    encoding="poisson",
)
def test_methods(case, measure_case):
    measure_case(case)


@pytest.mark.sweep(
    quick={"seed": (0,), "epochs": (2,)},
    full={"seed": (0, 1, 2, 3, 4), "epochs": (8,)},
    workload="mlp",
    nodes=("lif", "lif+tbptt-4", "lif+sltt", "lif+sltt-4", "lif+ottt"),
    timesteps=16,
    batch=64,
    shape=(1, 8, 8),
    depth=3,
    encoding="poisson",
)
def test_accuracy(case, measure_case):
    measure_case(case, passes=("fidelity",))


@pytest.mark.sweep(
    quick={"timesteps": (64,), "shape": ((8,),), "seed": (0,), "epochs": (1,)},
    full={"timesteps": (256,), "shape": ((16,),), "seed": (0, 1, 2), "epochs": (8,)},
    workload="mlp@0.5",
    nodes=("lif", "lif+tbptt-16", "lif+sltt", "lif+ottt"),
    batch=64,
    depth=3,
    encoding="pixels",
    tau=4.0,
    decay_input=False,
)
def test_accuracy_over_time(case, measure_case):
    """Digits of 8 x 8 or 16 x 16 pixel by pixel: a step shows the latest row's worth, the class is in all of them."""
    measure_case(case, passes=())


@pytest.mark.sweep(
    quick={"timesteps": (64,), "shape": ((4096,),)},
    full={"timesteps": (4, 16, 64, 256), "shape": ((512,), (4096,), (32768,))},
    nodes=PEERS,
    batch=8,
)
def test_peers(case, measure_case):
    measure_case(case)


@pytest.mark.sweep(quick={"timesteps": (64,)}, nodes=("lif", "sinabs"), batch=8, shape=(4096,), detach_reset=True)
def test_detached_peers(case, measure_case):
    measure_case(case)


@pytest.mark.sweep(
    quick={"timesteps": (4,), "batch": (2,), "workload": ("sj-sew-resnet18",), "shape": ((3, 32, 32),)},
    full={**FULL, "workload": ("sj-vgg11", "sj-sew-resnet18", "sj-resnet18"), "shape": ((3, 64, 64),)},
    nodes=METHODS,
)
def test_networks(case, measure_case):
    measure_case(case)


@pytest.mark.sweep(quick={"timesteps": ()}, full=FULL, workload="sj-spikformer", nodes=METHODS, shape=(3, 32, 32))
def test_spikformer(case, measure_case):
    """In the full field alone."""
    measure_case(case)
