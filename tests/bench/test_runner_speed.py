"""What the runner adds to a case."""

import importlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from revsnn_bench import Case
from revsnn_bench.records import Status
from revsnn_bench.runner import Runner

MEASURES = Path(__file__).parent / "measures"
CASE = Case(node="lif")


def _seconds(act: Callable[[], object]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def test_overhead_is_far_below_that_of_a_new_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the server is up, a case that does nothing takes less than a quarter of starting Python with torch."""

    def start_python() -> object:
        return subprocess.run([sys.executable, "-c", "import torch"], check=True)

    monkeypatch.syspath_prepend(MEASURES)
    measure = importlib.import_module("sample_measures").succeed
    with Runner(measure, timeout_s=30, preload=("torch",), threads=2) as runner:
        assert runner.run(CASE, None).status is Status.OK
        rounds = [(_seconds(lambda: runner.run(CASE, None)), _seconds(start_python)) for _ in range(3)]
    case_s, python_s = (statistics.median(times) for times in zip(*rounds, strict=True))
    assert case_s < python_s / 4
