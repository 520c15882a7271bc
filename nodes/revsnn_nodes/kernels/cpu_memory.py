"""How rows travel between memory and the caches where a sequence is too large for them.

A processor fetches ahead by itself, but only within a page of 4 KiB, and it reads a line before it writes it. So rows
are done in pieces of `PIECE` columns: with each, the kernel asks for the piece that comes a row later (`read_ahead`,
`write_ahead`), and a forward pass writes its results past the caches (`stream`). A gradient is not written so: its
arithmetic takes longer, and the writes would hold up what is being read.
"""

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from revsnn_nodes.kernels.jit import exact

PIECE = 128
"""Columns of a piece of a row; what is streamed must be whole lines of `LINE_BYTES`."""

LINE_BYTES = 64

VECTOR_BYTES = 32
"""What is streamed was written in vectors of this size a moment ago; a longer read would wait for the cache."""

_INT32, _INT64, _BYTES = ir.IntType(32), ir.IntType(64), ir.IntType(8).as_pointer()


def _itemsize(context: Any, array: Any) -> int:
    return int(context.get_abi_sizeof(context.get_data_type(array.dtype)))


def _ask_ahead(write: bool) -> Any:
    def _ask(typing_context: Any, array: Any, index: Any) -> Any:
        def _generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            size = _itemsize(context, array)
            start = builder.gep(
                builder.bitcast(context.make_array(array)(context, builder, arguments[0]).data, _BYTES),
                [builder.mul(arguments[1], ir.Constant(_INT64, size))],
            )  # fmt: skip
            takes = ir.FunctionType(ir.VoidType(), [_BYTES, _INT32, _INT32, _INT32])
            function = cgutils.get_or_insert_function(builder.module, takes, "llvm.prefetch.p0")
            level = 3 if write else 2  # into the first or the second level's cache
            how = [ir.Constant(_INT32, value) for value in (int(write), level, 1)]
            for offset in range(0, PIECE * size, LINE_BYTES):
                builder.call(function, [builder.gep(start, [ir.Constant(_INT64, offset)]), *how])
            return context.get_dummy_value()

        return types.void(array, types.int64), _generate

    return intrinsic(_ask)


read_ahead: Any = _ask_ahead(write=False)
"""`(array, index)`: asks for `PIECE` elements of a contiguous array, from a flat index that may lie beyond its end."""

write_ahead: Any = _ask_ahead(write=True)
"""As `read_ahead`, for elements that will be written."""


def _stream(typing_context: Any, target: Any, source: Any) -> Any:
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


stream: Any = intrinsic(_stream)
"""`(target, source)`: copies a row past the caches; both begin at a line, and are whole lines long."""


def _row_of(typing_context: Any, array: Any, index: Any, length: Any) -> Any:
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


row_of: Any = intrinsic(_row_of)
"""`(array, index, length)`: a row of a contiguous array, from a flat index; it does not keep the array alive.

Slices do, by counting references, which costs as much as the arithmetic of a piece.
"""


def _settle(typing_context: Any) -> Any:
    def _generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), _generate


settle: Any = intrinsic(_settle)
"""Waits until everything that was streamed can be seen by other threads."""


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
