"""Fused forward and backward kernels: the functions of the nodes in one pass over memory, with nothing else kept.

They are a second implementation of what `revsnn_nodes.equations` defines, chosen by a node's `backend`; see
`support.py`. Those for the CPU need numba (the extra `cpu`), those for CUDA need Triton (the extra `triton`); nothing
here is loaded until a fused node runs.
"""
