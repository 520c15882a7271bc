"""Large pages for large results: the first write to a small page costs more than the arithmetic of its elements."""

import ctypes
import mmap
import sys
from functools import cache
from typing import Any

from torch import Tensor

LARGE_BYTES = 8 << 20
"""Smaller results often lie in memory that was written before."""

_PAGE = mmap.PAGESIZE
_MADV_HUGEPAGE = 14


@cache
def _madvise() -> Any:
    """The system call, or None where there is none of this meaning."""
    if not sys.platform.startswith("linux"):
        return None
    function = getattr(ctypes.CDLL(None, use_errno=True), "madvise", None)
    if function is not None:
        function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function


def advise_large_pages(tensor: Tensor) -> None:
    """Asks the kernel to back a fresh CPU tensor by pages of 2 MiB, as torch does under THP_MEM_ALLOC_ENABLE=1.

    Advice only: it changes no byte, and may be refused. It covers the small pages that the tensor begins and ends in,
    so that a mapping made for it alone is covered as a whole: parts of large pages at its ends would stay small.
    """
    if tensor.nbytes < LARGE_BYTES or (madvise := _madvise()) is None:
        return
    start = tensor.data_ptr() // _PAGE * _PAGE
    stop = -(-(tensor.data_ptr() + tensor.nbytes) // _PAGE) * _PAGE
    madvise(start, stop - start, _MADV_HUGEPAGE)
