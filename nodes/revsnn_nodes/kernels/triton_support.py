"""Where the Triton kernels can run: asked before triton is imported, so that there is a reason where they cannot."""

import importlib.metadata
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from revsnn_nodes.base import SpikingNode

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
"""Types of tensors that the kernels take; they compute in float64 for float64, and in float32 for all others."""

MOST_GROUPS = 8
"""Kernels hold all groups of a column in registers: more of them take long to compile, and then spill."""

LEAST_TRITON = (3, 7)
"""The compilers of earlier versions refuse tuples of tuples, in which the kernels keep steps of groups."""

LEAST_CAPABILITY = (8, 0)
"""The kernels read ahead by asynchronous copies, which NVIDIA GPUs have from Ampere on."""


def triton_obstacle(node: "SpikingNode[Any]", x_seq: Tensor) -> str:
    """What keeps the Triton kernels from running this node on this CUDA tensor; "" where nothing does."""
    version = installed_version()
    if version is None:
        return "triton is not installed (pip install revsnn-bench[triton])"
    if version < LEAST_TRITON:
        return f"the fused kernels need triton {_dotted(LEAST_TRITON)} or above, not {_dotted(version)}"
    if torch.version.hip is not None:
        return "the fused kernels were not written for ROCm"
    if x_seq.dtype not in DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        return f"the fused kernels take {names}, not {str(x_seq.dtype).removeprefix('torch.')}"
    groups = getattr(node.neuron, "groups", 1)
    if groups > MOST_GROUPS:
        return f"the fused kernels for CUDA take up to {MOST_GROUPS} groups, not {groups}"
    # Fake CUDA tensors exist on machines without CUDA too; there is nothing to ask about then.
    if torch.cuda.is_available() and torch.cuda.get_device_capability(x_seq.device) < LEAST_CAPABILITY:
        return f"the fused kernels need compute capability {_dotted(LEAST_CAPABILITY)} or above"
    return ""


@cache
def installed_version() -> tuple[int, ...] | None:
    """Major and minor version of triton; None where it is not installed."""
    try:
        return tuple(int(part) for part in importlib.metadata.version("triton").split(".")[:2])
    except importlib.metadata.PackageNotFoundError:
        return None


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
