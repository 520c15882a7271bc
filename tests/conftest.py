"""What holds for all tests: idle threads and old objects rest, and tests of times can be told from the others."""

import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

# Before torch is imported, here and in every process that a test starts. OpenMP's threads else spin while they wait,
# and a small operation takes many times as long where two test processes share two cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if "PYTEST_XDIST_WORKER" in os.environ:
    # No fewer test processes than cores: threads of each would wait for those of the others, a seventh of the time.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


# Until all tests are collected: it would go through all that is imported again and again.
gc.disable()

_SERVERS = "REVSNN_TEST_SERVERS"


def pytest_configure(config: pytest.Config) -> None:
    """One folder for the processes that all test processes share: see tests/bench/warm_servers.py."""
    if not hasattr(config, "workerinput"):
        os.environ[_SERVERS] = tempfile.mkdtemp(prefix=f"revsnn-{os.getpid()}-")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Without the folder they end, as they do without the process that its name tells."""
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ[_SERVERS])


_MUCH = 256 << 20
_held = [0]


@pytest.fixture(scope="module", autouse=True)
def _without_garbage() -> Iterator[None]:
    """What the tests of some files leave is collected once it is much: a collection takes half a second."""
    yield
    process = psutil.Process()
    if process.memory_info().rss > _held[0] + _MUCH:
        gc.unfreeze()
        gc.collect()
        _held[0] = process.memory_info().rss


@pytest.fixture(autouse=True)
def _rested() -> None:
    """Meters collect garbage before they read. Beside modules, kernels and tests that takes most of a second."""
    gc.freeze()


_TIMING = ("test_timing.py", "test_small_sizes.py", "test_runner_speed.py")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """A run of the tests of times alone does not import the other files."""
    others = collection_path.suffix == ".py" and collection_path.name not in (*_TIMING, "conftest.py", "__init__.py")
    return True if config.option.markexpr == "timing" and others else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of these files as `timing`: they compare times, so that nothing may run beside them."""
    for item in items:
        if item.path.name in _TIMING:
            item.add_marker("timing")


def pytest_collection_finish() -> None:
    """The tests run with the collector on."""
    gc.enable()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A call for the tests with, or without, the marker succeeds where the arguments leave it none."""
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and "timing" in session.config.option.markexpr:
        session.exitstatus = pytest.ExitCode.OK
