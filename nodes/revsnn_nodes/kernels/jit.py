"""How the CPU kernels are compiled: without the lock of the interpreter, and cached on disk where that is possible."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba

_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
# No error_model="python": its check for division by zero keeps loops from being vectorised.


def exact(function: Callable[..., Any]) -> Any:
    """Compiles with IEEE arithmetic, operation by operation: it gives the reference's results, bit for bit."""
    return _cached(function, fastmath=False)


def contracted(function: Callable[..., Any]) -> Any:
    """Compiles with multiply-adds fused where that helps: for gradients, which are compared within rounding."""
    return _cached(function, fastmath={"contract"})


_FOLDER = Path(__file__).parent
_SOURCES = hashlib.sha256(
    b"".join(p.read_bytes() for p in sorted([*_FOLDER.glob("cpu_*.py"), Path(__file__)]))
).hexdigest()


def _cached(function: Callable[..., Any], **options: Any) -> Any:
    try:
        kernel = numba.njit(cache=True, **_OPTIONS, **options)(function)
        # numba looks at the file of the function alone; what it calls from other files must count too.
        kernel._cache._cache_file._source_stamp = _SOURCES
    except (RuntimeError, AttributeError):  # no folder to write to, or a cache of another make: compile every time
        return numba.njit(**_OPTIONS, **options)(function)
    return kernel
