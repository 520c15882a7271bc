"""The life of memory blocks in order of time: their peak, and how live bytes rise and fall, thinned to few events."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from revsnn_bench.records import MemoryTimeline

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
        now, peak: bytes alive, and the highest that they were.
        at_peak: numbers of the blocks that were alive then; complete after `settle`.
        where: what the caller said of the place of the allocation that reached the peak.
    """

    keys: list[Any] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    log: list[tuple[int, int]] = field(default_factory=list)
    live: dict[Any, int] = field(default_factory=dict)
    now: int = 0
    peak: int = 0
    at_peak: set[int] = field(default_factory=set)
    where: Any = None
    rising: bool = False

    def allocate(self, key: Any, nbytes: int, where: Any = None) -> None:
        """A block was made."""
        self.live[key] = len(self.sizes)
        self.log.append((len(self.sizes), nbytes))
        self.keys.append(key)
        self.sizes.append(nbytes)
        self.now += nbytes
        if self.now > self.peak:
            self.peak, self.where, self.rising = self.now, where, True

    def free(self, key: Any) -> None:
        """A block was freed; one that is older than the ledger is passed over."""
        if key in self.live:
            self.settle()
            number = self.live.pop(key)
            self.log.append((number, -self.sizes[number]))
            self.now -= self.sizes[number]

    def settle(self) -> None:
        """Copies the set of live blocks where a rise ended: once per rise, not at every allocation."""
        if self.rising:
            self.at_peak, self.rising = set(self.live.values()), False

    def timeline(self, category: Callable[[int], str], forward_events: int) -> MemoryTimeline:
        """Live bytes by category after each kept event; no maximum is lost.

        Args:
            category: names the part that a block plays, by its number.
            forward_events: how many events of the log are forward's.
        """
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
