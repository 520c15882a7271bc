"""How the Triton kernels are compiled and how their block sizes are chosen.

With TRITON_INTERPRET=1 in the environment before triton is imported, kernels run in Triton's interpreter, on CPU
tensors and with one fixed block size: slow, and the way to check their arithmetic without a GPU.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import triton

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether kernels run in the interpreter."""

INTERPRETED_BLOCK = 32
"""Columns of a block in the interpreter."""

MOST_REGISTERS = 160
"""Registers that a thread may spend on what it holds of a sequence, of the 255 that it has:
above this, ptxas spills nearly always."""

BLOCKS = ((128, 4), (256, 4), (512, 4), (1024, 4), (1024, 8))
"""Columns and warps of a block: 1 to 8 columns per thread, so 16 bytes per access in each width of number."""


def jit(function: Callable[..., Any]) -> Any:
    """Makes a function callable from kernels."""
    return triton.jit(function)


def kernel(
    key: Sequence[str], values: Callable[[dict[str, Any]], int], stages: Sequence[int] = (1, 3)
) -> Callable[[Callable[..., Any]], Any]:
    """Makes a kernel with arguments BLOCK and STAGES, which are measured once for each value of `key` and then kept.

    Args:
        key: the arguments that decide what is best, beside the dtypes.
        values: how many numbers of a sequence a column holds at once, from the arguments: configurations whose
            threads could not hold them in registers are not tried.
        stages: how many steps the loops over time may read ahead, by asynchronous copies.
    """

    def make(function: Callable[..., Any]) -> Any:
        return triton.autotune(
            configs=_configurations(stages), key=list(key), prune_configs_by={"early_config_prune": prune}
        )(triton.jit(function))

    def prune(configurations: list[Any], arguments: dict[str, Any], **constants: Any) -> list[Any]:
        everything = {**arguments, **constants}
        words = max(each.element_size() for each in everything.values() if hasattr(each, "element_size")) // 4
        held = values(everything) * max(words, 1)
        smallest = min(per_thread(each) for each in configurations)
        return [each for each in configurations if per_thread(each) <= max(MOST_REGISTERS // held, smallest)]

    def per_thread(configuration: Any) -> int:
        return int(configuration.kwargs["BLOCK"] // (32 * configuration.num_warps))

    return make


def _configurations(stages: Sequence[int]) -> list[Any]:
    if INTERPRETED:
        return [triton.Config({"BLOCK": INTERPRETED_BLOCK, "STAGES": 1}, num_warps=1)]
    return [
        triton.Config({"BLOCK": block, "STAGES": ahead}, num_warps=warps) for block, warps in BLOCKS for ahead in stages
    ]
