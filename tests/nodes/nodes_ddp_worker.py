"""One process of a data-parallel training step: its share of the batch through a network with a node."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import nodes_cases
import nodes_remat
import torch
import torch.distributed as dist
from revsnn_nodes import remat
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
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
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model.children():
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def remat_work(rank: int, processes: int, folder: str) -> None:
    """Two steps of a residual network with and without `remat`; every rank writes its gradients and buffers."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=processes)
    for wrap in (DistributedDataParallel, sharded):
        found = []
        for context in (nullcontext, remat):
            torch.manual_seed(1)
            model = wrap(nodes_remat.residual_net())
            steps = [nodes_remat.train_step(model, nodes_remat.image_sequence(seed=i), context()) for i in (rank, 7)]
            found.append([(whole(step.gradients), step.buffers) for step in steps])
        torch.save(found, Path(folder) / f"{wrap.__name__}{rank}.pt")
    dist.destroy_process_group()


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
