"""`@pytest.mark.memory_budget(retained="4 MiB", peak="64 MiB")`: a limit on bytes that are exact."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from revsnn_bench.case import parse_size
from revsnn_bench.measuring import memory_doubt
from revsnn_bench.records import Record

_LARGEST = 5


def limits(item: pytest.Item) -> dict[str, int]:
    """The limits in bytes that a test declares, by `retained` and `peak`.

    Raises:
        pytest.UsageError: another keyword, or a size that cannot be read.
    """
    marker = item.get_closest_marker("memory_budget")
    if marker is None:
        return {}
    if marker.args or not marker.kwargs or not set(marker.kwargs) <= {"retained", "peak"}:
        raise pytest.UsageError('memory_budget takes retained="4 MiB", peak="64 MiB", or both')
    try:
        return {name: parse_size(size) for name, size in marker.kwargs.items()}
    except ValueError as error:
        raise pytest.UsageError(f"memory_budget: {error}") from None


def check(item: pytest.Item, record: Record) -> None:
    """Fails the test where a measured case takes more than the test allows, or memory that was not all counted."""
    if limits(item) and (doubt := memory_doubt(record.case, record.memory)):
        pytest.fail(f"{record.case.id}: memory_budget cannot be held: {doubt}", pytrace=False)
    for name, limit in limits(item).items():
        if record.memory is None:
            pytest.fail(f"{record.case.id}: memory_budget needs the memory pass, which did not run", pytrace=False)
        if name == "retained":
            saved = record.memory.saved_bytes
            parts = {"saved, own": saved.own, "aliasing the input": saved.input, "aliasing the output": saved.output}
            _hold(record.case.id, name, record.memory.retained_bytes, limit, parts)
        else:
            _hold(record.case.id, name, record.memory.peak_bytes, limit, record.memory.peak_by_category_bytes)


def applies_to_test(item: pytest.Item) -> bool:
    """Whether the budget holds for the test itself, because it measures no case."""
    return bool(limits(item)) and "measure_case" not in getattr(item, "fixturenames", ())


@contextmanager
def watched(item: pytest.Item) -> Iterator[None]:
    """Runs the test's body under the allocator's timeline, which gives the peak and the rest of its host tensors."""
    from revsnn_bench.meters.allocator import watch_timeline

    with watch_timeline() as ledger:
        yield
    found = {"peak": ledger.peak_bytes, "retained": ledger.live_bytes}
    blocks = {"peak": ledger.at_peak, "retained": ledger.live.values()}
    for name, limit in limits(item).items():
        sizes = sorted((ledger.sizes[number] for number in blocks[name]), reverse=True)
        _hold(item.name, name, found[name], limit, {f"block {i + 1}": size for i, size in enumerate(sizes)})


def _hold(what: str, name: str, found: int, limit: int, parts: dict[str, int]) -> None:
    if found <= limit:
        return
    largest = sorted(parts.items(), key=lambda part: part[1], reverse=True)[:_LARGEST]
    contributors = ", ".join(f"{part} {size:,} B" for part, size in largest if size)
    pytest.fail(
        f"{what}: {name} memory is {found:,} B, {found - limit:,} B over the budget of {limit:,} B. "
        f"Largest contributors: {contributors or 'none known'}",
        pytrace=False,
    )
