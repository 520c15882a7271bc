"""Readers of a record: each returns one value, or None where it was not measured."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from revsnn_bench.records import Record

Number = int | float
Read = Callable[[Record], Number | None]


@dataclass(frozen=True)
class Samples:
    """Raw samples of a case in seconds, and those of the standard LIF taken in the same rounds."""

    own: tuple[float, ...]
    lif: tuple[float, ...]


def at(path: str) -> Read:
    """Returns a reader of a dotted path that gives None as soon as a part was not measured."""
    parts = path.split(".")

    def read(record: Record) -> Number | None:
        value: Any = record
        for part in parts:
            if value is None:
                return None
            value = getattr(value, part)
        number: Number | None = value
        return number

    return read


def total(*paths: str) -> Read:
    """Returns a reader of a sum, which gives None as soon as one term was not measured."""
    readers = [at(path) for path in paths]

    def read(record: Record) -> Number | None:
        values = [reader(record) for reader in readers]
        known = [value for value in values if value is not None]
        return sum(known) if len(known) == len(values) else None

    return read


def phase_samples(phase: Literal["forward", "backward"]) -> Callable[[Record], Samples | None]:
    """Returns a reader of the raw samples of forward or of backward."""

    def samples(record: Record) -> Samples | None:
        if record.time is None:
            return None
        own: tuple[float, ...] = getattr(record.time, f"{phase}_time_s")
        lif: tuple[float, ...] = getattr(record.time, f"lif_{phase}_time_s")
        return Samples(own, lif) if own else None

    return samples


def step_samples(record: Record) -> Samples | None:
    """Forward plus backward round by round; None where the rounds of the two do not match."""
    time = record.time
    if time is None or not time.forward_time_s or len(time.forward_time_s) != len(time.backward_time_s):
        return None
    own = tuple(map(sum, zip(time.forward_time_s, time.backward_time_s, strict=True)))
    matched = len(time.lif_forward_time_s) == len(time.lif_backward_time_s)
    lif = zip(time.lif_forward_time_s, time.lif_backward_time_s, strict=True) if matched else ()
    return Samples(own, tuple(map(sum, lif)))


def in_copies(phase: Literal["forward", "backward"]) -> Read:
    """Returns a reader of a phase's median time over that of copying the input in the same rounds."""

    def read(record: Record) -> Number | None:
        if record.time is None or not record.time.copy_time_s:
            return None
        samples = phase_samples(phase)(record)
        copy = median(record.time.copy_time_s)
        return median(samples.own) / copy if samples is not None and copy else None

    return read


def median_of(samples: Callable[[Record], Samples | None]) -> Read:
    """Returns a reader of the median of the case's own samples."""

    def read(record: Record) -> Number | None:
        taken = samples(record)
        return None if taken is None else median(taken.own)

    return read
