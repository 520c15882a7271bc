"""The operators on CPU tensors: tensors to arrays, sizes of blocks, and the compiled kernels run over all columns.

Each function here fills the results it is given for one call of its namesake in `revsnn_nodes.kernels.ops`; `run` picks
it. A kernel takes arrays, its own numbers, the parameters, its mode, and which columns to do.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from revsnn_nodes.equations import sides_of, state_dtype
from revsnn_nodes.kernels.cpu import carrier, coupled, lif
from revsnn_nodes.kernels.cpu.equations import Mode
from revsnn_nodes.kernels.cpu.machine import LINE_BYTES, PIECE, PIECES_PER_THREAD, prepare, run_columns
from revsnn_nodes.kernels.layout import FORMS, Numbers, grouped, reciprocal_is_exact

Results = tuple[Any, ...]
"""The tensors to fill; None for one that is not wanted."""

Call = Any
"""A call's arguments by the names in the operator's schema: see `revsnn_nodes.kernels.ops.Operator.call`."""

MOST_COLUMNS = 1 << 14
"""Columns of a block, at most: longer rows no longer help the processor to read ahead."""

FEW_COLUMNS = 1 << 10
"""Rows this short begin to cost: a block gets shorter only to stay within `MOST_SCRATCH_BYTES`."""

SCRATCH_BYTES = 1 << 19
"""A block keeps its scratch in the second-level cache, if the sequence is not too long for that."""

MOST_SCRATCH_BYTES = 1 << 22

SEGMENT = 64
"""Steps whose charges a carrier's backward pass holds at once; with more, it goes over the output once more."""

LARGE_BYTES = 16 << 20
"""The rows of a sequence this large come from memory: backward passes ask for them ahead (see `machine`)."""

STREAM_BYTES = 128 << 20
"""So large a result has left the caches before it is read again: forward passes write it past them."""

COLUMNS_OF_PIECES = 1 << 11
"""Columns of a block done in pieces, at most: what was asked for ahead must not be pushed out again."""

NORM_COLUMNS = (128, 1024)
"""Columns of a block of a norm, at least and at most: a dozen rows of them are at work at once."""

MOST_SLOTS = 128
"""Places for a norm's sums over parts of the columns, at most; each holds a few numbers per channel."""


def run(name: str, results: tuple[Tensor, ...], call: Call) -> tuple[Tensor, ...]:
    """Runs one operator; returns its results, filled; those that are not wanted are empty."""
    for result in results:
        prepare(result)
    _LAUNCHERS[name](tuple(each if each.numel() else None for each in results), call)
    return results


class _Arrays:
    """The tensors of one call as arrays: sequences `[T, *state]` and states; bfloat16 as its bits, uint16.

    States are floats, with bfloat16 too.
    """

    def __init__(self, like: Tensor, *state: int) -> None:
        self.like, self.shape = like, state
        self.is_bfloat16 = like.dtype is torch.bfloat16
        self.float: Any = np.float64 if like.dtype is torch.float64 else np.float32
        self.state_dtype = state_dtype(like.dtype)

    def sequence(self, tensor: Tensor | None) -> Any:
        """As `[T, *state]`, or the empty array that stands for none."""
        return self._array(tensor, (0 if tensor is None else tensor.shape[0], *self.shape), self.like.dtype)

    def state(self, tensor: Tensor | None) -> Any:
        """As an array of the state's shape, or the empty array that stands for none."""
        return self._array(tensor, self.shape, self.state_dtype)

    def states(self, tensor: Tensor | None) -> Any:
        """Several states, `[k, *state]`."""
        return self._array(tensor, (0 if tensor is None else tensor.shape[0], *self.shape), self.state_dtype)

    def gradient(self, arrived: Tensor | None) -> Any:
        """A sequence's gradient; zeros where none arrived."""
        return self.sequence(torch.zeros_like(self.like) if arrived is None else arrived)

    def _array(self, tensor: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> Any:
        is_bits = dtype is torch.bfloat16
        if tensor is None:
            return np.empty((0,) * len(shape), np.uint16 if is_bits else self.float)
        whole = tensor.detach().to(dtype).contiguous()  # copied only where it must be
        if is_bits:
            return whole.view(torch.int16).numpy().view(np.uint16).reshape(shape)
        return whole.numpy().reshape(shape)

    def sides(self, call: Call) -> tuple[Any, ...]:
        """See `equations.sides_of`: of the threshold, in the type of the arithmetic."""
        return tuple(map(self.float, sides_of(Numbers(*call.p).threshold, self.like.dtype)))

    def numbers(self, call: Call) -> tuple[Numbers, Mode]:
        """Parameters in the type of the arithmetic, and the mode, with every switch that the operator has."""
        names = vars(call)
        rate, decay = names.get("rate"), names.get("decay", False)
        charges = "decay" in names and names.get("need_rate", True)  # whether the kernel computes with the leak
        is_exact = charges and (rate is not None or reciprocal_is_exact(call.p[0]))
        mode = Mode(
            leak=(0,) * (charges * (4 if math.isinf(call.p[0]) else decay + 2 * is_exact)),
            kind=(0,) * names.get("kind", 0),
            streams=(),
            soft=(0,) * call.soft,
            detach=(0,) * names.get("detach", False),
            by_spike=(0,) * names.get("by_spike", False),
        )
        if rate is not None:
            learned = self.float(rate.item())
            p = Numbers(*call.p)._replace(tau=learned, keep=1 - learned, gain=learned if decay else 1.0)
            return Numbers(*map(self.float, p)), mode
        return _numbers(tuple(call.p), is_exact, self.float), mode


@lru_cache(maxsize=256)
def _numbers(p: tuple[float, ...], is_exact: bool, kind: Any) -> Numbers:
    """Numbers of a kind, with 1 / tau in place of tau where that is exact: see `equations.charge_of`."""
    given = Numbers(*p)
    return Numbers(*map(kind, given._replace(tau=1 / given.tau) if is_exact else given))


def block_columns(rows: int, itemsize: int, columns: int, by_pieces: bool) -> int:
    """Columns of a block: a power of two.

    Args:
        rows: of scratch, for every column.
        columns: how many there are in all; every thread gets several blocks.
        by_pieces: whether rows are done in pieces.
    """
    block = COLUMNS_OF_PIECES if by_pieces else MOST_COLUMNS
    row_bytes, pieces = rows * itemsize, torch.get_num_threads() * PIECES_PER_THREAD
    while block > FEW_COLUMNS and (row_bytes * block > SCRATCH_BYTES or block * pieces > columns):
        block //= 2
    while block > 1 and row_bytes * block > MOST_SCRATCH_BYTES:
        block //= 2
    return block


def _run(
    kernel: Callable[..., None], arrays: _Arrays, call: Call, arguments: Sequence[Any], rows: int, streams: bool = False
) -> None:
    """Runs a kernel over all columns; `arguments` come before the parameters, `rows` are of scratch for every column.

    `streams`: it is a forward pass, which writes large results past the caches.
    """
    like, inner = arrays.like, arrays.shape[-1]
    columns = math.prod(arrays.shape) // (arrays.shape[1] if len(arrays.shape) == 3 else 1)
    p, mode = arrays.numbers(call)
    by_pieces = like.nbytes >= LARGE_BYTES
    if streams:
        by_pieces = like.nbytes >= STREAM_BYTES and inner * like.itemsize % LINE_BYTES == 0
        mode = mode._replace(streams=(0,) * by_pieces)
    block = block_columns(rows, np.dtype(arrays.float).itemsize, columns, by_pieces)
    piece = PIECE if by_pieces else block
    # Threads begin where blocks do: anywhere in a long inner row, but only at the start of short ones.
    unit = block if inner >= block else inner * max(1, block // max(inner, 1))
    run_columns(kernel, (*arguments, p, mode, piece, block), columns, unit, like.numel())


def _lif_forward(results: Results, call: Call) -> None:
    x, (spike, v_last, charge) = call.x_seq, results
    as_ = _Arrays(x, x[0].numel())
    arguments = (
        as_.sequence(x), as_.state(call.v), as_.sequence(spike), as_.state(v_last), as_.sequence(charge),
        as_.sides(call) if call.keep else (),
    )  # fmt: skip
    _run(lif.lif_forward, as_, call, arguments, rows=1, streams=True)


def _lif_backward(results: Results, call: Call) -> None:
    charge, (xbar, vbar0, ratebar) = call.charge_seq, results
    as_ = _Arrays(charge, charge[0].numel())
    arguments = (
        as_.sequence(charge), as_.gradient(call.sbar_seq), as_.state(call.vbar), as_.sequence(xbar), as_.state(vbar0),
        as_.state(call.v), as_.state(ratebar), (0,) * call.need_rate,
    )  # fmt: skip
    _run(lif.lif_backward, as_, call, arguments, rows=1 + 2 * call.need_rate)


def _numbers_of(parameter: Tensor, dtype: torch.dtype) -> Any:
    """A copy: numpy's memory cannot be resized, and shards of a parameter are gathered in memory that is."""
    return parameter.detach().to(dtype, copy=True).contiguous().numpy()


def _norm_of(as_: _Arrays, call: Call) -> tuple[Any, ...]:
    """Scale and shift of the channels, and the residual."""
    assert call.form == FORMS.index("fma"), "the kernels for the CPU round a norm in this way alone"
    weight = torch.ones_like(call.mean) if call.weight is None else call.weight
    bias = torch.zeros_like(call.mean) if call.bias is None else call.bias
    dtype = torch.float64 if as_.float is np.float64 else torch.float32
    statistics = [each.detach().to(dtype).contiguous().numpy() for each in (call.mean, call.inverse_std)]
    values = (*statistics, *(_numbers_of(each, dtype) for each in (weight, bias)))
    scale, shift = np.empty((2, call.mean.numel()), as_.float)
    lif.coefficients(*values, scale, shift)
    return scale, shift, as_.sequence(call.residual_seq)


def _norm_lif_forward(results: Results, call: Call) -> None:
    z, (spike, v_last) = call.z_seq, results
    as_ = _Arrays(z, z[0].numel())
    arguments = (
        as_.sequence(z), as_.state(call.v), *_norm_of(as_, call), as_.sequence(spike), as_.state(v_last),
        (0,) * (call.residual_seq is not None), call.inner,
    )  # fmt: skip
    _run(lif.norm_lif_forward, as_, call, arguments, rows=3)


def _norm_lif_backward(results: Results, call: Call) -> None:
    z, (xbar, vbar0) = call.z_seq, results
    as_ = _Arrays(z, z[0].numel())
    arguments = (
        as_.sequence(z), as_.state(call.v), *_norm_of(as_, call), as_.gradient(call.sbar_seq), as_.state(call.vbar),
        as_.sequence(xbar), as_.state(vbar0), (0,) * (call.residual_seq is not None),
        as_.sides(call), call.inner,
    )  # fmt: skip
    _run(lif.norm_lif_backward, as_, call, arguments, rows=z.shape[0] + 3)


def _carrier_forward(results: Results, call: Call) -> None:
    x, (y, v_last) = call.x_seq, results
    as_ = _Arrays(x, x[0].numel())
    arguments = (as_.sequence(x), as_.state(call.v), as_.sequence(y), as_.state(v_last))
    _run(carrier.carrier_forward, as_, call, arguments, rows=1, streams=True)


def _carrier_backward(results: Results, call: Call) -> None:
    y, (xbar, vbar0) = call.y_seq, results
    as_, steps = _Arrays(y, y[0].numel()), y.shape[0]
    arguments = (
        as_.sequence(y), as_.state(call.v), as_.gradient(call.ybar_seq), as_.state(call.vbar), as_.sequence(xbar),
        as_.state(vbar0), SEGMENT,
    )  # fmt: skip
    _run(carrier.carrier_backward, as_, call, arguments, min(steps, SEGMENT) + (steps - 1) // SEGMENT)


def _coupled_forward(results: Results, call: Call) -> None:
    x, (y, v_last, anchors) = call.x_seq, results
    as_ = _Arrays(x, *grouped(x.shape[1:], call.groups, call.group_dim))
    arguments = (
        as_.sequence(x), as_.state(call.v), as_.sequence(y), as_.state(v_last), as_.states(anchors), call.every,
    )  # fmt: skip
    rows = 2 * call.groups + coupled.SPARE_FORWARD if as_.is_bfloat16 else 1
    _run(coupled.coupled_forward, as_, call, arguments, rows, streams=True)


def _inverse_backward(results: Results, call: Call) -> None:
    y, (xbar, vbar0) = call.y_seq, results
    as_ = _Arrays(y, *grouped(y.shape[1:], call.groups, call.group_dim))
    arguments = (
        as_.sequence(y), as_.state(call.v_last), as_.gradient(call.ybar_seq), as_.state(call.vbar),
        as_.sequence(xbar), as_.state(vbar0),
    )  # fmt: skip
    spare = coupled.SPARE_BACKWARD if as_.is_bfloat16 else 0
    _run(coupled.inverse_backward, as_, call, arguments, 3 * call.groups + spare)


def _anchored_backward(results: Results, call: Call) -> None:
    y, (xbar, vbar0) = call.y_seq, results
    as_ = _Arrays(y, *grouped(y.shape[1:], call.groups, call.group_dim))
    arguments = (
        as_.sequence(y), as_.state(call.v), as_.states(call.anchors), as_.gradient(call.ybar_seq),
        as_.state(call.vbar), as_.sequence(xbar), as_.state(vbar0), call.every,
    )  # fmt: skip
    spare = coupled.SPARE_BACKWARD if as_.is_bfloat16 else 0
    _run(coupled.anchored_backward, as_, call, arguments, call.groups * min(call.every, y.shape[0]) + spare)


class _Channels(_Arrays):
    """How `[T, N, C, *]` is cut: a step's elements are columns, in blocks, and blocks in units with a slot each.

    A unit's sums lie in its slot, and slots are added in order: so the sums do not depend on threads.
    """

    def __init__(self, like: Tensor, rows: int) -> None:
        super().__init__(like, like[0].numel())
        self.columns, self.channels = like[0].numel(), like.shape[2]
        self.inner = max(1, math.prod(like.shape[3:]))
        fewest, self.block = NORM_COLUMNS
        while self.block > fewest and self.block * rows * like.itemsize > SCRATCH_BYTES:
            self.block //= 2
        blocks = -(-self.columns // self.block)
        self.unit = self.block * max(1, -(-blocks // MOST_SLOTS))
        self.slots = max(1, -(-self.columns // self.unit))

    def values(self, tensor: Tensor | None, otherwise: float = 0.0) -> Any:
        """Values of the channels, `[C]`, in the type of the data."""
        if tensor is None:
            return np.full(self.channels, otherwise, self.float)
        return _numbers_of(tensor, self.like.dtype)

    def run(self, kernel: Any, *arguments: Any) -> None:
        """Runs a kernel over all columns."""
        run_columns(kernel, (*arguments, self.unit, self.block), self.columns, self.unit, self.like.numel())


def _norm_carrier_forward(results: Results, call: Call) -> None:
    """Statistics in one pass over the input, everything else in a second one."""
    of = _Channels(call.z_seq, rows=8)
    y, v_last, mean_of, var_of, inverse_std_of, cut = results
    z = of.sequence(call.z_seq)
    centre = z[0].reshape(-1, of.channels, of.inner)[0, :, 0].copy()
    sums = np.zeros((of.slots, 2, of.channels))
    of.run(carrier.norm_moments, z, centre, of.inner, sums)
    first, second = sums.sum(0) / (z.size // of.channels)
    mean, var = centre + first, np.maximum(second - first * first, 0.0)
    for result, value in ((mean_of, mean), (var_of, var), (inverse_std_of, 1.0 / np.sqrt(var + call.eps))):
        result.numpy()[:] = value
    cuts = np.zeros(of.slots, np.int64)
    of.run(
        carrier.norm_carrier_forward, z, of.state(call.v), mean_of.numpy(), inverse_std_of.numpy(),
        of.values(call.weight, 1.0), of.values(call.bias), of.sequence(call.residual_seq), of.sequence(y),
        of.state(v_last), cuts, of.inner, *of.numbers(call),
    )  # fmt: skip
    cut.fill_(int(cuts.sum()))


def _norm_carrier_backward(results: Results, call: Call) -> None:
    """The gradient at the normalised input with its sums per channel; then, in place, through the norm."""
    of = _Channels(call.y_seq, rows=call.y_seq.shape[0] + 8)
    zbar_seq, weight_bar, bias_bar, residual_bar, vbar0 = results
    y, zbar = of.sequence(call.y_seq), of.sequence(zbar_seq)
    p, mode = of.numbers(call)
    sums = np.zeros((of.slots, 4, of.channels))
    of.run(
        carrier.norm_carrier_product, y, of.state(call.v), of.values(call.weight, 1.0), of.values(call.bias),
        of.sequence(call.residual_seq), of.gradient(call.ybar_seq), of.state(call.vbar), zbar,
        of.sequence(residual_bar), of.state(vbar0),
        sums, of.inner, p, mode,
    )  # fmt: skip
    bias_bar.numpy()[:], weight_bar.numpy()[:], total, sloped = sums.sum(0)
    scale = of.values(call.inverse_std)
    per_value = scale.astype(np.float64) / (y.size // of.channels)
    mean, slope = ((each * per_value).astype(of.float) for each in (total, sloped))
    of.run(carrier.norm_gradient, y, scale, mean, slope, zbar, of.inner, p.epsilon)
    if call.beyond is not None and call.excess is not None:
        places = tuple(call.beyond.numpy().T)
        zbar_seq.numpy()[places] -= call.excess.numpy() * slope[places[2]]


_LAUNCHERS: dict[str, Callable[[Results, Call], None]] = {
    each.__name__.removeprefix("_"): each
    for each in (
        _lif_forward, _lif_backward, _norm_lif_forward, _norm_lif_backward, _carrier_forward, _carrier_backward,
        _coupled_forward, _inverse_backward, _anchored_backward, _norm_carrier_forward, _norm_carrier_backward,
    )
}  # fmt: skip
