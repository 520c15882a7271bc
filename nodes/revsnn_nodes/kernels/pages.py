"""Memory for large results: the first write to a page costs more than the arithmetic of its elements.

So large pages are asked for, and filled before the kernels run, every page by one thread: two threads that first touch
the same large page would both fill it with zeros, and a kernel that meets page after page leaves the caches to that.
"""

import ctypes
import mmap
import sys
from functools import cache
from typing import Any

from torch import Tensor

from revsnn_nodes.kernels.threads import run_columns

LARGE_BYTES = 8 << 20
"""Smaller results often lie in memory that was written before."""

FRESH_BYTES = 32 << 20
"""Larger ones never do where glibc allocates: it maps each anew."""

_PAGE = mmap.PAGESIZE
_LARGE_PAGE = 2 << 20
_MADV_HUGEPAGE = 14
_MADV_POPULATE_WRITE = 23


@cache
def _madvise() -> Any:
    """The system call, or None where there is none of this meaning."""
    if not sys.platform.startswith("linux"):
        return None
    function = getattr(ctypes.CDLL(None, use_errno=True), "madvise", None)
    if function is not None:
        function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function


def prepare(tensor: Tensor) -> None:
    """Backs a new CPU tensor by pages of 2 MiB where the system has them, and gets the pages of a large one now.

    The first is what torch does under THP_MEM_ALLOC_ENABLE=1. Both are advice: they change no byte that was written,
    and may be refused.
    """
    if tensor.nbytes < LARGE_BYTES or (madvise := _madvise()) is None:
        return
    start = tensor.data_ptr() // _PAGE * _PAGE
    stop = -(-(tensor.data_ptr() + tensor.nbytes) // _PAGE) * _PAGE
    # Also the small pages that the tensor begins and ends in: so a mapping made for it alone is covered as a whole.
    madvise(start, stop - start, _MADV_HUGEPAGE)
    if tensor.nbytes <= FRESH_BYTES:
        return
    origin = start // _LARGE_PAGE

    def populate(first: int, last: int) -> None:
        begin, end = max(start, (origin + first) * _LARGE_PAGE), min(stop, (origin + last) * _LARGE_PAGE)
        madvise(begin, end - begin, _MADV_POPULATE_WRITE)

    run_columns(populate, (), -(-stop // _LARGE_PAGE) - origin, 1, tensor.numel())
