"""The largest T or batch whose training step fits in a budget of bytes, found by bisection on measured peaks.

Peaks lie on lines wherever a node's bytes do, so two probes predict where the budget is met; the answer is always one
that was measured to fit, with the next larger one measured not to, or beyond the limit of the search.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from revsnn_bench.case import Case

Axis = Literal["timesteps", "batch"]
Peak = Callable[[Case], int | None]


@dataclass(frozen=True)
class Fit:
    """What fits.

    Args:
        case: the largest case that fits; None where not even the smallest does.
        peak_bytes: its measured peak.
        next_peak_bytes: the peak of the next larger case, which does not fit; None where it ran out of memory, or where
            the search ended at its limit.
        at_limit: whether larger ones were not tried.
        probes: how many cases were measured.
    """

    case: Case | None
    peak_bytes: int | None
    next_peak_bytes: int | None
    at_limit: bool
    probes: int


def largest_that_fits(case: Case, axis: Axis, budget_bytes: int, peak_of: Peak, limit: int = 1 << 20) -> Fit:
    """Searches one axis of a case.

    Args:
        case: everything but the axis; the axis starts at the case's own value.
        axis: what grows.
        budget_bytes: the peak that may not be passed.
        peak_of: measured peak bytes of a case; None where it ran out of memory.
        limit: largest value to try.
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
    low, high = start, limit + 1  # low fits, high does not or is not tried
    guess = 2 * start
    while high - low > 1:
        guess = min(max(guess, low + 1), high - 1)
        if fits(guess):
            low = guess
        else:
            high = guess
        guess = _next_guess(peaks, low, high, budget_bytes)
    return Fit(
        case.model_copy(update={axis: low}),
        peaks[low],
        peaks.get(high),
        at_limit=low == limit,
        probes=len(peaks),
    )


def _next_guess(peaks: dict[int, int | None], low: int, high: int, budget_bytes: int) -> int:
    """Where a line through two probes meets the budget; every other time the middle, so that any growth converges."""
    ends = [value for value in (low, high) if peaks.get(value) is not None]
    if high in peaks and (len(peaks) % 2 or len(ends) < 2):
        return (low + high) // 2
    if len(ends) < 2:
        ends = sorted(value for value, peak in peaks.items() if peak is not None and value <= low)[-2:]
    if len(ends) < 2:
        return 2 * low
    y0, y1 = (peaks[value] or 0 for value in ends)
    if y1 <= y0:
        return 2 * low
    return ends[0] + (budget_bytes - y0) * (ends[1] - ends[0]) // (y1 - y0)
