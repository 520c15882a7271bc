"""Fused kernels for the CPU, compiled by numba (the extra `cpu`)."""
