"""Samples taken in a worker, put into pytest-benchmark through its public options: a timer that replays them."""

from collections.abc import Iterable
from typing import Any

from revsnn_bench.metrics import measured
from revsnn_bench.records import Record


class ReplayTimer:
    """A clock for pytest-benchmark: read in pairs, each pair is one sample apart."""

    def __init__(self) -> None:
        self._readings: list[float] = []
        self._now = 0.0

    def load(self, samples_s: Iterable[float]) -> None:
        """Sets the samples that come next."""
        for sample in samples_s:
            self._readings += [self._now, self._now + sample]
            self._now += sample

    def __call__(self) -> float:
        """The next reading, in seconds."""
        return self._readings.pop(0) if self._readings else self._now


def replay(benchmark: Any, timer: ReplayTimer, record: Record) -> None:
    """Gives a record's step times to the `benchmark` fixture, and everything else to its `extra_info`.

    Only the first case of a test reaches pytest-benchmark's statistics, which hold one benchmark per test.
    """
    benchmark.extra_info[record.case.id] = {"status": record.status.value, **measured(record)}
    if record.time is None or benchmark.stats is not None or benchmark.disabled:
        return
    samples = [f + b for f, b in zip(record.time.forward_time_s, record.time.backward_time_s, strict=True)]
    timer.load(samples)
    benchmark.pedantic(lambda: None, rounds=len(samples), iterations=1)
