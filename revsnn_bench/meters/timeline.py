"""Every allocation of host tensors in a stretch of code, read from the profiler: exact to the byte.

The allocator itself reports each block to `torch.profiler(profile_memory=True)`, scratch inside kernels
included, so nothing is estimated. The event tree is read rather than `kineto_results.events()` or the
running total `total_allocated`, because it alone names the address of a block: the allocator's table of
sizes outlives a profile, and a block that was freed after one profile and handed out again before the next
would otherwise be subtracted from a step that never made it. `_memory_profile()` refuses to
run without recording shapes and stacks, which nothing here needs.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile

Result = TypeVar("Result")


@dataclass(frozen=True)
class Timeline:
    """What a stretch of code did to host tensor memory.

    Fields:
        peak_bytes: highest live bytes among the blocks that were allocated in it.
        live_bytes: bytes of those blocks that are still alive at its end.
        live_blocks: the same, by address.
    """

    peak_bytes: int
    live_bytes: int
    live_blocks: dict[int, int]


@contextmanager
def quiet_gc() -> Iterator[None]:
    """Collects garbage, then keeps the collector off: it would free at moments that differ between runs."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def record_timeline(work: Callable[[], Result]) -> tuple[Result, Timeline]:
    """Runs `work` under the profiler.

    Returns:
        What `work` returned, still alive at the end of the timeline, and the timeline. Frees of blocks that
        are older than the call are not in it: drop what may be freed before.
    """
    result, events = profiled_events(work)
    return result, _replay(events)


def profiled_events(work: Callable[[], Result]) -> tuple[Result, list[Any]]:
    """Runs `work` under the profiler.

    Returns:
        What `work` returned, and the profiler's events in order of time: ops, marks, and the blocks of host
        memory.
    """
    with quiet_gc(), profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as prof:
        result = work()
    profiler = prof.profiler
    assert profiler is not None
    assert profiler.kineto_results is not None
    found: list[Any] = []
    pending = list(reversed(profiler.kineto_results.experimental_event_tree()))
    while pending:
        event = pending.pop()
        pending.extend(reversed(event.children))
        if event.tag != _EventType.Allocation or event.extra_fields.device.type == "cpu":
            found.append(event)
    found.sort(key=lambda event: event.start_time_ns)
    return result, found


def _replay(events: list[Any]) -> Timeline:
    live: dict[int, int] = {}
    now = peak = 0
    for fields in (event.extra_fields for event in events if event.tag == _EventType.Allocation):
        if fields.alloc_size > 0:
            live[fields.ptr] = fields.alloc_size
            now += fields.alloc_size
            peak = max(peak, now)
        elif fields.ptr in live:
            now -= live.pop(fields.ptr)
    return Timeline(peak_bytes=peak, live_bytes=now, live_blocks=live)
