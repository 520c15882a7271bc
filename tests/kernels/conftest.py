"""The kernel tests need numba; each starts from one seed."""

from collections.abc import Iterator

import pytest
import torch

pytest.importorskip("numba")


@pytest.fixture(autouse=True)
def _one_seed() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
