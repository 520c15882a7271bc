"""Every allocation of tensors in a stretch of code, read from the profiler: exact to the byte; a ledger of blocks.

The allocator itself reports each block to a profiler with `profile_memory=True`, scratch inside kernels
included, so nothing is estimated. The event tree is read rather than `kineto_results.events()` or the
running total `total_allocated`, because it alone names the address of a block: the allocator's table of
sizes outlives a profile, and a block that was freed after one profile and handed out again before the next
would otherwise be subtracted from a step that never made it. `_memory_profile()` refuses to
run without recording shapes and stacks, which nothing here needs. The profiler of `torch.autograd` is used, which
`torch.profiler` wraps: it leaves the events as they are, where the wrapper turns each into Python objects at
once (0.3 s a pass).
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, TypeVar

from torch._C._autograd import _enable_profiler
from torch._C._profiler import RecordScope, _ExtraFields_Allocation
from torch.autograd.profiler import _run_on_profiler_start, profile, record_function

from revsnn_bench.records import MemoryTimeline
from revsnn_bench.system.process import quiet_gc

Result = TypeVar("Result")

Event = tuple[Any, Any]
"""One of the profiler's events, and the block that it says was made or freed; None where it tells of something else."""

# The profiler's own log would print two lines per profile on stderr.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

MOST_EVENTS = 128
"""Events kept of one step: more than a figure shows, few enough for every record of a sweep."""


@dataclass
class Ledger:
    """What was allocated and freed, in order, and which blocks were alive at the highest point.

    Blocks are numbered in the order in which they were made; a key, such as an address, names one while it lives.

    Fields:
        keys, sizes: key and bytes of each block.
        log: number of the block of each event, and the bytes by which it changed what is alive.
        live: number of each block that is alive, by key.
        live_bytes, peak_bytes: bytes alive, and the highest that they were.
        at_peak: numbers of the blocks that were alive then; complete after `settle`.
        where: what the caller said of the place of the allocation that reached the peak.
    """

    keys: list[Any] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    log: list[tuple[int, int]] = field(default_factory=list)
    live: dict[Any, int] = field(default_factory=dict)
    live_bytes: int = 0
    peak_bytes: int = 0
    at_peak: set[int] = field(default_factory=set)
    where: Any = None
    rising: bool = False

    def allocate(self, key: Any, nbytes: int, where: Any = None) -> None:
        """A block was made."""
        self.live[key] = len(self.sizes)
        self.log.append((len(self.sizes), nbytes))
        self.keys.append(key)
        self.sizes.append(nbytes)
        self.live_bytes += nbytes
        if self.live_bytes > self.peak_bytes:
            self.peak_bytes, self.where, self.rising = self.live_bytes, where, True

    def free(self, key: Any) -> None:
        """A block was freed; one that is older than the ledger is passed over."""
        if key in self.live:
            self.settle()
            number = self.live.pop(key)
            self.log.append((number, -self.sizes[number]))
            self.live_bytes -= self.sizes[number]

    def book(self, block: Any, where: Any = None) -> None:
        """A block was made or freed, as the profiler tells of it; `where` as in `allocate`."""
        if block.alloc_size > 0:
            self.allocate(block.ptr, block.alloc_size, where)
        else:
            self.free(block.ptr)

    def begin(self) -> None:
        """Forgets what went before, but for the blocks that are alive."""
        self.log, self.rising, self.where = [(number, self.sizes[number]) for number in self.live.values()], True, None
        self.peak_bytes = self.live_bytes

    def settle(self) -> None:
        """Copies the set of live blocks where a rise ended: once per rise, not at every allocation."""
        if self.rising:
            self.at_peak, self.rising = set(self.live.values()), False

    def timeline(self, category: Callable[[int], str], forward_events: int) -> MemoryTimeline:
        """Live bytes by category after each kept event; no maximum is lost."""
        kept = self._kept(forward_events)
        now: dict[str, int] = {}
        changes: dict[str, list[tuple[int, int]]] = {}
        for event, (number, change) in enumerate(self.log, start=1):
            now[category(number)] = now.get(category(number), 0) + change
            if event in kept:
                for name, nbytes in now.items():
                    course = changes.setdefault(name, [])
                    if nbytes != (course[-1][1] if course else 0):
                        course.append((event, nbytes))
        live = {name: tuple(course) for name, course in sorted(changes.items()) if course}
        return MemoryTimeline(events=len(self.log), forward_events=forward_events, live_bytes=live)

    def _kept(self, forward_events: int) -> set[int]:
        """The highest event of each stretch of equal length, and the last one of forward and of the step."""
        totals, events = [0], len(self.log)
        for _, change in self.log:
            totals.append(totals[-1] + change)
        # No stretch reaches from forward into backward, so there may be one more of each; the two ends are added.
        length = max(1, -(-events // (MOST_EVENTS - 4)))
        kept = {forward_events, events} - {0}
        for first, last in ((1, forward_events), (forward_events + 1, events)):
            for start in range(first, last + 1, length):
                kept.add(max(range(start, min(start + length, last + 1)), key=totals.__getitem__))
        return kept


_END = "end of what is measured"


class _BlocksAlone(profile):
    """The profiler without operators, which are most of its events and its time; marks of `record_function` stay."""

    def _start_trace(self) -> None:
        self.entered = True
        _run_on_profiler_start()
        kinds = {RecordScope.USER_SCOPE}  # an argument that torch's stub lacks
        _enable_profiler(self.config(create_trace_id=False), self.kineto_activities, kinds)  # type: ignore[call-arg]


@contextmanager
def _profiled(profiler: type[profile]) -> Iterator[profile]:
    """Inside, blocks are noted, to be read by `_events_of` once the block has ended."""
    with profiler(profile_memory=True) as prof:
        yield prof
        with record_function(_END):
            pass


@contextmanager
def watch_timeline(device: str = "cpu") -> Iterator[Ledger]:
    """Watches the code of a `with` block; objects that are alive where it ends count as live.

    The ledger has the blocks that were allocated inside on devices of a type, once the block has ended.
    """
    ledger = Ledger()
    with quiet_gc():
        with _profiled(_BlocksAlone) as prof:
            yield ledger
        for _, block in _events_of(prof, device):
            if block is not None:
                ledger.book(block)
        ledger.settle()


def record_timeline(work: Callable[[], Result], device: str = "cpu") -> tuple[Result, Ledger]:
    """Runs `work` under the profiler, which tells of the blocks of one type of device.

    Returns:
        What `work` returned, still alive at the end of the ledger, and the ledger. Frees of blocks that
        are older than the call are not in it: drop what may be freed before.
    """
    with watch_timeline(device) as ledger:
        result = work()
    return result, ledger


def profiled_events(work: Callable[[], Result], device: str) -> tuple[Result, list[Event]]:
    """What `record_timeline` reads and operators: the profiler's events in order of time, on a device its blocks."""
    with quiet_gc(), _profiled(profile) as prof:
        result = work()
    return result, _events_of(prof, device)


def _events_of(prof: profile, device: str) -> list[Event]:
    """The profiler's events in order of time; blocks of other devices are left out.

    A long step has a million of them, and each question to one is a call into C++: none is asked twice.

    Raises:
        RuntimeError: another session of torch's profiler has ended this one, which would read as a step of no bytes.
    """
    found: list[tuple[int, Any, Any]] = []
    assert prof.kineto_results is not None
    pending: list[Any] = list(reversed(prof.kineto_results.experimental_event_tree()))
    is_whole = False
    while pending:
        event = pending.pop()
        block = event.extra_fields
        if type(block) is not _ExtraFields_Allocation:  # blocks have no children
            pending.extend(reversed(event.children))
            is_whole = is_whole or event.name == _END
            found.append((event.start_time_ns, event, None))
        elif block.device.type == device:
            found.append((event.start_time_ns, event, block))
    if not is_whole:
        raise RuntimeError(
            "torch's profiler must not run inside of what is measured; it did. One profile ends the other, and no "
            "bytes would be counted. Take it out of there."
        )
    found.sort(key=itemgetter(0))
    return [(event, block) for _, event, block in found]
