"""Runs an operator by its Triton kernel: the one path from the operator's arguments to the kernel's.

`run` is what the operators of `revsnn_nodes.kernels.ops` run on CUDA tensors; in Triton's interpreter (see
`revsnn_nodes.kernels.triton.equations`) it takes CPU tensors. Results are contiguous; inputs are copied where they are
not. Nothing is tried out: `shape_of` says how a kernel is cut into programs, so that a first call costs one compilation
and may be captured into a CUDA graph once that is done.

A new kernel needs its row in `KERNELS`. It takes the operator's tensors and results, in their order, under any names;
and by name whichever it lists of the numbers, sizes and constants that `_kernel_arguments` makes.
"""

import math
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from revsnn_nodes.equations import sides_of
from revsnn_nodes.kernels.layout import Numbers, grouped, reciprocal_is_exact
from revsnn_nodes.kernels.triton import coupled, lif
from revsnn_nodes.kernels.triton.equations import INTERPRETED, Mode


class Kernel(NamedTuple):
    """A compiled kernel and what it keeps in registers."""

    function: Any  # takes the arguments of `_kernel_arguments`, BLOCK and STAGES
    held: int  # how many numbers of a sequence a column holds at once, for each of its rows and groups


KERNELS: dict[str, Kernel] = {
    "lif_forward": Kernel(lif.lif_forward, 1),
    "lif_backward": Kernel(lif.lif_backward, 1),
    "norm_lif_forward": Kernel(lif.norm_lif_forward, 1),
    "norm_lif_backward": Kernel(lif.norm_lif_backward, 3),
    "carrier_forward": Kernel(lif.carrier_forward, 1),
    "carrier_backward": Kernel(lif.carrier_backward, 3),
    "coupled_forward": Kernel(coupled.coupled_forward, 1),
    "inverse_backward": Kernel(coupled.inverse_backward, 1),
    "anchored_backward": Kernel(coupled.anchored_backward, 3),
}

INTERPRETED_BLOCK = 32
"""Columns of a program in the interpreter."""

MOST_ROWS = {2: 8, 4: 16, 8: 16}
"""Rows of a sequence, at most, of which a backward pass holds output, gradient and charge in registers, by the bytes of
a number. In half precision there is more arithmetic for each byte, and more warps at a time hide more of it than a
longer sweep costs."""


ROW_BYTES = 512
"""Bytes of a tensor's row that a program reads or writes at a time: a warp of 16 bytes per thread in float32."""

MOST_COLUMNS = 4
"""Columns of a thread, at most."""

LEAST_WARPS = 1024
"""Warps of a launch below which a thread takes fewer columns: eight for each processor of a large GPU."""

MOST_HELD = {2: 192, 4: 48, 8: 24}
"""Numbers of sequences, at most, that a thread holds, by their bytes. Beyond it in float32 fewer columns per thread run
faster, long before registers spill; in half precision narrower accesses cost more than that."""


class Shape(NamedTuple):
    """How a kernel is cut: columns and warps of a program, and how many steps its loops over time have under way."""

    block: int
    warps: int
    stages: int


def shape_of(name: str, columns: int, itemsize: int, rows: int = 1, groups: int = 1) -> Shape:
    """The shape of a launch.

    Chosen by a rule, from timings of all kernels on an NVIDIA H200, at 8 thousand to 4 million columns: in 64 of 72
    places its choice is within a tenth of the best of 18 shapes (docs/gpu.md). With 3 stages, the tensors of the next
    two steps are copied to shared memory, asynchronously, while a step is computed; kernels that hold rows in registers
    have enough under way.

    Args:
        rows: steps that the kernel holds in registers.
    """
    keeps_rows = KERNELS[name].held > 1
    held = KERNELS[name].held * rows * groups if keeps_rows else groups
    least = 1 if keeps_rows else max(1, 4 // itemsize)  # an asynchronous copy has four bytes at least
    each = MOST_COLUMNS
    while each > least and (columns < 32 * each * LEAST_WARPS or each * held > MOST_HELD[itemsize]):
        each //= 2
    block = max(ROW_BYTES // itemsize, 32 * each)
    return Shape(block, block // (32 * each), 1 if keeps_rows else 3)


_MOST_PREPARED = 1024

_prepared: dict[tuple[Any, ...], tuple[Any, tuple[Any, ...]]] = {}
"""Launches by everything that decides their code and their numbers: what runs them, and what it takes after tensors.

Triton's own path from arguments to compiled code takes longer than most of these kernels run."""


def run(name: str, results: tuple[Tensor, ...], call: SimpleNamespace) -> tuple[Tensor, ...]:
    """Runs one operator on its arguments, which have the names in its schema; returns its results, filled."""
    if results[0].numel():
        place, arguments = [*vars(call)].index("p"), [*vars(call).values()]
        tensors = [
            each.contiguous() if each is not None and each.numel() else None for each in (*arguments[:place], *results)
        ]
        with _current(results[0].device):
            key = _key(name, tensors, arguments[place:])
            if key in _prepared:
                prepared, rest = _prepared[key]
                prepared(*tensors, *rest)
            else:
                _first_launch(name, key, vars(call), tensors)
    return results


def _key(name: str, tensors: list[Tensor | None], others: list[Any]) -> tuple[Any, ...]:
    p, *switches = others
    about = [each if each is None else (each.dtype, each.numel(), not each.data_ptr() % 16) for each in tensors]
    sequence = tensors[0]
    assert sequence is not None, "every operator takes a sequence first"
    return (name, sequence.shape, sequence.device, *about, *p, *switches)


def _first_launch(name: str, key: tuple[Any, ...], call: dict[str, Any], tensors: list[Tensor | None]) -> None:
    function, given = KERNELS[name].function, _kernel_arguments(name, call, tensors)
    shape = _shape_for(name, given, tensors[0].element_size())  # type: ignore[union-attr]
    compiled = _run(function, given, shape)
    if compiled is not None:
        if len(_prepared) >= _MOST_PREPARED:
            _prepared.clear()
        everything = {**given, "BLOCK": shape.block, "STAGES": shape.stages}
        rest = tuple(everything[each] for each in function.arg_names[len(tensors) :])
        _prepared[key] = compiled[_grid(given, shape)], rest


def _current(device: torch.device) -> Any:
    """A context in which a device is the current one."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)


def pieces_of(steps: int, rows: int) -> tuple[int, int]:
    """How many pieces `steps` are cut into so that none is longer than `rows`, and the length of all but the last."""
    pieces = math.ceil(steps / max(rows, 1))
    return pieces, math.ceil(steps / pieces)


def _shape_for(name: str, given: dict[str, Any], itemsize: int) -> Shape:
    if INTERPRETED:
        return Shape(INTERPRETED_BLOCK, 1, 1)
    return shape_of(name, given["columns"], itemsize, given.get("ROWS", 1), given.get("GROUPS", 1))


def _grid(given: dict[str, Any], shape: Shape) -> tuple[int, int, int]:
    return math.ceil(given["columns"] / shape.block), 1, 1


def _run(function: Any, given: dict[str, Any], shape: Shape) -> Any:
    """Compiles where that was not done, and runs; the compiled kernel."""
    # Without multiply-adds but those written out, forward values are the reference's, and a charge that is regenerated
    # is the charge that fired.
    cut = {"BLOCK": shape.block, "STAGES": shape.stages, "num_warps": shape.warps}
    return function[_grid(given, shape)](**given, **cut, enable_fp_fusion=False)


def _kernel_arguments(name: str, call: dict[str, Any], tensors: list[Tensor | None]) -> dict[str, Any]:
    """All that a kernel takes but BLOCK and STAGES.

    First `tensors`, those of the operator's call and its results: contiguous, and None for one absent or empty.
    """
    names = KERNELS[name].function.arg_names
    sequence, p = next(iter(call.values())), Numbers(*call["p"])
    steps, groups = sequence.shape[0], call.get("groups", 1)
    every = min(call.get("every", steps), steps)
    pieces, rows = pieces_of(every, MOST_ROWS[sequence.element_size()] // groups)
    exact = reciprocal_is_exact(p.tau)
    switches = {**call, "exact": exact or call.get("rate") is not None, "leaky": not math.isinf(p.tau)}
    named = {
        **p._asdict(),
        "tau": 1 / p.tau if exact else p.tau,
        "least": sides_of(p.threshold, sequence.dtype)[0],
        "greatest": sides_of(p.threshold, sequence.dtype)[1],
        "steps": steps,
        "every": every,
        "columns": sequence[0].numel() // groups,
        "inner": grouped(sequence.shape[1:], groups, call["group_dim"])[2] if groups > 1 else call.get("inner", 1),
        "channels": call["mean"].numel() if "mean" in call else 1,
        "mode": Mode(*(tl.constexpr(switches.get(field, 0)) for field in Mode._fields)),
        "GROUPS": groups,
        "ROWS": rows,
        "EVEN": pieces * rows == every and steps % every == 0,
        "SWEPT": pieces > 1,
    }
    return {**dict(zip(names, tensors, strict=False)), **{each: named[each] for each in names if each in named}}
