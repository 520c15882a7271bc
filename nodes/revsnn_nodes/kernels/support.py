"""Which backend a node runs on: the fused kernels where they are installed and support the case, else the reference.

Asked before a kernel's module is imported: so there is a reason where the kernels cannot run.
"""

import importlib
import importlib.metadata
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from revsnn_nodes.kernels.layout import cached, surrogate_code
from revsnn_nodes.parameters import require
from revsnn_nodes.surrogate import in_transform

Backend = Literal["auto", "torch", "fused"]
BackendInUse = Literal["torch", "fused"]


DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
"""Types of tensors that the kernels take; they compute in float64 for float64, and in float32 for all others."""

MOST_GROUPS = 8
"""Kernels hold all groups of a column in registers: more of them take long to compile, and then spill."""

LEAST_NUMBA = (0, 62)
"""The oldest version whose cache of compiled kernels can be told what they depend on."""

LEAST_TRITON = (3, 4)
"""The oldest version with which the kernels were compiled."""

LEAST_CAPABILITY = (8, 0)
"""The kernels read ahead by asynchronous copies, which NVIDIA GPUs have from Ampere on."""


def installed_version(package: str) -> tuple[int, ...] | None:
    """Major and minor version of a package; None where it is not installed."""
    try:
        return tuple(map(int, re.findall(r"\d+", importlib.metadata.version(package))[:2]))
    except importlib.metadata.PackageNotFoundError:
        return None


INSTALLED = {package: installed_version(package) for package in ("numba", "triton")}
"""Read at import: torch.compile traces the choice of a backend, and cannot trace how it is read."""

_written_out = False


@contextmanager
def equations_written_out() -> Iterator[None]:
    """Runs every node on its reference inside, whatever its backend.

    For counters of operations: a fused kernel computes what the reference writes out, and no dispatcher sees inside it.
    Forward and backward both belong inside; not reentrant, and for all threads.
    """
    global _written_out
    _written_out = True
    try:
        yield
    finally:
        _written_out = False


def triton_obstacle(node: Any, x_seq: Tensor) -> str:
    """What keeps the Triton kernels from running this node on this CUDA tensor; "" where nothing does."""
    if obstacle := _version_obstacle("triton", LEAST_TRITON):
        return obstacle
    if torch.version.hip is not None:
        return "the fused kernels were not written for ROCm"
    if x_seq.dtype not in DTYPES:
        return f"the fused kernels take {', '.join(map(_name, DTYPES))}, not {_name(x_seq.dtype)}"
    groups = getattr(node.neuron, "groups", 1)
    if groups > MOST_GROUPS:
        return f"the fused kernels for CUDA take up to {MOST_GROUPS} groups, not {groups}"
    # Fake CUDA tensors exist on machines without CUDA too; there is nothing to ask about then.
    if torch.cuda.is_available() and torch.cuda.get_device_capability(x_seq.device) < LEAST_CAPABILITY:
        return f"the fused kernels need compute capability {_dotted(LEAST_CAPABILITY)} or above"
    return ""


def _version_obstacle(package: str, least: tuple[int, ...]) -> str:
    version = INSTALLED[package]
    if version is None:
        return f"{package} is not installed (pip install {package})"
    if version < least:
        return f"the fused kernels need {package} {_dotted(least)} or above, not {_dotted(version)}"
    return ""


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def choose_backend(node: Any, x_seq: Tensor) -> tuple[BackendInUse, str]:
    """The backend for one call, and why it is not the fused one ("" where it is).

    Args:
        node: a `SpikingNode`; its `backend` is "torch", "fused" or "auto" (fused where possible).
        x_seq: input, `[T, N, *]`.
    Raises:
        ValueError: `backend="fused"`, and it is not possible.
    """
    if node.backend == "torch":
        return "torch", 'backend="torch" was asked for'
    if _written_out:
        return "torch", "operations are counted on the reference"
    obstacle = fused_obstacle(node, x_seq)
    require(
        not obstacle or node.backend == "auto", "backend", 'be "auto" or "torch" here', node.backend,
        f"There are no fused kernels for this case: {obstacle}.", 'Pass "auto" to fall back to the reference.',
    )  # fmt: skip
    return ("torch", obstacle) if obstacle else ("fused", "")


def fused_obstacle(node: Any, x_seq: Tensor) -> str:
    """What keeps the fused kernels from running this node on this input; "" where nothing does."""
    if torch.compiler.is_exporting():
        return "inside torch.export, whose programs run where these kernels are not installed"
    if not _has_kernel(type(node)):
        return f"{type(node).__name__} has no fused kernel"
    device = x_seq.device.type
    if device not in ("cpu", "cuda"):
        return f"no fused kernel for the device {device}"
    of_device = triton_obstacle if device == "cuda" else _cpu_obstacle
    if obstacle := node.fused_obstacle(x_seq) or of_device(node, x_seq):
        return str(obstacle)
    if surrogate_code(node.surrogate_function) is None:
        return f"the fused kernels do not know the surrogate {node.surrogate_function!r}"
    if in_transform():
        return "inside a torch.func transform"
    return ""


def _cpu_obstacle(node: Any, x_seq: Tensor) -> str:
    if obstacle := numba_obstacle():
        return obstacle
    given = x_seq.dtype
    if given not in node.fused_cpu_dtypes:
        names = " and ".join(map(_name, node.fused_cpu_dtypes))
        return f"the fused kernels of {type(node).__name__} for the CPU take {names}, not {_name(given)}"
    return ""


@cached
def _has_kernel(kind: Any) -> bool:
    """Whether the class has a fused sequence that was written for its own reference sequence, not for a base's."""
    order = [vars(each) for each in kind.__mro__]
    fused = next(i for i, names in enumerate(order) if "fused_sequence" in names)
    reference = next(i for i, names in enumerate(order) if "torch_sequence" in names)
    return fused <= reference and kind.__mro__[fused].__name__ != "SpikingNode"


@cached
def numba_obstacle() -> str:
    """What keeps numba from compiling the kernels for the CPU; "" where nothing does."""
    if os.environ.get("NUMBA_DISABLE_JIT", "0").strip() not in ("", "0"):
        return "NUMBA_DISABLE_JIT keeps numba from compiling them"
    if (obstacle := _version_obstacle("numba", LEAST_NUMBA)) or torch.compiler.is_compiling():
        return obstacle
    try:
        importlib.import_module("numba")
    except Exception as problem:  # a NumPy newer than it knows, or an import hook that forbids it
        return f"numba cannot be imported: {problem}"
    return ""
