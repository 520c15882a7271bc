"""How live bytes rise and fall over one training step, by category, thinned without losing a maximum."""

from collections.abc import Callable, Sequence

from revsnn_bench.memory_timeline import MemoryTimeline

MOST_EVENTS = 128
"""Events kept of one step: more than a figure shows, few enough for every record of a sweep."""


def timeline_of(
    log: Sequence[int], sizes: Sequence[int], category: Callable[[int], str], forward_events: int
) -> MemoryTimeline:
    """Adds up the life of every block, event by event.

    Args:
        log: +(serial + 1) where a block was made and -(serial + 1) where it was freed, in order.
        sizes: bytes of each block, by serial number.
        category: names the part that a block plays, by serial number.
        forward_events: how many events of the log are forward's.
    """
    kept = _kept(log, sizes, forward_events)
    now: dict[str, int] = {}
    changes: dict[str, list[tuple[int, int]]] = {}
    for event, entry in enumerate(log, start=1):
        serial = abs(entry) - 1
        name = category(serial)
        now[name] = now.get(name, 0) + (sizes[serial] if entry > 0 else -sizes[serial])
        if event in kept:
            for known, nbytes in now.items():
                course = changes.setdefault(known, [])
                if nbytes != (course[-1][1] if course else 0):
                    course.append((event, nbytes))
    live = {name: tuple(course) for name, course in sorted(changes.items()) if course}
    return MemoryTimeline(events=len(log), forward_events=forward_events, live_bytes=live)


def _kept(log: Sequence[int], sizes: Sequence[int], forward_events: int) -> set[int]:
    """The highest event of each stretch of equal length, and the last one of forward and of the step."""
    totals, now = [0], 0
    for entry in log:
        now += sizes[abs(entry) - 1] if entry > 0 else -sizes[abs(entry) - 1]
        totals.append(now)
    # No stretch reaches from forward into backward, so there may be one more of each; the two ends are added.
    length = max(1, -(-len(log) // (MOST_EVENTS - 4)))
    kept = {forward_events, len(log)} - {0}
    for first, last in ((1, forward_events), (forward_events + 1, len(log))):
        for start in range(first, last + 1, length):
            kept.add(max(range(start, min(start + length, last + 1)), key=totals.__getitem__))
    return kept
