"""Triton kernels: run on a GPU where there is one, else in Triton's interpreter; and compiled for one not there.

Triton decides when it is imported whether it interprets: it does so in a child process.
"""

import io
import multiprocessing
import os
import re
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch
from nodes_cases import COUPLED, Ends, Problem
from revsnn_nodes.kernels.layout import numbers, surrogate_code
from revsnn_nodes.kernels.ops import OPERATORS
from torch import Tensor

Launch = Callable[..., tuple[Tensor, ...]]


def child(**environment: str) -> ProcessPoolExecutor:
    """One worker process, started with these variables in its environment."""
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        pool.submit(torch.set_num_threads, 1).result()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    return pool


def interpreted(pool: ProcessPoolExecutor) -> Launch:
    """`launched`, run by the worker, which must interpret."""

    def launch(*arguments: Any) -> tuple[Tensor, ...]:
        packed = io.BytesIO()
        torch.save(arguments, packed)
        results = pool.submit(_launch, packed.getvalue()).result()
        return torch.load(io.BytesIO(results))

    return launch


def launched(name: str, *arguments: Any) -> tuple[Tensor, ...]:
    """An operator by its Triton kernel, on whatever device its arguments are."""
    from revsnn_nodes.kernels.triton import launch as triton_launch

    call = OPERATORS[name].call(*arguments)
    return triton_launch.run(name, OPERATORS[name].results(call), call)


def on_gpu(*arguments: Any) -> tuple[Tensor, ...]:
    """`launched` on copies of the arguments on the GPU; results on the CPU."""
    moved = [each.cuda() if isinstance(each, Tensor) else each for each in arguments]
    return tuple(result.cpu() for result in launched(*moved))


def _call_in_kernel(function: Any, *arguments: Any, **named: Any) -> Any:
    """Runs a function that a kernel calls, in Triton's interpreter.

    Its own way puts the interpreter's language in the place of Triton's at every such call, which takes two thirds of
    the time. That of our functions is replaced for the whole launch; that of Triton's own, once replaced, stays so.
    """
    if function.fn.__module__.startswith("triton."):
        _replace_language(function.fn)
    return function.rewrite()(*arguments, **named)


@cache
def _replace_language(function: Any) -> None:
    from triton.runtime import interpreter

    interpreter._patch_lang(function)


@cache
def _take_masks_of_integers(builder: Any) -> None:
    """Triton 3.9 lets its interpreter hold a condition on a number as integers, and refuses those as a mask."""
    load, store = builder.create_masked_load, builder.create_masked_store

    def masked_load(self: Any, pointers: Any, mask: Any, *others: Any) -> Any:
        mask.data = mask.data.astype(bool)
        return load(self, pointers, mask, *others)

    def masked_store(self: Any, pointers: Any, value: Any, mask: Any, *others: Any) -> Any:
        mask.data = mask.data.astype(bool)
        return store(self, pointers, value, mask, *others)

    builder.create_masked_load, builder.create_masked_store = masked_load, masked_store


def _launch(packed: bytes) -> bytes:
    from revsnn_nodes.kernels.triton import equations as triton_jit
    from triton.runtime import interpreter

    assert triton_jit.INTERPRETED
    interpreter.InterpretedFunction.__call__ = _call_in_kernel
    _take_masks_of_integers(interpreter.InterpreterBuilder)
    results = io.BytesIO()
    torch.save(launched(*torch.load(io.BytesIO(packed))), results)
    return results.getvalue()


def kernels_and_operators() -> tuple[set[str], set[str]]:
    """Names of the kernels, and of the operators that CUDA tensors reach."""
    from revsnn_nodes.kernels.triton import launch as triton_launch

    everything = [each for each in torch._C._dispatch_get_all_op_names() if each.startswith("revsnn::")]
    on_cuda = {each for each in everything if torch._C._dispatch_has_kernel_for_dispatch_key(each, "CUDA")}
    return set(triton_launch.KERNELS), {each.removeprefix("revsnn::") for each in on_cuda}


def differentiate(launch: Launch, name: str, node: Any, problem: Problem, through: str = "yv") -> Ends:
    """Runs a node's operators forward and backward, as its autograd Function does; `through` as in `nodes_cases`."""
    neuron, soft = node.neuron, node.neuron.v_reset is None
    code = surrogate_code(node.surrogate_function)
    assert code is not None
    p = list(numbers(neuron, *code[1:]))
    ybar = problem.y_bar if "y" in through else None
    vbar = problem.v_bar if "v" in through else None
    x, v, kind, detach, decay = problem.x, problem.v, code[0], neuron.detach_reset, neuron.decay_input
    need_v = v is not None
    if name in COUPLED:
        by_spike, steps = neuron.reset_gate == "spike", x.shape[0]
        split = (neuron.groups, neuron.group_dim)
        every = getattr(node, "anchor_every", None) or steps
        y, v_last, anchors = launch("coupled_forward", x, v, p, decay, soft, by_spike, *split, every)
        if name == "revlif":
            grads = launch("inverse_backward", y, v_last, ybar, vbar, p, kind, soft, detach, *split, need_v)
        else:
            tail = (ybar, vbar, p, kind, decay, soft, detach, by_spike, *split, every, need_v)
            grads = launch("anchored_backward", y, v, anchors, *tail)
    elif name == "lif-carrier":
        y, v_last = launch("carrier_forward", x, v, p, decay, soft)
        grads = launch("carrier_backward", y, v, ybar, vbar, p, kind, soft, detach, need_v)
    else:
        y, v_last, charges = launch("lif_forward", x, v, None, p, decay, soft, True)
        grads = launch("lif_backward", charges, ybar, vbar, None, None, p, kind, decay, soft, detach, need_v, False)
    return Ends(y, v_last, grads[0], grads[1] if need_v else None)


def compile_for(capability: int, name: str, *arguments: Any) -> list[dict[str, Any]]:
    """Compiles an operator's kernel as it would be; what the machine code of each shape does.

    Of the shapes that launches of few columns and of many would have.

    Runs in a process that does not interpret. Arguments as for the operator, with tensors on the CPU.
    """
    import triton
    from revsnn_nodes.kernels.triton import launch as triton_launch
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    class Absent:
        """A driver for a GPU of one architecture, enough to compile for it."""

        def get_current_target(self) -> Any:
            return GPUTarget("cuda", capability, 32)

        def get_current_device(self) -> int:
            return capability  # what is compiled is cached by device

        def get_current_stream(self, device: int) -> int:
            return 0

    facts: list[dict[str, Any]] = []

    def compile_all(function: Any, given: dict[str, Any], shape: Any) -> None:
        itemsize = next(each.element_size() for each in given.values() if isinstance(each, Tensor))
        for columns in (1 << 12, 1 << 22):
            shape = triton_launch._shape_for(name, {**given, "columns": columns}, itemsize)
            options = {"num_warps": shape.warps, "enable_fp_fusion": False}
            made = function.warmup(grid=(1,), BLOCK=shape.block, STAGES=shape.stages, **options, **given)
            facts.append(
                {"per_thread": shape.block // (32 * shape.warps), **_facts(made.asm, Path(triton.__file__).parent)}
            )

    driver.set_active(Absent())
    triton_launch._run = compile_all
    launched(name, *arguments)
    return facts


def _facts(asm: dict[str, Any], triton_folder: Path) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()
        tool = triton_folder / "backends" / "nvidia" / "bin" / "cuobjdump"
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    stack, registers = re.search(r"STACK:(\d+)", usage), re.search(r"REG:(\d+)", usage)
    assert stack is not None, usage
    assert registers is not None, usage
    return {
        "code": re.sub(r"\.(?:loc|file)\b.*|//.*", "", asm["ptx"]),
        "registers": int(registers[1]),
        "spilled_bytes": int(stack[1]),
        "wide_accesses": len(re.findall(r"(?:ld|st)\.global\S*\.v(?:4\.b32|2\.b64)", asm["ptx"])),
        "accesses": len(re.findall(r"(?:ld|st)\.global", asm["ptx"])),
        "asynchronous": "cp.async" in asm["ptx"],
        "multiply_adds": len(re.findall(r"fma\.rn\.f32", asm["ptx"])),
    }
