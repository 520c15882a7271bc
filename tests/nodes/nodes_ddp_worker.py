"""One process of a data-parallel training step: its share of the batch through a network with a node."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import nodes_cases
import nodes_remat
import torch
import torch.distributed as dist
from revsnn_nodes import apply_plan, remat
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel


def network(name: str) -> nn.Sequential:
    """Linear, node, linear, node; the same weights in every process."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(6, 8), nodes_cases.make(name), nn.Linear(8, 4), nodes_cases.make(name)
    ).double()  # fmt: skip


def batch() -> torch.Tensor:
    """Input `[T, N, features]` of the whole batch."""
    return torch.randn(4, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 8


def gradients(model: Any, x: torch.Tensor) -> list[torch.Tensor]:
    """Gradients of the mean squared distance of the output from 1."""
    (model(x) - 1).square().mean().backward()
    return [parameter.grad for parameter in model.parameters()]


def sharded(model: nn.Module) -> nn.Module:
    """A network whose processes hold a part of each weight, and gather a block's weights while it runs."""
    for block in model.children():
        fully_shard(block, mesh=mesh_of_all())
    return fully_shard(model, mesh=mesh_of_all())


def planned(model: nn.Module) -> nn.Module:
    """The same network with a plan, its weights gathered all together, before `remat` begins."""
    return fully_shard(apply_plan(model, {"[0:2]": "checkpoint", "2": "remat", "3": "bits"}), mesh=mesh_of_all())


def mesh_of_all() -> DeviceMesh:
    """All processes in a row."""
    return init_device_mesh("cpu", (dist.get_world_size(),))


def remat_work(rank: int, processes: int, folder: str) -> None:
    """Two steps of a residual network with and without `remat` or a plan.

    Every rank writes its gradients, buffers and the bytes that it kept.
    """
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=processes)
    for plain, wrap, inside in (
        (DistributedDataParallel, DistributedDataParallel, remat),
        (sharded, sharded, remat),
        (sharded, planned, nullcontext),
    ):
        found = []
        for make, context in ((plain, nullcontext), (wrap, inside)):
            torch.manual_seed(1)
            model = make(nodes_remat.residual_net())
            steps = [nodes_remat.train_step(model, nodes_remat.image_sequence(seed=i), context()) for i in (rank, 7)]
            kept = [0 if step.saved is None else step.saved.kept_bytes for step in steps]
            found.append([(whole(step.gradients), step.buffers, k) for step, k in zip(steps, kept, strict=True)])
        torch.save(found, Path(folder) / f"{wrap.__name__}{rank}.pt")
    collected = [[collective(rank, context()) for collective in COLLECTIVES] for context in (nullcontext, remat)]
    torch.save(collected, Path(folder) / f"collectives{rank}.pt")
    dist.destroy_process_group()


class Adaptive(nn.Module):
    """A threshold that follows the input, in a buffer that is broadcast before each forward."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.register_buffer("threshold", torch.zeros(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A loss."""
        with torch.no_grad():
            self.threshold.lerp_(x.mean(0), 0.5)
        return self.linear((x - self.threshold).repeat(4, 1)).sin().sum()


def broadcast_between(rank: int, context: Any) -> torch.Tensor:
    """Gradient of two forwards with one backward; the second broadcasts the buffers that the first has read."""
    torch.manual_seed(1)
    model = DistributedDataParallel(Adaptive())
    with context:
        loss = sum(model(torch.randn(16, 8, generator=torch.Generator().manual_seed(rank + 2 * i))) for i in range(2))
    loss.backward()
    return model.module.linear.weight.grad


def reduced_in_place(rank: int, context: Any) -> torch.Tensor:
    """Gradient behind a norm by hand, whose statistics are summed over the processes."""
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(rank))
    weight = torch.ones(8, 8, requires_grad=True)
    with context:
        sums = torch.cat([x.mean(0), x.square().mean(0)])
        dist.all_reduce(sums)
        mean, square = (sums / 2).chunk(2)
        normed = (x - mean) * torch.rsqrt(square - mean**2 + 1e-5)
        loss = (normed.repeat(4, 1) @ weight).sin().sum()
    loss.backward()
    return weight.grad


COLLECTIVES = (broadcast_between, reduced_in_place)


def whole(gradients: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Gradients of whole weights, gathered where they are sharded."""
    return {name: each.full_tensor() if isinstance(each, DTensor) else each for name, each in gradients.items()}


def work(rank: int, processes: int, names: tuple[str, ...], folder: str) -> None:
    """Runs every network on this process's share and lets rank 0 write the reduced gradients."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=processes)
    share = batch().chunk(processes, 1)[rank].contiguous()
    reduced = {name: gradients(DistributedDataParallel(network(name)), share) for name in names}
    if rank == 0:
        torch.save(reduced, Path(folder) / "gradients.pt")
    dist.destroy_process_group()
