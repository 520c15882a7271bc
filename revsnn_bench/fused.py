"""Tells the FLOPs meter what the fused operators of the node library compute: it cannot see inside of them."""

from collections.abc import Callable
from functools import partial
from typing import Any

from revsnn_nodes.kernels.flops import OPERATIONS, Operations

from revsnn_bench.meters.flops import register_flop_formula


def register_fused_operators() -> None:
    """Registers every fused operator; harmless where it was done before."""
    for name, operations in OPERATIONS.items():
        register_flop_formula(name, partial(_work, operations), partial(_recompute, operations))


def _work(operations: Callable[..., Operations], *args: Any, **kwargs: Any) -> int:
    return operations(*args, **kwargs).work


def _recompute(operations: Callable[..., Operations], *args: Any, **kwargs: Any) -> int:
    return operations(*args, **kwargs).recompute
