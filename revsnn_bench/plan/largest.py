"""The largest T or batch whose training step fits in a budget of bytes, found by bisection on measured peaks.

Peaks grow in a line wherever a node's bytes do, so that two measurements predict where the budget is met. What is
returned was measured to fit; the next larger value was measured not to, or is beyond the limit of the search.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from revsnn_bench.case import Case

Axis = Literal["timesteps", "batch"]
Peak = Callable[[Case], int | None]


@dataclass(frozen=True)
class Fit:
    """The largest case that fits, None where not even the smallest does, found by so many measurements.

    `next_peak_bytes` is that of the next larger case, which does not fit; None where it ran out of memory, or where the
    search ended at its limit.
    """

    case: Case | None
    peak_bytes: int | None
    next_peak_bytes: int | None
    at_limit: bool
    probes: int


def largest_that_fits(
    case: Case, axis: Axis, budget_bytes: int, peak_of: Peak, limit: int = 1 << 20, guess: int | None = None
) -> Fit:
    """Searches one axis of a case.

    Args:
        case: everything but the axis, whose smallest value is the case's own.
        budget_bytes: largest peak that fits.
        peak_of: measured peak bytes of a case; None where it ran out of memory.
        limit: largest value to try.
        guess: a value to try first, with the one after it: two measurements then decide where it is right.
    Returns:
        The largest value that fits. Peaks must not fall as the axis grows.
    Raises:
        ValueError: a budget below 1 byte, or a limit below the start.
    """
    start: int = getattr(case, axis)
    if budget_bytes < 1 or limit < start:
        raise ValueError(
            f"`budget_bytes` must be at least 1 and `limit` at least the start {start}; got {budget_bytes} and "
            f"{limit}. There is nothing to search. Pass a larger budget, or a case with a smaller start."
        )
    peaks: dict[int, int | None] = {}

    def fits(value: int) -> bool:
        if value not in peaks:
            peaks[value] = peak_of(case.model_copy(update={axis: value}))
        peak = peaks[value]
        return peak is not None and peak <= budget_bytes

    if not fits(start):
        return Fit(None, None, peaks[start], at_limit=False, probes=len(peaks))
    low, high = start, limit + 1  # low fits; high does not, or is not tried
    for value in () if guess is None else (guess, guess + 1):
        if low < value < high:
            low, high = (value, high) if fits(value) else (low, value)
    while high - low > 1:
        value = min(max(_next_value(peaks, low, high, budget_bytes), low + 1), high - 1)
        low, high = (value, high) if fits(value) else (low, value)
    best = case.model_copy(update={axis: low})
    return Fit(best, peaks[low], peaks.get(high), at_limit=low == limit, probes=len(peaks))


def _next_value(peaks: dict[int, int | None], low: int, high: int, budget_bytes: int) -> int:
    """Where a line through two measured peaks meets the budget.

    Between a value that fits and one that does not, every second value is the middle, so that any growth converges.
    """
    if high in peaks and (len(peaks) % 2 or peaks[high] is None):
        return (low + high) // 2
    ends = [low, high] if high in peaks else sorted(peaks)[-2:]
    y0, y1 = (peaks[value] or 0 for value in (ends[0], ends[-1]))
    if y1 <= y0:
        return 2 * low
    return ends[0] + (budget_bytes - y0) * (ends[1] - ends[0]) // (y1 - y0)
