"""The machine below the CPU kernels: how they are compiled and cached, run on threads, and read and write memory.

Threads. A kernel's columns are shared out among the OpenMP threads that run torch's own operators. These wait for the
next operator by spinning: they begin at once, and threads of our own would have to share the cores with them, and wait
for each other at the interpreter's lock. Such threads, a pool, stand in where there is no GNU OpenMP (Windows), and in
a child that was forked after a kernel had run on several threads: it has none of its parent's. numba's parallel loops
are not used: their pools either end a process that forks after them or may not be entered by two threads.

Pages. The first write to a page costs more than the arithmetic of its elements. So large pages are asked for, and
filled before the kernels run, every page by one thread: two threads that first touch the same large page would both
fill it with zeros.

Streaming. A processor fetches ahead by itself, but only within a page of 4 KiB, and it reads a line before it writes
it. So rows of a sequence too large for the caches are done in pieces of `PIECE` columns: with each, the kernel asks for
the piece that comes a row later (`read_ahead`, `write_ahead`), and a forward pass writes its results past the caches
(`stream`). A gradient is not written so: its arithmetic takes longer, and the writes would hold up what is being read.
"""

import ast
import ctypes
import gc
import hashlib
import mmap
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba
import torch
from llvmlite import ir
from numba.core import caching, cgutils, types
from numba.core.compiler import Compiler
from numba.core.registry import cpu_target
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array
from torch import Tensor

# numba loads what it can compile when it first does, or finds what it had compiled: 180 modules, a quarter of a second.
# Here, a process that is forked later need not do so again.
cpu_target.typing_context.refresh()
cpu_target.target_context.refresh()


class _Disjoint(Compiler):
    """Tells LLVM that a function's arrays do not overlap where one of them is written: callers keep to that.

    Else it compares every pair of them before each loop, which costs more than a short row takes, and gives up making
    vector instructions where there are many.
    """

    def __init__(self, typingctx: Any, targetctx: Any, library: Any, args: Any, returns: Any, flags: Any, local: Any):
        flags = flags.copy()
        flags.noalias = True
        super().__init__(typingctx, targetctx, library, args, returns, flags, local)

    def compile_extra(self, func: Any) -> Any:
        """Compiles, while the garbage collector rests: going through all that it builds took a quarter of the time."""
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            return super().compile_extra(func)
        finally:
            if was_enabled:
                gc.enable()


_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "pipeline_class": _Disjoint}
# No error_model="python": its check for division by zero keeps loops from being vectorised.


_PACKAGE = Path(__file__).resolve().parents[1]
_PACKAGE_NAME = "revsnn_nodes.kernels"


def sources(file: Path) -> set[Path]:
    """The file, and what it imports of `revsnn_nodes.kernels`, directly or not: all that its kernels call."""
    found, waiting = set(), [file.resolve()]
    while waiting:
        file = waiting.pop()
        if file in found:
            continue
        found.add(file)
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(_PACKAGE_NAME):
                folder = _PACKAGE.joinpath(*(node.module or "").split(".")[2:])
                names = [folder.with_suffix(".py"), *(folder / f"{name.name}.py" for name in node.names)]
                waiting += [name for name in names if name.is_file()]
    return found


@cache
def source_stamp(file: Path) -> str:
    """Changes with the text of any of the file's `sources`, with numba and with llvmlite; not with where they lie."""
    parts = [(path.relative_to(_PACKAGE).as_posix(), path.read_bytes()) for path in sources(file)]
    return hashlib.sha256(repr([numba.__version__, llvmlite.__version__, sorted(parts)]).encode()).hexdigest()


class _BySources:
    """Part of a numba cache locator: compiled kernels are found by their `sources`, not by path, line or time."""

    _py_file: str

    def get_source_stamp(self) -> str:
        """What the cached kernels of the file depend on: see `source_stamp`."""
        return source_stamp(Path(self._py_file))

    def get_disambiguator(self) -> str:
        """What the names of its files have in common: no line number, so that a kernel may move."""
        return "kernel"


class _Shared(_BySources, caching.UserProvidedCacheLocator):
    """NUMBA_CACHE_DIR: one folder for all copies of this package; versions of it lie side by side."""

    def get_cache_path(self) -> str:
        """The folder of the package's kernels."""
        return os.path.join(str(numba.config.CACHE_DIR), _PACKAGE_NAME)  # type: ignore[attr-defined]

    def get_disambiguator(self) -> str:
        """The version of the sources, so that files of several can lie side by side."""
        return self.get_source_stamp()[:16]


class _Beside(_BySources, caching.InTreeCacheLocator):
    """__pycache__ beside the source."""


class _OfUser(_BySources, caching.UserWideCacheLocator):
    """The user's cache folder, where the package's own may not be written."""


class _KernelCache(caching.FunctionCache):
    """numba looks at the file of the function alone; what it calls from other files must count too."""

    class _impl_class(caching.CompileResultCacheImpl):
        _locator_classes: Any = (_Shared, _Beside, _OfUser)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """What was compiled for a signature; None where there is nothing, or only a file that is damaged."""
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # pickle raises nearly any
            with suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keeps what was compiled, unless it cannot be written: the disk is full, or the folder is gone."""
        with suppress(OSError):
            super().save_overload(sig, data)


def _cached(function: Callable[..., Any], **options: Any) -> Any:
    kernel = numba.njit(**_OPTIONS, **options)(function)
    with suppress(RuntimeError, AttributeError, ValueError):  # no folder to write to, another numba, another package
        kernel._cache = _KernelCache(function)
    return kernel


CALLED: Any = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
"""Of what kernels alone call: an entry from Python for each took a quarter of the time of compiling."""

_CONTRACT: Any = {"fastmath": {"contract"}}

Decorator = Callable[[Callable[..., Any]], Any]

exact_kernel: Decorator = partial(_cached, no_cfunc_wrapper=True)
"""Compiles with IEEE arithmetic, operation by operation: it gives the reference's results, bit for bit."""

contracted_kernel: Decorator = partial(_cached, no_cfunc_wrapper=True, **_CONTRACT)
"""Compiles with multiply-adds fused where that helps: for gradients, which are compared within rounding."""

exact: Decorator = partial(_cached, **CALLED)
"""As `exact_kernel`, for what kernels call."""

contracted: Decorator = partial(_cached, **CALLED, **_CONTRACT)
"""As `contracted_kernel`, for what kernels call."""

exact_row: Decorator = partial(_cached, **CALLED, forceinline=True)
"""As `exact`, always inlined: for loops over pieces of rows, which take no longer than a call with ten arrays."""

contracted_row: Decorator = partial(_cached, **CALLED, **_CONTRACT, forceinline=True)
"""As `contracted`, always inlined."""


_BYTE_P, _INT32, _INT64 = ir.IntType(8).as_pointer(), ir.IntType(32), ir.IntType(64)
_SHARE = ir.FunctionType(ir.VoidType(), [_BYTE_P]).as_pointer()
_REGION = "GOMP_parallel"  # void (*)(void (*share)(void *), void *task, unsigned threads, unsigned flags)


def _find_region() -> int:
    """The address of the function of GNU OpenMP, or one of its relatives, by which torch runs its own loops; else 0."""
    try:
        return ctypes.cast(getattr(ctypes.CDLL(None), _REGION), ctypes.c_void_p).value or 0
    except (AttributeError, OSError, TypeError):
        return 0


_region = _find_region()
_process = 0  # the first that ran a kernel on OpenMP's threads: it has them, and its forked children do not
llvmlite.binding.add_symbol(_REGION, _region or 1)  # a compiled kernel names it, and does not call it for one thread


def _field(builder: Any, task: Any, index: int) -> Any:
    return builder.gep(task, [_INT32(0), _INT32(index)], inbounds=True)


def _share_of(kernel: Any, task_type: Any) -> Any:
    """A function that each thread runs on a task: it calls the kernel, by one thread, for one piece after the other.

    A task holds the kernel's arguments up to its columns, 1 as the number of threads, the next column, the last one,
    the size of a piece, and whether a call has failed.
    """
    one, following, stop, size, failed = range(len(task_type) - 5, len(task_type))
    share = ir.Function(kernel.module, _SHARE.pointee, f"{kernel.name}.share")
    share.linkage = "internal"
    share.attributes.add("noinline")
    begin, take, work, end = (share.append_basic_block(name) for name in ("begin", "take", "work", "end"))
    builder = ir.IRBuilder(begin)
    task = builder.bitcast(share.args[0], task_type.as_pointer())
    outcome = [builder.alloca(each.type.pointee) for each in kernel.args[:2]]  # a result and an error, which stay here
    arguments = [builder.load(_field(builder, task, index)) for index in range(one)]
    alone, last, count = (builder.load(_field(builder, task, index)) for index in (one, stop, size))
    builder.branch(take)
    builder.position_at_end(take)
    first = builder.atomic_rmw("add", _field(builder, task, following), count, "monotonic")
    builder.cbranch(builder.icmp_signed("<", first, last), work, end)
    builder.position_at_end(work)
    upto = builder.add(first, count)
    upto = builder.select(builder.icmp_signed("<", upto, last), upto, last)
    status = builder.call(kernel, [*outcome, *arguments, first, upto, count, alone], attrs=("noinline",))
    with builder.if_then(builder.icmp_signed("!=", status, status.type(0))):
        builder.store(_INT32(1), _field(builder, task, failed))
    builder.branch(take)
    builder.position_at_end(end)
    builder.ret_void()
    return share


_intrinsic: Decorator = intrinsic
"""Has numba call what a function of types returns: the signature, and what writes the code."""


@_intrinsic
def shared_out(typing_context: Any, start: Any, stop: Any, size: Any, threads: Any) -> Any:
    """`(start, stop, size, threads)`, the last arguments of the kernel that asks: whether others have done its columns.

    With several threads, each calls the kernel for `size` columns at a time until none are left; one that is held up by
    other work on the machine leaves them to the others. A call by one thread does its columns itself.
    """

    def _generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        kernel = builder.function  # its arguments: where to put result and error, its own, the four numbers
        values = [*kernel.args[2:-4], _INT64(1), *given[:3], _INT32(0)]
        task_type = ir.LiteralStructType([value.type for value in values])
        region_type = ir.FunctionType(ir.VoidType(), [_SHARE, _BYTE_P, _INT32, _INT32])
        region = cgutils.get_or_insert_function(builder.module, region_type, _REGION)
        several = builder.icmp_signed(">", given[3], _INT64(1))
        with builder.if_then(several):
            task = builder.alloca(task_type)
            for index, value in enumerate(values):
                builder.store(value, _field(builder, task, index))
            team = builder.trunc(given[3], _INT32)
            builder.call(region, [_share_of(kernel, task_type), builder.bitcast(task, _BYTE_P), team, _INT32(0)])
            failed = builder.load(_field(builder, task, len(values) - 1))
            with builder.if_then(builder.icmp_signed("!=", failed, _INT32(0))):
                context.call_conv.return_user_exc(builder, MemoryError, (_NO_MEMORY,))
        return several

    return types.boolean(start, stop, size, threads), _generate


_NO_MEMORY = "a kernel must have memory for a block of neurons; there is none left."


SERIAL_ELEMENTS = 1 << 16
"""Elements of a sequence up to which the calling thread does all of the work."""


def _has_team() -> bool:
    """Whether OpenMP's threads may be called: a child of a process that has called them would wait for them forever.

    It does so at torch's own operators too, whoever called the threads. Here only kernels count as callers.
    """
    global _process
    if not _region:
        return False
    _process = _process or os.getpid()
    return _process == os.getpid()


PIECES_PER_THREAD = 4
"""Pieces of columns that a thread finds on average: what is left to the last one is short."""


def run_columns(kernel: Any, arguments: tuple[Any, ...], columns: int, unit: int, elements: int) -> None:
    """Runs a kernel over all columns.

    Args:
        kernel: compiled, and begins with `shared_out`.
        unit: pieces are whole multiples of this many columns.
        elements: of the sequence; decides whether threads are worth their start.
    Raises:
        MemoryError: a call of the kernel failed, which happens where there is no memory for a block.
    """
    threads = torch.get_num_threads()
    if threads == 1 or elements <= SERIAL_ELEMENTS or columns <= unit:
        kernel(*arguments, 0, columns, columns, 1)
        return
    size = max(1, columns // (unit * threads * PIECES_PER_THREAD)) * unit
    if _has_team():
        kernel(*arguments, 0, columns, size, threads)
    else:
        in_pool(lambda start, stop: kernel(*arguments, start, stop, size, 1), columns, size, threads)


@lru_cache(maxsize=1)
def _helpers(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="revsnn")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_helpers.cache_clear)  # which has none of these threads


def in_pool(work: Callable[[int, int], None], stop: int, size: int, threads: int) -> None:
    """Calls `work(first, last)` for `size` numbers at a time up to `stop`, on so many threads of Python's."""
    pieces = iter(range(0, stop, size))
    # The pool forgets a piece of work a little later than it finishes it, and what the work refers to must not live on.
    shared = [work]
    del work

    def take(pieces: Iterator[int]) -> None:
        """Takes one piece after the other until there is none."""
        for start in pieces:
            shared[0](start, min(start + size, stop))

    if threads == 1:
        take(pieces)
        return
    pool = _helpers(threads - 1)
    helpers = [pool.submit(take, pieces) for _ in range(threads - 1)]
    try:
        take(pieces)
    finally:
        for helper in helpers:
            if not helper.cancel():  # one that has not woken up yet has nothing left to do
                helper.result()
        shared.clear()


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


_advise: Any = types.ExternalFunction("madvise", types.int32(types.int64, types.int64, types.int32))


@exact_kernel
def _populate(begin: int, end: int, start: int, stop: int, size: int, threads: int) -> None:
    """Asks the system for the pages of the memory from `begin` to `end`; its large pages are the columns."""
    if shared_out(start, stop, size, threads):
        return
    origin = begin - begin % _LARGE_PAGE
    first = max(begin, origin + start * _LARGE_PAGE)
    _advise(first, min(end, origin + stop * _LARGE_PAGE) - first, _MADV_POPULATE_WRITE)


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
    pages = -(-stop // _LARGE_PAGE) - start // _LARGE_PAGE
    run_columns(_populate, (start, stop), pages, 1, tensor.numel())


PIECE = 128
"""Columns of a piece of a row; what is streamed must be whole lines of `LINE_BYTES`."""

LINE_BYTES = 64

VECTOR_BYTES = 32
"""What is streamed was written in vectors of this size a moment ago; a longer read would wait for the cache."""


def _itemsize(context: Any, array: Any) -> int:
    return int(context.get_abi_sizeof(context.get_data_type(array.dtype)))


def _ask_ahead(write: bool) -> Any:
    @_intrinsic
    def ask(typing_context: Any, array: Any, index: Any) -> Any:
        """`(array, index)`: asks for the piece of a row that begins at that element, and returns nothing."""

        def _generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            size = _itemsize(context, array)
            start = builder.gep(
                builder.bitcast(context.make_array(array)(context, builder, arguments[0]).data, _BYTE_P),
                [builder.mul(arguments[1], ir.Constant(_INT64, size))],
            )  # fmt: skip
            takes = ir.FunctionType(ir.VoidType(), [_BYTE_P, _INT32, _INT32, _INT32])
            function = cgutils.get_or_insert_function(builder.module, takes, "llvm.prefetch.p0")
            level = 3 if write else 2  # into the first or the second level's cache
            how = [ir.Constant(_INT32, value) for value in (int(write), level, 1)]
            for offset in range(0, PIECE * size, LINE_BYTES):
                builder.call(function, [builder.gep(start, [ir.Constant(_INT64, offset)]), *how])
            return context.get_dummy_value()

        return types.void(array, types.int64), _generate

    return ask


read_ahead: Any = _ask_ahead(write=False)
"""`(array, index)`: asks for `PIECE` elements of a contiguous array, from a flat index that may lie beyond its end."""

write_ahead: Any = _ask_ahead(write=True)
"""As `read_ahead`, for elements that will be written."""


@_intrinsic
def stream(typing_context: Any, target: Any, source: Any) -> Any:
    """`(target, source)`: copies a row past the caches; both begin at a line, and are whole lines long."""

    def _generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        count = VECTOR_BYTES // _itemsize(context, target)
        vector = ir.VectorType(context.get_data_type(target.dtype), count).as_pointer()
        to, row = (context.make_array(target)(context, builder, each) for each in arguments)
        to_vectors, vectors = (builder.bitcast(each.data, vector) for each in (to, row))
        hint = builder.module.add_metadata([ir.Constant(_INT32, 1)])
        length = builder.extract_value(to.shape, 0)
        with cgutils.for_range(builder, builder.udiv(length, ir.Constant(length.type, count))) as loop:
            value = builder.load(builder.gep(vectors, [loop.index]), align=_itemsize(context, target))
            written = builder.store(value, builder.gep(to_vectors, [loop.index]), align=VECTOR_BYTES)
            written.set_metadata("nontemporal", hint)
        return context.get_dummy_value()

    return types.void(target, source), _generate


@_intrinsic
def row_of(typing_context: Any, array: Any, index: Any, length: Any) -> Any:
    """`(array, index, length)`: a row of a contiguous array, from a flat index; it does not keep the array alive.

    Slices do, by counting references, which costs as much as the arithmetic of a piece.
    """
    row = types.Array(array.dtype, 1, "C")

    def _generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        size = _itemsize(context, array)
        data = context.make_array(array)(context, builder, arguments[0]).data
        made = context.make_array(row)(context, builder)
        whole = ir.Constant(_INT64, size)
        populate_array(
            made, builder.gep(data, [arguments[1]]), shape=[arguments[2]], strides=[whole], itemsize=whole, meminfo=None
        )  # fmt: skip
        return made._getvalue()

    return row(array, types.int64, types.int64), _generate


@_intrinsic
def fma(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    """`(a, b, c)`: a b + c, rounded once."""

    def _generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return a(a, a, a), _generate


@_intrinsic
def settle(typing_context: Any) -> Any:
    """Waits until everything that was streamed can be seen by other threads."""

    def _generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), _generate


@exact
def following(t: int, steps: int, step: int, place: int, block: int) -> int:
    """The flat index of the same place a step later, or in the first step of the next block.

    Args:
        t: step, of `steps`, each of `step` elements.
        place: index in the step.
        block: columns to the next block.
    """
    return (t + 1) * step + place if t + 1 < steps else place + block


@exact
def preceding(t: int, steps: int, step: int, place: int, block: int) -> int:
    """As `following`, backward in time: a step earlier, or in the last step of the next block."""
    return (t - 1) * step + place if t else (steps - 1) * step + place + block
