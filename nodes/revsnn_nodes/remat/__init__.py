"""Rematerialisation: inside `with remat():` autograd saves how to make a tensor again, where that is cheap.

`recipes`: which functions are cheap, and how a storage is made again. `pack`: what autograd saves instead of a tensor.
`record`: the context that watches a forward. `rerun`: functions that are differentiated by running them again.
`report`: what was kept and what is made again, by module. Guide: docs/remat.md.
"""

from revsnn_nodes.remat.record import remat
from revsnn_nodes.remat.report import Saved

__all__ = ["Saved", "remat"]
