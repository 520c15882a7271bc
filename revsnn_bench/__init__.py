"""Which way of training a spiking network fits your memory, what it costs, and is its gradient right?

Describe what to measure with a `Case`, and `measure` it; `make_plan` fits a model of yours into a budget of bytes.
"""

from typing import TYPE_CHECKING, Any

from revsnn_bench.case import Case

if TYPE_CHECKING:
    from revsnn_bench.measuring import Settings, measure
    from revsnn_bench.plan.planning import make_plan

__all__ = ["Case", "Settings", "make_plan", "measure"]


def __getattr__(name: str) -> Any:
    # Reports and the command line's help need no torch: what measures is imported when it is asked for.
    if name in ("Settings", "measure"):
        import revsnn_bench.measuring as module

        return getattr(module, name)
    if name == "make_plan":
        from revsnn_bench.plan.planning import make_plan

        return make_plan
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
