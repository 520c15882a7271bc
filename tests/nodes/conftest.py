"""One thread and one seed for every test of the nodes; and the backends that a test of values holds for."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nodes_cases
import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread_one_seed() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["torch", "fused"])
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend that can run here: the oracle and the tolerances are the same for both."""
    if request.param == "fused" and find_spec("numba") is None:
        pytest.skip("numba is not installed (pip install numba)")
    name: str = request.param
    return name


@pytest.fixture
def on_each_backend(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes `nodes_cases.make` give nodes of one backend after the other."""
    monkeypatch.setattr(nodes_cases, "backend", backend)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves out the fused backend of nodes that have no fused kernel, and of float16, for which the CPU has none."""
    items[:] = [item for item in items if Path(__file__).parent != item.path.parent or _can_run(item)]


def _can_run(item: Any) -> bool:
    params = getattr(getattr(item, "callspec", None), "params", {})
    if params.get("backend") != "fused":
        return True
    return params.get("name", "lif") in nodes_cases.FUSED and params.get("dtype") is not torch.float16
