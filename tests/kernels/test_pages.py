"""Pages of large results."""

import mmap
import sys

import pytest
import torch
from revsnn_nodes.kernels.cpu import machine as pages

if sys.platform == "win32":
    pytest.skip("there is no count of page faults", allow_module_level=True)

import resource

MADV_POPULATE_WRITE = 23

LARGE = pages.FRESH_BYTES // 4 + 1_000_003


def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def new_pages(elements):
    """A tensor on a mapping of its own: the C library may hand out memory that was written before."""
    mapping = mmap.mmap(-1, 4 * elements, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(mapping, dtype=torch.float32)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the advice is Linux's")
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_pages_of_a_large_result_are_there_before_it_is_written(threads):
    """Filling it afterwards meets none that is missing, where without preparation it meets every large page."""
    region = mmap.mmap(-1, mmap.PAGESIZE)
    try:
        region.madvise(MADV_POPULATE_WRITE)
    except OSError:
        pytest.skip("Linux before 5.14 does not know this advice")
    torch.set_num_threads(threads)
    met = {}
    for prepared in (False, True):
        tensor = new_pages(LARGE)
        if prepared:
            pages.prepare(tensor)
        before = faults()
        tensor.fill_(1)
        met[prepared] = faults() - before
    assert met[True] < 16 < met[False] + 8


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the advice is Linux's")
def test_pages_are_asked_for_on_the_threads_of_torchs_operators(monkeypatch):
    """Those wait by spinning: a thread of Python's beside them would be one more than there are cores."""
    calls = []
    monkeypatch.setattr(pages, "_has_team", lambda: True)
    monkeypatch.setattr(pages, "_populate", lambda *given: calls.append(given))
    monkeypatch.setattr(pages, "in_pool", None)
    torch.set_num_threads(2)
    tensor = new_pages(LARGE)
    pages.prepare(tensor)
    ((begin, end, first, last, size, threads),) = calls
    assert begin <= tensor.data_ptr() < tensor.data_ptr() + tensor.nbytes <= end
    assert (first, threads) == (0, 2)
    assert size < last == -(-end // (2 << 20)) - begin // (2 << 20)


@pytest.mark.parametrize("elements", [0, 1, pages.LARGE_BYTES // 4, LARGE])
def test_preparing_changes_no_value(elements):
    """Also of memory that was written before, and of a part of it."""
    tensor = torch.arange(elements, dtype=torch.int32)
    pages.prepare(tensor[elements // 3 :])
    assert torch.equal(tensor, torch.arange(elements, dtype=torch.int32))
