"""One thread and one seed for every test of the nodes; and the backends that a test of values holds for."""

from collections.abc import Iterator
from importlib.util import find_spec

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
        pytest.skip("numba is not installed (pip install revsnn-bench[cpu])")
    name: str = request.param
    return name
