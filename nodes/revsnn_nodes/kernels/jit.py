"""How the CPU kernels are compiled: without the lock of the interpreter, and cached on disk where that is possible."""

from collections.abc import Callable
from typing import Any

import numba

_OPTIONS = {"nogil": True, "error_model": "numpy"}
# No error_model="python": its check for division by zero keeps loops from being vectorised.


def exact(function: Callable[..., Any]) -> Any:
    """Compiles with IEEE arithmetic, operation by operation: it gives the reference's results, bit for bit."""
    return _cached(function, fastmath=False)


def contracted(function: Callable[..., Any]) -> Any:
    """Compiles with multiply-adds fused where that helps: for gradients, which are compared within rounding."""
    return _cached(function, fastmath={"contract"})


def _cached(function: Callable[..., Any], **options: Any) -> Any:
    try:
        return numba.njit(cache=True, **_OPTIONS, **options)(function)
    except RuntimeError:  # no folder that numba may write to: compile in every process
        return numba.njit(**_OPTIONS, **options)(function)
