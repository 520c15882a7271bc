"""Fused kernels for NVIDIA GPUs, compiled by Triton (the extra `triton`)."""
