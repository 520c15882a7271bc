"""Runs a kernel over its columns on torch's number of threads.

Kernels release the interpreter's lock, so plain threads run them side by side. numba's own parallel loops are not
used: its thread pools either end a process that forks after them (GNU OpenMP) or may not be entered by two threads
(workqueue). These start at first use, and anew in a forked child.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

SERIAL_ELEMENTS = 1 << 17
"""Elements of a sequence up to which the calling thread does all of the work."""

PIECES_PER_THREAD = 4
"""So that a thread that is held up by other work on the machine leaves its pieces to the others."""

_pool: ThreadPoolExecutor | None = None
_pool_size = 0


def _forget_pool() -> None:
    global _pool, _pool_size
    _pool, _pool_size = None, 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def _helpers(count: int) -> ThreadPoolExecutor:
    global _pool, _pool_size
    if _pool is None or _pool_size < count:
        _pool, _pool_size = ThreadPoolExecutor(count, thread_name_prefix="revsnn"), count
    return _pool


def run_columns(
    kernel: Callable[..., None], arguments: tuple[Any, ...], columns: int, unit: int, elements: int
) -> None:
    """Calls `kernel(*arguments, start, stop)` until all columns are done.

    Args:
        kernel: compiled, and free to run on several threads where their columns differ.
        arguments: what it takes before `start` and `stop`.
        columns: how many there are.
        unit: pieces are whole multiples of this many columns.
        elements: of the sequence; decides whether threads are worth their start.
    """
    threads = torch.get_num_threads()
    if threads == 1 or elements <= SERIAL_ELEMENTS or columns <= unit:
        kernel(*arguments, 0, columns)
        return
    size = max(1, columns // (unit * threads * PIECES_PER_THREAD)) * unit
    pieces = iter(range(0, columns, size))
    # The pool forgets a piece of work a little later than it finishes it, and what the work refers to must not live on.
    shared = [arguments]
    del arguments

    def work(pieces: Iterator[int]) -> None:
        for start in pieces:
            kernel(*shared[0], start, min(start + size, columns))

    pool = _helpers(threads - 1)
    helpers = [pool.submit(work, pieces) for _ in range(threads - 1)]
    try:
        work(pieces)
    finally:
        for helper in helpers:
            if not helper.cancel():  # one that has not woken up yet has nothing left to do
                helper.result()
        shared.clear()
