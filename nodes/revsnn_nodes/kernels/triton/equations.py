"""How the Triton kernels are compiled and how their block sizes are chosen.

With TRITON_INTERPRET=1 in the environment before triton is imported, kernels run in Triton's interpreter, on CPU
tensors and with one fixed block size: slow, and the way to check their arithmetic without a GPU.

The neuron's equations and the surrogate derivative for a block of columns, in Triton.

Equations: nodes/README.md. Each function does what its namesake in `cpu_rows` does. Arithmetic is in float64 for
float64 tensors, and in float32 for all others. Numbers that the reference would hold in a tensor (charge, membrane,
output) are rounded to the tensor's type where they come about: so what the backward pass reads is what the forward
pass decided by, in half precision too.

Kernels are compiled without multiply-adds (`enable_fp_fusion=False`): forward values are then the reference's, and
a charge that is regenerated is the charge that fired. They wait for memory, not for arithmetic.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import triton
import triton.language as tl

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


SIGMOID = tl.constexpr(0)
ATAN = tl.constexpr(1)
QUADRATIC = tl.constexpr(2)
EXPONENTIAL = tl.constexpr(3)
SQUARED = tl.constexpr(4)
ERF = tl.constexpr(5)


@jit
def appended(parts, part):
    """A tuple with one part more at its end."""
    return parts + (part,)  # noqa: RUF005  (kernels have no unpacking)


@jit
def prepended(part, parts):
    """A tuple with one part more at its beginning."""
    return (part,) + parts  # noqa: RUF005


@jit
def number(value, like):
    """A parameter in the type of the arithmetic on a block."""
    return tl.full((), value, like.dtype)


@jit
def widened(block):
    """A block as read from memory, in the type of the arithmetic on it."""
    return block if block.dtype == tl.float64 else block.to(tl.float32)


@jit
def rounded(block, DTYPE: tl.constexpr):
    """A block with the values it will have when read back from a tensor of this type."""
    return block.to(DTYPE).to(block.dtype)


@jit
def quotient(a, b):
    """a / b, correctly rounded: Triton's division is not, in float32."""
    return a / b if a.dtype == tl.float64 else tl.div_rn(a, b)


@jit
def columns_of(columns, BLOCK: tl.constexpr):
    """The columns of this program, and which of them exist."""
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return offsets, offsets < columns


@jit
def read(pointers, mask):
    """A block for arithmetic; zeros where masked."""
    return widened(tl.load(pointers, mask=mask, other=0.0))


@jit
def write(pointers, block, mask):
    """Stores a block in the type of the tensor."""
    tl.store(pointers, block.to(pointers.dtype.element_ty), mask=mask)


@jit
def read_or(pointers, mask, fill, GIVEN: tl.constexpr):
    """A block of a tensor; `fill` where none is given (the pointers are then not followed)."""
    if GIVEN:
        return read(pointers, mask)
    zeros = tl.zeros(pointers.shape, tl.float64 if pointers.dtype.element_ty == tl.float64 else tl.float32)
    return zeros + number(fill, zeros)


@jit
def charge_of(x, v, tau, rest, DECAY: tl.constexpr, EXACT: tl.constexpr):
    """Charge of input x and membrane v; with EXACT, `tau` holds 1 / tau, for powers of two the same bits."""
    above = v - rest
    part = x - above if DECAY else above
    part = part * tau if EXACT else quotient(part, tl.zeros_like(part) + tau)
    return v + part if DECAY else v - part + x


@jit
def fired(charge, threshold):
    """Spike, 0 or 1 in the type of the charge."""
    return (charge - threshold >= 0).to(charge.dtype)


@jit
def reset_of(charge, spike, threshold, rest, SOFT: tl.constexpr):
    """Membrane after firing."""
    if SOFT:
        return charge - spike * threshold
    return tl.where(spike > 0.5, rest, charge)


@jit
def clamped(x, low, high):
    """x within [low, high]."""
    x = tl.where(x < low, low, x)
    return tl.where(x > high, high, x)


@jit
def phi_of(z, height, scale, KIND: tl.constexpr):
    """Surrogate derivative at z; `KIND`, `height` and `scale` are those of `coefficients.surrogate_code`."""
    if KIND == SIGMOID:
        e = tl.exp(-scale * tl.abs(z))
        return height * e / ((1 + e) * (1 + e))
    if KIND == ATAN:
        return height / (1 + (z * scale) * (z * scale))
    if KIND == QUADRATIC:
        return tl.maximum(height - scale * tl.abs(z), 0.0)
    if KIND == EXPONENTIAL:
        return height * tl.exp(-scale * tl.abs(z))
    if KIND == SQUARED:
        return height / ((scale + tl.abs(z)) * (scale + tl.abs(z)))
    if KIND == ERF:
        return height * tl.exp(-(scale * z) * (scale * z))
    return tl.where(tl.abs(z) < scale, height, 0.0)


@jit
def gradient_at_charge(
    h, s, sbar, vbar, threshold, rest, height, scale,
    KIND: tl.constexpr, SOFT: tl.constexpr, DETACH: tl.constexpr,
):  # fmt: skip
    """See `revsnn_nodes.carrier.lif_step_vjp`."""
    if not DETACH:
        sbar = sbar - vbar * (threshold if SOFT else h - rest)
    kept = vbar if SOFT else vbar * (1 - s)
    return kept + sbar * phi_of(h - threshold, height, scale, KIND)
