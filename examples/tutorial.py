# %% [markdown]
# # Tutorial: where the memory goes, and four ways to keep less
#
# Run it with `python examples/tutorial.py`, or cell by cell in an editor that knows `# %%`. It needs
# `pip install ".[cpu]"` and takes half a minute on two cores. The numbers below are what it printed. On a
# processor with AVX-512 a network's peaks are 0.01 to 0.02 MiB higher: convolutions take more scratch there.
#
# ## 1. One layer of neurons
#
# A `Case` names a node and a size, and `measure` gives a record: bytes by a count of every block of memory, operations
# by what is dispatched, and the gradient against float64.

# %%
from revsnn_bench import Case, Settings, measure

settings = Settings(passes=("memory", "flops", "fidelity"))  # without "time", so that it is quick


def show(node: str, timesteps: int) -> None:
    """Prints what a layer of 8 x 4,096 neurons takes."""
    record = measure(Case(node=node, timesteps=timesteps, batch=8, shape=(4096,)), settings)
    memory, flops, fidelity = record.memory, record.flops, record.fidelity
    step = sum(phase.pointwise for phase in (flops.forward, flops.backward, flops.recompute))
    print(
        f"{node:16} T = {timesteps:2}: keeps {memory.retained_bytes / 2**20:6.3f} MiB, peak "
        f"{memory.peak_bytes / 2**20:6.3f} MiB, {step / 1e6:6.1f} MFLOP, gradient error {fidelity.gradient_error:.0e}"
    )


show("lif", 4)

# %% [markdown]
# Plain autograd keeps three tensors of the layer for every step: four times the steps take four times the bytes. Each
# of the other nodes keeps less, and pays for it somewhere:

# %%
for name in ("lif", "lif-checkpoint", "revlif", "revlif-anchored", "lif-carrier"):
    show(name, 16)

# %% [markdown]
# `lif-checkpoint` runs its forward again. `revlif`, the reversible node of a paper, goes back in time by the inverse of
# a leaky membrane, which loses the gradient as T grows; look at the last column. `revlif-anchored` has the same
# dynamics without the inverse. `lif-carrier` keeps nothing, because its output in training carries its input along.
#
# ## 2. A whole network
#
# What counts is a network. Three blocks of convolution, norm and neuron, on 4 images over 4 steps:

# %%
import torch
from revsnn_nodes import StandardLIF, remat, reset
from torch import nn

from revsnn_bench.meters.allocator import record_timeline
from revsnn_bench.models.blocks import TimeDistributed  # folds time into the batch for layers that know no time


def block(inputs: int, outputs: int) -> list[nn.Module]:
    """Convolution and norm over all steps at once, and a neuron that walks through them."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return [TimeDistributed(conv, nn.BatchNorm2d(outputs)), StandardLIF(step_mode="m")]


torch.manual_seed(0)
net = nn.Sequential(*block(3, 16), *block(16, 16), *block(16, 16))
x_seq = torch.rand(4, 4, 3, 32, 32)


def step() -> None:
    """Forward and backward as they are."""
    reset(net)
    net(x_seq).mean().backward()


def remat_step() -> None:
    """The same with the forward inside `remat`."""
    reset(net)
    with remat():
        loss = net(x_seq).mean()
    loss.backward()


def peak_mib(work) -> float:
    """The highest live memory of a step, parameter gradients included."""
    work()  # warm: kernels are compiled, buffers are there
    reset(net)
    net.zero_grad()
    return record_timeline(work)[1].peak_bytes / 2**20


print(f"as it is:      {peak_mib(step):6.2f} MiB")
print(f"inside remat:  {peak_mib(remat_step):6.2f} MiB")

# %% [markdown]
# Nothing else differs. Every gradient has the same bits:

# %%
gradients = []
for work in (step, remat_step):
    net.zero_grad()
    work()
    gradients.append([parameter.grad.clone() for parameter in net.parameters()])
print("all gradients equal to the bit:", all(map(torch.equal, *gradients)))

# %% [markdown]
# ## 3. What was kept, and what was made again
#
# `remat` tells, module by module. What a convolution makes is kept, since it is not cheap to make again; what a norm or
# a neuron makes is not.

# %%
reset(net)
with remat() as saved:
    loss = net(x_seq).mean()
loss.backward()
print(saved)

# %% [markdown]
# It costs time, which no page can promise: this is one machine's, and yours differs.

# %%
from statistics import median
from time import perf_counter

seconds = {step: [], remat_step: []}
for _ in range(9):
    for work, times in seconds.items():  # in turns, so that both meet the same load
        start = perf_counter()
        work()
        times.append(perf_counter() - start)
print(f"as it is {1e3 * median(seconds[step]):.1f} ms, inside remat {1e3 * median(seconds[remat_step]):.1f} ms")

# %% [markdown]
# ## 4. A neuron that carries its input
#
# `CarrierLIF` needs nothing from forward to backward but its own output: in training that is the spike plus a sixteenth
# of the input, so the layers behind it see other numbers than spikes. `decode_spikes` gives the spikes, and so does
# `eval()`.

# %%
from revsnn_nodes import CarrierLIF, decode_spikes

node = CarrierLIF(tau=2.0, step_mode="m")
current = 3 * torch.rand(8, 4, 5)
output = node(current)
print("in training:", [round(value, 4) for value in output[0, 0].tolist()])
print("its spikes: ", decode_spikes(output)[0, 0].tolist())
node.eval()
node.reset()
print("in eval():  ", node(current)[0, 0].tolist())

# %% [markdown]
# ## 5. An inverse that loses the gradient
#
# The paper's node predicts its own error, and warns. On this layer the error grows by orders of magnitude with T:

# %%
for steps in (4, 8, 12, 16):
    case = Case(node="revlif", timesteps=steps, batch=8, shape=(4096,))
    fidelity = measure(case, Settings(passes=("fidelity",))).fidelity
    print(f"T = {steps:2}: gradient error {fidelity.gradient_error:.0e}, predicted {fidelity.predicted_error:.0e}")

# %% [markdown]
# ## 6. A budget
#
# `make_plan` decides for each block whether it keeps what its backward pass needs, makes it again, or runs again, by
# what these take here, and measures the result:

# %%
from revsnn_bench import make_plan

reset(net)
plan = make_plan(net, x_seq, budget="9.5 MiB", rounds=1)
print(f"without a plan: {plan.plain_bytes / 2**20:.2f} MiB")
print("fits 9.5 MiB as measured:", plan.fits and plan.measured.peak_bytes <= 9.5 * 2**20)
print("predicted to the byte:", plan.predicted_bytes == plan.measured.peak_bytes)

# %% [markdown]
# `plan.apply(net)` puts it into the network, and `plan.to_json()` writes it for `apply_plan` of `revsnn_nodes`, so that
# the training needs no benchmark. From here: [your own model](your-model.md), what [remat](remat.md) does, and
# [which node when](../nodes/README.md).
