"""Bytes by the profiler's memory timeline: every allocation and release that torch makes on the CPU, in order."""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class Timeline:
    """Bytes alive at the end and at most, counted from the start of a call, and what the call returned."""

    live_bytes: int
    peak_bytes: int
    result: Any


def timeline(call: Callable[[], Any]) -> Timeline:
    """Profiles one call, which must free nothing that was there before; its result counts as alive."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = call()
    kineto = profile.profiler.kineto_results.events()
    events = sorted((e for e in kineto if e.name() == "[memory]"), key=lambda event: event.start_ns())
    live = peak = 0
    for event in events:
        live += event.nbytes()
        peak = max(peak, live)
    return Timeline(live, peak, result)


def bytes_after_forward(
    node: Any, shape: tuple[int, ...], dtype: torch.dtype, carried: bool = False, reset: bool = True
) -> int:
    """Bytes that forward leaves alive beside its output, the input dropped and the state reset (or kept).

    Args:
        node: neuron layer in training, at rest.
        shape: `[T, N, *]`.
        carried: whether it starts from a given state, which the caller does not keep.
        reset: whether the last state is forgotten before counting.
    """
    weight = torch.zeros((), dtype=dtype, requires_grad=True)
    data, start = torch.randn(shape, dtype=dtype), torch.randn(shape[1:], dtype=dtype)

    def forward() -> Any:
        if carried:
            node.v = start.clone()
        y = node(data + weight)
        if reset:
            node.reset()
        return y

    forward()  # a kernel that is compiled at its first call leaves garbage that refers to its arguments
    node.reset()
    gc.collect()
    run = timeline(forward)
    node.reset()
    return run.live_bytes - run.result.untyped_storage().nbytes()


def peak_of_backward(node: Any, shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Most bytes alive in backward, beyond what was before it: output, arriving gradient and what forward kept."""
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    y = node(x)
    node.reset()
    y_bar = torch.randn_like(y)
    return timeline(lambda: torch.autograd.grad(y, x, y_bar, retain_graph=True)).peak_bytes
