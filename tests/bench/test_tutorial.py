"""docs/tutorial.md is examples/tutorial.py with what it prints, cell by cell.

`REVSNN_WRITE_PAGES=1 pytest tests/bench/test_tutorial.py` writes the page.
"""

import gc
import io
import os
import re
import warnings
from contextlib import redirect_stdout
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples" / "tutorial.py"
PAGE = ROOT / "docs" / "tutorial.md"
NOTE = "<!-- Written by tests/bench/test_tutorial.py from examples/tutorial.py: change that. -->\n"


def cells():
    """Kind and text of each cell of the script."""
    for part in re.split(r"^# %%", SCRIPT.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        kind, _, text = part.partition("\n")
        prose = "markdown" in kind
        yield prose, re.sub(r"^# ?", "", text, flags=re.MULTILINE).strip() if prose else text.strip()


def written():
    """The page, from a run of every cell in one namespace."""
    names, parts = {"__name__": "__tutorial__"}, [NOTE]
    for prose, text in cells():
        if prose:
            parts.append(f"{text}\n")
            continue
        printed = io.StringIO()
        with redirect_stdout(printed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gc.freeze()  # measuring bytes asks for many collections: what is there already is left out of them
            exec(compile(text, str(SCRIPT), "exec"), names)
        gc.unfreeze()
        parts.append(f"```python\n{text}\n```\n")
        if printed.getvalue():
            parts.append(f"```text\n{printed.getvalue().rstrip()}\n```\n")
    return "\n".join(parts)


PEAK = r"((?:as it is|inside remat|without a plan): +)([\d.]+) MiB"
"""What is printed of the peak of a network, in which is the scratch of convolutions."""


def compared(page):
    """A page without what differs from machine to machine: seconds, an error's first digit, a network's peaks."""
    page = re.sub(r"[\d.]+ ms\b", "… ms", page)
    page = re.sub(PEAK, r"\1… MiB", page)
    return re.sub(r"(error|predicted) \de([-+]\d\d)", r"\1 …e\2", page)


def test_the_page_shows_what_the_script_prints():
    """Bytes, operations, bits and plans exactly, gradient errors to their order; times are not compared.

    Peaks of a network may be higher by what the page says of processors with AVX-512.
    """
    page = written()
    if os.environ.get("REVSNN_WRITE_PAGES"):
        PAGE.write_text(page, encoding="utf-8")
    shown = PAGE.read_text(encoding="utf-8")
    assert compared(page) == compared(shown)
    peaks, shown_peaks = ([float(mib) for _, mib in re.findall(PEAK, text)] for text in (page, shown))
    assert "AVX-512 a network's peaks are 0.01 to 0.02 MiB higher" in shown
    assert {round(new - old, 2) for new, old in zip(peaks, shown_peaks, strict=True)} <= {0.0, 0.01, 0.02}
