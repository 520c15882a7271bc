"""Which way of training a spiking network fits your memory, what it costs, and is its gradient right?

Describe what to measure with a `Case`, and `measure` it; `make_plan` fits a model of yours into a budget of bytes,
`tune` searches the nodes' settings within one, and `find_leaks` looks for what grows in your own training loop.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from revsnn_bench.case import Case
    from revsnn_bench.measuring import Settings, measure
    from revsnn_bench.meters.leaks import Leaks, find_leaks
    from revsnn_bench.plan.planning import make_plan
    from revsnn_bench.tuning.study import tune

__all__ = ["Case", "Leaks", "Settings", "find_leaks", "make_plan", "measure", "tune"]

_PLACES = {
    "Case": "revsnn_bench.case",
    "Settings": "revsnn_bench.measuring",
    "measure": "revsnn_bench.measuring",
    "Leaks": "revsnn_bench.meters.leaks",
    "find_leaks": "revsnn_bench.meters.leaks",
    "make_plan": "revsnn_bench.plan.planning",
    "tune": "revsnn_bench.tuning.study",
}


def __getattr__(name: str) -> Any:
    # Imported when it is asked for: reports and the command line's help need no torch, which what measures does.
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
