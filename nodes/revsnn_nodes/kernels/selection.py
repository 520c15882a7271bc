"""Which backend a node runs on: the fused kernels where they are installed and support the case, else the reference."""

from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from revsnn_nodes.kernels.coefficients import surrogate_code
from revsnn_nodes.kernels.triton_support import triton_obstacle
from revsnn_nodes.parameters import require
from revsnn_nodes.surrogate import in_transform

if TYPE_CHECKING:
    from revsnn_nodes.base import SpikingNode

Backend = Literal["auto", "torch", "fused"]
BackendInUse = Literal["torch", "fused"]

DEFAULT_BACKEND: Backend = "auto"
"""What a node is made with unless told otherwise."""


def choose_backend(node: "SpikingNode[Any]", x_seq: Tensor) -> tuple[BackendInUse, str]:
    """The backend for one call, and why it is not the fused one ("" where it is).

    Args:
        node: its `backend` is "torch", "fused" or "auto" (fused where possible).
        x_seq: input, `[T, N, *]`.
    Raises:
        ValueError: `backend="fused"`, and it is not possible.
    """
    if node.backend == "torch":
        return "torch", 'backend="torch" was asked for'
    obstacle = fused_obstacle(node, x_seq)
    require(
        not obstacle or node.backend == "auto",
        "backend",
        'be "auto" or "torch" here',
        node.backend,
        f"There are no fused kernels for this case: {obstacle}.",
        'Pass "auto" to fall back to the reference.',
    )
    return ("torch", obstacle) if obstacle else ("fused", "")


def fused_obstacle(node: "SpikingNode[Any]", x_seq: Tensor) -> str:
    """What keeps the fused kernels from running this node on this input; "" where nothing does."""
    if torch.compiler.is_compiling():
        return "inside torch.compile, which fuses the reference itself"
    kind: Any = type(node)
    if not _has_kernel(kind):
        return f"{type(node).__name__} has no fused kernel"
    if x_seq.device.type not in ("cpu", "cuda"):
        return f"no fused kernel for the device {x_seq.device.type}"
    if obstacle := node.fused_obstacle(x_seq):
        return obstacle
    if obstacle := triton_obstacle(node, x_seq) if x_seq.device.type == "cuda" else _cpu_obstacle(node, x_seq):
        return obstacle
    if surrogate_code(node.surrogate_function) is None:
        return f"the fused kernels do not know the surrogate {node.surrogate_function!r}"
    if in_transform():
        return "inside a torch.func transform"
    return ""


def _cpu_obstacle(node: "SpikingNode[Any]", x_seq: Tensor) -> str:
    if not _numba_installed():
        return "numba is not installed (pip install revsnn-bench[cpu])"
    if x_seq.dtype not in node.fused_cpu_dtypes:
        *names, last = (str(dtype).removeprefix("torch.") for dtype in (*node.fused_cpu_dtypes, x_seq.dtype))
        return f"the fused kernels of {type(node).__name__} for the CPU take {' and '.join(names)}, not {last}"
    return ""


@cache
def _has_kernel(kind: Any) -> bool:
    """Whether the class has a fused sequence that was written for its own reference sequence, not for a base's."""
    order = [vars(each) for each in kind.__mro__]
    fused = next(i for i, names in enumerate(order) if "fused_sequence" in names)
    reference = next(i for i, names in enumerate(order) if "multi_step_forward" in names)
    return fused <= reference and kind.__mro__[fused].__name__ != "SpikingNode"


@cache
def _numba_installed() -> bool:
    try:
        return find_spec("numba") is not None
    except ImportError:  # an import hook that forbids it
        return False
