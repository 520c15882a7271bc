"""Numbers and foreign text as people read them; raw values never pass through here on their way to a file."""

import math
import re
from collections.abc import Collection, Sequence
from statistics import mean, stdev

from revsnn_bench.metrics import BY_NAME, Metric, Number
from revsnn_bench.records import Record

ABSENT = "–"
"""Shown where nothing was measured, or where a value is withheld: never 0, never a NaN."""

NOT_FINITE = "not finite"
BINARY = ("B", "KiB", "MiB", "GiB", "TiB")
_DECIMAL = ("", "k", "M", "G", "T", "P")
_LONGEST_REASON = 300
"""Characters; a sentence that names argument, value and remedy has fewer."""


def scaled(value: Number, base: int, units: Sequence[str]) -> str:
    """Returns a value with the largest unit that leaves at least 1, exact below the first step, a half rounded up."""
    magnitude, index = abs(float(value)), 0
    # 999.995 would print as 1000.00: the threshold is what still prints below the base.
    while magnitude >= base - 0.005 and index < len(units) - 1:
        magnitude, index = magnitude / base, index + 1
    if index == 0:
        return f"{value:g} {units[0]}".strip()
    return f"{math.copysign(math.floor(100 * magnitude + 0.5) / 100, value):.2f} {units[index]}"


def size(nbytes: Number) -> str:
    """Returns bytes in the largest binary unit that leaves at least 1."""
    return scaled(nbytes, 1024, BINARY)


def measured(name: str, record: Record) -> str:
    """Returns what a record holds of a metric."""
    return number(BY_NAME[name], BY_NAME[name].read(record))


def number(metric: Metric, value: Number | None) -> str:
    """Returns one value of a metric in the metric's own unit, MiB meaning 2^20 bytes."""
    if value is None:
        return ABSENT
    if not math.isfinite(value):
        return NOT_FINITE
    if metric.unit == "B":
        return size(value)
    if metric.unit == "FLOP":
        return scaled(value, 1000, [f"{prefix}FLOP" for prefix in _DECIMAL])
    if metric.unit == "s":
        return seconds(value)
    if metric.family == "time":
        return times(value)
    if metric.family == "accuracy":
        return f"{100 * value:.1f} %"
    return f"{value}" if isinstance(value, int) else f"{value:.1e}"


def fraction(value: Number) -> str:
    """Returns a pure number near 1, such as a cosine, with two decimals."""
    return f"{value:.2f}" if math.isfinite(value) else NOT_FINITE


def seconds(value: Number) -> str:
    """Returns a duration in s, ms or µs."""
    for factor, unit in ((1, "s"), (1e3, "ms")):
        if abs(value) * factor >= 1 - 5e-6:  # 999.995 ms would print as 1000.00 ms
            return f"{value * factor:.2f} {unit}"
    return f"{value * 1e6:.2f} µs"


def times(value: Number) -> str:
    """Returns a ratio at three significant digits, without an exponent."""
    if not math.isfinite(value):
        return NOT_FINITE
    if value == 0:
        return "0"
    value = float(f"{value:.3g}")  # 0.09999 is 0.100
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 6)}f}"


def percent(fraction: Number) -> str:
    """Returns a fraction in percent."""
    return f"{100 * fraction:.1f} %" if math.isfinite(fraction) else NOT_FINITE


def spread(fractions: Collection[float]) -> str:
    """Returns a mean in percent, and of several the deviation: `97.2 ± 0.4 %`."""
    deviation = f" ± {100 * stdev(fractions):.1f}" if len(fractions) > 1 else ""
    return f"{100 * mean(fractions):.1f}{deviation} %"


def one_line(text: object) -> str:
    """Returns foreign text as one printable line: no newlines, no control or escape characters."""
    line = str(text)
    if not line.isprintable():
        line = "".join(c if c.isprintable() else " " for c in line)
    return " ".join(line.split())


def reason(text: str | None) -> str:
    """Returns the first paragraph of a reason, which its user is to read, as one line; a traceback may follow it."""
    line = one_line((text or "").strip().partition("\n\n")[0])
    return line if len(line) <= _LONGEST_REASON else f"{line[:_LONGEST_REASON]}…"


def markdown(text: object) -> str:
    """Returns foreign text as one line that Markdown shows word for word, in a table cell too."""
    line = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"([\\`*\[\]|]|~(?=~)|(?<!\w)_|_(?!\w))", r"\\\1", line)
    return re.sub(r"^(#+|[-+](?=\s)|\d+(?=[.)]\s))", r"\\\1", line)


def listing(values: Sequence[object]) -> str:
    """Returns values as `a, b and c`."""
    words = [str(value) for value in values]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""
