"""How fast the fused kernels move memory, each by itself and in a whole step: what a first hour on a GPU asks.

Kernels are caught as the nodes call them, and called again with the same tensors, many times in a row: on a GPU the
launches then hide behind the kernels, and events tell the time of the kernels alone. The least that a kernel moves is
each of its tensors once. A whole step of a layer is captured into a CUDA graph where that can be done, which takes the
launches out of its time; elsewhere it is called.
"""

import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from revsnn_nodes import StandardLIF, make_node, remat
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from revsnn_bench.models.peers import spikingjelly
from revsnn_bench.records import SkipCase
from revsnn_bench.report import units
from revsnn_bench.runs import write_whole
from revsnn_bench.system.gpu import gpu_name

KERNEL_NODES = ("lif", "lif-carrier", "revlif", "revlif-anchored")
"""Nodes whose kernels are timed; those of `remat` behind a norm come besides."""

BATCHES, CALLS, GRAPH_CALLS = 7, 10, 5
"""How many batches of how many calls are timed; the median batch counts."""


@dataclass(frozen=True)
class KernelSpeed:
    """One call of a kernel by its operator's name, or a "copy" of the input, on a sequence of this type and size.

    `nbytes` is the least that it moves: every tensor that it takes or gives, once.
    """

    name: str
    dtype: str
    steps: int
    neurons: int
    nbytes: int
    time_s: float

    @property
    def rate(self) -> float:
        """Bytes per second."""
        return self.nbytes / self.time_s


@dataclass(frozen=True)
class StepSpeed:
    """Forward and backward of a layer of one node, on an input of this type and size.

    Fields:
        in_graph: whether it was replayed from a CUDA graph, without launches.
        copies: the time in units of copying the input.
    """

    node: str
    dtype: str
    steps: int
    neurons: int
    time_s: float
    in_graph: bool
    copies: float


class _Calls(TorchDispatchMode):
    """Notes the calls of this package's operators, one for each."""

    def __init__(self) -> None:
        super().__init__()
        self.of: dict[str, tuple[Any, tuple[Any, ...]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "revsnn":
            kept = tuple(each.detach() if isinstance(each, Tensor) else each for each in args)
            self.of.setdefault(func._opname, (func, kept))
        return func(*args, **(kwargs or {}))


def kernel_speeds(device: str, dtype: torch.dtype, steps: int, neurons: int) -> Iterator[KernelSpeed]:
    """A copy of the input, and every fused kernel at T steps of N neurons, a multiple of 128."""
    x = torch.randn(steps, 1, neurons, device=device, dtype=dtype)
    name = str(dtype).removeprefix("torch.")
    yield KernelSpeed("copy", name, steps, neurons, 2 * x.nbytes, _copy_s(x, device))
    seen: set[str] = set()
    runs: list[Callable[[Tensor], None]] = [*(partial(_layer, each) for each in KERNEL_NODES), _norm_and_neuron]
    for run in runs:
        run(x)  # compiles; and remat tries once how the norm is rounded, which is no call of a node
        calls = _Calls()
        with torch.autograd.set_multithreading_enabled(False), calls:
            run(x)
        for operator, (function, arguments) in calls.of.items():
            if operator in seen:
                continue
            seen.add(operator)
            results = function(*arguments)
            moved = sum(each.nbytes for each in (*arguments, *results) if isinstance(each, Tensor))
            del results
            took = timed(lambda f=function, a=arguments: f(*a), device)  # type: ignore[misc]
            yield KernelSpeed(operator, name, steps, neurons, moved, took)
        del calls


def _copy_s(x: Tensor, device: str) -> float:
    target = torch.empty_like(x)
    return timed(lambda: target.copy_(x), device)


def _fused(name: str) -> Any:
    silent = {"on_drift": "ignore"} if name == "revlif" else {}
    return make_node(name, step_mode="m", backend="fused", **silent)


def _layer(name: str, x: Tensor) -> None:
    node = _fused(name)
    y = node(x.detach().requires_grad_())
    node.reset()  # no gradient arrives at the carried state
    y.backward(torch.ones_like(y))


def _norm_and_neuron(x: Tensor) -> None:
    steps, _, neurons = x.shape
    norm, node = nn.BatchNorm2d(128).to(x), StandardLIF(step_mode="m", backend="fused")
    with remat():
        z = x.detach().view(steps, 128, neurons // 128, 1).requires_grad_() * 1
        normed: Tensor = norm(z)
        y = node(normed.unsqueeze(1))
        node.reset()
    y.backward(torch.ones_like(y))


def step_speeds(device: str, dtype: torch.dtype, steps: int, neurons: int) -> Iterator[StepSpeed]:
    """A training step of a layer, by every fused node and by SpikingJelly's where it is installed."""
    x = torch.randn(steps, 1, neurons, device=device, dtype=dtype, requires_grad=True)
    gradient, copy_s = torch.randn_like(x), _copy_s(x.detach(), device)
    for name in (*KERNEL_NODES, "spikingjelly"):
        try:
            node = spikingjelly() if name == "spikingjelly" else _fused(name)
        except SkipCase:
            continue
        node = node.to(device)

        def step(node: Any = node) -> Tensor:
            node.reset()
            y = node(x)
            (found,) = torch.autograd.grad(y, x, gradient)
            return found

        replay = captured(step) if device == "cuda" else None
        took = timed(replay or step, device, GRAPH_CALLS)
        kind = str(dtype).removeprefix("torch.")
        yield StepSpeed(name, kind, steps, neurons, took, replay is not None, took / copy_s)
        del replay, node


def captured(step: Callable[[], object]) -> Callable[[], object] | None:
    """What replays a step as a CUDA graph; None where it cannot be captured, which is said in a warning.

    The step is warm, and launches the same kernels in every call, on the same tensors. A replay returns the result of
    the captured call, whose tensors then have the new values.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            result = step()
    except RuntimeError as error:
        warnings.warn(f"no CUDA graph: {str(error).splitlines()[0]}", RuntimeWarning, stacklevel=2)
        return None

    def replay() -> object:
        graph.replay()
        return result

    return replay


def timed(call: Callable[[], object], device: str, calls: int = CALLS) -> float:
    """Seconds of one call: the median of batches of calls in a row, after one that is not counted."""
    call()
    return median(_batch(call, device, calls) for _ in range(BATCHES))


def _batch(call: Callable[[], object], device: str, calls: int) -> float:
    if device != "cuda":
        start = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - start) / calls
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    call()  # the device is busy while the first of the batch is launched
    begin.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / calls / 1000


SPEED_HEADINGS = ("kernel or step", "type", "T", "neurons", "time", "least bytes", "GB/s", "of a copy")
"""Columns of `speed_rows`."""


def measure_speeds(device: str, sizes: Sequence[tuple[int, int]], path: Path) -> list[tuple[str, ...]]:
    """Times every fused kernel, and whole steps of layers, at each size in float32 and bfloat16.

    Args:
        device: "cuda", or "cpu" for a rehearsal.
        sizes: T and neurons.
        path: of a JSON file: a list of kernels and one of steps, in bytes and seconds.
    Returns:
        Rows of a table with `SPEED_HEADINGS`.
    """
    kernels, steps = list[KernelSpeed](), list[StepSpeed]()
    for dtype in (torch.float32, torch.bfloat16):
        for length, neurons in sizes:
            kernels += kernel_speeds(device, dtype, length, neurons)
            steps += step_speeds(device, dtype, length, neurons)
    about = {"device": gpu_name() if device == "cuda" else "cpu", "torch": torch.__version__}
    content = {**about, "kernels": [asdict(each) for each in kernels], "steps": [asdict(each) for each in steps]}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(json.dumps(content, indent=1) + "\n", path)
    copies = {(each.dtype, each.steps, each.neurons): each.rate for each in kernels if each.name == "copy"}
    rows = list[tuple[str, ...]]()
    for each in kernels:
        share = each.rate / copies[each.dtype, each.steps, each.neurons]
        rows.append(
            (each.name, each.dtype, str(each.steps), f"{each.neurons:,}", units.seconds(each.time_s),
             units.size(each.nbytes), f"{each.rate / 1e9:,.0f}", units.percent(share))
        )  # fmt: skip
    for step in steps:
        how = "" if step.in_graph or device != "cuda" else ", with its launches"
        rows.append(
            (f"step of {step.node}{how}", step.dtype, str(step.steps), f"{step.neurons:,}", units.seconds(step.time_s),
             units.ABSENT, units.ABSENT, f"{step.copies:.2f} copies")
        )  # fmt: skip
    return rows
