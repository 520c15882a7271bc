"""How the CPU kernels are compiled: without the lock of the interpreter, and cached on disk where that is possible.

Arrays of one call must not overlap where one of them is written: see `_Disjoint`.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core.compiler import Compiler


class _Disjoint(Compiler):
    """Tells LLVM that a function's arrays do not overlap.

    Else it compares every pair of them before each loop, which costs more than a short row takes, and gives up making
    vector instructions where there are many.
    """

    def __init__(self, typingctx: Any, targetctx: Any, library: Any, args: Any, returns: Any, flags: Any, local: Any):
        flags = flags.copy()
        flags.noalias = True
        super().__init__(typingctx, targetctx, library, args, returns, flags, local)


_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "pipeline_class": _Disjoint}
# No error_model="python": its check for division by zero keeps loops from being vectorised.


def exact(function: Callable[..., Any]) -> Any:
    """Compiles with IEEE arithmetic, operation by operation: it gives the reference's results, bit for bit."""
    return _cached(function, fastmath=False)


def contracted(function: Callable[..., Any]) -> Any:
    """Compiles with multiply-adds fused where that helps: for gradients, which are compared within rounding."""
    return _cached(function, fastmath={"contract"})


def exact_row(function: Callable[..., Any]) -> Any:
    """As `exact`, always inlined: for loops over pieces of rows, which take no longer than a call with ten arrays."""
    return _cached(function, fastmath=False, forceinline=True)


def contracted_row(function: Callable[..., Any]) -> Any:
    """As `contracted`, always inlined."""
    return _cached(function, fastmath={"contract"}, forceinline=True)


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
