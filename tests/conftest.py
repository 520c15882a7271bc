"""What holds for all tests: idle threads sleep, and tests of times can be told from the others."""

import os

import pytest

# Before torch is imported, here and in every process that a test starts. OpenMP's threads else spin while they wait,
# and a small operation takes many times as long where two test processes share two cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

_TIMING = ("test_timing.py", "test_compiling.py", "test_small_sizes.py")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of these files as `timing`: they compare times, so that nothing may run beside them."""
    for item in items:
        if item.path.name in _TIMING:
            item.add_marker("timing")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A call for the tests with, or without, the marker succeeds where the arguments leave it none."""
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and "timing" in session.config.option.markexpr:
        session.exitstatus = pytest.ExitCode.OK
