"""Which way of training a spiking network fits your memory, what it costs, and is its gradient right?

The two names of the Python API: describe what to measure with a `Case`, and `measure` it.
"""

from revsnn_bench.case import Case

__all__ = ["Case"]
