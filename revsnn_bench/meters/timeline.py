"""Every allocation of host tensors in a stretch of code, read from the profiler: exact to the byte.

The allocator itself reports each block to `torch.profiler(profile_memory=True)`, scratch inside kernels
included, so nothing is estimated. The event tree is read rather than `kineto_results.events()` or the
running total `total_allocated`, because it alone names the address of a block: the allocator's table of
sizes outlives a profile, and a block that was freed after one profile and handed out again before the next
would otherwise be subtracted from a step that never made it. `_memory_profile().timeline` needs shapes and
stacks, which keep tensors alive, and rounds to its own categories.
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
    with quiet_gc(), profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as prof:
        result = work()
    profiler = prof.profiler
    assert profiler is not None
    assert profiler.kineto_results is not None
    return result, _replay(_host_blocks(profiler.kineto_results.experimental_event_tree()))


def _host_blocks(roots: list[Any]) -> list[tuple[int, int]]:
    """(address, bytes) of each allocation, (address, negative bytes) of each free, in order of time."""
    found: list[tuple[int, int, int]] = []
    pending = list(reversed(roots))
    while pending:
        event = pending.pop()
        pending.extend(reversed(event.children))
        if event.tag == _EventType.Allocation and event.extra_fields.device.type == "cpu":
            fields = event.extra_fields
            found.append((event.start_time_ns, fields.ptr, fields.alloc_size))
    found.sort(key=lambda entry: entry[0])
    return [(address, size) for _, address, size in found]


def _replay(blocks: list[tuple[int, int]]) -> Timeline:
    live: dict[int, int] = {}
    now = peak = 0
    for address, size in blocks:
        if size > 0:
            live[address] = size
            now += size
            peak = max(peak, now)
        elif address in live:
            now -= live.pop(address)
    return Timeline(peak_bytes=peak, live_bytes=now, live_blocks=live)
