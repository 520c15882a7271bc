"""Which way of training a spiking network fits your memory, what it costs, and is its gradient right?

The Python API is two names: describe what to measure with a `Case`, and `measure` it.
"""

from typing import TYPE_CHECKING, Any

from revsnn_bench.case import Case

if TYPE_CHECKING:
    from revsnn_bench.measuring import Settings, measure

__all__ = ["Case", "Settings", "measure"]


def __getattr__(name: str) -> Any:
    # Reports and the command line's help need no torch: what measures is imported when it is asked for.
    if name in ("Settings", "measure"):
        import revsnn_bench.measuring as module

        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
