"""Fused kernels for the CPU, compiled by numba (the extra `cpu`); all are imported at once where numba works."""

from importlib import import_module

from revsnn_nodes.kernels.support import numba_obstacle

if not numba_obstacle():
    import_module("revsnn_nodes.kernels.cpu.launch")
