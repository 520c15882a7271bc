"""Rematerialisation: inside `with remat():` autograd saves how to make a tensor again, where that is cheap.

`recipes`: which functions are cheap, and how a storage is made again. `pack`: what autograd saves instead of a tensor,
and the table of it. `record`: the context that watches a forward. `rerun`: neurons, which are run again. `norm`: those
behind a batch norm. Guide: docs/remat.md.
"""

from revsnn_nodes.remat.pack import Saved
from revsnn_nodes.remat.record import remat

__all__ = ["Saved", "remat"]
